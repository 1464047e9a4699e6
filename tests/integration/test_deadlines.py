"""Deadlines: 504 in time, the work stopped, and nothing left of it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.signals import request_finished, request_started
from django.db import connection, connections, transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.cache import never_cache
from django.views.generic import TemplateView

from nuages import on_loop
from nuages.asgi.handler import ASGIHandler
from nuages.db import aatomic
from nuages.handling.deadline import limit
from nuages.http import request_timeout
from tests.integration.asgi_client import Exchange, fetch, where
from tests.integration.conftest import Run
from tests.integration.pool_tools import OURS, server
from tests.integration.pool_tools import fetch as query
from tests.integration.scope_tools import names, pool_stats, receiving
from tests.library.models import Author

pytestmark = pytest.mark.both_loops

SHORT = 0.05
"""Seconds of the deadlines here; what they interrupt would last for ever."""

log: list[str] = []
hooks: dict[str, Any] = {}


async def for_ever() -> None:
    await asyncio.get_running_loop().create_future()


async def waiting(request: HttpRequest) -> HttpResponse:
    log.append("begins")
    if "begun" in hooks:
        hooks["begun"].set()
    try:
        await for_ever()
    except asyncio.CancelledError:
        log.append("cancelled")
        raise
    return HttpResponse("never")


async def after_a_failed_group(request: HttpRequest) -> HttpResponse:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError

    with contextlib.suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())
    return await waiting(request)


async def querying(request: HttpRequest) -> HttpResponse:
    async with aatomic():
        await Author.objects.acreate(name="of the deadline")
        await query("SELECT pg_sleep(1000)")
    return HttpResponse("never")


@on_loop
def querying_on_loop(request: HttpRequest) -> HttpResponse:
    with transaction.atomic(), connection.cursor() as cursor:
        Author.objects.create(name="of the deadline")
        cursor.execute("SELECT pg_sleep(1000)")
    return HttpResponse("never")


async def writing(request: HttpRequest) -> HttpResponse:
    async with aatomic():
        await Author.objects.acreate(name="of the deadline")
        await for_ever()
    return HttpResponse("never")


async def swallowing(request: HttpRequest) -> HttpResponse:
    try:
        await for_ever()
    except asyncio.CancelledError:
        log.append("swallowed")
    task = asyncio.current_task()
    await asyncio.sleep(0)
    return HttpResponse(f"its own {task is not None}")


async def translating(request: HttpRequest) -> HttpResponse:
    try:
        await for_ever()
    except asyncio.CancelledError:
        raise ValueError("instead") from None
    return HttpResponse("never")


async def timing_out(request: HttpRequest) -> HttpResponse:
    try:
        async with asyncio.timeout(SHORT):
            await for_ever()
    except TimeoutError:
        return HttpResponse("its own time")
    return HttpResponse("never")


def in_thread(request: HttpRequest) -> HttpResponse:
    log.append(f"begins in the {where()}")
    hooks["go"].wait(30)
    log.append("ends")
    return HttpResponse("too late")


async def quick(request: HttpRequest) -> HttpResponse:
    return HttpResponse("quick")


async def streaming(request: HttpRequest) -> StreamingHttpResponse:
    async def parts() -> Any:
        yield b"one "
        await hooks["go"].wait()
        yield b"two"

    return StreamingHttpResponse(parts())


limited_async = request_timeout(SHORT)(waiting)
limited_loop = request_timeout(SHORT)(querying_on_loop)
limited_below = on_loop(request_timeout(SHORT)(querying_on_loop.__wrapped__))  # type: ignore[attr-defined]
limited_under = never_cache(request_timeout(SHORT)(waiting))
limited_sync = request_timeout(SHORT)(in_thread)
unlimited = request_timeout(None)(streaming)


class CallableView:
    async def __call__(self, request: HttpRequest) -> HttpResponse:
        return await waiting(request)


limited_object = request_timeout(SHORT)(CallableView())
limited_partial = request_timeout(SHORT)(functools.partial(waiting))


@method_decorator(request_timeout(SHORT), name="dispatch")
class Limited(View):
    async def get(self, request: HttpRequest) -> HttpResponse:
        return await waiting(request)


urlpatterns = [
    path(f"{name}/", view)
    for name, view in {
        "waiting": waiting,
        "querying": querying,
        "querying_on_loop": querying_on_loop,
        "writing": writing,
        "swallowing": swallowing,
        "translating": translating,
        "timing_out": timing_out,
        "in_thread": in_thread,
        "after_a_failed_group": after_a_failed_group,
        "quick": quick,
        "streaming": streaming,
        "limited_async": limited_async,
        "limited_loop": limited_loop,
        "limited_below": limited_below,
        "limited_under": limited_under,
        "limited_sync": limited_sync,
        "limited_object": limited_object,
        "limited_partial": limited_partial,
        "limited_class": Limited.as_view(),
        "unlimited": unlimited,
    }.items()
]


class Seeing:
    """Middleware that sees the answer."""

    async_capable = True
    sync_capable = False

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    async def __call__(self, request: HttpRequest) -> Any:
        response = await self.get_response(request)
        log.append(f"middleware saw {response.status_code}")
        return response


class Slow(Seeing):
    """Middleware that takes all the time itself, before or after the view."""

    async def __call__(self, request: HttpRequest) -> Any:
        if request.headers["Slow"] == "before":
            await for_ever()
        response = await self.get_response(request)
        await for_ever()
        return response


def slow_in_thread(get_response: Any) -> Any:
    def middleware(request: HttpRequest) -> Any:
        hooks["go"].wait(30)
        log.append("middleware's thread goes on")
        return get_response(request)

    return middleware


def thread_middleware(get_response: Any) -> Any:
    def middleware(request: HttpRequest) -> Any:
        response = get_response(request)
        log.append(f"thread saw {response.status_code}")
        return response

    return middleware


@pytest.fixture(autouse=True)
def _site() -> Iterator[None]:
    log.clear()
    hooks.clear()
    with override_settings(
        ROOT_URLCONF=__name__,
        NUAGES={"REQUEST_TIMEOUT": SHORT},
        MIDDLEWARE=["django.middleware.security.SecurityMiddleware", f"{__name__}.Seeing"],
    ):
        yield


def test_the_answer_is_504_and_the_middleware_sees_it(
    sqlite: Any, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        answer = await fetch(ASGIHandler(), "/waiting/")
        assert answer.status == 504
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert b"took too long" in answer.content
        assert log == ["begins", "cancelled", "middleware saw 504"]
        assert (await fetch(ASGIHandler(), "/quick/")).content == b"quick"

    run(main)
    said = [r for r in caplog.records if r.name == "django.request"]
    assert [(r.levelno, r.getMessage()) for r in said] == [
        (logging.ERROR, f"Request took more than {SHORT:g} s: /waiting/")
    ]
    assert said[0].status_code == 504  # type: ignore[attr-defined]


@pytest.mark.parametrize("view", ["querying", "querying_on_loop", "limited_loop", "limited_below"])
def test_the_query_is_cancelled_on_the_server(
    postgresql: dict[str, Any], run: Run, view: str
) -> None:
    async def main() -> None:
        async with server() as pg:
            exchange = Exchange(ASGIHandler(), f"/{view}/").start()
            assert (await exchange.end()).status == 504
            try:
                await pg.until_idle()
            except AssertionError:
                rows = await (await pg.client.execute(f"SELECT * {OURS}")).fetchall()
                raise AssertionError(rows) from None
        assert await names() == []
        assert pool_stats()["used"] == 0

    nuages = {} if view.startswith("limited") else {"REQUEST_TIMEOUT": 0.5}
    with override_settings(NUAGES=nuages):
        run(main)


def test_the_transaction_is_rolled_back(database: str, run: Run) -> None:
    async def main() -> None:
        assert (await fetch(ASGIHandler(), "/writing/")).status == 504
        assert await names() == []
        assert pool_stats()["used"] == 0

    with override_settings(NUAGES={"REQUEST_TIMEOUT": 0.3}):
        run(main)


def test_atomic_requests_are_rolled_back(postgresql: dict[str, Any], run: Run) -> None:
    async def main() -> None:
        for view in ("writing", "querying_on_loop"):
            assert (await fetch(ASGIHandler(), f"/{view}/")).status == 504
            assert await names() == []

    postgresql["ATOMIC_REQUESTS"] = True
    connections.settings["default"]["ATOMIC_REQUESTS"] = True
    with override_settings(NUAGES={"REQUEST_TIMEOUT": 0.3}):
        run(main)


def test_a_view_that_swallows_it_gives_its_own_answer(sqlite: Any, run: Run) -> None:
    async def main() -> None:
        exchange = Exchange(ASGIHandler(), "/swallowing/")
        await exchange.start().end()
        assert (exchange.status, exchange.content) == (200, b"its own True")
        assert exchange.task.cancelling() == 0
        assert log == ["swallowed", "middleware saw 200"]

    run(main)


def test_a_view_that_makes_another_error_of_it(sqlite: Any, run: Run) -> None:
    async def main() -> None:
        exchange = Exchange(ASGIHandler(), "/translating/")
        await exchange.start().end()
        assert exchange.status == 500
        assert exchange.task.cancelling() == 0

    run(main)


@pytest.mark.parametrize("by", ["deadline", "disconnect"])
def test_it_is_withdrawn_though_a_task_group_left_a_cancellation_behind(
    sqlite: Any, run: Run, by: str
) -> None:
    """As asyncio's do until Python 3.13, where a task of the group fails in the block's end."""

    async def main() -> None:
        hooks["begun"] = asyncio.Event()
        exchange = Exchange(ASGIHandler(), "/after_a_failed_group/").start()
        if by == "disconnect":
            await hooks["begun"].wait()
            exchange.disconnect()
        await exchange.end()
        assert [message.get("status") for message in exchange.sent[:1]] == (
            [504] if by == "deadline" else []
        )

    with override_settings(NUAGES={"REQUEST_TIMEOUT": SHORT if by == "deadline" else 0}):
        run(main)


def test_a_timeout_inside_the_view_is_its_own(sqlite: Any, run: Run) -> None:
    async def main() -> None:
        assert (await fetch(ASGIHandler(), "/timing_out/")).content == b"its own time"

    with override_settings(NUAGES={"REQUEST_TIMEOUT": 20}):
        run(main)


@pytest.mark.parametrize("view", ["in_thread", "limited_sync"])
def test_a_thread_goes_on_and_its_answer_is_dropped(sqlite: Any, run: Run, view: str) -> None:
    hooks["go"] = threading.Event()
    finished: list[str] = []

    def receiver(**kwargs: Any) -> None:
        finished.append("finished after " + log[-1])

    async def main() -> None:
        exchange = Exchange(ASGIHandler(), f"/{view}/").start()
        await exchange.messages(2)
        # The client has its answer while the thread still works.
        assert exchange.status == 504
        assert exchange.complete
        assert log == ["begins in the thread", "middleware saw 504"]
        assert finished == []
        assert not exchange.task.done()
        hooks["go"].set()
        await exchange.end()
        assert log[2:] == ["ends"]
        assert finished == ["finished after ends"]
        assert len(exchange.sent) == 2

    with receiving(request_finished, receiver):
        run(main)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_deadline_that_passes_in_the_middleware(sqlite: Any, run: Run, when: str) -> None:
    async def main() -> None:
        answer = await fetch(ASGIHandler(), "/quick/", headers={"Slow": when})
        assert answer.status == 504

    with override_settings(MIDDLEWARE=[f"{__name__}.Slow"]):
        run(main)


def test_a_deadline_that_passes_in_the_thread_of_a_middleware(sqlite: Any, run: Run) -> None:
    """The thread comes back to a request that is over: its view does not begin."""
    hooks["go"] = threading.Event()

    async def main() -> None:
        exchange = Exchange(ASGIHandler(), "/waiting/").start()
        await exchange.messages(2)
        assert exchange.status == 504
        hooks["go"].set()
        await exchange.end()
        assert log == ["middleware's thread goes on"]

    with override_settings(MIDDLEWARE=[f"{__name__}.slow_in_thread"]):
        run(main)


@pytest.mark.parametrize("view", ["waiting", "limited_async"])
def test_a_middleware_in_a_thread_sees_the_504(sqlite: Any, run: Run, view: str) -> None:
    async def main() -> None:
        exchange = await fetch(ASGIHandler(), f"/{view}/")
        assert exchange.status == 504
        assert log == ["begins", "cancelled", "thread saw 504"]

    with override_settings(MIDDLEWARE=[f"{__name__}.thread_middleware"]):
        run(main)


@pytest.mark.parametrize("middleware", [["Seeing"], ["thread_middleware"], []])
def test_a_disconnect_and_a_deadline_together(
    sqlite: Any, run: Run, middleware: list[str]
) -> None:
    async def main() -> None:
        signals: list[str] = []
        handler = ASGIHandler()
        await fetch(handler, "/quick/")
        with (
            receiving(request_started, on_loop(lambda **kwargs: signals.append("started"))),
            receiving(request_finished, on_loop(lambda **kwargs: signals.append("finished"))),
        ):
            for number in range(10):
                log.clear()
                signals.clear()
                exchange = Exchange(handler, "/waiting/").start()
                # The deadline passes after 20 ms, or when the machine comes to it.
                loop = asyncio.get_running_loop()
                loop.call_later(0.015 + number / 1000, exchange.disconnect)
                await exchange.end()
                # Whichever came first, the view was stopped once and the request ended once.
                assert log.count("cancelled") == log.count("begins") <= 1
                assert signals.count("finished") == signals.count("started") <= 1
                assert not exchange.sent or exchange.status == 504
                if not exchange.disconnected:
                    assert exchange.complete

    with override_settings(
        NUAGES={"REQUEST_TIMEOUT": 0.02},
        MIDDLEWARE=[f"{__name__}.{name}" for name in middleware],
    ):
        run(main)


def test_a_stream_may_take_any_time(sqlite: Any, run: Run) -> None:
    async def main() -> None:
        hooks["go"] = asyncio.Event()
        exchange = Exchange(ASGIHandler(), "/streaming/").start()
        await exchange.messages(2)
        # Far more than the deadline, on the loop's own clock.
        over = asyncio.Event()
        asyncio.get_running_loop().call_later(SHORT * 2, over.set)
        await over.wait()
        hooks["go"].set()
        await exchange.end()
        assert exchange.content == b"one two"

    run(main)


# The decorator


@pytest.mark.parametrize(
    "view",
    [
        "limited_async",
        "limited_under",
        "limited_object",
        "limited_partial",
        "limited_class",
    ],
)
def test_request_timeout(sqlite: Any, run: Run, view: str) -> None:
    async def main() -> None:
        assert (await fetch(ASGIHandler(), f"/{view}/")).status == 504
        assert log[:2] == ["begins", "cancelled"]

    with override_settings(NUAGES={}):
        run(main)


def test_request_timeout_none_is_any_time(sqlite: Any, run: Run) -> None:
    async def main() -> None:
        hooks["go"] = asyncio.Event()
        hooks["go"].set()
        assert (await fetch(ASGIHandler(), "/unlimited/")).content == b"one two"

    run(main)
    assert limit(unlimited) == 0
    assert limit(quick) is None


def test_one_view_may_have_two_limits() -> None:
    first, second = request_timeout(1)(quick), request_timeout(2)(quick)
    assert (limit(first), limit(second), limit(quick)) == (1, 2, None)
    third = request_timeout(3)(first)
    assert (limit(third), limit(first)) == (3, 1)


def test_what_on_loop_made_stays_that() -> None:
    from nuages.bridge.wrapping import on_loop_target

    marked = on_loop(TemplateView.as_view())
    marked.csrf_exempt = True  # type: ignore[attr-defined]
    limited = request_timeout(4)(marked)
    assert on_loop_target(limited) is not None
    assert limited.csrf_exempt  # type: ignore[attr-defined]
    assert limit(limited) == 4


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), -0.5])
def test_wrong_seconds(seconds: float) -> None:
    with pytest.raises(ValueError, match="above 0, or 0 or None"):
        request_timeout(seconds)


@pytest.mark.parametrize("seconds", ["5", True, object()])
def test_seconds_of_a_wrong_type(seconds: Any) -> None:
    with pytest.raises(TypeError, match="takes seconds or None, not"):
        request_timeout(seconds)


def test_request_timeout_without_seconds() -> None:
    with pytest.raises(TypeError, match=r"@request_timeout\(5\)"):
        request_timeout(quick)  # type: ignore[arg-type]


@pytest.mark.parametrize("view", [TemplateView, None, "view"])
def test_what_is_no_view(view: Any) -> None:
    with pytest.raises(TypeError, match="method_decorator"):
        request_timeout(5)(view)
