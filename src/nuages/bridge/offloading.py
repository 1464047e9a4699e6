"""The way from the bridge into a thread: `off_loop`, for calls that would block the loop."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from nuages.bridge import await_, current_bridge
from nuages.bridge.threads import in_thread
from nuages.bridge.wrapping import require_sync

P = ParamSpec("P")
T = TypeVar("T")


def off_loop(function: Callable[P, T]) -> Callable[P, T]:
    """Make a blocking callable safe to call from code that may run on the loop.

    Inside a bridge `function` runs in a thread, is awaited there and shares the caller's
    context and transaction; elsewhere it is just called. The result stays a sync callable.
    A cancellation is raised when the thread is done, because nothing can stop a thread.
    """
    require_sync(function, "off_loop()")

    @functools.wraps(function)
    def off(*args: P.args, **kwargs: P.kwargs) -> T:
        if current_bridge() is None:
            return function(*args, **kwargs)
        return await_(in_thread(function, *args, **kwargs))

    return off
