"""The way from a request to its response, in one bridge: `BaseHandler.get_response_async`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.db import connections, transaction
from django.http import HttpRequest
from django.urls import set_urlconf

from nuages.bridge import current_bridge
from nuages.bridge.wrapping import is_async
from nuages.db.transaction import aatomic
from nuages.handling import deadline as _deadline
from nuages.handling import errors, placement
from nuages.handling.deadline import Deadline
from nuages.handling.placement import ViewKind
from nuages.handling.preload import preload

View = Callable[..., Any]


def _never() -> bool:
    return False


def get_response(handler: Any, request: HttpRequest, is_over: Callable[[], bool] = _never) -> Any:
    """Return the response to `request`, through `handler`'s middleware; in a bridge.

    Where the request's deadline passes, the response is 504, unless the request `is_over` by then;
    any other cancellation is raised.
    """
    bridge = current_bridge()
    assert bridge is not None
    deadline: Any = Deadline(bridge.task, bridge.loop, is_over)
    request._nuages_deadline = deadline  # type: ignore[attr-defined]
    set_urlconf(settings.ROOT_URLCONF)  # type: ignore[misc]
    try:
        response = handler._middleware_chain(request)
        # A cancellation that was put off (for a COMMIT, say), if nothing has waited since.
        bridge.deliver()
        deadline.withdraw_if_swallowed()
    except asyncio.CancelledError:
        deadline.over = True
        if not deadline.take():
            raise
        response = _deadline.timed_out(request, deadline)
    finally:
        deadline.end()
    response._resource_closers.append(request.close)
    if response.status_code >= 400:
        errors.log(response, request)
    return response


def call_view(handler: Any, request: Any) -> Any:
    """Resolve and call the view, with what middleware does around it: the chain's inmost link.

    Follows `BaseHandler._get_response_async` step by step.
    """
    bridge = current_bridge()
    assert bridge is not None
    callback, args, kwargs = handler.resolve_request(request)
    deadline: Deadline = request._nuages_deadline
    seconds = _deadline.limit(callback)
    if seconds is not None:
        deadline.set(seconds)
    try:
        response, threaded = _through_hooks(handler, request, callback, args, kwargs)
        response = _rendered(handler, request, response, callback, threaded)
        bridge.deliver()
    except asyncio.CancelledError:
        # Here, so that the middleware sees this answer as it sees any other.
        if not deadline.take():
            raise
        response = _deadline.timed_out(request, deadline)
    return response


def _through_hooks(
    handler: Any, request: HttpRequest, callback: Any, args: Any, kwargs: Any
) -> tuple[Any, bool]:
    """Return the response of a middleware's `process_view`, or of the view."""
    for hook in handler._view_middleware:
        response = hook(request, callback, args, kwargs)
        if response:
            return response, False
    view, threaded = place_view(handler, callback, request)
    try:
        response = view(request, *args, **kwargs)
    except Exception as error:
        response = handler.process_exception_by_middleware(error, request)
        if response is None:
            raise
    return response, threaded


def place_view(handler: Any, callback: Any, request: Any) -> tuple[View, bool]:
    """Return a callable for the view, and whether it takes a thread.

    It calls the view from the bridge, in a transaction if the settings say so.
    """
    kind, function = placement.kind_of(callback)
    if kind is ViewKind.COROUTINE:
        preload(request)
        # The first look at a large upload waits for a thread, which is possible in a portal only.
        uploads = getattr(request, "parses_in_thread", None)
        call = placement.stepped if uploads is not None and uploads() else placement.awaited
        return call(in_transactions(function, callback)), False
    if kind is ViewKind.PORTAL:
        return placement.stepped(in_transactions(function, callback)), False
    # A sync view's transaction is opened where the view runs. `callback` says whether the view
    # has one: a decorator above `on_loop` marks `callback`, not `function`.
    view = function
    for alias in atomic_aliases(callback):
        view = transaction.atomic(using=alias)(view)
    if kind is ViewKind.INLINE or placement.all_on_loop():
        return view, False
    return placement.in_request_thread(view), True


def atomic_aliases(view: Any) -> list[str]:
    """The databases with ATOMIC_REQUESTS that `view` is not exempt from."""
    return [
        alias
        for alias, options in connections.settings.items()
        if options["ATOMIC_REQUESTS"] and alias not in getattr(view, "_non_atomic_requests", ())
    ]


def in_transactions(view: View, callback: Any) -> View:
    """Return the async `view` in the transactions that the settings and `callback` ask for."""
    for alias in atomic_aliases(callback):
        view = _in_transaction(view, alias)
    return view


def _in_transaction(view: View, alias: str) -> View:
    # Not aatomic's decorator: a view may be a callable object, whose call is async.
    async def inner(*args: Any, **kwargs: Any) -> Any:
        async with aatomic(using=alias):
            return await view(*args, **kwargs)

    return inner


def _rendered(
    handler: Any, request: HttpRequest, response: Any, callback: Any, threaded: bool
) -> Any:
    """Return `response` rendered, if it is one that is rendered late."""
    handler.check_response(response, callback)
    if threaded:
        response._nuages_threaded = True
    if not (hasattr(response, "render") and callable(response.render)):
        return response
    for hook in handler._template_response_middleware:
        response = hook(request, response)
        handler.check_response(
            response, hook, name=f"{type(hook.__self__).__name__}.process_template_response"
        )
    render: Any = response.render
    if is_async(render):
        render = placement.awaited(render)
    elif threaded:
        # In the thread where its context was made: rendering may block, too.
        render = placement.in_request_thread(render)
    try:
        response = render()
    except Exception as error:
        response = handler.process_exception_by_middleware(error, request)
        if response is None:
            raise
    if asyncio.iscoroutine(response):
        response.close()
        raise RuntimeError("Response is still a coroutine.")
    return response
