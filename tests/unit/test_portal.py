"""The portal: coroutine and async generator functions whose code may do implicit I/O."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import inspect
import subprocess
import sys
import textwrap
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from typing import Any

import pytest
from asgiref.sync import iscoroutinefunction

from nuages import on_loop
from nuages.bridge import await_, current_bridge, tasks
from nuages.bridge import core as bridge
from nuages.exceptions import BridgeClosed, NotInBridge


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    assert not bridge._bridges, "a bridge was left behind"
    assert not tasks._spawned, "background work was left behind"


async def value_of(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


def lazy(number: int) -> int:
    """Implicit I/O: works in a bridge only."""
    return int(await_(value_of(number)))


async def until_closed(steps: list[str], number: int = 1) -> None:
    """Give background closes the turns of the loop that they need."""
    while len(steps) < number:  # noqa: ASYNC110
        await asyncio.sleep(0)
    while tasks._spawned:
        await asyncio.wait(list(tasks._spawned))


# Coroutine functions


async def test_a_coroutine_function_stays_one_and_may_do_implicit_io() -> None:
    @on_loop
    async def view(number: int, *, plus: int = 0) -> int:
        """What it does."""
        before = lazy(number)
        assert await value_of("awaited") == "awaited"
        return before + lazy(plus)

    assert iscoroutinefunction(view)
    assert inspect.iscoroutinefunction(view)
    assert (view.__name__, view.__doc__) == ("view", "What it does.")
    assert await view(40, plus=2) == 42


async def test_without_the_portal_implicit_io_is_refused() -> None:
    async def view() -> int:
        return lazy(1)

    with pytest.raises(NotInBridge):
        await view()


async def test_the_portal_is_transparent_for_asyncio() -> None:
    task = asyncio.current_task()

    async def sleeper(number: int) -> int:
        await asyncio.sleep(0)
        assert current_bridge() is None
        return number

    @on_loop
    async def portal(number: int) -> int:
        await asyncio.sleep(0)
        return lazy(number)

    @on_loop
    async def view() -> None:
        assert asyncio.current_task() is task
        assert await asyncio.gather(sleeper(1), portal(2), sleeper(3)) == [1, 2, 3]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        assert lazy(1) == 1
        async with asyncio.TaskGroup() as group:
            first = group.create_task(portal(4))
            second = group.create_task(sleeper(5))
        assert (first.result(), second.result()) == (4, 5)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0)
        async with asyncio.Lock():
            assert lazy(6) == 6
        future = asyncio.get_running_loop().create_future()
        future.set_result(7)
        assert await future == 7

    await view()
    assert task is not None
    assert task.cancelling() == 0


async def test_exceptions_of_what_is_awaited_arrive_in_the_portal() -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise KeyError("awaited")

    @on_loop
    async def view() -> str:
        with pytest.raises(KeyError, match="awaited"):
            await fails()
        try:
            await fails()
        except KeyError as error:
            return f"{error} {lazy(1)}"
        return "not reached"

    assert await view() == "'awaited' 1"


async def test_a_cancellation_arrives_at_the_await_and_its_cleanup_may_await() -> None:
    waiting = asyncio.Event()
    steps: list[str] = []

    @on_loop
    async def view() -> None:
        try:
            waiting.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            steps.append(f"cleanup {lazy(1)}")
            raise

    task = asyncio.ensure_future(view())
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["cleanup 1"]


async def test_cancelling_cancels_what_the_portal_awaits() -> None:
    child: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting = asyncio.Event()

    @on_loop
    async def view() -> None:
        waiting.set()
        await child

    task = asyncio.ensure_future(view())
    await waiting.wait()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert child.cancelled()


async def test_context_variables_set_in_a_portal_are_the_tasks() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")

    @on_loop
    async def view() -> None:
        variable.set("portal")
        await asyncio.sleep(0)
        assert variable.get() == "portal"

    await view()
    assert variable.get() == "portal"


async def test_a_lease_hook_runs_before_everything_a_portal_awaits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    suspended: list[Any] = []
    monkeypatch.setattr(bridge, "suspend_hooks", [suspended.append])

    @on_loop
    async def view() -> None:
        assert suspended == []
        await asyncio.sleep(0)
        assert len(suspended) == 1

    await view()


async def test_a_portal_called_by_sync_code_in_a_bridge_is_awaited_by_it() -> None:
    @on_loop
    async def portal(number: int) -> int:
        await asyncio.sleep(0)
        return lazy(number)

    assert await on_loop(lambda: await_(portal(1)) + lazy(2))() == 3


async def test_an_awaitable_that_is_no_coroutine_can_be_what_a_portal_returns() -> None:
    class Marked:
        async def __call__(self) -> None: ...

    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    future.set_result(5)

    class Returns(Marked):
        def __call__(self) -> Awaitable[int]:  # type: ignore[override]
            return future

    function = Returns()
    from asgiref.sync import markcoroutinefunction

    markcoroutinefunction(function)
    assert await on_loop(function)() == 5


async def test_a_portal_that_is_closed_unwinds_and_cannot_await() -> None:
    steps: list[str] = []

    @on_loop
    async def view() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            with pytest.raises(BridgeClosed):
                lazy(1)
            with pytest.raises(BridgeClosed):
                await asyncio.sleep(0)
            steps.append("unwound")

    coroutine = view()
    coroutine.send(None)
    coroutine.close()
    assert steps == ["unwound"]


# Async generator functions


def numbers_of(steps: list[str]) -> Any:
    @on_loop
    async def numbers(count: int) -> AsyncGenerator[int, str | None]:
        """Counts."""
        try:
            for number in range(count):
                try:
                    sent = yield lazy(number)
                except KeyError as error:
                    sent = f"caught {error}"
                if sent is not None:
                    steps.append(sent)
                await asyncio.sleep(0)
        finally:
            await asyncio.sleep(0)
            steps.append(f"closed {lazy(1)}")

    return numbers


async def test_an_async_generator_may_do_implicit_io_in_every_step() -> None:
    steps: list[str] = []
    numbers = numbers_of(steps)
    assert (numbers.__name__, numbers.__doc__) == ("numbers", "Counts.")
    assert isinstance(numbers(1), AsyncGenerator)
    assert [number async for number in numbers(3)] == [0, 1, 2]
    assert steps == ["closed 1"]


async def test_on_loop_twice_is_once() -> None:
    steps: list[str] = []
    assert [number async for number in on_loop(numbers_of(steps))(2)] == [0, 1]


async def test_asend_athrow_and_aclose_work_as_on_the_generator() -> None:
    steps: list[str] = []
    generator = numbers_of(steps)(5)
    assert await anext(generator) == 0
    assert await generator.asend("sent") == 1
    assert await generator.athrow(KeyError("thrown")) == 2
    assert steps == ["sent", "caught 'thrown'"]
    await generator.aclose()
    assert steps[2:] == ["closed 1"]
    with pytest.raises(StopAsyncIteration):
        await anext(generator)
    await generator.aclose()


async def test_an_exception_thrown_that_is_not_caught_comes_back() -> None:
    steps: list[str] = []
    generator = numbers_of(steps)(5)
    await anext(generator)
    with pytest.raises(ZeroDivisionError):
        await generator.athrow(ZeroDivisionError())
    assert steps == ["closed 1"]


async def test_the_first_step_may_be_asend_athrow_or_aclose() -> None:
    steps: list[str] = []
    assert await numbers_of(steps)(1).asend(None) == 0
    with pytest.raises(ZeroDivisionError):
        await numbers_of(steps)(1).athrow(ZeroDivisionError())
    await numbers_of(steps)(1).aclose()
    await until_closed(steps)
    assert steps == ["closed 1"]


async def test_anext_with_a_default_and_attributes_of_the_generator() -> None:
    generator = numbers_of([])(1)
    assert not generator.ag_running
    assert await anext(generator, "default") == 0
    assert await anext(generator, "default") == "default"
    assert generator.ag_frame is None


async def test_a_step_that_another_task_awaits_is_a_portal_there() -> None:
    """`wait_for(anext(generator))` and the like, called in a portal."""

    @on_loop
    async def view() -> list[int]:
        generator = numbers_of([])(3)
        first = await asyncio.ensure_future(anext(generator))
        second = await asyncio.wait_for(anext(generator), 60)
        third = await anext(generator)
        await generator.aclose()
        return [first, second, third]

    assert await view() == [0, 1, 2]


async def test_it_can_be_a_context_manager() -> None:
    steps: list[str] = []

    @contextlib.asynccontextmanager
    @on_loop
    async def block() -> AsyncIterator[int]:
        try:
            yield lazy(1)
        except KeyError:
            steps.append("caught")
        finally:
            steps.append(f"closed {lazy(2)}")

    async with block() as number:
        assert number == 1
        raise KeyError
    assert steps == ["caught", "closed 2"]


async def test_break_closes_it_in_a_bridge_of_its_loop() -> None:
    steps: list[str] = []
    async for number in numbers_of(steps)(5):
        if number == 1:
            break
    await until_closed(steps)
    assert steps == ["closed 1"]


async def test_abandoned_to_the_garbage_collector_it_is_closed_on_its_loop() -> None:
    steps: list[str] = []
    generator = numbers_of(steps)(5)
    await anext(generator)
    cycle = [generator]
    cycle.append(cycle)
    del generator, cycle
    gc.collect()
    await until_closed(steps)
    assert steps == ["closed 1"]


async def test_collected_in_another_thread_it_is_closed_on_its_loop() -> None:
    steps: list[str] = []
    holder = [numbers_of(steps)(5)]
    await anext(holder[0])
    await asyncio.to_thread(holder.clear)
    await until_closed(steps)
    assert steps == ["closed 1"]


async def test_collected_in_another_tasks_bridge_it_is_closed_in_its_own_context() -> None:
    """Not in the transaction, say, of the task in which the collector ran."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    steps: list[str] = []

    @on_loop
    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            steps.append(variable.get())
            lazy(1)

    variable.set("its own")
    holder = [numbers()]
    await anext(holder[0])

    def collects() -> None:
        variable.set("the other's")
        holder.clear()
        # Nothing of it ran inside this code, with eager tasks neither.
        assert steps == []

    await asyncio.ensure_future(on_loop(collects)())
    await until_closed(steps)
    assert steps == ["its own"]


