"""Work beside the code that runs: tasks nobody awaits, and threads that are awaited."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from asgiref.sync import sync_to_async

T = TypeVar("T")

_spawned: set[asyncio.Task[Any]] = set()
"""A loop references its tasks weakly."""


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


async def in_thread(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call `function` in a thread, in the caller's context.

    A thread cannot be stopped, and what it does belongs to the caller (its transaction, its
    locks), so a cancellation is raised when the call has ended, its result dropped; a call that
    has not begun is dropped at once.
    """
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    claim = [None]  # taken once: by the thread that begins, or by the caller that gives up

    def end() -> None:
        if not ended.done():
            ended.set_result(None)

    def call() -> T | None:
        if not _take(claim):
            return None
        try:
            return function(*args, **kwargs)
        except StopIteration as error:
            # As in a coroutine; in a future it would never arrive (before Python 3.13).
            raise RuntimeError("the function raised StopIteration") from error
        finally:
            if not loop.is_closed():
                loop.call_soon_threadsafe(end)

    try:
        return await sync_to_async(call, thread_sensitive=False)()  # type: ignore[return-value]
    except asyncio.CancelledError:
        if not _take(claim):
            while not ended.done():
                try:
                    await asyncio.wait([ended])
                except asyncio.CancelledError:
                    continue
        raise


def _take(claim: list[None]) -> bool:
    try:
        claim.pop()
    except IndexError:
        return False
    return True
