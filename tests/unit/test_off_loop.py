"""off_loop: a blocking call inside code that runs on the loop."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from asgiref.sync import async_to_sync

from nuages import off_loop, on_loop
from nuages.bridge import current_bridge

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")


@off_loop
def where(number: int = 0, *, plus: int = 0) -> tuple[int, int]:
    """Where it runs."""
    assert current_bridge() is None
    return threading.get_ident(), number + plus


def test_outside_a_loop_it_just_calls() -> None:
    assert where(1, plus=2) == (threading.get_ident(), 3)


async def test_in_bare_coroutine_code_it_just_calls() -> None:
    assert where(1, plus=2) == (threading.get_ident(), 3)


async def test_in_a_bridge_it_runs_in_a_thread_and_the_loop_goes_on() -> None:
    release = threading.Event()
    loop = asyncio.get_running_loop()

    @off_loop
    def block() -> int:
        loop.call_soon_threadsafe(release.set)  # only a loop that is not blocked does it
        assert release.wait(30)
        return threading.get_ident()

    assert await on_loop(block)() != threading.get_ident()
    thread, number = await on_loop(where)(1, plus=2)
    assert thread != threading.get_ident()
    assert number == 3


async def test_in_a_portal_it_runs_in_a_thread() -> None:
    @on_loop
    async def portal() -> int:
        return where()[0]

    assert await portal() != threading.get_ident()


def test_name_and_docstring_are_kept_and_it_stays_sync() -> None:
    assert (where.__name__, where.__doc__) == ("where", "Where it runs.")
    assert not asyncio.iscoroutinefunction(where)


@pytest.mark.parametrize("wrong", [None, 5, "name"])
def test_what_cannot_be_called_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="takes a callable"):
        off_loop(wrong)


def test_async_callables_are_refused() -> None:
    class Call:
        async def __call__(self) -> None: ...

    async def generator() -> Any:
        yield 1

    for function in (asyncio.sleep, Call(), generator):
        with pytest.raises(TypeError, match="takes a sync callable"):
            off_loop(function)


async def test_a_callable_object_works() -> None:
    class Call:
        def __call__(self) -> int:
            return threading.get_ident()

    assert await on_loop(off_loop(Call()))() != threading.get_ident()


async def test_exceptions_come_back_with_the_threads_frames() -> None:
    def fails() -> None:
        raise KeyError("in the thread")

    def call() -> None:
        off_loop(fails)()

    with pytest.raises(KeyError, match="in the thread") as caught:
        await on_loop(call)()
    assert [entry.name for entry in caught.traceback][-1] == "fails"


async def test_stop_iteration_of_the_thread_is_a_runtime_error() -> None:
    def call() -> None:
        with pytest.raises(RuntimeError, match="StopIteration"):
            off_loop(next)(iter(()))

    await on_loop(call)()


async def test_context_variables_flow_into_the_thread_and_back() -> None:
    @off_loop
    def change() -> str:
        before = variable.get()
        variable.set("thread")
        return before

    def call() -> None:
        variable.set("bridge")
        assert change() == "bridge"
        assert variable.get() == "thread"

    await on_loop(call)()
    assert variable.get() == "thread"


async def test_calls_of_several_tasks_run_at_the_same_time() -> None:
    barrier = threading.Barrier(3)
    meet = on_loop(off_loop(lambda: barrier.wait(30)))
    assert sorted(await asyncio.gather(meet(), meet(), meet())) == [0, 1, 2]


async def test_async_to_sync_in_the_thread_runs_on_the_loop() -> None:
    loop = asyncio.get_running_loop()

    async def inner() -> bool:
        return asyncio.get_running_loop() is loop

    assert await on_loop(off_loop(async_to_sync(inner)))()


class Blocked:
    """A call that has begun in its thread and waits there."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.begun = asyncio.Event()
        self.release = threading.Event()
        self.ended = False
        self.result: Callable[[], Any] = lambda: None

    def __call__(self) -> Any:
        self.loop.call_soon_threadsafe(self.begun.set)
        assert self.release.wait(30)
        self.ended = True
        return self.result()


async def test_a_cancellation_is_raised_when_the_thread_has_ended() -> None:
    blocked = Blocked()
    seen: list[bool] = []

    def call() -> None:
        try:
            off_loop(blocked)()
        except asyncio.CancelledError:
            seen.append(blocked.ended)
            raise

    task = asyncio.ensure_future(on_loop(call)())
    await blocked.begun.wait()
    for _ in range(3):  # a second one changes nothing: nobody can stop a thread
        task.cancel("enough")
        for _ in range(5):
            await asyncio.sleep(0)
        assert not task.done()
    blocked.release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == [True]
    assert task.cancelling() == 3


async def test_a_cancellation_wins_over_the_threads_error() -> None:
    blocked = Blocked()
    blocked.result = lambda: 1 / 0
    task = asyncio.ensure_future(on_loop(off_loop(blocked))())
    await blocked.begun.wait()
    task.cancel()
    await asyncio.sleep(0)
    blocked.release.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_timeout_over_a_thread_is_a_timeout_error() -> None:
    blocked = Blocked()
    task = asyncio.current_task()
    assert task is not None

    async def let_go() -> None:
        await blocked.begun.wait()
        limit.reschedule(asyncio.get_running_loop().time())
        while not task.cancelling():  # noqa: ASYNC110
            await asyncio.sleep(0)
        blocked.release.set()

    letting = asyncio.ensure_future(let_go())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as limit:
            await on_loop(off_loop(blocked))()
    assert blocked.ended
    assert task.cancelling() == 0
    await letting


async def test_a_call_that_was_cancelled_before_a_thread_was_free_never_runs() -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(max_workers=1))
    blocked = Blocked()
    called: list[int] = []
    first = asyncio.ensure_future(on_loop(off_loop(blocked))())
    await blocked.begun.wait()
    second = asyncio.ensure_future(on_loop(off_loop(called.append))(1))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    blocked.release.set()
    await first
    assert called == []