async def test_one_never_iterated_needs_no_closing() -> None:
    steps: list[str] = []
    numbers_of(steps)(5)
    gc.collect()
    await asyncio.sleep(0)
    assert steps == []


def test_a_loop_that_shuts_down_closes_it_in_a_bridge() -> None:
    steps: list[str] = []
    kept: list[Any] = []

    async def main() -> None:
        kept.append(numbers_of(steps)(5))
        await anext(kept[0])

    asyncio.run(main())
    assert steps == ["closed 1"]


def test_a_failure_while_an_abandoned_one_closes_is_reported_to_the_loop() -> None:
    reports: list[dict[str, Any]] = []

    @on_loop
    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise ZeroDivisionError

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, report: reports.append(report)
        )
        async for _ in numbers():
            break
        while not reports:  # noqa: ASYNC110
            await asyncio.sleep(0)

    asyncio.run(main())
    assert isinstance(reports[0]["exception"], ZeroDivisionError)


def test_one_that_outlives_its_loop_ends_quietly() -> None:
    code = """
        import asyncio
        from nuages import on_loop

        @on_loop
        async def numbers():
            yield 1

        async def main():
            kept = numbers()
            await anext(kept)
            return kept

        loop = asyncio.new_event_loop()
        kept = loop.run_until_complete(main())
        loop.close()
        del kept
    """
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


