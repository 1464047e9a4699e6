"""Exceptions become responses: `convert_exception_to_response` for a chain in a bridge."""

from __future__ import annotations

import functools
import logging
import logging.handlers
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.core.exceptions import BadRequest, PermissionDenied, SuspiciousOperation
from django.core.handlers.exception import response_for_exception
from django.core.signals import got_request_exception
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.http.multipartparser import MultiPartParserError
from django.urls import get_resolver, get_urlconf
from django.utils.log import log_response

from nuages.conf import setting
from nuages.exceptions import PoolTimeout, TooManyWaiting
from nuages.handling import placement
from nuages.handling.request_signals import has_foreign_receivers

_LOCAL = (logging.StreamHandler, logging.NullHandler, logging.handlers.QueueHandler)

GetResponse = Callable[[HttpRequest], HttpResponseBase]


def converted(get_response: GetResponse) -> GetResponse:
    """Return `get_response`, called in a bridge, with its exceptions made responses."""

    @functools.wraps(get_response, updated=())
    def inner(request: HttpRequest) -> HttpResponseBase:
        try:
            return get_response(request)
        except Exception as error:
            return response_for(request, error)

    return inner


def converted_in_thread(get_response: GetResponse) -> GetResponse:
    """Return `get_response`, called in a thread, with its exceptions made responses there."""

    @functools.wraps(get_response, updated=())
    def inner(request: HttpRequest) -> HttpResponseBase:
        try:
            return get_response(request)
        except Exception as error:
            return response_for_exception(request, error)

    return inner


def response_for(request: HttpRequest, error: Exception) -> HttpResponseBase:
    """Return the response to an exception, from a bridge.

    It is Django's, but a full pool gives 503 with Retry-After. The project's own error views and
    `got_request_exception` receivers run in a thread, as the project's other sync code does.
    """
    full = isinstance(error, (PoolTimeout, TooManyWaiting))
    if full and not settings.DEBUG_PROPAGATE_EXCEPTIONS:
        return _overloaded(request, error)
    if _may_block(error):
        return placement.in_request_thread(response_for_exception)(request, error)
    return response_for_exception(request, error)


def log(response: HttpResponseBase, request: HttpRequest, message: str = "", *args: Any) -> None:
    """Log a response of 400 or above, from a bridge; in a thread where a log handler may block.

    Without a message the reason phrase is logged. A response is logged only once, as in Django.
    """
    write: Any = log_response if _logs_inline("django.request") else _log_in_thread
    if not message:
        message, args = "%s: %s", (response.reason_phrase, request.path)
    write(message, *args, response=response, request=request)


_log_in_thread = placement.in_request_thread(log_response)


def unavailable() -> HttpResponse:
    """Return the response of a server that has more work than it may take on."""
    return HttpResponse(
        "503 Service Unavailable: too much work at the moment. Try again.\n",
        status=503,
        content_type="text/plain; charset=utf-8",
        headers={"Retry-After": str(setting["RETRY_AFTER"])},
    )


def _overloaded(request: HttpRequest, error: Exception) -> HttpResponse:
    response = unavailable()
    log(response, request, "%s: %s", error, request.path)
    return response


def _may_block(error: Exception) -> bool:
    """Tell whether making the response runs code of the project that may block."""
    if placement.all_on_loop():
        return False
    if isinstance(error, Http404):
        status, logger = 404, None
    elif isinstance(error, PermissionDenied):
        status, logger = 403, "django.request"
    elif isinstance(error, (MultiPartParserError, BadRequest)):
        status, logger = 400, "django.request"
    elif isinstance(error, SuspiciousOperation):
        status, logger = 400, f"django.security.{type(error).__name__}"
    else:
        status, logger = 500, "django.request"
        if has_foreign_receivers(got_request_exception):
            return True
    if logger is not None and not _logs_inline(logger):
        return True
    if settings.DEBUG:
        return False
    return not _has_known_view(status)


def _has_known_view(status: int) -> bool:
    resolver: Any = get_resolver(get_urlconf())
    try:
        view = resolver.resolve_error_handler(status)
    except Exception:
        # A broken URLconf: Django's code reports it, and finds the same error.
        return True
    return placement.is_known(view)


def _logs_inline(name: str) -> bool:
    """Tell whether the logger has no handler that talks to a network or that we do not know.

    Handlers that write to a stream or a file do what the server's own access log does;
    AdminEmailHandler hands its mail to a thread by itself.
    """
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None:
        for handler in logger.handlers:
            if not isinstance(handler, _LOCAL) and not placement.is_known(type(handler)):
                return False
        logger = logger.parent if logger.propagate else None
    return True
