"""The bridge: sync code on the event loop, and every pitfall that greenlets add to it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import inspect
import logging
import subprocess
import sys
import textwrap
import threading
import traceback
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import asgiref
import greenlet
import pytest
from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django.http import HttpResponse
from django.test import RequestFactory
from django.views import View
from django.views.decorators.csrf import csrf_exempt

from nuages import on_loop
from nuages.bridge import Bridge, await_, bridge_of, current_bridge, tasks
from nuages.bridge import core as bridge
from nuages.exceptions import BridgeClosed, NotInBridge


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    assert not bridge._bridges, "a bridge was left behind"
    assert not bridge._unwinding, "a bridge still unwinds"


async def value_of(value: Any) -> Any:
    """Give `value` back after a turn of the loop."""
    await asyncio.sleep(0)
    return value


def double(number: int, *, plus: int = 0) -> int:
    """Awaits, so that it works in a bridge only."""
    return await_(value_of(number)) * 2 + plus


class Doubler:
    csrf_exempt = False

    def method(self, number: int) -> int:
        return double(number)

    @on_loop
    def decorated(self, number: int) -> int:
        assert isinstance(self, Doubler)
        return double(number)

    @on_loop
    @staticmethod
    def static_inside(number: int) -> int:
        return double(number)

    @staticmethod
    @on_loop
    def static_outside(number: int) -> int:
        return double(number)

    @on_loop
    @classmethod
    def class_inside(cls, number: int) -> int:
        assert cls is Doubler
        return double(number)

    @classmethod
    @on_loop
    def class_outside(cls, number: int) -> int:
        assert cls is Doubler
        return double(number)

    def __call__(self, number: int) -> int:
        return double(number)


class AsyncDoubler:
    async def __call__(self, number: int) -> int:
        return double(number)


# What on_loop takes and makes


@pytest.mark.parametrize(
    "function",
    [
        on_loop(double),
        on_loop(Doubler().method),
        Doubler().decorated,
        Doubler.static_inside,
        Doubler().static_inside,
        Doubler().static_outside,
        Doubler.class_inside,
        Doubler().class_inside,
        Doubler.class_outside,
        on_loop(Doubler()),
        on_loop(AsyncDoubler()),
        on_loop(functools.partial(double, plus=0)),
        on_loop(functools.partial(AsyncDoubler())),
        on_loop(on_loop(double)),
        on_loop(lambda number: double(number)),
    ],
)
async def test_every_kind_of_callable_runs_on_the_loop(function: Callable[..., Any]) -> None:
    thread = threading.get_ident()
    assert iscoroutinefunction(function)
    assert await function(21) == 42
    assert threading.get_ident() == thread


async def test_a_class_can_be_called_on_the_loop() -> None:
    class Book:
        title = "of the class"

        def __init__(self, number: int) -> None:
            self.number = double(number)

    make = on_loop(Book)
    assert (await make(2)).number == 4
    assert not hasattr(make, "title")
    assert make.__name__ == "Book"


async def test_a_class_with_an_async_call_is_not_taken_for_a_coroutine_function() -> None:
    assert isinstance(await on_loop(AsyncDoubler)(), AsyncDoubler)


def test_name_signature_and_attributes_are_kept() -> None:
    wrapped = on_loop(double)
    assert wrapped.__name__ == "double"
    assert wrapped.__doc__ == double.__doc__
    assert inspect.signature(wrapped) == inspect.signature(double)
    assert inspect.iscoroutinefunction(wrapped)

    @on_loop
    @csrf_exempt
    def view(request: Any) -> HttpResponse:
        return HttpResponse()

    assert view.csrf_exempt
    callable_view = Doubler()
    callable_view.csrf_exempt = True
    assert on_loop(callable_view).csrf_exempt


async def test_a_class_based_view_runs_on_the_loop_and_keeps_what_as_view_says() -> None:
    class Page(View):
        def get(self, request: Any) -> HttpResponse:
            return HttpResponse(str(double(21)))

    view = on_loop(csrf_exempt(Page.as_view()))
    response = await view(RequestFactory().get("/"))
    assert response.content == b"42"
    assert view.view_class is Page
    assert view.csrf_exempt


async def test_an_async_class_based_view_may_do_implicit_io_in_dispatch_too() -> None:
    class Page(View):
        def dispatch(self, request: Any, *args: Any, **kwargs: Any) -> Any:
            self.number = double(10)
            return super().dispatch(request, *args, **kwargs)

        async def get(self, request: Any) -> HttpResponse:
            return HttpResponse(str(self.number + double(11)))

    response = await on_loop(Page.as_view())(RequestFactory().get("/"))
    assert response.content == b"42"


@pytest.mark.parametrize("wrong", [None, 1, "name", property(double), asyncio.sleep])
def test_what_cannot_be_called_is_refused(wrong: Any) -> None:
    if callable(wrong):
        coroutine = wrong(0)
        with pytest.raises(TypeError, match="takes a callable, not coroutine"):
            on_loop(coroutine)
        coroutine.close()
    else:
        with pytest.raises(TypeError, match=f"not {type(wrong).__name__}"):
            on_loop(wrong)


def test_a_generator_function_is_refused_since_its_body_would_run_elsewhere() -> None:
    def numbers() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match="generator function"):
        on_loop(numbers)


# Where it works


async def test_await_outside_a_bridge_is_a_coded_error_and_closes_the_coroutine() -> None:
    coroutine = value_of(1)
    with pytest.raises(NotInBridge, match=r"on_loop.*\[nuages.not-in-bridge\]"):
        await_(coroutine)
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
    future = asyncio.get_running_loop().create_future()
    with pytest.raises(NotInBridge):
        await_(future)
    assert future.cancelled()


def test_await_outside_a_loop_is_the_same_error_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(NotInBridge):
            await_(value_of(1))
        gc.collect()


@pytest.mark.parametrize("function", [on_loop(double), on_loop(value_of)])
def test_on_loop_outside_a_loop_says_so_and_calls_nothing(function: Any) -> None:
    coroutine = function(1)
    with pytest.raises(NotInBridge, match="asyncio task"):
        coroutine.send(None)


async def test_on_loop_in_a_callback_outside_any_task_says_so() -> None:
    loop = asyncio.get_running_loop()
    outcome = loop.create_future()

    def callback() -> None:
        try:
            on_loop(double)(1).send(None)
        except BaseException as error:
            outcome.set_result(error)

    loop.call_soon(callback)
    assert isinstance(await outcome, NotInBridge)


async def test_the_task_loop_and_thread_are_the_real_ones() -> None:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()

    def look() -> None:
        for _ in range(2):
            assert asyncio.current_task() is task
            assert asyncio.get_running_loop() is loop
            found = current_bridge()
            assert found is not None
            assert (found.task, found.loop) == (task, loop)
            await_(asyncio.sleep(0))

    assert current_bridge() is None
    await on_loop(look)()
    assert current_bridge() is None


async def test_code_in_a_bridge_that_calls_on_loop_gets_no_new_greenlet() -> None:
    @on_loop
    async def outer() -> None:
        here = greenlet.getcurrent()
        found = current_bridge()

        def look() -> None:
            assert greenlet.getcurrent() is here
            assert current_bridge() is found

        await on_loop(look)()

        @on_loop
        async def look_async() -> None:
            look()

        await look_async()

    await outer()


async def test_a_suspended_bridge_is_not_active_and_shares_its_locals_with_the_next_one() -> None:
    task = asyncio.current_task()
    assert task is not None
    seen: list[Bridge | None] = []

    def inner() -> None:
        seen.append(current_bridge())
        await_(asyncio.sleep(0))
        seen.append(bridge_of(task))

    async def between() -> None:
        assert current_bridge() is None
        await on_loop(inner)()
        assert current_bridge() is None

    def outer() -> None:
        mine = current_bridge()
        assert mine is not None
        await_(between())
        assert current_bridge() is mine
        first, second = seen
        assert first is second
        assert first is not None
        assert first is not mine
        assert first.outer is mine
        assert first.locals is mine.locals

    await on_loop(outer)()


async def test_bridges_of_other_tasks_share_nothing() -> None:
    def mine() -> dict[str, Any]:
        found = current_bridge()
        assert found is not None
        return found.locals

    def outer() -> None:
        other = await_(asyncio.ensure_future(on_loop(mine)()))
        assert other is not mine()

    await on_loop(outer)()


async def test_another_librarys_greenlet_may_lie_between() -> None:
    def outer() -> list[Any]:
        def inside() -> Any:
            assert current_bridge() is not None
            first = double(1)
            greenlet.getcurrent().parent.switch(first)
            with pytest.raises(ZeroDivisionError):
                await_(failing())
            return double(2)

        async def failing() -> None:
            raise ZeroDivisionError

        between = greenlet.greenlet(inside)
        return [between.switch(), between.switch(), double(3)]

    assert await on_loop(outer)() == [2, 4, 6]


async def test_a_cancellation_passes_through_another_librarys_greenlet() -> None:
    waiting = asyncio.Event()

    async def wait_for_ever() -> None:
        waiting.set()
        await asyncio.Event().wait()

    steps: list[str] = []

    def outer() -> None:
        try:
            greenlet.greenlet(lambda: await_(wait_for_ever())).switch()
        except asyncio.CancelledError:
            steps.append("outer")
            raise

    task = asyncio.ensure_future(on_loop(outer)())
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["outer"]


async def test_tasks_started_inside_a_greenlet_are_bridges_of_their_own() -> None:
    """With eager tasks they run at once, in a stack that the greenlet is part of."""
    go = asyncio.Event()

    def child(number: int) -> int:
        found = current_bridge()
        assert found is not None
        assert found.task is asyncio.current_task()
        assert found.outer is None
        await_(go.wait())
        return double(number)

    def parent() -> list[int]:
        mine = current_bridge()
        tasks = [asyncio.ensure_future(on_loop(child)(number)) for number in range(3)]
        assert current_bridge() is mine
        await_(asyncio.sleep(0))
        go.set()
        gathered: Any = asyncio.gather(*tasks)
        result = [double(10), *await_(gathered)]
        assert current_bridge() is mine
        return result

    assert await on_loop(parent)() == [20, 0, 2, 4]


@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="asyncio.eager_task_factory is new in Python 3.12"
)
def test_a_task_that_starts_eagerly_inside_a_greenlet_runs_in_a_bridge_of_its_own() -> None:
    """Every async test here runs with eager tasks too; this one makes sure that they are."""
    order: list[str] = []

    def child() -> None:
        order.append("child starts")
        await_(asyncio.sleep(0))
        order.append("child ends")

    def parent() -> None:
        task = asyncio.ensure_future(on_loop(child)())
        order.append("parent goes on")
        await_(task)
        order.append("parent ends")

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        await on_loop(parent)()

    asyncio.run(main())
    assert order == ["child starts", "parent goes on", "child ends", "parent ends"]


async def test_a_task_started_inside_a_greenlet_that_ends_at_once() -> None:
    def parent() -> list[int]:
        tasks = [asyncio.ensure_future(on_loop(lambda n=n: n)()) for n in range(200)]
        gathered: Any = asyncio.gather(*tasks)
        return list(await_(gathered))

    assert await on_loop(parent)() == list(range(200))


@pytest.mark.parametrize("wrong", [5, None, object()])
async def test_awaiting_what_is_not_awaitable_is_pythons_type_error(wrong: Any) -> None:
    def call() -> None:
        with pytest.raises(TypeError, match="await"):
            await_(wrong)

    await on_loop(call)()


async def test_every_kind_of_awaitable() -> None:
    loop = asyncio.get_running_loop()

    class Custom:
        def __await__(self) -> Iterator[Any]:
            yield from asyncio.sleep(0).__await__()
            return "custom"

    class Broken:
        calls = 0

        def __await__(self) -> Iterator[Any]:
            self.calls += 1
            raise AttributeError("of its own")

    def call() -> None:
        future = loop.create_future()
        loop.call_soon(future.set_result, "future")
        assert await_(future) == "future"
        assert await_(future) == "future"
        assert await_(loop.create_task(value_of("task"))) == "task"
        assert await_(Custom()) == "custom"
        broken = Broken()
        with pytest.raises(AttributeError, match="of its own"):
            await_(broken)
        assert broken.calls == 1

    await on_loop(call)()


# Context variables

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")


async def test_context_variables_flow_both_ways() -> None:
    async def set_and_get(value: str) -> str:
        before = variable.get()
        variable.set(value)
        await asyncio.sleep(0)
        return before

    def call() -> None:
        assert variable.get() == "task"
        variable.set("sync")
        assert await_(set_and_get("awaited")) == "sync"
        assert variable.get() == "awaited"
        variable.set("at the end")

    variable.set("task")
    await on_loop(call)()
    assert variable.get() == "at the end"


async def test_context_variables_of_other_tasks_stay_apart() -> None:
    barrier = asyncio.Barrier(20)

    def call(name: str) -> None:
        variable.set(name)
        await_(barrier.wait())
        assert variable.get() == name
        await_(barrier.wait())
        assert variable.get() == name

    await asyncio.gather(*(on_loop(call)(str(number)) for number in range(20)))
    assert variable.get() == "none"


async def test_a_context_entered_in_sync_code_may_be_suspended() -> None:
    def inside() -> str:
        variable.set("inside")
        await_(asyncio.sleep(0))
        return variable.get()

    def call() -> str:
        assert contextvars.copy_context().run(inside) == "inside"
        return variable.get()

    assert await on_loop(call)() == "none"


# Exceptions


async def test_the_traceback_shows_the_sync_function_and_what_it_awaited() -> None:
    async def awaited_fails() -> None:
        raise ZeroDivisionError

    def sync_function() -> None:
        await_(awaited_fails())

    for _ in range(2):  # in a new greenlet and in a used one
        with pytest.raises(ZeroDivisionError) as caught:
            await on_loop(sync_function)()
        names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
        assert names.index("sync_function") < names.index("awaited_fails")


async def test_cause_and_context_of_exceptions_are_kept() -> None:
    async def fails() -> None:
        raise KeyError("awaited")

    def call() -> None:
        try:
            await_(fails())
        except KeyError as error:
            try:
                raise ValueError("while handling")
            except ValueError:
                raise TypeError("at the end") from error

    with pytest.raises(TypeError) as caught:
        await on_loop(call)()
    assert isinstance(caught.value.__cause__, KeyError)
    assert isinstance(caught.value.__context__, ValueError)
    assert isinstance(caught.value.__context__.__context__, KeyError)


@pytest.mark.parametrize("kind", ["sync", "portal"])
async def test_the_exception_that_is_being_handled_is_seen_inside(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    def sync(**kwargs: Any) -> None:
        logging.getLogger("test").exception("seen")
        assert isinstance(sys.exception(), KeyError)
        assert kwargs == {"handled": 1, "function": 2, "args": 3}
        raise ValueError

    async def portal(**kwargs: Any) -> None:
        await asyncio.sleep(0)
        sync(**kwargs)

    function: Any = on_loop(sync if kind == "sync" else portal)
    try:
        raise KeyError("handled")
    except KeyError as error:
        depth = len(traceback.extract_tb(error.__traceback__))
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            await function(handled=1, function=2, args=3)
        assert caught.value.__context__ is error  # noqa: PT017
        assert len(traceback.extract_tb(error.__traceback__)) == depth  # noqa: PT017
    assert caplog.records[0].exc_info is not None
    assert caplog.records[0].exc_info[0] is KeyError


async def test_what_the_loop_handles_meanwhile_is_not_seen_inside() -> None:
    async def fails() -> None:
        raise KeyError

    def call() -> None:
        with pytest.raises(KeyError):
            await_(fails())
        assert sys.exception() is None
        await_(asyncio.sleep(0))
        assert sys.exception() is None

    await on_loop(call)()
    assert sys.exception() is None


async def test_stop_iteration_out_of_a_bridge_is_a_runtime_error() -> None:
    """PEP 479, as for a coroutine that raises it."""

    def call() -> None:
        next(iter(()))

    with pytest.raises(RuntimeError, match="StopIteration") as caught:
        await on_loop(call)()
    assert isinstance(caught.value.__cause__, StopIteration)

    @on_loop
    async def inside() -> None:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await on_loop(call)()

    await inside()


async def test_stop_iteration_into_a_bridge_is_a_runtime_error() -> None:
    async def fails() -> None:
        next(iter(()))

    def call() -> str:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await_(fails())
        return "went on"

    assert await on_loop(call)() == "went on"


async def test_a_stop_iteration_value_does_not_leak_into_a_for_loop() -> None:
    def numbers() -> Iterator[int]:
        for number in range(3):
            yield double(number)

    def call() -> list[int]:
        return list(numbers())

    assert await on_loop(call)() == [0, 2, 4]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, greenlet.GreenletExit])
async def test_base_exceptions_cross_the_bridge(kind: type[BaseException]) -> None:
    async def fails() -> None:
        raise kind

    def call() -> None:
        with pytest.raises(kind):
            await_(fails())

    await on_loop(call)()


# Cancellation


class Parked:
    """An awaitable point that tells when it is reached."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.go = asyncio.Event()

    async def wait(self) -> None:
        self.reached.set()
        await self.go.wait()


