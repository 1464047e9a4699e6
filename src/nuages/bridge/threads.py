"""Work in threads, which the calling code awaits."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, cast

from asgiref.sync import SyncToAsync

from nuages.bridge.tasks import cancelling, ended, uncaught

T = TypeVar("T")

sensitive_calls: ContextVar[set[concurrent.futures.Future[None]] | None] = ContextVar(
    "nuages.sensitive_calls", default=None
)
"""The calls that run in the thread-sensitive thread of whoever set this; done when they end."""

_MISSING = object()


async def in_thread(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call `function` in a thread, in the caller's context.

    A thread cannot be stopped, and what it does belongs to the caller (its transaction, its
    locks), so a cancellation is raised when the call has ended, its result dropped; a call that
    has not begun is dropped at once.
    """
    return await _in_thread(functools.partial(function, *args, **kwargs), sensitive=False)


async def in_thread_of(executor: ThreadPoolExecutor, function: Callable[[], T]) -> T:
    """Call `function` in a thread of `executor`; all else is as in `in_thread`."""
    return await _in_thread(function, sensitive=False, executor=executor)


async def in_sensitive_thread(
    function: Callable[[], T],
    left: list[asyncio.Future[None]] | None = None,
    dropped: Callable[[Any], None] | None = None,
) -> T:
    """Call `function` in asgiref's thread-sensitive thread, in the caller's context.

    With `left` a cancellation is raised at once, and a call that still runs then is put there, as
    a future that is done when the call has ended; `dropped` gets a result that nobody else will.
    """
    return await _in_thread(function, True, left, dropped)


async def _in_thread(
    function: Callable[[], T],
    sensitive: bool,
    left: list[asyncio.Future[None]] | None = None,
    dropped: Callable[[Any], None] | None = None,
    executor: ThreadPoolExecutor | None = None,
) -> T:
    call = _ThreadCall(function)
    placed = SyncToAsync(call, thread_sensitive=sensitive, executor=executor)
    try:
        result: T = await uncaught(placed())
    except asyncio.CancelledError:
        if call.returned and not cancelling():
            # Code that the thread awaited took the cancellation and withdrew it, but asgiref
            # raises it all the same where the thread was quick to end.
            return cast(T, call.result)
        if not call.drop():
            if dropped is not None:
                call.ended.add_done_callback(lambda _: call.returned and dropped(call.result))
            if left is None:
                await ended(call.ended)
            else:
                left.append(call.ended)
        raise
    return result


def call_apart(function: Callable[[], T]) -> T:
    """Call `function` in a copy of the context; what it sets arrives when it has ended.

    asgiref copies the context of a thread back at once when its caller is cancelled. What the
    thread has set for a while must not be in that context: the caller would be in a transaction
    that the thread has open, and its next call in a thread would go to an executor already gone.
    """
    context = contextvars.copy_context()
    try:
        return context.run(function)
    finally:
        for variable, value in context.items():
            if variable.get(_MISSING) is not value:
                variable.set(value)


@contextmanager
def noted_call() -> Iterator[None]:
    """Note a call of `sync_to_async`, in its thread and context, among the `sensitive_calls`."""
    calls = sensitive_calls.get()
    if calls is None:
        yield
        return
    call: concurrent.futures.Future[None] = concurrent.futures.Future()
    calls.add(call)
    try:
        yield
    finally:
        calls.discard(call)
        call.set_result(None)


async def calls_ended() -> None:
    """Wait until none of the `sensitive_calls` runs any more, despite cancellations."""
    while calls := sensitive_calls.get():
        await ended(asyncio.wrap_future(next(iter(calls))))


class _ThreadCall:
    """One call in a thread: whether it has begun, and a future that is done when it ended."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._loop = asyncio.get_running_loop()
        self._claim = [None]  # taken once: by the thread that begins, or by the code that gives up
        self.returned = False
        self.result: Any = None
        self.ended: asyncio.Future[None] = self._loop.create_future()

    def __call__(self) -> Any:
        if not _take(self._claim):
            return None
        try:
            self.result = self._function()
            self.returned = True
            return self.result
        except StopIteration as error:
            # As in a coroutine; in a future StopIteration would never arrive (before Python 3.13).
            raise RuntimeError("the function raised StopIteration") from error
        finally:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def drop(self) -> bool:
        """Give up the call; return whether it had not begun, so that it never will."""
        return _take(self._claim)


def _take(claim: list[None]) -> bool:
    try:
        claim.pop()
    except IndexError:
        return False
    return True
