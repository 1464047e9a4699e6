"""Tasks that nobody awaits, and waits that outlast a cancellation."""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

current_task: Callable[[asyncio.AbstractEventLoop], asyncio.Task[Any] | None]
"""`asyncio.current_task(loop)`, which before Python 3.12 is a Python function over this dict."""
if sys.version_info < (3, 12):
    current_task = asyncio.tasks._current_tasks.get  # type: ignore[attr-defined]
else:
    current_task = asyncio.current_task


_spawned: set[asyncio.Task[Any]] = set()
"""Tasks that are kept here because a loop refers to its tasks weakly."""


def spawn(
    loop: asyncio.AbstractEventLoop,
    function: Callable[[], Coroutine[Any, Any, Any]],
    context: contextvars.Context | None = None,
) -> None:
    """Run `function()` in a task of `loop`, from any thread.

    It runs in a copy of `context`; without one in an empty context, because it works for nobody
    in particular: not in the transaction, say, of the code that happens to call. Its failure is
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


async def wait_for_spawned(timeout: float) -> None:
    """Wait until what `spawn` started on the running loop is done, `timeout` seconds at most."""
    loop = asyncio.get_running_loop()
    if tasks := [task for task in _spawned if task.get_loop() is loop]:
        await asyncio.wait(tasks, timeout=timeout)


async def uncaught(awaitable: Awaitable[T]) -> T:
    """Await code that may swallow a cancellation of its task, and raise that in the end.

    asgiref passes a cancellation that meets a thread to the coroutine that the thread awaits by
    `async_to_sync`, if there is one, and the code there may catch it. Before Python 3.12
    `asyncio.wait_for()`, which libraries use, drops a cancellation that comes as late as the
    result (https://github.com/python/cpython/issues/86296).
    """
    before = cancelling()
    result = await awaitable
    if cancelling() > before:
        raise asyncio.CancelledError
    return result


def cancelling() -> int:
    """Return how many cancellations of the running task were not withdrawn; 0 outside tasks.

    A frame that an error may come through should not refer to its task: the task refers to the
    error that it ends with, and such a cycle is freed by the garbage collector only.
    """
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


async def ended(future: asyncio.Future[Any]) -> asyncio.CancelledError | None:
    """Wait until `future` is done, despite cancellations; return the last of these, if any."""
    cancelled = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled


async def to_its_end(coroutine: Coroutine[Any, Any, T]) -> T:
    """Await what must not be cancelled, in a task of its own; raise a cancellation afterwards."""
    task = asyncio.ensure_future(coroutine)
    cancelled = await ended(task)
    try:
        if cancelled is not None:
            raise cancelled from (None if task.cancelled() else task.exception())
        return task.result()
    finally:
        del task, cancelled  # an error refers to this frame, which would refer to the error