async def test_a_cancellation_arrives_where_the_code_waits_and_runs_its_cleanup() -> None:
    parked = Parked()
    steps: list[str] = []

    def call() -> None:
        try:
            await_(parked.wait())
        except asyncio.CancelledError as error:
            steps.append(f"caught {error}")
            raise
        finally:
            steps.append(f"cleanup {double(1)}")

    task = asyncio.ensure_future(on_loop(call)())
    await parked.reached.wait()
    task.cancel("enough")
    with pytest.raises(asyncio.CancelledError, match="enough"):
        await task
    assert task.cancelled()
    assert steps == ["caught enough", "cleanup 2"]


async def test_code_may_catch_a_cancellation_and_go_on() -> None:
    parked = Parked()

    def call() -> str:
        with pytest.raises(asyncio.CancelledError):
            await_(parked.wait())
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 1
        assert task.uncancel() == 0
        return f"went on {double(1)}"

    task = asyncio.ensure_future(on_loop(call)())
    await parked.reached.wait()
    task.cancel()
    assert await task == "went on 2"
    assert not task.cancelled()


async def test_a_second_cancellation_arrives_in_the_cleanup_of_the_first() -> None:
    first, second = Parked(), Parked()
    steps: list[str] = []

    def call() -> None:
        try:
            await_(first.wait())
        finally:
            try:
                await_(second.wait())
            except asyncio.CancelledError as error:
                steps.append(f"{error} after {error.__context__}")
                raise
            finally:
                steps.append(f"end {double(1)}")

    task = asyncio.ensure_future(on_loop(call)())
    await first.reached.wait()
    task.cancel("first")
    await second.reached.wait()
    task.cancel("second")
    with pytest.raises(asyncio.CancelledError, match="second"):
        await task
    assert task.cancelling() == 2
    assert steps == ["second after first", "end 2"]


