"""A request whose sync view is in a thread is cancelled at once, whatever the thread awaited."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.http import HttpResponse
from django.test import override_settings
from django.urls import path

from nuages.asgi import get_asgi_application
from nuages.bridge.threads import in_sensitive_thread, in_thread
from tests.integration.asgi_tools import Exchange
from tests.integration.conftest import Run

pytestmark = pytest.mark.both_loops


async def _nothing() -> None:
    await asyncio.sleep(0)


def _came_back() -> None:
    """Await something that calls a function in this thread again."""
    async_to_sync(sync_to_async(int))()


AWAITED: dict[str, Callable[[], Any]] = {
    "nothing": int,
    "a coroutine": async_to_sync(_nothing),
    "a coroutine that came back": _came_back,
}


@pytest.mark.parametrize("before", AWAITED.values(), ids=AWAITED)
def test_the_deadline_answers_while_the_thread_goes_on(
    sqlite: dict[str, Any], run: Run, before: Callable[[], Any]
) -> None:
    go_on = threading.Event()

    def view(request: Any) -> HttpResponse:
        before()
        assert go_on.wait(30)
        return HttpResponse("too late")

    async def main() -> None:
        urls = (path("", view),)
        with override_settings(ROOT_URLCONF=urls, NUAGES={"REQUEST_TIMEOUT": 0.05}):
            playing = Exchange(get_asgi_application())
            task = asyncio.create_task(playing())
            async with asyncio.timeout(20):
                await playing.started.wait()
            assert playing.status == 504
            go_on.set()
            await task

    try:
        run(main)
    finally:
        go_on.set()


@pytest.mark.parametrize("how", ["disconnect", "timeout"])
def test_a_thread_of_the_views_own_that_was_left_may_still_read_the_body(
    sqlite: dict[str, Any], run: Run, how: str
) -> None:
    go_on = threading.Event()
    read: list[Any] = []

    def reading(request: Any) -> HttpResponse:
        request.began.get_loop().call_soon_threadsafe(request.began.set_result, None)
        assert go_on.wait(30)
        read.append(request.body)
        return HttpResponse("too late")

    async def view(request: Any) -> HttpResponse:
        request.began = began
        if how == "disconnect":
            return await sync_to_async(reading)(request)
        call = asyncio.ensure_future(sync_to_async(reading)(request))
        await began
        call.cancel()
        return HttpResponse("in time")

    async def main() -> None:
        nonlocal began
        began = asyncio.get_running_loop().create_future()
        with override_settings(ROOT_URLCONF=(path("", view),)):
            playing = Exchange(get_asgi_application(), method="POST", body=[b"the body"])
            task = asyncio.create_task(playing())
            await began
            if how == "disconnect":
                playing.disconnect()
            else:
                await playing.started.wait()
            # The loop goes on, while asgiref's end of the request would wait for the thread.
            beats = 0
            while beats < 100:
                await asyncio.sleep(0)
                beats += 1
            assert not task.done()
            assert not read
            go_on.set()
            await task
        assert read == [b"the body"]

    began: Any = None
    try:
        run(main)
    finally:
        go_on.set()


@pytest.mark.parametrize("call", [in_thread, in_sensitive_thread])
def test_a_cancellation_that_the_threads_coroutine_catches_is_raised(
    sqlite: dict[str, Any], run: Run, call: Any
) -> None:
    async def main() -> None:
        waiting = asyncio.Event()

        async def wait() -> None:
            waiting.set()
            await asyncio.Event().wait()

        def catching() -> str:
            try:
                async_to_sync(wait)()
            except asyncio.CancelledError:
                return "caught"
            raise AssertionError

        task = asyncio.create_task(call(catching))
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # The thread can be used again.
        assert await call(int) == 0

    run(main)
