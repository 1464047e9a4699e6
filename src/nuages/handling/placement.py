"""The place where code of Django and of the project runs: on the loop, or in a thread.

Django's own code is known and runs on the loop, in the request's bridge. The project's sync
views, middleware and receivers run in a thread, because they may block, unless the project says
otherwise: by `@on_loop`, by `NUAGES["LOOP_MIDDLEWARE"]`, or for all of them by
`NUAGES["SYNC_VIEWS"] = "loop"`. Async code is awaited.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from enum import Enum
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from asgiref.sync import async_to_sync
from django.http import HttpResponseBase

from nuages.bridge import await_, current_bridge, on_loop
from nuages.bridge.handled import await_handling, call_handling
from nuages.bridge.portal import run_steps
from nuages.bridge.threads import in_sensitive_thread
from nuages.bridge.wrapping import is_async, on_loop_target
from nuages.conf import setting

T = TypeVar("T")

_KNOWN = ("django.", "nuages.")

left_threads: ContextVar[list[asyncio.Future[None]] | None] = ContextVar(
    "nuages.left_threads", default=None
)
"""The calls in threads that outlast the request's cancellation; whoever sets this awaits them."""


def all_on_loop() -> bool:
    """Tell whether the project's sync code runs on the loop too."""
    return bool(setting["SYNC_VIEWS"] == "loop")


def is_known(function: Any) -> bool:
    """Tell whether `function` is Django's own or ours, so that it is known not to block.

    A view made by `as_view()` belongs to its class, a method to the class that defines it, a
    partial to its function. What a decorator wraps counts with the decorator's own code: Django's
    view in a decorator of the project is the project's, and so is the project's in Django's.
    """
    while function is not None:
        while isinstance(function, functools.partial):
            function = function.func
        function = getattr(function, "__func__", function)
        if not _module_of(function).startswith(_KNOWN):
            return False
        view_class = getattr(function, "view_class", None)
        if view_class is not None and not view_class.__module__.startswith(_KNOWN):
            return False
        function = None if isinstance(function, type) else getattr(function, "__wrapped__", None)
    return True


def _module_of(function: Any) -> str:
    if isinstance(function, type):
        module: Any = function.__module__
    elif hasattr(function, "__globals__"):
        # Not `__module__`, which a decorator copies from what it wraps.
        module = function.__globals__.get("__name__")
    elif hasattr(function, "__qualname__"):
        module = function.__module__
    else:
        module = type(function).__module__
    return module if isinstance(module, str) else ""


def runs_on_loop(function: Any) -> bool:
    """Tell whether the sync callable `function` runs on the loop."""
    return all_on_loop() or is_known(function)


def in_request_thread(function: Callable[..., T]) -> Callable[..., T]:
    """Return a sync callable that calls `function` in the request's thread, from its bridge.

    The thread is asgiref's "thread-sensitive" one: one a request, as in stock Django. It cannot
    be stopped: a caller that is cancelled goes on, and what the thread returns is dropped.
    """

    @functools.wraps(function, updated=())
    def call(*args: Any, **kwargs: Any) -> T:
        handled = sys.exception()
        if handled is None:
            work = functools.partial(function, *args, **kwargs)
        else:
            # An error view or a logger in the thread looks at `sys.exc_info()`.
            work = functools.partial(call_handling, handled, function, args, **kwargs)
        result: T = await_(in_sensitive_thread(work, left_threads.get(), _close_dropped))
        return result

    return call


def placed(function: Callable[..., T]) -> Callable[..., Coroutine[Any, Any, T]]:
    """Return a coroutine function that calls the sync `function` where it belongs.

    Used where Django has `sync_to_async` for a function that may be the project's.
    """
    return on_loop(function if runs_on_loop(function) else in_request_thread(function))


def _close_dropped(result: Any) -> None:
    """Close what a response holds, which a thread made for a cancelled request."""
    if isinstance(result, HttpResponseBase):
        # Not the response: its `close()` would signal once more that the request has finished.
        for closer in result._resource_closers:  # type: ignore[attr-defined]
            closer()


def awaited(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a sync callable that awaits the async `function`, from a bridge."""

    def call(*args: Any, **kwargs: Any) -> Any:
        awaitable = function(*args, **kwargs)
        handled = sys.exception()
        return await_(awaitable if handled is None else await_handling(handled, awaitable))

    return call


def stepped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a sync callable that runs the async `function` as `on_loop` does, in this bridge."""

    def call(*args: Any, **kwargs: Any) -> Any:
        bridge = current_bridge()
        assert bridge is not None
        return run_steps(bridge, function(*args, **kwargs))

    return call


class ViewKind(Enum):
    """The way in which a view is called from the request's bridge."""

    INLINE = 1
    """Sync code that is known, or that the project has put on the loop."""
    SYNC = 2
    """The project's own sync code, which may block."""
    COROUTINE = 3
    PORTAL = 4
    """Async code that was passed to `on_loop`."""


def kind_of(view: Any) -> tuple[ViewKind, Any]:
    """Return the kind of a view, and the function to call.

    A function passed to `on_loop` is called in the request's own bridge: one greenlet less.
    """
    try:
        kind, target = _kinds[view]
    except KeyError:
        kind, target = _kinds[view] = _kind_of(view)
    except TypeError:  # an object that cannot be a key
        kind, target = _kind_of(view)
    return kind, (view if target is None else target)


_kinds: WeakKeyDictionary[Any, tuple[ViewKind, Any]] = WeakKeyDictionary()


def _kind_of(view: Any) -> tuple[ViewKind, Any]:
    """Return the kind of `view`, and what it wraps; None where `view` itself is called."""
    target = on_loop_target(view)
    if target is not None:
        return (ViewKind.PORTAL if is_async(target) else ViewKind.INLINE), target
    if is_async(view):
        return ViewKind.COROUTINE, None
    return (ViewKind.INLINE if is_known(view) else ViewKind.SYNC), None


def from_thread(get_response: Callable[[Any], T]) -> Callable[[Any], T]:
    """Return a sync callable that calls `get_response` on the loop, from its request's thread.

    Where the request was cancelled meanwhile, the thread that comes back gets the cancellation:
    nobody would take the result of what begins now.
    """

    @functools.wraps(get_response, updated=())
    def enter(request: Any) -> T:
        if request._nuages_deadline.over:
            raise asyncio.CancelledError("the request is over")
        return get_response(request)

    return async_to_sync(on_loop(enter))
