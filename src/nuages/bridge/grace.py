"""Code that goes on for a while although its task was cancelled: the hooks of a commit.

A COMMIT is one statement, and its driver knows how to wait for its end (`Cancellable.shield`).
Hooks are anybody's code. In asyncio it is the task that is cancelled, and a timeout or a group
inside that code cancels it by the same call as somebody outside. So what such code awaits gets a
task of its own, in the same context: the code's own timeouts cancel that task, as ever, and the
task around it sees what comes from outside.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

from nuages.bridge.core import current_context

T = TypeVar("T")


class GracePeriod:
    """The time that code has left from the first cancellation of its task on."""

    __slots__ = ("_deadline", "_seconds", "cancelled")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadline: float | None = None
        self.cancelled: asyncio.CancelledError | None = None
        """The last cancellation that came meanwhile; it is still to be raised."""

    def note(self, cancelled: asyncio.CancelledError) -> None:
        """Take a cancellation in; the first one begins the period."""
        # Without its frames, some of which refer to this.
        self.cancelled = cancelled.with_traceback(None)
        if self._deadline is None:
            self._deadline = time.monotonic() + self._seconds

    @property
    def is_over(self) -> bool:
        """Tell whether the code may not go on any more."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    async def outlast(self, awaitable: Awaitable[T]) -> T:
        """Await `awaitable`, despite cancellations; past the deadline cancel it too."""
        running = asyncio.isfuture(awaitable)
        future: asyncio.Future[Any] = awaitable if running else _started(awaitable)  # type: ignore[assignment]
        try:
            await self._ended(future)
            if not future.done():
                await _cancelled(future)
                if self.cancelled is not None and future.cancelled():
                    raise self.cancelled
        except GeneratorExit:
            if not running:
                # Nobody waits for the task any more. The caller may be the garbage collector, in
                # any thread.
                loop = future.get_loop()
                if not loop.is_closed():
                    loop.call_soon_threadsafe(future.cancel)
            raise
        try:
            result = future.result()
            if isinstance(result, _Leaving):
                raise result.error
        finally:
            del future  # an error refers to this frame, which would refer to the error
        return result  # type: ignore[no-any-return]

    async def _ended(self, future: asyncio.Future[Any]) -> None:
        """Wait until `future` is done, or the period is over."""
        while not future.done() and not self.is_over:
            left = None if self._deadline is None else self._deadline - time.monotonic()
            try:
                await asyncio.wait([future], timeout=left)
            except asyncio.CancelledError as error:
                self.note(error)


async def _cancelled(future: asyncio.Future[Any]) -> None:
    """Cancel `future`, once more with each cancellation meanwhile, and wait for its end."""
    future.cancel()
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            future.cancel()


class _Leaving:
    """An exit of the program, on its way to the awaiter: a task would raise it in the loop."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _started(awaitable: Awaitable[Any]) -> asyncio.Task[Any]:
    async def outcome() -> Any:
        try:
            return await awaitable
        except (KeyboardInterrupt, SystemExit) as error:
            return _Leaving(error)

    # Not by the loop's factory: an eager task would enter the context that the caller is in.
    loop = asyncio.get_running_loop()
    return asyncio.Task(outcome(), loop=loop, context=current_context())