async def test_a_cancellation_arrives_inside_the_generator() -> None:
    waiting = asyncio.Event()
    steps: list[str] = []

    @on_loop
    async def numbers() -> AsyncIterator[int]:
        try:
            waiting.set()
            lazy_event = asyncio.Event()
            await_(lazy_event.wait())
            yield 1
        finally:
            steps.append(f"closed {lazy(1)}")

    async def iterate() -> None:
        async for _ in numbers():
            pass

    task = asyncio.ensure_future(iterate())
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["closed 1"]


async def test_a_generator_in_a_generator_and_in_a_portal() -> None:
    @on_loop
    async def inner() -> AsyncIterator[int]:
        yield lazy(1)
        yield lazy(2)

    @on_loop
    async def outer() -> AsyncIterator[int]:
        async for number in inner():
            yield number * lazy(10)

    @on_loop
    async def view() -> list[int]:
        return [number async for number in outer()]

    assert await view() == [10, 20]
    assert [number async for number in outer()] == [10, 20]


async def test_a_method_can_be_an_async_generator() -> None:
    class Counter:
        start = 5

        @on_loop
        async def numbers(self) -> AsyncIterator[int]:
            yield lazy(self.start)

        @on_loop
        @classmethod
        async def of_class(cls) -> AsyncIterator[int]:
            yield lazy(cls.start)

        async def __call__(self) -> AsyncIterator[int]:
            yield lazy(self.start)

    assert [number async for number in Counter().numbers()] == [5]
    assert [number async for number in Counter.of_class()] == [5]
    assert [number async for number in on_loop(Counter())()] == [5]
