"""Django's own `transaction.atomic` on coroutine functions and in `async with`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync, iscoroutinefunction
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory
from django.utils.decorators import method_decorator
from django.views import View

from nuages import on_loop
from nuages.db import aatomic, acursor, aon_commit, detached, hold_connection
from nuages.exceptions import AtomicInCoroutine, NeedsAsyncWith
from nuages.management import AsyncBaseCommand
from tests.integration.conftest import Run
from tests.integration.scope_tools import Failure, pool_stats, until
from tests.judge import authors as committed
from tests.library.models import Author

pytestmark = [pytest.mark.every_database, pytest.mark.every_loop]

atomic: Any = transaction.atomic
"""Typed by the stubs as a sync context manager."""


async def work(name: str = "saved", *, fail: bool = False) -> str:
    """Documented."""
    await Author.objects.acreate(name=name)
    assert connection.in_atomic_block
    assert name not in committed()
    if fail:
        raise Failure
    return name


class Service:
    @atomic
    async def method(self, name: str = "saved", *, fail: bool = False) -> str:
        return await work(name, fail=fail)

    @classmethod
    @atomic
    async def of_class(cls, name: str = "saved", *, fail: bool = False) -> str:
        return await work(name, fail=fail)

    @staticmethod
    @atomic()
    async def static(name: str = "saved", *, fail: bool = False) -> str:
        return await work(name, fail=fail)

    async def __call__(self, name: str = "saved", *, fail: bool = False) -> str:
        return await work(name, fail=fail)


def returning(name: str = "saved", *, fail: bool = False) -> Any:
    """Not marked as async, and gives a coroutine all the same."""
    return work(name, fail=fail)


async def in_block(name: str = "saved", *, fail: bool = False) -> str:
    async with atomic():
        return await work(name, fail=fail)


FUNCTIONS: dict[str, Any] = {
    "bare": atomic(work),
    "with arguments": atomic(using="default", savepoint=True, durable=True)(work),
    "method": Service().method,
    "class method": Service.of_class,
    "static method": Service.static,
    "object": atomic(Service()),
    "partial": atomic(functools.partial(work)),
    "twice": atomic(atomic(work)),
    "below on_loop": on_loop(atomic(work)),
    "above on_loop": atomic(on_loop(work)),
    "async with": in_block,
}


def test_djangos_suite_has_no_coroutine_functions_to_compare() -> None:
    """What a decorated function is: async, with the name and the text of its own."""
    decorated = atomic(work)
    assert iscoroutinefunction(decorated)
    assert inspect.iscoroutinefunction(decorated)
    assert decorated.__name__ == "work"
    assert decorated.__doc__ == "Documented."
    assert decorated.__wrapped__ is work


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("place", ["bare", "portal"])
def test_a_coroutine_function_is_a_transaction(
    database: str, run: Run, function: str, place: str
) -> None:
    decorated = FUNCTIONS[function]
    if place == "portal":
        decorated = on_loop(decorated)

    async def main() -> None:
        assert await decorated("saved") == "saved"
        assert committed() == ["saved"]
        with pytest.raises(Failure):
            await decorated("rolled back", fail=True)
        assert committed() == ["saved"]
        assert not connection.in_atomic_block
        await until(lambda: pool_stats()["used"] == 0)

    run(main)


def test_what_returns_a_coroutine_is_a_transaction_where_sync_io_is_awaited(
    database: str, run: Run
) -> None:
    decorated = atomic(returning)

    @on_loop
    async def main() -> None:
        assert await decorated("saved") == "saved"
        assert committed() == ["saved"]
        with pytest.raises(Failure):
            await decorated("rolled back", fail=True)
        assert committed() == ["saved"]

    async def bare() -> None:
        with pytest.raises(AtomicInCoroutine):
            await decorated("never")

    run(main)
    run(bare)
    assert committed() == ["saved"]


def test_a_sync_function_is_decorated_as_ever(database: str, run: Run) -> None:
    @atomic
    def save(name: str, *, fail: bool = False) -> str:
        Author.objects.create(name=name)
        assert connection.in_atomic_block
        if fail:
            raise Failure
        return name

    assert not iscoroutinefunction(save)
    assert save("plain") == "plain"
    with pytest.raises(Failure):
        save("rolled back", fail=True)

    async def main() -> None:
        assert await on_loop(save)("on the loop") == "on the loop"
        with pytest.raises(AtomicInCoroutine):
            save("never")

    run(main)
    assert committed() == ["on the loop", "plain"]


def test_calls_are_concurrent_and_nest_as_savepoints(database: str, run: Run) -> None:
    """Each has a block of its own, although the decorator is one object."""
    oa = atomic()

    @oa
    async def create(name: str, depth: int, *, fail_at: int = -1) -> None:
        await Author.objects.acreate(name=f"{name}{depth}")
        if depth:
            with contextlib.suppress(Failure):
                await create(name, depth - 1, fail_at=fail_at)
        if depth == fail_at:
            raise Failure

    async def shared(name: str) -> None:
        async with oa:
            await Author.objects.acreate(name=name)
            with contextlib.suppress(Failure):
                async with oa:
                    await Author.objects.acreate(name=f"{name} rolled back")
                    raise Failure

    async def main() -> None:
        await asyncio.gather(create("a", 2, fail_at=1), create("b", 1), shared("c"), shared("d"))
        assert committed() == ["a2", "b0", "b1", "c", "d"]
        await until(lambda: pool_stats()["used"] == 0)

    run(main)


def test_the_arguments_mean_what_they_mean_in_sync_code(database: str, run: Run) -> None:
    async def main() -> None:
        async with atomic():
            with pytest.raises(RuntimeError, match="durable"):
                await atomic(durable=True)(work)("never")
            with pytest.raises(RuntimeError, match="durable"):
                async with atomic(durable=True):
                    pass
        with pytest.raises(transaction.TransactionManagementError):
            async with atomic():
                await Author.objects.acreate(name="doomed")
                with contextlib.suppress(Failure):
                    await atomic(savepoint=False)(work)("inner", fail=True)
                await Author.objects.acount()
        assert committed() == []

    run(main)


def test_hooks_run_after_the_commit(database: str, run: Run) -> None:
    seen: list[list[str]] = []

    @atomic
    async def save() -> None:
        await work()
        await aon_commit(lambda: seen.append(committed()))
        assert seen == []

    run(save)
    assert seen == [["saved"]]


def test_a_cancellation_rolls_back(database: str, run: Run) -> None:
    async def main() -> None:
        inside = asyncio.Event()

        @atomic
        async def wait() -> None:
            await work()
            inside.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(wait())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert committed() == []
        await until(lambda: pool_stats()["used"] == 0)

    run(main)


def test_tasks_started_inside_join(database: str, run: Run) -> None:
    @atomic
    async def both() -> None:
        await asyncio.gather(work("one"), work("two"))
        raise Failure

    async def main() -> None:
        with pytest.raises(Failure):
            await both()
        assert committed() == []

    run(main)


class Import(AsyncBaseCommand):
    """A command as projects have them, moved to async."""

    @atomic
    async def handle(self, *args: Any, **options: Any) -> None:
        author = await Author.objects.acreate(name="saved")
        Author.objects.create(name="by implicit I/O", mentor=author)
        assert committed() == []
        if options["verbosity"] == 2:
            raise Failure


def test_the_handle_of_an_async_command(database: str) -> None:
    from django.core.management import call_command

    with pytest.raises(Failure):
        call_command(Import(stdout=StringIO()), verbosity=2)
    assert committed() == []
    call_command(Import(stdout=StringIO()))
    assert committed() == ["by implicit I/O", "saved"]


def test_in_a_sync_program(database: str) -> None:
    assert async_to_sync(atomic(work))("saved") == "saved"
    with pytest.raises(Failure):
        async_to_sync(atomic(work))("rolled back", fail=True)
    assert committed() == ["saved"]


async def answer(name: str, request: HttpRequest) -> None:
    fail = "fail" in request.GET
    await work(f"{name} fails" if fail else name, fail=fail)


class Page(View):
    @atomic
    async def get(self, request: HttpRequest) -> HttpResponse:
        await answer("get", request)
        return HttpResponse("got")

    @method_decorator(atomic)
    async def post(self, request: HttpRequest) -> HttpResponse:
        await answer("post", request)
        return HttpResponse("posted")


@method_decorator(atomic, name="dispatch")
class Whole(View):
    async def get(self, request: HttpRequest) -> HttpResponse:
        await answer("whole", request)
        return HttpResponse("got")


def test_class_based_views(database: str, run: Run) -> None:
    factory = RequestFactory()

    async def main() -> None:
        view = Page.as_view()
        assert iscoroutinefunction(view)
        for method in (factory.get, factory.post):
            assert (await view(method("/"))).status_code == 200
            with pytest.raises(Failure):
                await view(method("/?fail"))
        assert committed() == ["get", "post"]
        around = atomic(Page.as_view())
        await Author.objects.all().adelete()
        assert (await around(factory.get("/"))).content == b"got"
        # `dispatch` is a sync function that returns the coroutine of an async handler.
        whole = on_loop(Whole.as_view())
        with pytest.raises(Failure):
            await whole(factory.get("/?fail"))
        assert committed() == ["get"]
        assert (await whole(factory.get("/"))).content == b"got"
        assert committed() == ["get", "whole"]

    run(main)


def test_an_exempt_view_stays_exempt() -> None:
    @transaction.non_atomic_requests
    @atomic
    async def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    @atomic
    @transaction.non_atomic_requests
    async def below(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    assert view._non_atomic_requests == below._non_atomic_requests == {"default"}  # type: ignore[attr-defined]


class Noted(transaction.Atomic):
    """A project's own kind of block."""

    def __init__(self) -> None:
        super().__init__("default", True, False)  # type: ignore[call-arg]
        self.calls: list[str] = []

    def __enter__(self) -> Any:
        super().__enter__()
        self.calls.append("entered")
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.calls.append("left")
        super().__exit__(*exc_info)


