"""Request handlers: the chain of middleware and view runs on the loop."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from django.utils.module_loading import import_string

from nuages.bridge import on_loop
from nuages.bridge.threads import calls_ended, sensitive_calls
from nuages.seams.table import Seam


def _load_middleware(original: Any) -> Any:
    from nuages.handling.middleware import load_middleware
    from nuages.handling.response import call_view

    @functools.wraps(original)
    def load(self: Any, is_async: bool = False) -> None:
        if is_async:
            load_middleware(self, functools.partial(call_view, self))
        else:
            original(self, is_async)

    return load


def _get_response_async(original: Any) -> Any:
    from nuages.handling.response import get_response

    get_response_on_loop: Any = on_loop(get_response)

    @functools.wraps(original)
    async def get_response_async(self: Any, request: Any) -> Any:
        if sensitive_calls.get() is not None:
            return await get_response_on_loop(self, request)
        # Django's own handler closes the body of a cancelled request as soon as this returns, but
        # a thread of the view may still read the body.
        sensitive_calls.set(set())
        try:
            return await get_response_on_loop(self, request)
        except asyncio.CancelledError:
            await calls_ended()
            raise
        finally:
            sensitive_calls.set(None)

    return get_response_async


def _handler_class(original: Any) -> Any:
    # By name, because the ASGI application stands above the seams.
    return import_string("nuages.asgi.handler.ASGIHandler")


def _set_streaming_content(original: Any) -> Any:
    @functools.wraps(original)
    def _set_streaming_content(self: Any, value: Any) -> None:
        original(self, value)
        if hasattr(self._iterator, "aclose" if self.is_async else "close"):
            sources = "_nuages_sources" if self.is_async else "_nuages_iterators"
            vars(self).setdefault(sources, []).append(self._iterator)

    return _set_streaming_content


def seams() -> list[Seam]:
    """Return this area's seams."""
    return [
        Seam(
            "django.core.handlers.base:BaseHandler.load_middleware",
            "Stock sends every sync middleware, hook and view to a thread. Ours are called in "
            "one bridge; what the project did not place on the loop still goes to a thread.",
            _load_middleware,
            "(self, is_async=False)",
        ),
        Seam(
            "django.core.handlers.base:BaseHandler.get_response_async",
            "One bridge a request, a deadline, and no thread to log a 404.",
            _get_response_async,
            "(self, request)",
        ),
        Seam(
            "django.core.asgi:ASGIHandler",
            "A project's asgi.py gets our handler without a change. The function itself is "
            "imported before the app is set up.",
            _handler_class,
            callers=frozenset(["get_asgi_application"]),
        ),
        Seam(
            "django.http.response:StreamingHttpResponse._set_streaming_content",
            "Django closes sync sources only, when all is over. Every source is remembered, since "
            "middleware may wrap them, so that the handler can close each where it was iterated "
            "and await its cleanup.",
            _set_streaming_content,
            "(self, value)",
        ),
    ]
