"""`request_timeout`: how long one view's requests may take."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

from nuages.bridge import on_loop
from nuages.bridge.wrapping import is_async, on_loop_target
from nuages.handling.deadline import give_limit

F = TypeVar("F", bound=Callable[..., object])


def request_timeout(seconds: float | None) -> Callable[[F], F]:
    """Let the requests of one view take `seconds`, in place of NUAGES["REQUEST_TIMEOUT"].

    The time runs from when the request was read until its response begins; a stream may then
    take any time. Past that time the view is cancelled, with its queries on the server, its
    transaction is rolled back, and the answer is 504 (RFC 9110, 15.6.5). A sync view in a thread
    cannot be stopped: the client gets its 504, and what the view returns later is dropped. `None`
    or 0 means no limit.

    For async views, sync views and `on_loop` views, above or below other decorators; for a
    class: `@method_decorator(request_timeout(5), name="dispatch")`. Raises ValueError for a
    time that is negative or no finite number, TypeError for what is not a time or not a view.
    """
    limit = _checked(seconds)

    def decorate(view: F) -> F:
        limited: F = _wrapped(view)
        return give_limit(limited, limit)

    return decorate


def _checked(seconds: Any) -> float:
    if callable(seconds):
        raise TypeError("request_timeout() needs the seconds: @request_timeout(5).")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float, type(None))):
        raise TypeError(f"request_timeout() takes seconds or None, not {type(seconds).__name__}.")
    if seconds is not None and not 0 <= seconds < math.inf:
        raise ValueError(
            f"request_timeout() takes seconds above 0, or 0 or None for any time, not {seconds!r}."
        )
    return float(seconds or 0)


def _wrapped(view: Any) -> Any:
    """Return another callable for `view`, because `view` may have another limit elsewhere."""
    if isinstance(view, type) or not callable(view):
        raise TypeError(
            "request_timeout() decorates views. For a class, decorate its dispatch: "
            '@method_decorator(request_timeout(5), name="dispatch").'
        )
    target = on_loop_target(view)
    if target is not None:
        wrapper = on_loop(_wrapped(target))
        # Keep what decorators above on_loop() have marked on the view.
        vars(wrapper).update(
            {k: v for k, v in vars(view).items() if k not in ("_nuages_target", "__wrapped__")}
        )
        return wrapper
    if is_async(view):

        @functools.wraps(view)
        async def limited(*args: Any, **kwargs: Any) -> Any:
            return await view(*args, **kwargs)

        return limited

    @functools.wraps(view)
    def limited_sync(*args: Any, **kwargs: Any) -> Any:
        return view(*args, **kwargs)

    return limited_sync