async def test_a_timeout_around_a_bridge_is_a_timeout_error() -> None:
    task = asyncio.current_task()
    assert task is not None
    parked = Parked()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0) as limit:
            await on_loop(lambda: await_(parked.wait()))()
    assert limit.expired()
    assert task.cancelling() == 0
    assert await on_loop(double)(1) == 2


async def test_a_timeout_inside_what_is_awaited_is_catchable_in_sync_code() -> None:
    async def limited() -> None:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    def call() -> str:
        with pytest.raises(TimeoutError):
            await_(limited())
        return "went on"

    assert await on_loop(call)() == "went on"


async def test_a_task_group_cancels_its_bridges_and_keeps_the_counts() -> None:
    task = asyncio.current_task()
    assert task is not None
    parked = Parked()
    steps: list[str] = []

    def waits() -> None:
        try:
            await_(parked.wait())
        finally:
            steps.append(f"cleanup {double(1)}")

    def fails() -> None:
        await_(parked.reached.wait())
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(on_loop(waits)())
            group.create_task(on_loop(fails)())
            # Python 3.11 leaves a cancellation of a task that is at the group's end uncounted.
            await asyncio.Event().wait()
    assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]
    assert steps == ["cleanup 2"]
    assert task.cancelling() == 0


async def test_a_task_group_inside_a_bridge() -> None:
    async def group() -> list[int]:
        async with asyncio.TaskGroup() as tasks:
            made = [tasks.create_task(on_loop(double)(number)) for number in range(3)]
        return [task.result() for task in made]

    assert await on_loop(lambda: await_(group()))() == [0, 2, 4]


