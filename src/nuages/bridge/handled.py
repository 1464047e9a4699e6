"""The exception that is being handled, carried over the edge of a greenlet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")


def call_handling(
    handled: BaseException, function: Callable[..., T], args: Any, /, **kwargs: Any
) -> T:
    """Call `function` where `handled` is being handled, as it is in the task.

    A greenlet starts with an exception state of its own, and `__context__` and
    `logger.exception()` go by that state.
    """
    traceback = handled.__traceback__
    try:
        raise handled
    except BaseException:
        handled.__traceback__ = traceback
        return function(*args, **kwargs)


async def await_handling(handled: BaseException, awaitable: Awaitable[T]) -> T:
    """Await `awaitable` where `handled` is being handled, as it is in the greenlet that waits."""
    traceback = handled.__traceback__
    try:
        raise handled
    except BaseException:
        handled.__traceback__ = traceback
        return await awaitable


def add_context(error: BaseException, handled: BaseException) -> None:
    """Put `handled` at the end of the `__context__` chain of `error`, which was raised during it.

    Python does this where an exception passes from frame to frame; `greenlet.throw()` does not.
    """
    known = set()
    above: BaseException | None = handled
    while above is not None and id(above) not in known:
        known.add(id(above))
        above = above.__context__
    while id(error) not in known:
        known.add(id(error))
        if error.__context__ is None:
            error.__context__ = handled
            return
        error = error.__context__
