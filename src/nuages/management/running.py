"""The run of a command's coroutine by sync code: where it is awaited, and how signals end it.

In a fresh event loop the rules are those of `asyncio.Runner`, with two additions: SIGTERM is
treated as SIGINT is, and both are announced to `nuages.stopping`, so that a command may end in
order. The first signal cancels the coroutine (after `grace` seconds, where it asks for them), each
further signal cancels it once more, which cuts its clean-up short. Where the loop has not even
noticed the previous signal, because code on it does not await, the next one raises right there.

Only Python's own handlers are replaced, and put back: code that handles signals already goes on
doing so. `signal.signal()` and `call_soon_threadsafe()` are all it takes, so Windows is no
exception; SIGTERM just never comes there.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar, cast

from asgiref.sync import async_to_sync

from nuages.bridge import current_bridge, on_loop
from nuages.bridge.tasks import wait_for_spawned
from nuages.db.atomic import published_scopes
from nuages.db.scopes.chain import current_chain
from nuages.exceptions import CommandInCoroutine
from nuages.handling.placement import stepped
from nuages.stopping import announce_stop

T = TypeVar("T")

SETTLE_TIMEOUT = 5.0
"""Seconds that connections which are being reset or closed get at the end."""

_REPLACED: tuple[tuple[signal.Signals, Any], ...] = (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGTERM, signal.SIG_DFL),
)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a new loop: uvloop's where that is installed, else asyncio's."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def refuse_coroutine(name: str) -> None:
    """Raise `CommandInCoroutine` where the calling code could only block a running loop."""
    if asyncio._get_running_loop() is not None and current_bridge() is None:
        raise CommandInCoroutine(name=name)


def wait_for(function: Callable[[], Coroutine[Any, Any, T]], grace: float = 0.0) -> T:
    """Run a coroutine function for sync code; implicit I/O in it is awaited.

    In a bridge it runs in the caller's task; in a thread of `sync_to_async`, on the loop that the
    thread works for; elsewhere on a loop of its own; in each case in the caller's transaction.
    """
    if current_bridge() is not None:
        return cast(T, stepped(function)())
    if current_chain() is not None:
        return async_to_sync(on_loop(function))()
    with published_scopes():
        return run(on_loop(function), grace)


def run(main: Callable[[], Coroutine[Any, Any, T]], grace: float = 0.0) -> T:
    """Run `main()` on a fresh loop, to the end of its tasks, generators and pools.

    `grace` is how many seconds `main()` may go on after a signal was announced. What it makes of
    the cancellation counts: a result is returned, an error is raised. A cancellation that comes
    through is KeyboardInterrupt after SIGINT and, after SIGTERM, SystemExit with the code that a
    shell gives a process that SIGTERM kills (143).
    """
    runner = asyncio.Runner(loop_factory=new_event_loop)
    signals = _Signals(runner.get_loop(), grace)
    try:
        with signals.taken(), runner:
            return runner.run(signals.watch(main))
    except asyncio.CancelledError as cancelled:
        if signals.number is None:
            raise
        raise signals.error() from cancelled


class _Signals:
    """SIGINT and SIGTERM while a loop runs: a signal handler that cancels the loop's task."""

    def __init__(self, loop: asyncio.AbstractEventLoop, grace: float) -> None:
        self.loop = loop
        self.grace = grace
        self.number: int | None = None
        """The first signal that came."""
        self.task: asyncio.Task[Any] | None = None
        self._noticed = True
        self._cancelled = False
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Be the handler of each signal that nobody else handles, in the main thread."""
        before = []
        if threading.current_thread() is threading.main_thread():
            before = [each for each in _REPLACED if signal.getsignal(each[0]) is each[1]]
        for number, _ in before:
            signal.signal(number, self)
        try:
            yield
        finally:
            for number, handler in before:
                signal.signal(number, handler)

    async def watch(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Await `main()` in the task that signals are to cancel."""
        self.task = asyncio.current_task()
        if self._cancelled:
            raise asyncio.CancelledError
        try:
            return await main()
        finally:
            await wait_for_spawned(SETTLE_TIMEOUT)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.number is None:
            self.number = number
        if not self._noticed or (self.task is not None and self.task.done()):
            raise self.error()
        self._noticed = False
        self.loop.call_soon_threadsafe(self._notice)

    def _notice(self) -> None:
        first = self._timer is None and not self._cancelled
        self._noticed = True
        announce_stop(self.loop)
        if first and self.grace > 0:
            self._timer = self.loop.call_later(self.grace, self._cancel)
        else:
            self._cancel()

    def _cancel(self) -> None:
        self._cancelled = True
        if self._timer is not None:
            self._timer.cancel()
        if self.task is not None:
            self.task.cancel()

    def error(self) -> BaseException:
        """Return what ends a process as the signal does."""
        assert self.number is not None
        return (
            KeyboardInterrupt() if self.number == signal.SIGINT else SystemExit(128 + self.number)
        )