async def test_a_task_cancelled_before_its_first_step_calls_nothing() -> None:
    called: list[int] = []

    async def first_waits() -> None:
        await asyncio.sleep(0)
        await on_loop(called.append)(1)

    task = asyncio.ensure_future(first_waits())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert called == []


@pytest.mark.parametrize("wrap", [on_loop(double), on_loop(value_of)])
async def test_a_coroutine_closed_before_it_started_calls_nothing(wrap: Any) -> None:
    wrap(1).close()
    gc.collect()


# Shields


def commit(parked: Parked) -> str:
    """A driver's shielded wait, as that for the outcome of a COMMIT."""
    mine = current_bridge()
    assert mine is not None
    with mine.shield():
        done = asyncio.ensure_future(parked.wait())
        while not done.done():
            try:
                mine.wait(asyncio.wait([done]))
            except asyncio.CancelledError as error:
                mine.deferred_cancel = error
    return "committed"


async def cancelled_in_shield(call: Callable[[Parked], Any]) -> asyncio.Task[Any]:
    """Start `on_loop(call)`, cancel it in its shield, let that end, and wait for the task."""
    parked = Parked()
    task = asyncio.ensure_future(on_loop(call)(parked))
    await parked.reached.wait()
    task.cancel("deferred")
    await asyncio.sleep(0)
    assert not task.done()
    parked.go.set()
    await asyncio.wait([task])
    return task


