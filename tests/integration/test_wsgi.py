"""The same project under WSGI: a real wsgiref server, Django's own application, our backends.

The server handles one request at a time in a thread of its own and says when it has ended, so
what a request leaves behind is looked at when nothing runs any more.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import httpx
import pytest
from django.core.wsgi import get_wsgi_application
from django.db import connection, connections, transaction
from django.http import HttpRequest, JsonResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import path

from nuages import on_loop
from nuages.db import aatomic
from nuages.db.pool import pool as pools
from tests.integration.conftest import close_thread_connection, use
from tests.integration.test_process import sessions
from tests.library.models import Author


def where() -> dict[str, Any]:
    """What a view under WSGI sees of its thread and its connection."""
    return {
        "thread": threading.current_thread().name,
        "atomic": connection.in_atomic_block,
        "authors": Author.objects.count(),
    }


def sync_view(request: HttpRequest) -> JsonResponse:
    with transaction.atomic():
        Author.objects.create(name="sync")
    return JsonResponse(where())


async def async_view(request: HttpRequest) -> JsonResponse:
    await asyncio.gather(*(Author.objects.acount() for _ in range(3)))
    async with aatomic():
        author = await Author.objects.acreate(name="async")
    return JsonResponse({"name": (await Author.objects.aget(pk=author.pk)).name})


@on_loop
async def portal_view(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"authors": Author.objects.count()})


@on_loop
def bridged_view(request: HttpRequest) -> JsonResponse:
    with transaction.atomic():
        Author.objects.create(name="bridged")
    return JsonResponse({"authors": Author.objects.count()})


def stream_view(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(f"{a.name}\n" for a in Author.objects.order_by("pk").iterator())


async def session_view(request: HttpRequest) -> JsonResponse:
    visits = await request.session.aget("visits", 0) + 1
    await request.session.aset("visits", visits)
    user = await request.auser()
    return JsonResponse({"visits": visits, "anonymous": user.is_anonymous})


def failing_view(request: HttpRequest) -> JsonResponse:
    Author.objects.create(name="failing")
    raise ZeroDivisionError


async def failing_async_view(request: HttpRequest) -> JsonResponse:
    async with aatomic():
        await Author.objects.acreate(name="failing")
        raise ZeroDivisionError


@transaction.non_atomic_requests
def non_atomic_view(request: HttpRequest) -> JsonResponse:
    return JsonResponse(where())


@transaction.non_atomic_requests
async def non_atomic_async_view(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"authors": await Author.objects.acount()})


VIEWS = [
    sync_view, async_view, portal_view, bridged_view, stream_view, session_view, failing_view,
    failing_async_view, non_atomic_view, non_atomic_async_view,
]  # fmt: skip
urlpatterns = [path(f"{view.__name__}/", view) for view in VIEWS]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]


class Handler(WSGIRequestHandler):
    """Writes no lines."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server:
    """A wsgiref server in a thread; `get()` returns when its request has wholly ended."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=30)
        self.ended: queue.Queue[int] = queue.Queue()
        """Per request, the connections that its thread still has open."""
        self.open = 0

    def get(self, view: Any) -> httpx.Response:
        answer = self.http.get(f"/{view.__name__}/")
        self.open = self.ended.get(timeout=30)
        return answer


@contextmanager
def serving() -> Iterator[Server]:
    """Serve Django's WSGI application from a thread that lives as long as the block."""
    stop = False
    with make_server("127.0.0.1", 0, get_wsgi_application(), handler_class=Handler) as wsgi:
        server = Server(f"http://127.0.0.1:{wsgi.server_port}")

        def serve() -> None:
            while True:
                wsgi.handle_request()
                if stop:
                    break
                open_ = [c for c in connections.all(True) if c.connection is not None]
                server.ended.put(len(open_))
            close_thread_connection()

        thread = threading.Thread(target=serve, name="wsgi")
        thread.start()
        try:
            yield server
        finally:
            stop = True
            server.http.get("/nowhere/")  # wakes it
            server.http.close()
            thread.join(timeout=30)
            assert not thread.is_alive()


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=MIDDLEWARE, DEBUG=False):
        yield


@pytest.fixture
def entry(database: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """The DATABASES entry, to be changed and used."""
    given: dict[str, Any] = request.getfixturevalue(database)
    return {key: value for key, value in given.items() if key != "TEST"}


def test_views_of_every_kind(entry: dict[str, Any]) -> None:
    with serving() as server:
        answer = server.get(sync_view)
        assert answer.json() == {"thread": "wsgi", "atomic": False, "authors": 1}
        assert server.get(async_view).json() == {"name": "async"}
        assert server.get(bridged_view).json() == {"authors": 3}
        assert server.get(portal_view).json() == {"authors": 3}
        assert server.get(stream_view).text == "sync\nasync\nbridged\n"
        for visits in (1, 2, 3):
            assert server.get(session_view).json() == {"visits": visits, "anonymous": True}
    assert not any(pools._pools.values()), "a pool outlived the loop of its request"


def test_errors_roll_back(entry: dict[str, Any]) -> None:
    with serving() as server:
        assert server.get(failing_async_view).status_code == 500
        assert server.get(portal_view).json() == {"authors": 0}
        # Outside of any transaction what was written stays, as everywhere.
        assert server.get(failing_view).status_code == 500
        assert server.get(portal_view).json() == {"authors": 1}


def test_atomic_requests(entry: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """As in stock Django: for sync views, and a refusal of async ones, `on_loop` views too."""
    use(entry | {"ATOMIC_REQUESTS": True})
    with serving() as server:
        assert server.get(failing_view).status_code == 500
        answer = server.get(sync_view)
        assert answer.json() == {"thread": "wsgi", "atomic": True, "authors": 1}
        for view in (async_view, bridged_view):
            caplog.clear()
            assert server.get(view).status_code == 500
            assert "You cannot use ATOMIC_REQUESTS with async views." in caplog.text
        assert server.get(non_atomic_view).json()["atomic"] is False
        assert server.get(non_atomic_async_view).json() == {"authors": 1}


def test_no_connection_is_left_between_requests(entry: dict[str, Any]) -> None:
    """CONN_MAX_AGE is 0: each request closes its own."""
    use(entry | {"CONN_MAX_AGE": 0})
    with serving() as server:
        for view in VIEWS:
            server.get(view)
            assert server.open == 0, view.__name__
        if connection.vendor == "postgresql":
            close_thread_connection()
            sessions(entry, 0)


def test_one_connection_stays_with_the_thread(entry: dict[str, Any]) -> None:
    """CONN_MAX_AGE: the thread's connection is kept, and those of async views are not."""
    use(entry | {"CONN_MAX_AGE": 600})
    with serving() as server:
        for view in VIEWS * 2:
            server.get(view)
            assert server.open <= 1, view.__name__
        assert server.open == 1
        if connection.vendor == "postgresql":
            close_thread_connection()
            sessions(entry, 1)