def test_a_subclass_is_entered_and_left_by_its_own_methods(database: str, run: Run) -> None:
    async def main() -> None:
        block: Any = Noted()
        async with block as entered:
            assert isinstance(entered, Noted)
            await work("one")
        await block(work)("two")
        assert block.calls == ["entered", "left"] * 2
        assert committed() == ["one", "two"]

    run(main)


def test_a_generator_function_is_refused() -> None:
    async def rows() -> AsyncIterator[int]:
        yield 1

    for decorate in (atomic, atomic(), aatomic, aatomic()):
        with pytest.raises(TypeError, match="async with"):
            decorate(rows)
        with pytest.raises(TypeError, match="async with"):
            decorate(on_loop(rows))


def test_a_sync_block_in_a_bare_coroutine_names_the_way_out(database: str, run: Run) -> None:
    async def main() -> None:
        for savepoint in (True, False):
            names_djangos = pytest.raises(
                AtomicInCoroutine, match=r"async with transaction\.atomic\(\)"
            )
            with names_djangos, transaction.atomic(savepoint=savepoint):
                raise AssertionError("entered")
            async with aatomic():
                await Author.objects.acreate(name=f"outer {savepoint}")
                names_ours = pytest.raises(AtomicInCoroutine, match="aatomic")
                with names_ours, transaction.atomic(savepoint=savepoint):
                    raise AssertionError("entered")
        async with hold_connection():
            with pytest.raises(AtomicInCoroutine), transaction.atomic():
                raise AssertionError("entered")
        assert issubclass(AtomicInCoroutine, SynchronousOnlyOperation)
        await until(lambda: pool_stats()["used"] == 0)

    run(main)
    assert committed() == ["outer False", "outer True"]