async def test_a_deferred_cancellation_is_raised_at_the_next_wait() -> None:
    steps: list[str] = []

    def call(parked: Parked) -> None:
        steps.append(commit(parked))
        coroutine = value_of(1)
        try:
            await_(coroutine)
        except asyncio.CancelledError as error:
            steps.append(str(error))
            assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
            steps.append(f"cleanup {double(1)}")
            raise

    task = await cancelled_in_shield(call)
    assert task.cancelled()
    assert steps == ["committed", "deferred", "cleanup 2"]


async def test_a_deferred_cancellation_is_raised_at_the_end() -> None:
    task = await cancelled_in_shield(commit)
    assert task.cancelled()
    with pytest.raises(asyncio.CancelledError, match="deferred"):
        task.result()


async def test_a_deferred_cancellation_is_raised_over_an_exception_raised_meanwhile() -> None:
    def call(parked: Parked) -> None:
        commit(parked)
        raise ZeroDivisionError

    task = await cancelled_in_shield(call)
    with pytest.raises(asyncio.CancelledError) as caught:
        task.result()
    if not isinstance(caught.value.__cause__, ZeroDivisionError):
        # A task that is cancelled makes a new error in some Pythons; ours is its context.
        assert caught.value.__context__ is not None
        assert isinstance(caught.value.__context__.__cause__, ZeroDivisionError)


async def test_a_deferred_cancellation_waits_for_the_outermost_shield() -> None:
    steps: list[str] = []

    def call(parked: Parked) -> None:
        mine = current_bridge()
        assert mine is not None
        with mine.shield():
            steps.append(commit(parked))
            steps.append(f"still shielded {double(1)}")
        double(1)

    task = await cancelled_in_shield(call)
    assert task.cancelled()
    assert steps == ["committed", "still shielded 2"]


async def test_a_timeout_that_ends_in_a_shield_is_a_timeout_error() -> None:
    parked = Parked()
    task = asyncio.current_task()
    assert task is not None

    async def let_go() -> None:
        await parked.reached.wait()
        limit.reschedule(asyncio.get_running_loop().time())
        while not task.cancelling():  # noqa: ASYNC110
            await asyncio.sleep(0)
        parked.go.set()

    async with asyncio.TaskGroup() as group:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as limit:
                group.create_task(let_go())
                await on_loop(commit)(parked)
        assert task.cancelling() == 0
        assert await on_loop(double)(1) == 2


@pytest.mark.parametrize("how", ["awaited", "called"])
async def test_a_cancellation_that_was_withdrawn_is_forgotten(how: str) -> None:
    """A timeout that ends in a portal: its cancellation must not be raised after its block."""
    task = asyncio.current_task()
    assert task is not None
    parked = Parked()

    async def let_go(limit: asyncio.Timeout) -> None:
        await parked.reached.wait()
        limit.reschedule(asyncio.get_running_loop().time())
        while not task.cancelling():  # noqa: ASYNC110
            await asyncio.sleep(0)
        parked.go.set()

    @on_loop
    async def portal() -> str:
        result = "in time"
        async with asyncio.TaskGroup() as group:
            try:
                async with asyncio.timeout(None) as limit:
                    group.create_task(let_go(limit))
                    await asyncio.sleep(0)
                    if how == "awaited":
                        await on_loop(commit)(parked)
                    else:
                        commit(parked)
            except TimeoutError:
                result = "late"
            assert double(1) == 2
        await asyncio.sleep(0)
        return result

    # A sync call that ends with its block gives no place to raise in.
    assert await portal() == ("late" if how == "awaited" else "in time")
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_a_deferred_cancellation_is_raised_over_an_exception_inside_a_portal() -> None:
    steps: list[Any] = []

    def fails(parked: Parked) -> None:
        commit(parked)
        raise ZeroDivisionError

    async def portal(parked: Parked) -> None:
        try:
            await on_loop(fails)(parked)
        except asyncio.CancelledError as error:
            steps.append(type(error.__cause__))
            raise

    task = await cancelled_in_shield(portal)
    assert task.cancelled()
    assert steps == [ZeroDivisionError]


