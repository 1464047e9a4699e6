"""Code that goes on for a while after its task was cancelled."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from nuages.bridge.grace import GracePeriod

seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="nothing")


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(coroutine)


def test_a_result_and_an_error_come_through() -> None:
    async def one() -> int:
        seen.set("one")
        return 1

    async def fail() -> None:
        raise ValueError("failed")

    async def main() -> None:
        period = GracePeriod(60.0)
        assert await period.outlast(one()) == 1
        assert seen.get() == "one"
        with pytest.raises(ValueError, match="failed"):
            await period.outlast(fail())
        future = asyncio.get_running_loop().create_future()
        future.set_result(2)
        assert await period.outlast(future) == 2
        assert period.cancelled is None
        assert not period.is_over

    run(main())


def test_a_cancellation_is_noted_and_the_wait_goes_on() -> None:
    async def main() -> None:
        period = GracePeriod(60.0)
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(period.outlast(future))
        for _ in range(3):
            await asyncio.sleep(0)
            task.cancel("again")
        await asyncio.sleep(0)
        future.set_result(1)
        assert await task == 1
        assert task.cancelling() == 3
        assert period.cancelled is not None
        assert period.cancelled.args == ("again",)
        assert not period.is_over

    run(main())


def test_past_its_end_what_is_awaited_is_cancelled() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        period = GracePeriod(0.0)
        task = asyncio.create_task(period.outlast(future))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert future.cancelled()
        assert period.is_over

    run(main())


@pytest.mark.parametrize("elsewhere", [False, True])
def test_closed_it_leaves_no_task_behind(elsewhere: bool) -> None:
    """As by the garbage collector, in whichever thread that runs."""

    async def main() -> None:
        entered, ended = asyncio.Event(), asyncio.Event()

        async def forever() -> None:
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        waiting = GracePeriod(60.0).outlast(forever())
        waiting.send(None)
        await entered.wait()
        if elsewhere:
            thread = threading.Thread(target=waiting.close)
            thread.start()
            thread.join()
        else:
            waiting.close()
        await ended.wait()
        gc.collect()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main())