@pytest.mark.parametrize("make", [aatomic, hold_connection, detached, acursor])
def test_a_sync_with_names_async_with(database: str, run: Run, make: Any) -> None:
    def enter() -> None:
        with pytest.raises(NeedsAsyncWith, match=f"async with {make.__name__}"), make():
            raise AssertionError("entered")
        with pytest.raises(NeedsAsyncWith), contextlib.ExitStack() as stack:
            stack.enter_context(make())
        assert issubclass(NeedsAsyncWith, TypeError)

    async def main() -> None:
        enter()
        await on_loop(enter)()
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(make())

    enter()
    run(main)


def test_a_test_cases_own_blocks_are_left_alone(database: str) -> None:
    """The mark of a TestCase's block is kept where Django makes it durable-proof."""
    block: Any = atomic(durable=True)
    block._from_testcase = True
    assert block._recreate_cm() is block


@pytest.fixture
def stock(tmp_path: Path) -> Iterator[None]:
    """A database of Django's own engine, as `stock`."""
    from nuages.db import engines

    entry = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "stock.sqlite3")}
    settings = connections.configure_settings({"default": {}, "stock": entry})
    connections.settings["stock"] = settings["stock"]
    engines._changed(setting="DATABASES")
    yield
    connections["stock"].close()
    del connections["stock"]
    del connections.settings["stock"]
    engines._changed(setting="DATABASES")


def test_a_stock_engine_refuses_as_ever(database: str, run: Run, stock: None) -> None:
    called: list[str] = []

    @atomic(using="stock")
    async def never() -> None:
        called.append("called")

    async def main() -> None:
        with pytest.raises(SynchronousOnlyOperation):
            await never()
        with pytest.raises(SynchronousOnlyOperation):
            async with atomic(using="stock"):
                called.append("entered")
        with pytest.raises(SynchronousOnlyOperation), transaction.atomic(using="stock"):
            called.append("entered")
        with pytest.raises(SynchronousOnlyOperation):
            await on_loop(never)()

    run(main)
    assert called == []
    with transaction.atomic(using="stock"):
        called.append("sync")
    assert called == ["sync"]