async def test_a_deferred_cancellation_cancels_what_a_portal_awaits_next() -> None:
    child: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def portal(parked: Parked) -> None:
        commit(parked)
        await child

    task = await cancelled_in_shield(portal)
    assert task.cancelled()
    assert child.cancelled()


# Closing


def close_parked(call: Callable[[], Any]) -> Callable[[], None]:
    """Run a bridged call to its first wait and return what closes its coroutine."""
    coroutine = on_loop(call)()
    coroutine.send(None)
    return coroutine.close


async def test_closing_unwinds_the_greenlet_and_nothing_can_be_awaited() -> None:
    steps: list[str] = []

    def call() -> None:
        try:
            await_(asyncio.sleep(0))
        except GeneratorExit:
            mine = current_bridge()
            assert mine is not None
            assert mine.closing
            coroutine = value_of(1)
            with pytest.raises(BridgeClosed, match=r"\[nuages.bridge-closed\]"):
                await_(coroutine)
            assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
            steps.append("unwound")
            raise

    close_parked(call)()
    assert steps == ["unwound"]


async def test_a_finally_that_awaits_while_closing_gets_bridge_closed() -> None:
    def call() -> None:
        try:
            await_(asyncio.sleep(0))
        finally:
            await_(asyncio.sleep(0))

    with pytest.raises(BridgeClosed) as caught:
        close_parked(call)()
    assert isinstance(caught.value.__context__, GeneratorExit)


async def test_sync_code_may_swallow_the_closing() -> None:
    def call() -> str:
        try:
            await_(asyncio.sleep(0))
        except GeneratorExit:
            return "swallowed"
        return "not reached"

    close_parked(call)()


async def test_no_lease_hook_runs_while_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    suspended: list[Bridge] = []
    ended: list[Bridge] = []
    monkeypatch.setattr(bridge, "suspend_hooks", [suspended.append])
    monkeypatch.setattr(bridge, "end_hooks", [ended.append])

    def call() -> None:
        try:
            await_(asyncio.sleep(0))
        finally:
            with pytest.raises(BridgeClosed):
                await_(asyncio.sleep(0))

    close_parked(call)()
    assert len(suspended) == len(ended) == 1


async def test_closed_from_another_task_the_closing_bridge_is_the_one_that_is_found() -> None:
    """Else the cleanup would do its I/O in the bridge of whoever happens to run."""
    steps: list[Any] = []

    def call() -> None:
        mine = current_bridge()
        try:
            await_(asyncio.sleep(0))
        finally:
            steps.append(current_bridge() is mine)
            with pytest.raises(BridgeClosed):
                double(1)

    close = close_parked(call)

    def elsewhere() -> None:
        mine = current_bridge()
        close()
        assert current_bridge() is mine
        assert double(1) == 2

    await asyncio.ensure_future(on_loop(elsewhere)())
    assert steps == [True]


@pytest.mark.parametrize("where", ["callback", "no loop"])
async def test_closed_outside_any_task_nothing_is_awaited_either(where: str) -> None:
    steps: list[str] = []

    def call() -> None:
        try:
            await_(asyncio.sleep(0))
        finally:
            with pytest.raises(BridgeClosed):
                double(1)
            steps.append("closed")

    loop = asyncio.get_running_loop()
    close = close_parked(call)
    if where == "callback":
        loop.call_soon(close)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    else:
        asyncio._set_running_loop(None)
        try:
            close()
        finally:
            asyncio._set_running_loop(loop)
    assert steps == ["closed"]


async def test_an_abandoned_coroutine_is_unwound_by_the_garbage_collector() -> None:
    steps: list[str] = []

    def call() -> None:
        try:
            await_(asyncio.sleep(0))
        finally:
            steps.append("unwound")

    coroutine = on_loop(call)()
    coroutine.send(None)
    del coroutine
    gc.collect()
    assert steps == ["unwound"]


async def test_closed_in_another_thread_it_is_unwound_on_the_loop() -> None:
    """The garbage collector runs in any thread, and only its own can switch to a greenlet."""
    thread = threading.get_ident()
    steps: list[Any] = []
    unwound = asyncio.Event()

    def inner() -> None:
        mine = current_bridge()
        try:
            await_(asyncio.sleep(0))
        finally:
            steps.append(("inner", threading.get_ident() == thread, current_bridge() is mine))
            with pytest.raises(BridgeClosed):
                double(1)

    def outer() -> None:
        try:
            await_(on_loop(inner)())
        finally:
            steps.append(("outer", threading.get_ident() == thread, True))
            unwound.set()

    async def parked() -> Callable[[], None]:
        return close_parked(outer)

    task = asyncio.ensure_future(parked())
    close = await task
    await asyncio.to_thread(close)
    await unwound.wait()
    await asyncio.sleep(0)
    assert steps == [("inner", True, True), ("outer", True, True)]
    assert bridge_of(task) is None


async def test_what_fails_while_it_is_unwound_for_another_thread_is_reported() -> None:
    def call() -> None:
        try:
            await_(asyncio.sleep(0))
        finally:
            raise ValueError("broken")

    loop = asyncio.get_running_loop()
    reported: asyncio.Future[Any] = loop.create_future()
    loop.set_exception_handler(lambda _, context: reported.set_result(context["exception"]))
    try:
        await asyncio.to_thread(close_parked(call))
        assert repr(await reported) == "ValueError('broken')"
    finally:
        loop.set_exception_handler(None)


