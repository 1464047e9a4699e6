"""News that the server begins to stop, for whatever would otherwise keep it from stopping.

A server waits for open streams when it is told to end, and tells its application last (the
lifespan's shutdown event). So streams must know earlier: the process's SIGTERM and SIGINT are
noticed on their way to the server's own handlers, which get them as ever.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

_states: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _State] = weakref.WeakKeyDictionary()


class _State:
    """The state of one loop's server, stopping or not, and the callbacks to call."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.callbacks: set[Callable[[], object]] = set()


def _state(loop: asyncio.AbstractEventLoop) -> _State:
    state = _states.get(loop)
    if state is None:
        state = _states[loop] = _State()
    return state


def is_stopping() -> bool:
    """Tell whether the server of the running loop has begun to stop."""
    state = _states.get(asyncio.get_running_loop())
    return state is not None and state.event.is_set()


async def wait_for_stop() -> None:
    """Wait until the server of the running loop begins to stop."""
    await _state(asyncio.get_running_loop()).event.wait()


def call_at_stop(callback: Callable[[], object]) -> None:
    """Call `callback()` when the server of the running loop begins to stop; now, if it has."""
    state = _state(asyncio.get_running_loop())
    if state.event.is_set():
        callback()
    else:
        state.callbacks.add(callback)


def forget_at_stop(loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
    """Undo `call_at_stop`."""
    _state(loop).callbacks.discard(callback)


def announce_stop(loop: asyncio.AbstractEventLoop) -> None:
    """Say that the server of `loop` begins to stop; from the loop's own thread."""
    state = _state(loop)
    state.event.set()
    while state.callbacks:
        state.callbacks.pop()()


def expect_signals(loop: asyncio.AbstractEventLoop) -> None:
    """Announce the stop of `loop`'s server at SIGTERM and SIGINT, before its own handlers act.

    This works only in the main thread, where Python runs signal handlers, and only for a signal
    that somebody handles in Python: one that kills the process leaves nothing to announce.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        before: Any = signal.getsignal(number)
        if isinstance(before, _Announcing):
            # The handler is an earlier loop's in this process.
            before = before.before
        if callable(before):
            signal.signal(number, _Announcing(before, loop))


class _Announcing:
    """A signal handler that announces the stop and then calls the handler it found."""

    def __init__(self, before: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.before = before
        self._loop = weakref.ref(loop)

    def __call__(self, number: int, frame: FrameType | None) -> Any:
        loop = self._loop()
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(announce_stop, loop)
        return self.before(number, frame)
