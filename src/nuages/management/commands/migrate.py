"""`manage.py migrate`: Django's, on the event loop."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.core.management.commands.migrate import Command as DjangoCommand
from django.db import connections

from nuages import seams
from nuages.db.migrations import Backfill
from nuages.db.migrations.locks import patience
from nuages.db.migrations.report import Report, reporting
from nuages.management.program import LoopProgram


class Command(LoopProgram, DjangoCommand):
    """Django's `migrate`, run on an event loop where it is a program of its own."""

    def add_arguments(self, parser: CommandParser) -> None:
        """Django's arguments, and those about locks."""
        super().add_arguments(parser)
        locks = parser.add_argument_group("locks (PostgreSQL)")
        locks.add_argument(
            "--lock-timeout",
            type=_seconds,
            metavar="SECONDS",
            help="How long a statement may wait for a lock, while later queries of the table wait "
            "behind it. Then the migration is rolled back, and tried again after a pause "
            "(default: any time).",
        )
        locks.add_argument(
            "--lock-retries",
            type=_count,
            default=20,
            metavar="N",
            help="How often it is tried again, with growing pauses (default: %(default)s).",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Migrate; raises CommandError for options that this database cannot follow."""
        report = Report(self.stdout, self.stderr, options["verbosity"])
        timeout = options.get("lock_timeout")
        with contextlib.ExitStack() as stack:
            stack.enter_context(reporting(report))
            if timeout is not None:
                vendor = connections[options["database"]].vendor
                if vendor != "postgresql":
                    raise CommandError(
                        f"--lock-timeout is PostgreSQL's; {options['database']!r} is {vendor}. "
                        'On SQLite OPTIONS["timeout"] says how long a statement waits for another '
                        "writer; on MySQL set lock_wait_timeout in OPTIONS['init_command']."
                    )
                if not seams.installed():
                    raise CommandError("--lock-timeout needs Nuages' seams: see manage.py check.")
                stack.enter_context(patience(timeout, options["lock_retries"], report.say))
            super().handle(*args, **options)

    @staticmethod
    def describe_operation(operation: Any, backwards: bool) -> tuple[str, bool]:
        """Do as Django does; a Backfill without a way back is told as irreversible."""
        if backwards and isinstance(operation, Backfill) and not operation.reversible:
            return f"{operation.describe()} -> IRREVERSIBLE", True
        found: tuple[str, bool] = DjangoCommand.describe_operation(operation, backwards)
        return found


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.001 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"must be 0.001 to 86400 seconds, not {text}")
    return seconds


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {text}")
    return number
