"""Limits: past them 503 at once, while what is in flight ends as ever."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import path

from nuages.asgi.handler import ASGIHandler
from nuages.db import hold_connection
from nuages.exceptions import PoolTimeout, TooManyWaiting
from tests.integration.asgi_client import Exchange, fetch
from tests.integration.conftest import Run
from tests.integration.pool_tools import options, the_pool
from tests.integration.scope_tools import until
from tests.library.models import Author

pytestmark = pytest.mark.both_loops

go: dict[str, Any] = {}


async def slow(request: HttpRequest) -> HttpResponse:
    await go["event"].wait()
    return HttpResponse("slow")


async def counting(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(await Author.objects.acount()))


def counting_in_thread(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(Author.objects.count()))


async def quick(request: HttpRequest) -> HttpResponse:
    return HttpResponse("quick")


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    async def parts() -> Any:
        yield b"begin "
        await go["event"].wait()
        yield b"end"

    return StreamingHttpResponse(parts())


urlpatterns = [
    path("slow/", slow),
    path("counting/", counting),
    path("thread/", counting_in_thread),
    path("quick/", quick),
    path("stream/", stream),
]


@pytest.fixture(autouse=True)
def _site() -> Iterator[None]:
    go.clear()
    with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=[]):
        yield


def assert_refused(answer: Exchange) -> None:
    assert answer.status == 503
    assert answer.headers["retry-after"] == "4"
    assert answer.headers["content-type"].startswith("text/plain")
    assert b"Try again" in answer.content


def test_requests_past_the_bound_are_refused_at_once(
    sqlite: Any, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        go["event"] = asyncio.Event()
        handler = ASGIHandler()
        assert (await fetch(handler, "/quick/")).status == 200
        working = [Exchange(handler, "/slow/").start() for _ in range(2)]
        await until(lambda: handler.in_flight.working == 2)
        for _ in range(3):
            assert_refused(await fetch(handler, "/quick/"))
        assert not any(exchange.task.done() for exchange in working)
        go["event"].set()
        for exchange in working:
            assert (await exchange.end()).content == b"slow"
        assert handler.in_flight.working == 0
        assert not handler.in_flight.tasks
        assert (await fetch(handler, "/quick/")).status == 200

    with (
        override_settings(NUAGES={"MAX_REQUESTS": 2, "RETRY_AFTER": 4}),
        caplog.at_level(logging.WARNING, "nuages.asgi"),
    ):
        run(main)
    assert caplog.messages == [
        'Requests are refused with 503: 2 are in flight, which is NUAGES["MAX_REQUESTS"].',
        "Requests are accepted again; 3 were refused.",
    ]


def test_streams_do_not_count(sqlite: Any, run: Run) -> None:
    async def main() -> None:
        go["event"] = asyncio.Event()
        handler = ASGIHandler()
        streams = []
        for _ in range(3):
            exchange = Exchange(handler, "/stream/").start()
            await exchange.messages(2)
            streams.append(exchange)
        assert handler.in_flight.working == 0
        assert len(handler.in_flight.tasks) == 3
        assert (await fetch(handler, "/quick/")).status == 200
        go["event"].set()
        for exchange in streams:
            assert (await exchange.end()).content == b"begin end"

    with override_settings(NUAGES={"MAX_REQUESTS": 1}):
        run(main)


def test_a_request_that_ends_by_a_disconnect_counts_no_more(sqlite: Any, run: Run) -> None:
    async def main() -> None:
        go["event"] = asyncio.Event()
        handler = ASGIHandler()
        for kind in ("/slow/", "/stream/"):
            exchange = Exchange(handler, kind).start()
            await until(lambda: len(handler.in_flight.tasks) == 1)
            exchange.disconnect()
            await exchange.end()
            assert handler.in_flight.working == 0
            assert not handler.in_flight.tasks

    with override_settings(NUAGES={"MAX_REQUESTS": 1}):
        run(main)


def test_no_bound(sqlite: Any, run: Run) -> None:
    async def main() -> None:
        handler = ASGIHandler()
        answers = await asyncio.gather(*(fetch(handler, "/quick/") for _ in range(20)))
        assert {answer.status for answer in answers} == {200}

    with override_settings(NUAGES={"MAX_REQUESTS": 0, "MAX_WAITING": 0}):
        run(main)


def test_too_many_waiting_for_a_connection(
    database: str, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    options(max_size=1)

    async def main() -> None:
        handler = ASGIHandler()
        async with hold_connection():
            # In an empty context: not in the hold.
            def start(where: str) -> Exchange:
                return contextvars.Context().run(Exchange(handler, where).start)

            waiting = [start("/counting/") for _ in range(2)]
            await until(lambda: the_pool().waiting() == 2)
            assert_refused(await start("/quick/").end())
            assert_refused(await start("/counting/").end())
        for exchange in waiting:
            assert (await exchange.end()).status == 200
        assert (await fetch(handler, "/counting/")).status == 200

    with (
        override_settings(NUAGES={"MAX_WAITING": 2, "RETRY_AFTER": 4}),
        caplog.at_level(logging.WARNING, "nuages.asgi"),
    ):
        run(main)
    said, again = caplog.messages
    assert "2 tasks wait for a connection of database 'default'" in said
    assert again == "Requests are accepted again; 2 were refused."


@pytest.mark.parametrize("view", ["counting", "thread"])
@pytest.mark.parametrize(
    ("pool", "error"),
    [
        ({"max_size": 1, "timeout": 0.05}, PoolTimeout),
        ({"max_size": 1, "max_waiting": 1}, TooManyWaiting),
    ],
)
def test_a_full_pool_in_a_view_is_503(
    postgresql: Any,
    run: Run,
    view: str,
    pool: dict[str, Any],
    error: type[Exception],
    caplog: pytest.LogCaptureFixture,
) -> None:
    options(**pool)

    async def main() -> None:
        handler = ASGIHandler()
        async with hold_connection():

            def start() -> Exchange:
                return contextvars.Context().run(Exchange(handler, f"/{view}/").start)

            first = start()
            if error is TooManyWaiting:
                await until(lambda: the_pool().waiting() == 1)
                assert_refused(await start().end())
            else:
                assert_refused(await first.end())
        await first.end()
        assert (await fetch(handler, f"/{view}/")).status == 200

    with override_settings(NUAGES={"RETRY_AFTER": 4}), caplog.at_level(logging.ERROR):
        run(main)
    (record,) = [r for r in caplog.records if r.name == "django.request"]
    assert error.code in record.getMessage()  # type: ignore[attr-defined]
    assert record.status_code == 503  # type: ignore[attr-defined]
