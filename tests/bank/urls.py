"""A view for each style; 201 acknowledges the transfer."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

from django.db import transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path

from nuages import on_loop
from nuages.db import aatomic
from tests.bank.moving import Move, apply, apply_sync
from tests.bank.plain import IN_THREADS, ON_LOOP
from tests.bank.styles import STYLES, Given, Style
from tests.soak.errors import classes

GIVEN = 409
View = Callable[..., Any]


def _async_view(make: Style) -> View:
    async def view(request: HttpRequest, **move: Any) -> HttpResponse:
        try:
            await make(Move(**move))
        except Given:
            return HttpResponse(status=GIVEN)
        return HttpResponse(status=201)

    return view


def _sync_view(make: Callable[[Move], None]) -> View:
    def view(request: HttpRequest, **move: Any) -> HttpResponse:
        make(Move(**move))
        return HttpResponse(status=201)

    return view


async def stream(request: HttpRequest, **move: Any) -> StreamingHttpResponse:
    """The transfer is made while the response is sent, and acknowledged by its end."""

    async def parts() -> AsyncIterator[bytes]:
        yield b"begun"
        async with aatomic():
            await apply(Move(**move))
        yield b" done"

    return StreamingHttpResponse(parts(), status=201)


async def in_request_async(request: HttpRequest, **move: Any) -> HttpResponse:
    """ATOMIC_REQUESTS is the transaction."""
    await apply(Move(**move))
    return HttpResponse(status=201)


def in_request(request: HttpRequest, **move: Any) -> HttpResponse:
    """ATOMIC_REQUESTS is the transaction."""
    apply_sync(Move(**move))
    return HttpResponse(status=201)


def views() -> dict[str, View]:
    """All of them, by the name of the style."""
    found: dict[str, View] = {name: _async_view(make) for name, make in STYLES.items()}
    found |= {f"{name}_on_loop": on_loop(_sync_view(make)) for name, make in ON_LOOP.items()}
    found |= {f"{name}_in_thread": _sync_view(ON_LOOP[name]) for name in IN_THREADS}
    found["stream"] = stream
    found = {name: transaction.non_atomic_requests(view) for name, view in found.items()}
    return found | {"in_request_async": in_request_async, "in_request": in_request}


def server_error(request: HttpRequest) -> HttpResponse:
    """The answer to an exception: its class, so that one can be told from another."""
    text = ",".join(sorted(classes(sys.exception())))
    return HttpResponse(text, status=500, content_type="text/plain")


handler500 = server_error
_MOVE = "<str:key>/<int:source>/<int:target>/<int:amount>/"
urlpatterns = [path(f"{name}/{_MOVE}", view) for name, view in views().items()]
