"""`CONNECTION_PER = "request"`, through the ASGI handler: one connection for one request."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, transaction
from django.http import HttpRequest, JsonResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import path

from nuages.asgi.handler import ASGIHandler
from nuages.db import aatomic, acursor, detached, hold_connection
from nuages.exceptions import ScopeEnded
from tests.integration.conftest import Run
from tests.integration.scope_tools import names, pool_stats, until
from tests.library.models import Author

pytestmark = pytest.mark.both_loops

PID = "SELECT pg_backend_pid()"
TENANT = "SELECT current_setting('nuages.tenant', true)"


def fetch(sql: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


async def afetch(sql: str) -> Any:
    async with acursor() as cursor:
        await cursor.execute(sql)
        return (await cursor.fetchone())[0]


async def async_view(request: HttpRequest) -> JsonResponse:
    pids = [await afetch(PID)]
    await asyncio.sleep(0)
    pids += await asyncio.gather(*(afetch(PID) for _ in range(3)))
    pids.append(await sync_to_async(fetch)(PID))
    pids.append(await asyncio.to_thread(fetch, PID))
    async with aatomic():
        await Author.objects.acreate(name=request.GET.get("name", "async"))
        pids += await asyncio.gather(*(afetch(PID) for _ in range(2)))
    return JsonResponse({"pids": pids, "tenant": await afetch(TENANT)})


def sync_view(request: HttpRequest) -> JsonResponse:
    pids = [fetch(PID)]
    with transaction.atomic():
        Author.objects.create(name="sync")
        pids.append(fetch(PID))
    return JsonResponse({"pids": pids, "tenant": fetch(TENANT)})


async def detached_view(request: HttpRequest) -> JsonResponse:
    pids = [await afetch(PID)]
    async with detached("default"):
        pids.append(await afetch(PID))
        async with hold_connection():
            pids.append(await afetch(PID))
    pids.append(await afetch(PID))
    return JsonResponse({"pids": pids})


async def failing_view(request: HttpRequest) -> JsonResponse:
    async with aatomic():
        await Author.objects.acreate(name="failing")
        raise ValueError("of the view")


def manual_view(request: HttpRequest) -> JsonResponse:
    """Leaves its connection in the worst of states."""
    transaction.set_autocommit(False)
    Author.objects.create(name="uncommitted")
    return JsonResponse({"pids": [fetch(PID)]})


async def stream_view(request: HttpRequest) -> StreamingHttpResponse:
    first = await afetch(PID)

    async def chunks() -> Any:
        yield json.dumps({"pids": [first, await afetch(PID)]})

    return StreamingHttpResponse(chunks())


background: dict[str, Any] = {}


async def spawning_view(request: HttpRequest) -> JsonResponse:
    """Starts tasks that outlive the request."""
    pid = await afetch(PID)
    background["tasks"] = [asyncio.create_task(background["work"]()) for _ in range(3)]
    await background["begun"].wait()
    return JsonResponse({"pids": [pid]})


urlpatterns = [
    path(f"{view.__name__}/", view)
    for view in (
        async_view,
        sync_view,
        detached_view,
        failing_view,
        manual_view,
        stream_view,
        spawning_view,
    )
]


def tenant_middleware(get_response: Callable[[HttpRequest], Any]) -> Any:
    """Sync, as most are: Django runs it in a thread."""

    def middleware(request: HttpRequest) -> Any:
        tenant = request.headers.get("Tenant")
        if tenant:
            with connection.cursor() as cursor:
                cursor.execute("SELECT set_config('nuages.tenant', %s, false)", [tenant])
        return get_response(request)

    return middleware


@pytest.fixture(autouse=True)
def _settings(postgresql: dict[str, Any]) -> Iterator[None]:
    with override_settings(
        NUAGES={"CONNECTION_PER": "request"},
        ROOT_URLCONF=__name__,
        MIDDLEWARE=[f"{__name__}.tenant_middleware"],
    ):
        yield


async def get(handler: ASGIHandler, url: str, **headers: str) -> tuple[int, Any]:
    """Send one request as a server would; return the status and the JSON."""
    where, _, query = url.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "path": where,
        "query_string": query.encode(),
        "headers": [(key.lower().encode(), value.encode()) for key, value in headers.items()],
        "server": ("testserver", 80),
    }
    incoming: asyncio.Queue[Any] = asyncio.Queue()
    incoming.put_nowait({"type": "http.request", "body": b"", "more_body": False})
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await handler(scope, incoming.get, send)
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], json.loads(body) if sent[0]["status"] == 200 else body


@pytest.mark.parametrize("view", ["async_view", "sync_view", "stream_view"])
@pytest.mark.parametrize("tenant", [{}, {"Tenant": "blue"}], ids=["alone", "with middleware"])
def test_all_queries_of_a_request_use_one_session(
    run: Run, view: str, tenant: dict[str, str]
) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            status, answer = await get(ASGIHandler(), f"/{view}/", **tenant)
        assert status == 200
        assert len(answer["pids"]) >= 2
        assert len(set(answer["pids"])) == 1
        await until(lambda: pool_stats()["used"] == 0)
        assert pool_stats()["size"] == 1

    run(main)


@pytest.mark.parametrize("view", ["async_view", "sync_view"])
def test_a_tenant_set_by_middleware_is_seen_in_the_view_and_not_by_the_next(
    postgresql: dict[str, Any], run: Run, view: str, caplog: pytest.LogCaptureFixture
) -> None:
    postgresql["OPTIONS"] = {"pool": {"max_size": 1}}

    async def main() -> None:
        handler = ASGIHandler()
        pids = []
        async with asyncio.timeout(20):
            for number, tenant in enumerate(["blue", "", "green", ""]):
                headers = {"Tenant": tenant} if tenant else {}
                url = f"/async_view/?name={number}" if view == "async_view" else "/sync_view/"
                if view == "sync_view":
                    await Author.objects.all().adelete()
                status, answer = await get(handler, url, **headers)
                assert status == 200
                assert (answer["tenant"] or "") == tenant
                pids += answer["pids"]
        # The session was made clean, not closed, and that is no news to the developer.
        assert len(set(pids)) == 1

    with caplog.at_level(logging.WARNING, "nuages"):
        run(main)
    # The loop's own may say on a busy machine that something was slow.
    assert not [record for record in caplog.records if record.name.startswith("nuages")]


def test_concurrent_requests_have_a_session_each(run: Run) -> None:
    async def main() -> None:
        handler = ASGIHandler()
        async with asyncio.timeout(20):
            answers = await asyncio.gather(
                *(get(handler, f"/async_view/?name={i}", Tenant=f"t{i}") for i in range(5))
            )
        assert [answer["tenant"] for _, answer in answers] == [f"t{i}" for i in range(5)]
        assert all(len(set(answer["pids"])) == 1 for _, answer in answers)
        await until(lambda: pool_stats()["used"] == 0)
        assert pool_stats()["size"] <= 5

    run(main)


def test_detached_code_of_a_request_has_another_session(run: Run) -> None:
    async def main() -> None:
        _, answer = await get(ASGIHandler(), "/detached_view/")
        first, outside, held, last = answer["pids"]
        assert first == last
        assert outside != first
        assert held != first
        await until(lambda: pool_stats()["used"] == 0)

    run(main)


def test_a_request_that_fails_gives_its_connection_back(run: Run) -> None:
    async def main() -> None:
        status, _ = await get(ASGIHandler(), "/failing_view/")
        assert status == 500
        await until(lambda: pool_stats()["used"] == 0)
        assert await names() == []

    with override_settings(LOGGING_CONFIG=None):
        logging.getLogger("django.request").disabled = True
        try:
            run(main)
        finally:
            logging.getLogger("django.request").disabled = False


def test_what_a_request_left_uncommitted_is_rolled_back(run: Run) -> None:
    async def main() -> None:
        handler = ASGIHandler()
        await get(handler, "/manual_view/")
        await until(lambda: pool_stats()["used"] == 0)
        assert await names() == []
        _, answer = await get(handler, "/async_view/")
        assert len(set(answer["pids"])) == 1
        assert await names() == ["async"]

    run(main)


def test_tasks_that_outlive_the_request_take_connections_of_their_own(run: Run) -> None:
    """Three at once: they must not share what was the request's."""

    async def main() -> None:
        go = asyncio.Event()
        background["begun"] = asyncio.Event()
        everybody = asyncio.Barrier(3)

        first: list[int] = []

        async def work() -> int:
            first.append(await afetch(PID))
            if len(first) == 3:
                background["begun"].set()
            await go.wait()
            async with aatomic():
                pid = await afetch(PID)
                await everybody.wait()
                await Author.objects.acreate(name=str(pid))
            return int(pid)

        background["work"] = work
        async with asyncio.timeout(20):
            await get(ASGIHandler(), "/spawning_view/")
            go.set()
            pids = await asyncio.gather(*background["tasks"])
        assert len(set(pids)) == 3
        assert len(await names()) == 3
        await until(lambda: pool_stats()["used"] == 0)

    run(main)


def test_a_block_open_at_the_end_of_the_request_is_rolled_back(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        go = asyncio.Event()
        background["begun"] = asyncio.Event()

        async def work() -> None:
            async with aatomic():
                await Author.objects.acreate(name="late")
                background["begun"].set()
                await go.wait()

        background["work"] = work
        async with asyncio.timeout(20):
            await get(ASGIHandler(), "/spawning_view/")
            go.set()
            results = await asyncio.gather(*background["tasks"], return_exceptions=True)
        # One had the turn; the others waited for theirs.
        assert {type(result) for result in results} == {ScopeEnded}
        assert await names() == []
        await until(lambda: pool_stats()["used"] == 0)

    with caplog.at_level(logging.WARNING, "nuages"):
        run(main)
    assert "rolled back" in caplog.text
