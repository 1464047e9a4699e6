"""`AsyncBaseCommand`: a management command whose `handle()` is a coroutine function."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterable, Iterable
from typing import Any, TypeVar, cast

from django.core.management.base import BaseCommand
from django.db import connections

from nuages.bridge.wrapping import is_async
from nuages.management.running import refuse_coroutine, wait_for
from nuages.progress import INTERVAL, Progress

T = TypeVar("T")


class AsyncBaseCommand(BaseCommand):
    """A command with `async def handle(self, *args, **options)`.

    Everything else is `BaseCommand`'s: arguments, checks, output, CommandError. `handle` runs on
    an event loop, where implicit I/O is awaited as under `@on_loop`: from `manage.py` and from
    sync code on a loop of its own (uvloop's where installed), from `acall_command` and from code
    on a loop on the running one. What `handle` returns is written to stdout.

    SIGINT and SIGTERM are announced (`nuages.stopping.is_stopping`, `wait_for_stop`) and cancel
    `handle`, so that its `finally` blocks run and transactions are rolled back; a second signal
    cancels it once more. The exit codes are then those that a shell reports for any process ended
    by such a signal, 130 and 143; a `handle` that returns ends as if there had been no signal.
    """

    stop_timeout: float = 0.0
    """Seconds that `handle` may go on after the announcement, before it is cancelled."""
    _verbosity = 1

    def execute(self, *args: Any, **options: Any) -> str | None:
        """Check, run `handle` and write its output, as `BaseCommand.execute` does.

        Raises `CommandInCoroutine` in a bare coroutine, which `acall_command` is for.
        """
        name = type(self).__module__.rpartition(".")[2]
        refuse_coroutine(name)
        if not is_async(self.handle):
            raise TypeError(
                f"handle() of an AsyncBaseCommand is a coroutine function (async def), which "
                f"{type(self).__module__}.{type(self).__qualname__} has not. A sync handle() "
                "belongs to a BaseCommand, or takes @on_loop to run on the loop."
            )
        return BaseCommand.execute(cast(BaseCommand, _Waiting(self)), *args, **options)

    async def handle(self, *args: Any, **options: Any) -> str | None:  # type: ignore[override]
        """The command's work; what it returns is written to stdout."""
        raise NotImplementedError(
            "subclasses of AsyncBaseCommand must provide an async handle() method"
        )

    def progress(
        self,
        iterable: Iterable[T] | AsyncIterable[T] | None = None,
        total: float | None = None,
        description: str = "",
        *,
        unit: str = "it",
        start: float = 0,
        interval: float = INTERVAL,
    ) -> Progress[T]:
        """Return a `nuages.progress.Progress` that writes to the command's stderr.

        With `--verbosity 0` it writes nothing.
        """
        return Progress(
            iterable,
            total,
            description,
            unit=unit,
            start=start,
            output=self.stderr,
            verbosity=self._verbosity,
            interval=interval,
        )


class _Waiting:
    """A command as Django's `execute()` knows it: with a `handle()` that returns the output."""

    def __init__(self, command: AsyncBaseCommand) -> None:
        self.__dict__["_command"] = command

    def __getattr__(self, name: str) -> Any:
        return getattr(self._command, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._command, name, value)

    def handle(self, *args: Any, **options: Any) -> Any:
        command: AsyncBaseCommand = self._command
        command._verbosity = options.get("verbosity", 1)
        if command._called_from_command_line:  # type: ignore[attr-defined]
            # Close what the checks opened; the loop has connections of its own.
            for connection in connections.all(initialized_only=True):
                connection.close()
        return wait_for(functools.partial(command.handle, *args, **options), command.stop_timeout)
