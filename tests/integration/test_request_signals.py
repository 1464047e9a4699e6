"""request_started and request_finished: where receivers run, in order, and once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from django.core.signals import request_finished, request_started
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import path

from nuages import on_loop
from nuages.asgi import disconnect
from nuages.asgi.handler import ASGIHandler
from tests.integration.asgi_client import Exchange, fetch, where
from tests.integration.conftest import Run
from tests.integration.scope_tools import receiving

log: list[tuple[str, str]] = []
gates: dict[str, Any] = {}


async def quick(request: HttpRequest) -> HttpResponse:
    log.append(("view", where()))
    return HttpResponse("quick")


async def turns(request: HttpRequest) -> HttpResponse:
    for _ in range(5):
        await asyncio.sleep(0)
    return HttpResponse("turns")


async def broken(request: HttpRequest) -> HttpResponse:
    log.append(("view", where()))
    raise ValueError


async def slow(request: HttpRequest) -> HttpResponse:
    log.append(("view", where()))
    gates["begun"].set()
    await asyncio.get_running_loop().create_future()
    return HttpResponse("never")


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    async def parts() -> Any:
        log.append(("view", where()))
        yield b"one"
        if "begun" in gates:
            gates["begun"].set()
            await asyncio.get_running_loop().create_future()

    return StreamingHttpResponse(parts())


urlpatterns = [
    path("quick/", quick),
    path("turns/", turns),
    path("broken/", broken),
    path("slow/", slow),
    path("stream/", stream),
]


def sync_receiver(signal: Any, **kwargs: Any) -> None:
    log.append(("started" if signal is request_started else "finished", where()))


async def async_receiver(signal: Any, **kwargs: Any) -> None:
    sync_receiver(signal)


RECEIVERS = {
    "sync": (sync_receiver, "thread"),
    "on_loop": (on_loop(sync_receiver), "loop"),
    "async": (async_receiver, "loop"),
}


@pytest.fixture(autouse=True)
def _site() -> Iterator[None]:
    log.clear()
    gates.clear()
    with override_settings(ROOT_URLCONF=__name__):
        yield


@pytest.fixture(params=RECEIVERS)
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    receiver, place = RECEIVERS[request.param]
    with ExitStack() as stack:
        for signal in (request_started, request_finished):
            stack.enter_context(receiving(signal, receiver))
        yield place


@pytest.mark.parametrize(("url", "status"), [("quick", 200), ("broken", 500), ("stream", 200)])
def test_each_is_sent_once(run: Run, place: str, url: str, status: int) -> None:
    async def main() -> None:
        assert (await fetch(ASGIHandler(), f"/{url}/")).status == status
        assert log == [("started", place), ("view", "loop"), ("finished", place)]

    run(main)


@pytest.mark.parametrize("url", ["slow", "stream"])
def test_a_disconnect(run: Run, place: str, url: str) -> None:
    async def main() -> None:
        gates["begun"] = asyncio.Event()
        exchange = Exchange(ASGIHandler(), f"/{url}/").start()
        await gates["begun"].wait()
        exchange.disconnect()
        await exchange.end()
        assert log == [("started", place), ("view", "loop"), ("finished", place)]

    run(main)


def test_sync_receivers_on_the_loop_by_the_mode(run: Run) -> None:
    async def main() -> None:
        with (
            receiving(request_started, sync_receiver),
            receiving(request_finished, sync_receiver),
        ):
            await fetch(ASGIHandler(), "/quick/")
        assert log == [("started", "loop"), ("view", "loop"), ("finished", "loop")]

    with override_settings(NUAGES={"SYNC_VIEWS": "loop"}):
        run(main)


def test_a_client_that_leaves_with_its_answer_ends_no_receiver(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers tell of a disconnect once the response is complete."""
    monkeypatch.setattr(disconnect, "PATIENCE", 0)  # the listener is there from the beginning
    ended: list[str] = []

    async def receiver(**kwargs: Any) -> None:
        gates["exchange"].disconnect()
        gates["begun"].set()
        for _ in range(20):
            await asyncio.sleep(0)
        ended.append("whole")

    async def main() -> None:
        ended.clear()
        gates["begun"] = asyncio.Event()
        with receiving(request_finished, receiver):
            gates["exchange"] = exchange = Exchange(ASGIHandler(), "/turns/")
            await exchange.start().end()
        assert ended == ["whole"]

    run(main)
