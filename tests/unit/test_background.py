"""Threads that are awaited: what a cancelled call leaves in the caller's context."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from typing import Any

import pytest
from asgiref.sync import ThreadSensitiveContext, async_to_sync, markcoroutinefunction

from nuages.bridge.tasks import to_its_end
from nuages.bridge.threads import in_sensitive_thread, in_thread

color: ContextVar[str] = ContextVar("color", default="none")


@pytest.mark.parametrize("call", [in_thread, in_sensitive_thread])
async def test_a_call_cancelled_in_async_to_sync_leaves_no_executor_behind(call: Any) -> None:
    """asgiref copies the context back while the thread waits in its `async_to_sync()`.

    Before the awaited coroutine has begun: asgiref knows of no task then that it could cancel,
    and raises at once.
    """
    called = threading.Event()

    @markcoroutinefunction
    def nothing() -> Any:
        called.set()  # in the thread, in the middle of async_to_sync()
        return asyncio.sleep(0)

    async def cancelled() -> None:
        with pytest.raises(asyncio.CancelledError):
            await call(async_to_sync(nothing))
        assert await in_sensitive_thread(threading.get_ident) != threading.get_ident()

    async with ThreadSensitiveContext():
        task = asyncio.create_task(cancelled())
        await asyncio.sleep(0)
        assert called.wait(10)  # the loop stands still, so that the coroutine cannot begin
        task.cancel()
        await task


async def test_what_a_call_sets_in_the_context_is_the_callers() -> None:
    def paint() -> str:
        before = color.get()
        color.set("blue")
        return before

    color.set("red")
    assert await in_thread(paint) == "red"
    assert color.get() == "blue"
    assert await in_sensitive_thread(paint) == "blue"


def test_to_its_end_is_cancelled_though_the_coroutine_fails() -> None:
    async def main() -> None:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def failing() -> None:
            begun.set()
            await go_on.wait()
            raise ValueError("late")

        task = asyncio.create_task(to_its_end(failing()))
        await begun.wait()
        task.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError) as raised:
            await task
        assert isinstance(raised.value.__cause__, ValueError)

    asyncio.run(main())
