"""Event streams, files, deadlines; the application; mail."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import assert_type

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from nuages.asgi import get_asgi_application, on_shutdown, on_startup
from nuages.http import Event, EventStream, afile_response, last_event_id, request_timeout
from nuages.mail import amail_admins, asend_mail, asend_mass_mail


async def ticks() -> AsyncIterator[Event]:
    yield Event({"n": 1}, id=1, event="tick", retry=1000)


async def after(last: str | None) -> AsyncIterator[str]:
    yield last or ""


async def opened(last: str | None) -> AsyncIterator[str]:
    return after(last)


async def of_nothing() -> AsyncIterator[str]:
    yield ""


def streams(request: HttpRequest) -> None:
    EventStream(ticks())
    EventStream(ticks(), heartbeat=None, retry=100, headers={"X-A": "b"})
    assert_type(EventStream(after, request).last_event_id, str | None)
    EventStream(opened, request)
    assert_type(last_event_id(request), str | None)
    Event(id=[])  # error: mypy arg-type, pyright reportArgumentType
    Event("a", "b")  # error: mypy call-arg, pyright reportCallIssue
    EventStream(of_nothing, request)  # error: mypy arg-type, pyright reportArgumentType
    EventStream([1])  # error: mypy arg-type, pyright reportArgumentType
    EventStream(ticks(), request, 3)  # error: mypy call-arg, pyright reportCallIssue


@request_timeout(5)
async def download(request: HttpRequest, name: str) -> HttpResponseBase:
    return await afile_response(request, Path(name), as_attachment=True, filename="a")


async def files(request: HttpRequest) -> None:
    assert_type(await download(request, "a"), HttpResponseBase)
    await download(request, 1)  # error: mypy arg-type, pyright reportArgumentType
    await afile_response(request, 1)  # error: mypy arg-type, pyright reportArgumentType
    await afile_response(request, "a", True)  # error: mypy call-arg, pyright reportCallIssue


@request_timeout  # error: mypy arg-type, pyright reportArgumentType
def forgotten(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


application = get_asgi_application()


async def serve() -> None:
    await application(1, 2, 3)  # error: mypy arg-type x3, pyright reportArgumentType x3


@on_startup
async def client() -> AsyncIterator[dict[str, object]]:
    yield {"client": object()}


@on_startup
@asynccontextmanager
async def managed() -> AsyncIterator[None]:
    yield


@on_startup
def at_once() -> None: ...


@on_shutdown
async def bye() -> None: ...


@on_startup  # error: mypy type-var, pyright reportArgumentType
async def with_argument(name: str) -> None: ...


@on_startup  # error: mypy type-var, pyright reportArgumentType
def gives_a_number() -> int:
    return 1


async def mail() -> None:
    assert_type(await asend_mail("s", "m", None, ["a@example.com"], fail_silently=True), int)
    assert_type(await asend_mass_mail([("s", "m", None, ["a@example.com"])]), int)
    await amail_admins("s", "m", html_message="h")
    await asend_mail("s")  # error: mypy call-arg, pyright reportCallIssue
    await asend_mail("s", "m", None, [1])  # error: mypy list-item, pyright reportArgumentType
