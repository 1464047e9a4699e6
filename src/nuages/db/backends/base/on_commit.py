"""On-commit hooks: what they return is awaited, what they raise told apart, and all of them run.

Django calls a hook and drops what it returns. Here the result may be awaited, by what runs the
hook: a bridge, or `async_to_sync` in a thread or a sync program. The hooks of a transaction run
after its COMMIT was answered, so no failure of theirs must look as if there had been no commit: a
database error in a hook becomes a `HookFailed`, and a cancellation waits for the other hooks.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from asgiref.sync import async_to_sync
from django.db import Error

from nuages.bridge import await_, current_bridge
from nuages.bridge.awaitables import discard
from nuages.bridge.grace import GracePeriod
from nuages.bridge.wrapping import is_async
from nuages.conf import setting
from nuages.exceptions import HookFailed, SyncInCoroutine

logger = logging.getLogger("django.db.backends.base")
cut_short = logging.getLogger("nuages.db")

Entry = tuple[Any, ...]
"""A hook as Django keeps it: the savepoints it belongs to, the function, the robust flag."""


def call_hook(function: Callable[[], Any], robust: bool) -> None:
    """Call a hook outside a transaction; with `robust` its error is logged, not raised.

    `BaseDatabaseWrapper.on_commit` does so, too, but goes by the whole connection's transaction.
    """
    hook = AwaitingHook(function)
    if not robust:
        hook()
        return
    try:
        hook()
    except Exception as error:
        name = hook.__qualname__
        logger.error("Error calling %s in on_commit() (%s).", name, error, exc_info=True)


class AwaitingHook:
    """A hook, and what it returns awaited."""

    __qualname__: str

    def __init__(self, function: Callable[[], Any]) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        # Django's log asks for the attribute, and a partial has none.
        self.__qualname__ = _name_of(function)

    def __call__(self) -> None:
        """Call the hook."""
        call_and_await(self.function, None)


def kept_hook(function: Any) -> Any:
    """Return what a wrapper of ours keeps of `function` until the commit, which awaits all hooks.

    A coroutine function is kept as a callable that awaits it: tests call what they captured.
    """
    return AwaitingHook(function) if callable(function) and is_async(function) else function


def call_and_await(function: Callable[[], Any], period: GracePeriod | None) -> None:
    """Call `function` and await what it returns, for `period` even if cancelled.

    Futures and tasks are left alone: they run by themselves, and a hook that starts one wants
    nobody to wait for it.
    """
    result = function()
    if not inspect.isawaitable(result) or asyncio.isfuture(result):
        return
    if current_bridge() is not None:
        await_(result)
    elif asyncio._get_running_loop() is not None:
        discard(result)
        raise SyncInCoroutine(
            "A hook of on_commit() has to be awaited, and it is due at once, in a coroutine "
            "outside a transaction, where sync code cannot await it. `await aon_commit(...)`."
        )
    else:
        async_to_sync(_awaited if period is None else period.outlast)(result)


async def _awaited(awaitable: Any) -> None:
    await awaitable


class CommittedHooks:
    """The hooks of one transaction, while they run after its COMMIT."""

    def __init__(self, entries: list[Entry]) -> None:
        self._left = [function for _, function, *_ in entries]
        self._running: Any = None
        bridge = current_bridge()
        around = None if bridge is None else bridge.grace
        self._is_outermost = around is None
        # Hooks of a hook's own transaction have the time that is left for the outer hook.
        self._period = around or GracePeriod(float(setting["HOOKS_TIMEOUT"]))
        self.entries: list[Entry] = [self._entry(*entry) for entry in entries]
        """What Django is to run in place of the entries given."""

    def _entry(self, savepoints: Any, function: Any, robust: bool) -> Entry:
        def hook() -> None:
            self._call(function, robust)

        hook.__qualname__ = _name_of(function)
        return savepoints, hook, robust

    def _call(self, function: Any, robust: bool) -> None:
        if self._period.is_over and self._period.cancelled is not None:
            self._running = None  # that hook has swallowed its cancellation
            raise self._period.cancelled
        self._running = self._left.pop(0)
        if isinstance(function, AwaitingHook):
            function = function.function
        try:
            call_and_await(function, self._period)
        except Error as error:
            if robust:
                raise
            raise HookFailed(
                hook=_name_of(function), error=error, later=self._not_run()
            ) from error

    def _not_run(self) -> str:
        if not self._left:
            return "There was no hook after it"
        return f"The hooks after it did not run: {_names_of(self._left)}"

    @contextmanager
    def run(self) -> Iterator[None]:
        """Have Django run the `entries` inside; a cancellation meanwhile is raised afterwards."""
        bridge = current_bridge()
        try:
            if not self._is_outermost:
                yield
            elif bridge is not None:
                with bridge.graced(self._period):
                    yield
            else:
                yield from self._in_thread()
        except asyncio.CancelledError:
            self._log_cut()
            raise

    def _in_thread(self) -> Iterator[None]:
        """Run a hook in a thread: only what it awaits on the loop can be cancelled."""
        try:
            yield
        except Exception as error:
            if self._period.cancelled is not None:
                raise self._period.cancelled from error
            raise
        if self._period.cancelled is not None:
            raise self._period.cancelled

    def _log_cut(self) -> None:
        """Tell which hooks of a committed transaction did not run, or not to their end."""
        cut = [] if self._running is None else [f"{_name_of(self._running)} was cancelled"]
        if self._left:
            cut.append(f"these did not run: {_names_of(self._left)}")
        if cut:
            why = ""
            if self._period.is_over:
                why = ' Its task was cancelled longer than NUAGES["HOOKS_TIMEOUT"] ago.'
            cut_short.error(
                "A transaction was committed, but of its on-commit hooks %s.%s",
                "; ".join(cut),
                why,
            )


def _names_of(functions: list[Any]) -> str:
    return ", ".join(map(_name_of, functions))


def _name_of(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", None)
    return name if isinstance(name, str) else repr(function)