def test_closed_in_another_thread_when_its_loop_is_closed_it_is_ended() -> None:
    tasks: list[Any] = []

    async def parked() -> Callable[[], None]:
        tasks.append(asyncio.current_task())
        return close_parked(lambda: await_(asyncio.sleep(0)))

    close = asyncio.run(parked())
    thread = threading.Thread(target=close)
    thread.start()
    thread.join()
    assert bridge_of(tasks[0]) is None


# async_to_sync


async def test_async_to_sync_inside_a_bridge_is_awaited_by_it() -> None:
    task = asyncio.current_task()

    async def inner(number: int) -> int:
        assert asyncio.current_task() is task
        assert current_bridge() is None
        variable.set("inner")
        return int(await value_of(number))

    def call() -> int:
        result = async_to_sync(inner)(5)
        assert variable.get() == "inner"
        return result

    assert await on_loop(call)() == 5


async def test_async_to_sync_in_coroutine_code_is_refused_as_ever() -> None:
    with pytest.raises(RuntimeError, match="AsyncToSync"):
        async_to_sync(asyncio.sleep)(0)


async def test_async_to_sync_with_a_new_loop_gets_one() -> None:
    loop = asyncio.get_running_loop()

    async def inner() -> bool:
        return asyncio.get_running_loop() is loop

    forced = async_to_sync(inner, force_new_loop=True)

    def call() -> bool:
        return forced()

    # asgiref refuses it where a loop runs, in a bridge as elsewhere...
    with pytest.raises(RuntimeError, match="AsyncToSync"):
        await on_loop(call)()
    # ... and gives it in a thread, from 3.12 on.
    gives = tuple(map(int, asgiref.__version__.split(".")[:2])) >= (3, 12)
    assert await sync_to_async(call, thread_sensitive=False)() is not gives


# Locks of threads


async def test_a_thread_lock_held_across_a_wait_is_taken_off_the_loop() -> None:
    """`off_loop` is the way to wait for such a lock: the holder's task can go on and release."""
    from nuages import off_loop

    lock = threading.Lock()
    order: list[str] = []
    parked = Parked()

    def first() -> None:
        with lock:
            await_(parked.wait())
            order.append("first")

    def second() -> None:
        off_loop(lock.acquire)()
        try:
            order.append("second")
        finally:
            lock.release()

    one = asyncio.ensure_future(on_loop(first)())
    await parked.reached.wait()
    two = asyncio.ensure_future(on_loop(second)())
    await asyncio.sleep(0)
    parked.go.set()
    await asyncio.gather(one, two)
    assert order == ["first", "second"]


# Frames and leaks


async def test_frames_show_where_a_suspended_bridge_waits() -> None:
    parked = Parked()

    def deep() -> None:
        await_(parked.wait())

    def call() -> None:
        deep()

    task = asyncio.ensure_future(on_loop(call)())
    await parked.reached.wait()
    found = bridge_of(task)
    assert found is not None
    names = [frame.f_code.co_name for frame in found.frames()]
    assert names[names.index("deep") :][:2] == ["deep", "call"]
    parked.go.set()
    await task
    assert found.frames() == []
    assert bridge_of(task) is None


def alive() -> tuple[int, int]:
    gc.collect()
    objects = gc.get_objects()
    return (
        # By type(): Django's lazy objects answer isinstance() by being made.
        sum(issubclass(type(item), Bridge) for item in objects),
        sum(issubclass(type(item), greenlet.greenlet) for item in objects),
    )


