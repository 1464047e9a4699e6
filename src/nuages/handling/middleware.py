"""The middleware chain of async handlers: `BaseHandler.load_middleware(is_async=True)`.

Built from the inside out, as Django builds it. Every link is a sync callable that is called in
the request's bridge; what differs is how a middleware gets the link below it:

* Django's own middleware, and the project's that is placed on the loop, gets it as it is;
* a coroutine middleware gets a coroutine function;
* a sync middleware in a thread gets a function that comes back from there, or, where the link
  below is in the thread too, calls it directly.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured, MiddlewareNotUsed
from django.http import HttpRequest, HttpResponseBase
from django.utils.deprecation import MiddlewareMixin
from django.utils.module_loading import import_string

from nuages.bridge import await_
from nuages.bridge import on_loop as make_on_loop
from nuages.bridge.wrapping import on_loop_target
from nuages.conf import setting
from nuages.handling import placement
from nuages.handling.errors import converted, converted_in_thread

logger = logging.getLogger("django.request")

GetResponse = Callable[[HttpRequest], HttpResponseBase]


class Link:
    """A link of the chain, which handles a request from here inwards.

    `inline` is called in the request's bridge. `threaded`, where there is one, does the same for a
    caller in the request's thread, without leaving that thread.
    """

    __slots__ = ("inline", "threaded")

    def __init__(self, inline: GetResponse, threaded: GetResponse | None = None) -> None:
        self.inline = inline
        self.threaded = threaded


def load_middleware(handler: Any, get_response: GetResponse) -> None:
    """Fill `handler`'s middleware lists and its chain, whose innermost link is `get_response`.

    Raises what Django raises: RuntimeError for a middleware that is neither sync nor async,
    ImproperlyConfigured for a factory that returns nothing.
    """
    views: list[Any] = []
    templates: list[Any] = []
    exceptions: list[Any] = []
    link = Link(converted(get_response))
    for path in reversed(settings.MIDDLEWARE):
        factory, on_loop = _factory(path)
        try:
            instance, link_above = _build(factory, on_loop, link, path)
        except MiddlewareNotUsed as unused:
            if settings.DEBUG:
                if str(unused):
                    logger.debug("MiddlewareNotUsed(%r): %s", path, unused)
                else:
                    logger.debug("MiddlewareNotUsed: %r", path)
            continue
        link = link_above
        if hasattr(instance, "process_view"):
            views.insert(0, _hook(instance.process_view, on_loop))
        if hasattr(instance, "process_template_response"):
            templates.append(_hook(instance.process_template_response, on_loop))
        if hasattr(instance, "process_exception"):
            exceptions.append(_hook(instance.process_exception, on_loop))
    handler._view_middleware = views
    handler._template_response_middleware = templates
    handler._exception_middleware = exceptions
    # Set last: as in Django, it is the sign that all is done.
    handler._middleware_chain = link.inline


def _factory(path: str) -> tuple[Any, bool]:
    """Import a middleware; return it, and whether the project says that it runs on the loop."""
    factory = import_string(path)
    target = on_loop_target(factory)
    if target is not None:
        return target, True
    listed = path in setting["LOOP_MIDDLEWARE"] or placement.all_on_loop()
    return factory, listed or placement.is_known(factory)


def _build(factory: Any, on_loop: bool, below: Link, path: str) -> tuple[Any, Link]:
    """Make the middleware instance over `below`; return it and the link that it becomes."""
    can_sync = getattr(factory, "sync_capable", True)
    can_async = getattr(factory, "async_capable", False)
    if not can_sync and not can_async:
        raise RuntimeError(
            f"Middleware {path} must have at least one of sync_capable/async_capable set to True."
        )
    if _has_async_call(factory) or _has_async_half(factory):
        can_async, can_sync = True, False
    if on_loop and can_sync:
        instance = _made(factory(_adapted(below, path)), path)
        return instance, Link(converted(instance))
    if isinstance(factory, type) and _is_plain_mixin(factory):
        instance = _made(factory(_adapted(below, path)), path)
        return instance, Link(converted(_mixin_call(instance)))
    if can_async:
        instance = _made(factory(make_on_loop(_adapted(below, path))), path)
        return instance, Link(converted(_maybe_awaited(instance)))
    if below.threaded is None and settings.DEBUG:
        logger.debug("Asynchronous handler adapted for middleware %s.", path)
    instance = _made(factory(below.threaded or placement.from_thread(below.inline)), path)
    threaded = converted_in_thread(instance)
    return instance, Link(placement.in_request_thread(threaded), threaded)


def _adapted(below: Link, path: str) -> GetResponse:
    """The link below for a middleware on the loop; one in a thread is noted in the debug log."""
    if below.threaded is not None and settings.DEBUG:
        logger.debug("Synchronous handler adapted for middleware %s.", path)
    return below.inline


def _made(instance: Any, path: str) -> Any:
    if instance is None:
        raise ImproperlyConfigured(f"Middleware factory {path} returned None.")
    return instance


def _has_async_call(factory: Any) -> bool:
    return isinstance(factory, type) and inspect.iscoroutinefunction(
        inspect.getattr_static(factory, "__call__", None)
    )


def _has_async_half(factory: Any) -> bool:
    """Tell whether `factory` has its own `__acall__`, as RemoteUserMiddleware has.

    It may differ from `__call__` (there in the header that is read), and stock Django takes it.
    """
    inherited = MiddlewareMixin.__acall__
    return isinstance(factory, type) and getattr(factory, "__acall__", inherited) is not inherited


def _is_plain_mixin(factory: type) -> bool:
    return (
        issubclass(factory, MiddlewareMixin)
        and factory.__call__ is MiddlewareMixin.__call__
        and factory.__acall__ is MiddlewareMixin.__acall__
    )


def _mixin_call(instance: Any) -> GetResponse:
    """`MiddlewareMixin.__call__` with each hook where it belongs: the project's in the thread."""
    before = _hook(instance.process_request) if hasattr(instance, "process_request") else None
    after = _hook(instance.process_response) if hasattr(instance, "process_response") else None

    @functools.wraps(instance.__call__)
    def call(request: HttpRequest) -> HttpResponseBase:
        response = None if before is None else before(request)
        response = response or instance.get_response(request)
        if after is not None:
            response = after(request, response)
        return response  # type: ignore[no-any-return]

    return call


def _maybe_awaited(instance: Any) -> GetResponse:
    """Return what calls a middleware that may be async unknown to `iscoroutinefunction`.

    An `async def __call__` is such a case, and so is a sync `__call__` that returns a coroutine.
    Django goes by the mark alone, and its response is then a coroutine that nobody awaits.
    """

    def call(request: HttpRequest) -> Any:
        response = instance(request)
        if inspect.isawaitable(response):
            return await_(response)
        return response

    return functools.update_wrapper(call, instance, updated=())


def _hook(method: Any, on_loop: bool = False) -> Any:
    """Return what calls a middleware's hook from the bridge, with a method's `__self__`."""
    if iscoroutinefunction(method):
        call = placement.awaited(method)
    elif on_loop or placement.runs_on_loop(method):
        return method
    else:
        call = placement.in_request_thread(method)
    if hasattr(method, "__self__"):
        call.__self__ = method.__self__  # type: ignore[attr-defined]
    return call
