"""The reports of a migration's work, and their reader: the command's output, or nobody."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from nuages.progress import Progress


@dataclass(frozen=True)
class Report:
    """A command's output."""

    stdout: Any
    stderr: Any
    verbosity: int

    def say(self, text: str) -> None:
        """Write a line, below the unfinished one that names the running migration."""
        if self.verbosity >= 1:
            self.stdout.write(f"\n    {text}", ending="")
            self.stdout.flush()


_report: ContextVar[Report | None] = ContextVar("nuages.migrations.report", default=None)


@contextmanager
def reporting(report: Report) -> Iterator[None]:
    """Send the reports of the migrations of a block to `report`."""
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


def progress(description: str, total: int, start: int) -> Progress[Any]:
    """Return the progress of a long operation, in rows; shown where a command runs it."""
    report = _report.get()
    if report is None:
        return Progress(total=total, start=start, verbosity=0)
    if report.verbosity >= 1:
        report.stdout.write("")
        report.stdout.flush()
    return Progress(
        total=total,
        start=start,
        description=description,
        unit="rows",
        output=report.stderr,
        verbosity=report.verbosity,
    )