async def test_nothing_is_leaked_over_ten_thousand_calls_with_failures() -> None:
    async def fails() -> None:
        raise KeyError

    def call(number: int) -> None:
        if number % 4 == 1:
            await_(fails())
        if number % 4 == 2:
            await_(asyncio.sleep(0))
        if number % 4 == 3:
            raise ValueError

    async def portal(number: int) -> None:
        call(number)

    functions = [on_loop(call), on_loop(portal)]
    for function in functions:
        with pytest.raises(ValueError, match=r"^$"):
            await function(3)
        await function(0)
    before = alive()
    for number in range(10_000):
        with contextlib.suppress(KeyError, ValueError):
            await functions[number % 2](number // 2)
        if number % 100 == 0:
            await asyncio.gather(*(functions[0](2) for _ in range(3)))
    after = alive()
    assert after[0] <= before[0]
    assert after[1] <= before[1] + 3


async def test_a_call_frees_what_it_used_without_the_garbage_collector() -> None:
    class Thing:
        pass

    def call(thing: Thing) -> Thing:
        variable_of_thing.set(thing)
        return thing

    variable_of_thing: contextvars.ContextVar[Thing] = contextvars.ContextVar("thing")

    async def task() -> None:
        await on_loop(call)(Thing())
        things.append(weakref.ref(variable_of_thing.get()))

    things: list[weakref.ref[Thing]] = []
    gc.collect()
    gc.disable()
    try:
        await asyncio.ensure_future(task())
        await asyncio.sleep(0)
        assert things[0]() is None
    finally:
        gc.enable()


async def test_idle_greenlets_are_bounded_and_used_again() -> None:
    barrier = asyncio.Barrier(150)
    seen: set[int] = set()

    def call() -> None:
        seen.add(id(greenlet.getcurrent()))
        await_(barrier.wait())

    await asyncio.gather(*(on_loop(call)() for _ in range(150)))
    assert len(seen) == 150
    assert len(bridge._idle.greenlets) == bridge._IDLE_LIMIT
    idle = {id(item) for item in bridge._idle.greenlets}
    assert await on_loop(lambda: id(greenlet.getcurrent()))() in idle


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> weakref.WeakSet[Any]:
    """The greenlets of the bridge that are there."""
    found: weakref.WeakSet[Any] = weakref.WeakSet()

    class Noted(bridge.greenlet):  # type: ignore[misc]
        def __init__(self, run: Any) -> None:
            super().__init__(run)
            found.add(self)

    monkeypatch.setattr(bridge, "greenlet", Noted)
    monkeypatch.setattr(bridge, "_idle", bridge._Idle())
    return found


@pytest.mark.parametrize("when", ["at once", "after a wait", "in a wait"])
async def test_an_error_that_is_kept_keeps_no_greenlet(
    made: weakref.WeakSet[Any], when: str
) -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError

    def call() -> None:
        if when == "in a wait":
            await_(fail())
        elif when == "after a wait":
            await_(asyncio.sleep(0))
        raise ValueError

    with pytest.raises(ValueError) as kept:  # noqa: PT011 - this test's own
        await on_loop(call)()
    assert kept.traceback
    gc.collect()
    assert not made


async def test_idle_greenlets_beyond_the_bound_are_freed(
    made: weakref.WeakSet[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def burst(count: int) -> None:
        barrier = asyncio.Barrier(count)
        await asyncio.gather(*(on_loop(lambda: await_(barrier.wait()))() for _ in range(count)))

    monkeypatch.setattr(bridge, "_IDLE_LIMIT", 3)
    await burst(5)
    assert len(made) == 3
    thread = threading.Thread(target=asyncio.run, args=[burst(2)])
    thread.start()
    thread.join()
    await on_loop(double)(1)  # greenlets that another thread drops go at a switch
    assert len(made) == 3


async def test_a_greenlet_used_again_is_traced() -> None:
    """Debuggers and coverage that begin later must see what runs in it."""
    await on_loop(double)(1)
    seen: list[str] = []
    sys.settrace(lambda frame, event, argument: seen.append(frame.f_code.co_name))
    try:
        await on_loop(double)(1)
    finally:
        sys.settrace(None)
    assert "double" in seen


def test_an_interpreter_with_idle_and_suspended_greenlets_ends_quietly() -> None:
    code = """
        import asyncio, threading
        from nuages.bridge import on_loop, await_

        def call():
            await_(asyncio.sleep(0))

        async def main():
            await asyncio.gather(*(on_loop(call)() for _ in range(10)))

        asyncio.run(main())
        thread = threading.Thread(target=asyncio.run, args=[main()])
        thread.start()
        thread.join()
        loop = asyncio.new_event_loop()
        coroutine = on_loop(call)()
        async def park():
            coroutine.send(None)
        loop.run_until_complete(park())
        loop.close()
    """
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# Background work


async def test_spawn_reports_failures_to_the_loops_exception_handler() -> None:
    loop = asyncio.get_running_loop()
    reported = asyncio.Event()
    reports: list[dict[str, Any]] = []

    def handle(loop: Any, report: dict[str, Any]) -> None:
        reports.append(report)
        reported.set()

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    loop.set_exception_handler(handle)
    tasks.spawn(loop, fails)
    await reported.wait()
    assert isinstance(reports[0]["exception"], ZeroDivisionError)
    assert not tasks._spawned


async def test_spawned_work_runs_in_a_context_of_its_own() -> None:
    loop = asyncio.get_running_loop()
    seen = loop.create_future()

    async def work() -> None:
        await asyncio.sleep(0)
        gc.collect()
        seen.set_result(variable.get())

    variable.set("the caller's")
    tasks.spawn(loop, work)
    assert await seen == "none"


async def test_spawned_work_that_nothing_else_refers_to_is_not_collected() -> None:
    loop = asyncio.get_running_loop()
    waiting: list[weakref.ref[asyncio.Future[None]]] = []

    async def work() -> None:
        future = loop.create_future()  # it and its task refer to each other only
        waiting.append(weakref.ref(future))
        await future

    tasks.spawn(loop, work)
    while not waiting:  # noqa: ASYNC110
        await asyncio.sleep(0)
    gc.collect()
    future = waiting[0]()
    assert future is not None
    future.set_result(None)
    await asyncio.wait(list(tasks._spawned))


async def test_spawn_works_from_another_thread() -> None:
    loop = asyncio.get_running_loop()
    seen = loop.create_future()

    async def work() -> None:
        seen.set_result(threading.get_ident())

    await asyncio.to_thread(tasks.spawn, loop, work)
    assert await seen == threading.get_ident()


def test_spawn_leaves_a_closed_loop_alone() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    tasks.spawn(loop, asyncio.Event().wait)


async def test_a_bridge_in_an_async_generator_of_the_users() -> None:
    async def numbers() -> AsyncIterator[int]:
        for number in range(3):
            yield await on_loop(double)(number)

    assert [number async for number in numbers()] == [0, 2, 4]
