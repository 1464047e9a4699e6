"""The portal: the steps of a coroutine, or of an async generator, driven inside a bridge.

What the code awaits is forwarded to the task, so the code notices nothing, but between two awaits
it is sync code in a bridge: `post.author.name` may query.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, TypeVar, cast

from nuages.bridge.awaitables import _await
from nuages.bridge.generators import is_noting, note
from nuages.bridge.tasks import spawn

if TYPE_CHECKING:
    from nuages.bridge import Bridge

T = TypeVar("T")


class _Step:
    """A value that a portal's coroutine yielded, to be yielded again by the driver."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield self.value)


def run_steps(bridge: Bridge, awaitable: Awaitable[T]) -> T:
    """Drive `awaitable` to its end and return its result (in `bridge`)."""
    coroutine: Any = awaitable if isinstance(awaitable, Coroutine) else _await(awaitable)
    send, value = coroutine.send, None
    while True:
        try:
            step = send(value)
        except StopIteration as stop:
            return cast(T, stop.value)
        finally:
            value = None  # an error in it would refer to itself by this frame
        if not bridge.closing:
            bridge.suspend()
            if (cancelled := bridge.take_cancel()) is not None:
                # The awaited work has begun and must be cancelled, too: the task does that.
                bridge.task.cancel(*cancelled.args)
                bridge.task.uncancel()
        try:
            value, send = bridge.wait(_Step(step)), coroutine.send
        except BaseException as error:
            value, send = error, coroutine.throw


RunStep = Callable[[Awaitable[Any]], Coroutine[Any, Any, Any]]


class SteppedGenerator(AsyncGenerator[Any, Any]):
    """An async generator every step of which is run by `run`.

    It takes the place of the generator it drives in the loop's asyncgen hooks, so that a loop
    that shuts down closes it by a step too, and so does the garbage collector: if dropped
    unfinished, it is closed by a task of its loop, in the context it was first iterated in.
    """

    def __init__(self, generator: AsyncGenerator[Any, Any], run: RunStep) -> None:
        self._generator: Any = generator
        self._run = run
        self._begun = False

    def _step(self, method: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        if self._begun:
            return self._run(method(*args))
        self._begun = True
        # The driven generator takes its hooks at its first step.
        firstiter, finalizer = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(note if is_noting() else None, _closer(self._run))
        try:
            step = method(*args)
        finally:
            sys.set_asyncgen_hooks(firstiter, finalizer)
        if firstiter is not None:
            firstiter(self)
        return self._run(step)

    def __anext__(self) -> Any:
        return self._step(self._generator.__anext__)

    def asend(self, value: Any) -> Any:
        """Send a value into the generator."""
        return self._step(self._generator.asend, value)

    def athrow(self, *args: Any) -> Any:
        """Raise an exception in the generator."""
        return self._step(self._generator.athrow, *args)

    def aclose(self) -> Any:
        """Close the generator."""
        return self._step(self._generator.aclose)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)


def _closer(run: RunStep) -> Callable[[AsyncGenerator[Any, Any]], None]:
    """Return what the garbage collector calls, from anywhere, for an abandoned generator."""
    loop, context = asyncio.get_running_loop(), contextvars.copy_context()

    def close(generator: AsyncGenerator[Any, Any]) -> None:
        if not loop.is_closed():
            # A callback, so that nothing runs here, not even with eager tasks.
            closing = SteppedGenerator(generator, run).aclose
            loop.call_soon_threadsafe(spawn, loop, closing, context)

    return close
