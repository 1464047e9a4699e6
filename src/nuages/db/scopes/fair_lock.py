"""A first come, first served lock that never blocks the event loop's thread.

In a bridge the lock awaits, in a thread without a running loop it blocks, and where it can do
neither it raises. It is used for the turns of a scope's nodes (`tree.py`) and in place of the
`threading.Lock` of a psycopg connection.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from nuages.bridge import Bridge, current_bridge
from nuages.exceptions import BridgeClosed, ConnectionBusy


def caller_label() -> str:
    """Name the running task, or else the thread, for messages."""
    loop = asyncio._get_running_loop()
    task = asyncio.current_task(loop) if loop is not None else None
    if task is None:
        return f"thread {threading.current_thread().name!r}"
    coroutine = task.get_coro()
    name = getattr(coroutine, "__qualname__", "")
    return f"task {task.get_name()!r}" + (f" ({name})" if name else "")


def running_caller() -> Any:
    """Return the running task, or the thread where no loop runs."""
    loop = asyncio._get_running_loop()
    if loop is None:
        return threading.current_thread()
    return asyncio.current_task(loop) or threading.current_thread()


class _Waiter:
    """One place in the queue: a future of the bridge's loop, or a thread's event."""

    __slots__ = ("_bridge", "_event", "_future", "error", "granted", "holder")

    def __init__(self, holder: Any, bridge: Bridge | None) -> None:
        self.holder = holder
        self.granted = False
        self.error: BaseException | None = None
        self._bridge = bridge
        self._future = bridge.loop.create_future() if bridge is not None else None
        self._event = threading.Event() if bridge is None else None

    def is_gone(self) -> bool:
        """Tell whether the waiter's loop was closed, so that nobody waits any more."""
        return self._bridge is not None and self._bridge.loop.is_closed()

    def wake(self) -> None:
        if self._event is not None:
            self._event.set()
            return
        assert self._bridge is not None
        if asyncio._get_running_loop() is self._bridge.loop:
            self._set()
        else:
            self._bridge.loop.call_soon_threadsafe(self._set)

    def _set(self) -> None:
        assert self._future is not None
        if not self._future.done():
            self._future.set_result(None)

    def wait(self, timeout: float | None) -> None:
        if self._event is not None:
            self._event.wait(timeout)
            return
        assert self._bridge is not None
        assert self._future is not None
        loop = self._bridge.loop
        timer = loop.call_later(timeout, self._set) if timeout is not None else None
        try:
            self._bridge.wait(self._future)
        finally:
            if timer is not None:
                timer.cancel()


class FairLock:
    """A FIFO lock whose holder is known by name; safe across loops and threads."""

    __slots__ = ("_mutex", "_queue", "holder", "on_release")

    on_release: Callable[[], object] | None
    """Called after each release, whoever has the turn then."""

    def __init__(self) -> None:
        # Reentrant, because the garbage collector may unwind an abandoned bridge in between.
        self._mutex = threading.RLock()
        self._queue: deque[_Waiter] = deque()
        self.holder: Any = None
        self.on_release = None

    def acquire(self, holder: Any, timeout: float | None = None) -> bool:
        """Take the turn for `holder`; return False when `timeout` seconds went by first."""
        with self._mutex:
            if self.holder is None:
                self.holder = holder
                return True
        bridge = current_bridge()
        if bridge is None and asyncio._get_running_loop() is not None:
            raise ConnectionBusy(holder=_label(self.holder))
        if bridge is not None and bridge.closing:
            raise BridgeClosed()
        waiter = _Waiter(holder, bridge)
        with self._mutex:
            if self.holder is None:
                self.holder = holder
                return True
            self._queue.append(waiter)
        try:
            waiter.wait(timeout)
        except BaseException:
            self._withdraw(waiter)
            raise
        with self._mutex:
            if not waiter.granted and waiter.error is None:
                self._queue.remove(waiter)
                return False
        if waiter.error is not None:
            raise waiter.error
        return True

    def acquire_nowait(self, holder: Any) -> bool:
        """Take the turn for `holder` if nobody has it, even if others wait for it."""
        with self._mutex:
            if self.holder is not None:
                return False
            self.holder = holder
            return True

    def _withdraw(self, waiter: _Waiter) -> None:
        with self._mutex:
            if not waiter.granted:
                if waiter in self._queue:
                    self._queue.remove(waiter)
                return
        self.release()

    def release(self) -> None:
        """Hand the turn to the next in the queue."""
        with self._mutex:
            while self._queue:
                waiter = self._queue.popleft()
                if not waiter.is_gone():
                    break
            else:
                self.holder = waiter = None
            if waiter is not None:
                self.holder = waiter.holder
                waiter.granted = True
        if waiter is not None:
            waiter.wake()
        if self.on_release is not None:
            self.on_release()

    def refuse_waiting(self, error: BaseException) -> None:
        """Raise `error` in everyone who waits."""
        with self._mutex:
            waiting, self._queue = self._queue, deque()
            for waiter in waiting:
                # Each waiter gets an error of its own, which has a traceback of its own.
                waiter.error = type(error)(*error.args)
        for waiter in waiting:
            if not waiter.is_gone():
                waiter.wake()

    def is_waited_for(self) -> bool:
        """Tell whether somebody waits for the turn."""
        return bool(self._queue)

    def locked(self) -> bool:
        """Tell whether somebody holds the turn."""
        return self.holder is not None

    # The interface of threading.Lock, for psycopg's `with connection.lock`.

    def __enter__(self) -> bool:
        return self.acquire(Caller())

    def __exit__(self, *exc_info: object) -> None:
        self.release()


class Caller:
    """A caller that is named only when asked, so that the usual case costs nothing."""

    __slots__ = ("_task", "thread")

    def __init__(self) -> None:
        loop = asyncio._get_running_loop()
        self._task = asyncio.current_task(loop) if loop is not None else None
        self.thread = threading.get_ident()

    @property
    def label(self) -> str:
        """Name the caller for messages."""
        if self._task is None:
            return "a thread"
        return f"task {self._task.get_name()!r}"


def _label(holder: Any) -> str:
    return getattr(holder, "label", None) or repr(holder)
