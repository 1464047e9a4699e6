"""Work beside the code that runs: tasks nobody awaits, and threads that are awaited."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, cast

from asgiref.sync import SyncToAsync

T = TypeVar("T")

current_task: Callable[[asyncio.AbstractEventLoop], asyncio.Task[Any] | None]
"""`asyncio.current_task(loop)`, which before Python 3.12 is a Python function over this dict."""
if sys.version_info < (3, 12):
    current_task = asyncio.tasks._current_tasks.get  # type: ignore[attr-defined]
else:
    current_task = asyncio.current_task

sensitive_calls: ContextVar[set[concurrent.futures.Future[None]] | None] = ContextVar(
    "nuages.sensitive_calls", default=None
)
"""The calls that run in the thread-sensitive thread, of whoever set it; done when they end."""

_spawned: set[asyncio.Task[Any]] = set()
"""A loop references its tasks weakly."""
_MISSING = object()


def spawn(
    loop: asyncio.AbstractEventLoop,
    function: Callable[[], Coroutine[Any, Any, Any]],
    context: contextvars.Context | None = None,
) -> None:
    """Run `function()` in a task of `loop`, from any thread.

    It runs in a copy of `context`; without one in an empty context, since it works for nobody
    in particular: not in the transaction, say, of whoever happens to call. Its failure is
    reported to the loop's exception handler. A closed loop is left alone.
    """
    context = contextvars.Context() if context is None else context

    def start() -> None:
        task = loop.create_task(function())
        _spawned.add(task)
        task.add_done_callback(done)

    def done(task: asyncio.Task[Any]) -> None:
        _spawned.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            loop.call_exception_handler(
                {"message": "Nuages background work failed", "exception": error, "task": task}
            )

    if asyncio._get_running_loop() is loop:
        context.run(start)
    elif not loop.is_closed():
        loop.call_soon_threadsafe(start, context=context)


async def settle(timeout: float) -> None:
    """Wait until what `spawn` started on the running loop is done, `timeout` seconds at most."""
    loop = asyncio.get_running_loop()
    if tasks := [task for task in _spawned if task.get_loop() is loop]:
        await asyncio.wait(tasks, timeout=timeout)


async def in_thread(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call `function` in a thread, in the caller's context.

    A thread cannot be stopped, and what it does belongs to the caller (its transaction, its
    locks), so a cancellation is raised when the call has ended, its result dropped; a call that
    has not begun is dropped at once.
    """
    return await _in_thread(functools.partial(function, *args, **kwargs), sensitive=False)


async def in_thread_of(executor: ThreadPoolExecutor, function: Callable[[], T]) -> T:
    """Call `function` in a thread of `executor`; all else as `in_thread`."""
    return await _in_thread(function, sensitive=False, executor=executor)


async def in_sensitive_thread(
    function: Callable[[], T],
    left: list[asyncio.Future[None]] | None = None,
    dropped: Callable[[Any], None] | None = None,
) -> T:
    """Call `function` in asgiref's thread-sensitive thread, in the caller's context.

    With `left` a cancellation is raised at once, and what then still runs is put there as a
    future that is done when the call has ended; `dropped` gets a result that nobody else will.
    """
    return await _in_thread(function, True, left, dropped)


async def _in_thread(
    function: Callable[[], T],
    sensitive: bool,
    left: list[asyncio.Future[None]] | None = None,
    dropped: Callable[[Any], None] | None = None,
    executor: ThreadPoolExecutor | None = None,
) -> T:
    call = _Call(function)
    placed = SyncToAsync(call, thread_sensitive=sensitive, executor=executor)
    try:
        result: T = await uncaught(placed())
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if call.returned and task is not None and not task.cancelling():
            # Code that the thread awaited took the cancellation and withdrew it, and asgiref
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


async def uncaught(awaitable: Awaitable[T]) -> T:
    """Await what may swallow a cancellation of its task, and raise that in the end.

    asgiref gives one that meets a thread to the coroutine which the thread awaits by
    `async_to_sync`, if there is one, and the code there may catch it. Before Python 3.12
    `asyncio.wait_for()`, which libraries use, drops one that comes as late as the result
    (https://github.com/python/cpython/issues/86296).
    """
    task = asyncio.current_task()
    before = 0 if task is None else task.cancelling()
    result = await awaitable
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError
    return result


async def ended(future: asyncio.Future[Any]) -> asyncio.CancelledError | None:
    """Wait until `future` is done, whatever is cancelled meanwhile; return the last of that."""
    cancelled = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled


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
    """Wait until none of the `sensitive_calls` runs any more, whatever is cancelled meanwhile."""
    while calls := sensitive_calls.get():
        await ended(asyncio.wrap_future(next(iter(calls))))


async def to_its_end(coroutine: Coroutine[Any, Any, T]) -> T:
    """Await what must not be cancelled, in a task of its own; a cancellation is raised after."""
    task = asyncio.ensure_future(coroutine)
    cancelled = await ended(task)
    if cancelled is not None:
        raise cancelled from (None if task.cancelled() else task.exception())
    return task.result()


class _Call:
    """One call in a thread: whether it has begun, and a future that is done when it ended."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._loop = asyncio.get_running_loop()
        self._claim = [None]  # taken once: by the thread that begins, or by who gives up
        self.returned = False
        self.result: Any = None
        self.ended: asyncio.Future[None] = self._loop.create_future()

    def __call__(self) -> Any:
        if not _take(self._claim):
            return None
        # A copy, since asgiref copies the context back at once when the caller is cancelled. What
        # an async_to_sync() of this thread sets while it lasts must not be in it: the caller's
        # next call in a thread would go to an executor that is gone by then.
        context = contextvars.copy_context()
        try:
            self.result = context.run(self._function)
            self.returned = True
            return self.result
        except StopIteration as error:
            # As in a coroutine; in a future it would never arrive (before Python 3.13).
            raise RuntimeError("the function raised StopIteration") from error
        finally:
            for variable, value in context.items():
                if variable.get(_MISSING) is not value:
                    variable.set(value)
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def drop(self) -> bool:
        """Give the call up; return whether it had not begun, so that it never will."""
        return _take(self._claim)


def _take(claim: list[None]) -> bool:
    try:
        claim.pop()
    except IndexError:
        return False
    return True
