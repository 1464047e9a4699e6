"""`aatomic` and its kin: every way to enter, nest, decorate and leave a transaction."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from django.db import IntegrityError, connection, connections, transaction
from django.db.transaction import TransactionManagementError

from nuages import on_loop
from nuages.db import aatomic, detached
from nuages.exceptions import ScopeEnded
from tests.integration.conftest import Run
from tests.integration.scope_tools import (
    Failure,
    names,
    pool_stats,
    rolled_back,
    until,
)
from tests.library.models import Author

# As a decorator


def test_aatomic_decorates_coroutine_functions(database: str, run: Run) -> None:
    @aatomic
    async def bare(name: str, *, fail: bool = False) -> str:
        """Documented."""
        await Author.objects.acreate(name=name)
        assert connection.in_atomic_block
        if fail:
            raise Failure
        return name

    @aatomic(savepoint=False)
    async def with_arguments(name: str, *, fail: bool = False) -> str:
        return await bare.__wrapped__(name, fail=fail)  # type: ignore[attr-defined,no-any-return]

    async def main() -> None:
        for function in (bare, with_arguments):
            name = function.__name__
            assert await function(name) == name
            with pytest.raises(Failure):
                await function("fails", fail=True)
        assert bare.__doc__ == "Documented."
        assert await names() == ["bare", "with_arguments"]

    run(main)


def test_a_decorated_function_runs_concurrently_and_calls_itself(database: str, run: Run) -> None:
    """Every call has a block of its own, although the decorator is one object."""

    @aatomic()
    async def create(name: str, depth: int) -> None:
        await Author.objects.acreate(name=name)
        if depth:
            with contextlib.suppress(Failure):
                await create(f"{name}x", depth - 1)
        elif name.startswith("b"):
            raise Failure

    async def main() -> None:
        await asyncio.gather(*(create(name, 2) for name in "abc"))
        assert await names() == ["a", "ax", "axx", "b", "bx", "c", "cx", "cxx"]

    run(main)


def test_aatomic_refuses_to_decorate_a_sync_function() -> None:
    with pytest.raises(TypeError, match=r"django\.db\.transaction\.atomic"):
        aatomic(lambda: None)


# One instance, many uses


def test_an_instance_shared_by_concurrent_tasks(postgresql: dict[str, Any], run: Run) -> None:
    """All are inside at once, and each leaves its own transaction."""
    shared = aatomic()

    async def use(name: str, everybody: asyncio.Barrier) -> None:
        async with shared:
            await Author.objects.acreate(name=name)
            await everybody.wait()
            if name in "bd":
                raise Failure

    async def main() -> None:
        everybody = asyncio.Barrier(5)
        async with asyncio.timeout(20):
            results = await asyncio.gather(
                *(use(name, everybody) for name in "abcde"), return_exceptions=True
            )
        assert [type(result) for result in results].count(Failure) == 2
        assert await names() == ["a", "c", "e"]
        assert pool_stats()["used"] == 0

    run(main)


def test_an_instance_nested_in_itself(database: str, run: Run) -> None:
    shared = aatomic()

    async def main() -> None:
        async with shared:
            await Author.objects.acreate(name="outer")
            with pytest.raises(Failure):
                async with shared:
                    await Author.objects.acreate(name="inner")
                    raise Failure
            async with shared:
                await Author.objects.acreate(name="second")
        assert await names() == ["outer", "second"]

    run(main)


def test_an_instance_shared_by_tasks_of_one_transaction(database: str, run: Run) -> None:
    shared = aatomic()

    async def use(name: str) -> None:
        async with shared:
            await Author.objects.acreate(name=name)
            if name == "b":
                raise Failure

    async def main() -> None:
        async with asyncio.timeout(20), shared:
            results = await asyncio.gather(*map(use, "abc"), return_exceptions=True)
            assert [type(result) for result in results].count(Failure) == 1
        assert await names() == ["a", "c"]

    run(main)


# durable, savepoint, using


def test_durable_refuses_to_nest(database: str, run: Run) -> None:
    async def main() -> None:
        async with aatomic(durable=True):
            await Author.objects.acreate(name="durable")
            with pytest.raises(RuntimeError, match="durable"):
                async with aatomic(durable=True):
                    pytest.fail("entered")
            await Author.objects.acreate(name="after")
            async with aatomic():
                await Author.objects.acreate(name="nested")
        assert await names() == ["after", "durable", "nested"]

    run(main)


def test_savepoint_false_dooms_the_outer_block(database: str, run: Run) -> None:
    async def main() -> None:
        async with aatomic():
            await Author.objects.acreate(name="outer")
            with pytest.raises(Failure):
                async with aatomic(savepoint=False):
                    await Author.objects.acreate(name="inner")
                    raise Failure
            assert await on_loop(transaction.get_rollback)()
            with pytest.raises(TransactionManagementError, match="until the end"):
                await Author.objects.acount()
        assert await names() == []
        await Author.objects.acreate(name="next")
        assert await names() == ["next"]

    run(main)


def test_a_database_error_is_undone_by_its_savepoint(database: str, run: Run) -> None:
    async def main() -> None:
        async with aatomic():
            await Author.objects.acreate(name="one")
            with pytest.raises(IntegrityError):
                async with aatomic():
                    await Author.objects.acreate(name="one")
            await Author.objects.acreate(name="two")
        assert await names() == ["one", "two"]

    run(main)


@pytest.fixture
def second_alias(postgresql: dict[str, Any]) -> Iterator[str]:
    """The same PostgreSQL database by another alias, so with other connections."""
    connections.settings["second"] = {**postgresql}
    yield "second"
    connections["second"].close()
    del connections["second"]
    del connections.settings["second"]


def test_using_names_the_database(second_alias: str, run: Run) -> None:
    async def main() -> None:
        with pytest.raises(Failure):
            async with aatomic(using=second_alias):
                await Author.objects.using(second_alias).acreate(name="in it")
                await Author.objects.acreate(name="of another database")
                assert connections[second_alias].in_atomic_block
                assert not connection.in_atomic_block
                raise Failure
        assert await names() == ["of another database"]

        @aatomic(second_alias)
        async def decorated() -> None:
            await Author.objects.using(second_alias).acreate(name="decorated")
            raise Failure

        with pytest.raises(Failure):
            await decorated()
        async with aatomic(), aatomic(using=second_alias):
            await asyncio.gather(
                Author.objects.acreate(name="one"),
                Author.objects.using(second_alias).acreate(name="two"),
            )
        assert await names() == ["of another database", "one", "two"]

    run(main)


# detached


def test_detached_reads_what_is_committed(database: str, run: Run) -> None:
    async def main() -> None:
        await Author.objects.acreate(name="before")
        async with aatomic():
            await Author.objects.acreate(name="inside")
            async with detached():
                assert not connection.in_atomic_block
                assert await Author.objects.acount() == 1
                async with detached():
                    assert await Author.objects.acount() == 1
                assert await Author.objects.acount() == 1
            assert connection.in_atomic_block
            assert await Author.objects.acount() == 2

    run(main)


def test_detached_writes_stay_whatever_becomes_of_the_transaction(
    postgresql: dict[str, Any], run: Run
) -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def outlives() -> None:
            await go.wait()
            await Author.objects.acreate(name="by a task")

        async with rolled_back():
            await Author.objects.acreate(name="inside")
            async with detached():
                await Author.objects.acreate(name="detached")
                async with aatomic():
                    await Author.objects.acreate(name="its own transaction")
                    async with detached():
                        await Author.objects.acreate(name="nested")
                with pytest.raises(Failure):
                    async with aatomic():
                        await Author.objects.acreate(name="its own failure")
                        raise Failure
                task = asyncio.create_task(outlives())
            assert await Author.objects.acount() == 4
        go.set()
        await task
        assert await names() == ["by a task", "detached", "its own transaction", "nested"]
        assert pool_stats()["used"] == 0

    run(main)


def test_detached_using_leaves_the_other_databases_alone(second_alias: str, run: Run) -> None:
    async def main() -> None:
        async with rolled_back(), aatomic(using=second_alias):
            async with detached(using=second_alias):
                await Author.objects.acreate(name="in the transaction")
                await Author.objects.using(second_alias).acreate(name="detached")
                assert connection.in_atomic_block
                assert not connections[second_alias].in_atomic_block
            assert connections[second_alias].in_atomic_block
        assert await names() == ["detached"]

    run(main)


def test_detached_is_left_by_an_error_too(database: str, run: Run) -> None:
    async def main() -> None:
        async with aatomic():
            with pytest.raises(Failure):
                async with detached():
                    raise Failure
            assert connection.in_atomic_block
            await Author.objects.acreate(name="inside")
        assert await names() == ["inside"]

    run(main)


# In async generators


async def _creating(*created: str) -> AsyncIterator[str]:
    async with aatomic():
        for name in created:
            await Author.objects.acreate(name=name)
            yield name


def test_an_async_generator_that_is_exhausted_commits(database: str, run: Run) -> None:
    async def main() -> None:
        assert [name async for name in _creating("a", "b")] == ["a", "b"]
        assert not connection.in_atomic_block
        assert await names() == ["a", "b"]
        assert pool_stats()["used"] == 0

    run(main)


def test_an_async_generator_entered_in_one_task_and_closed_in_another(
    database: str, run: Run
) -> None:
    async def main() -> None:
        generator = _creating("a", "b")
        assert await asyncio.create_task(anext(generator)) == "a"  # type: ignore[arg-type]
        assert not connection.in_atomic_block
        assert pool_stats()["used"] == 1
        await asyncio.create_task(generator.aclose())  # type: ignore[attr-defined]
        assert await names() == []
        assert pool_stats()["used"] == 0

        generator = _creating("c")
        assert await asyncio.create_task(anext(generator)) == "c"  # type: ignore[arg-type]
        with pytest.raises(StopAsyncIteration):
            await anext(generator)
        assert not connection.in_atomic_block
        assert await names() == ["c"]
        assert pool_stats()["used"] == 0

    run(main)


def test_an_async_generator_entered_here_and_closed_in_another_task(
    database: str, run: Run
) -> None:
    """The opener's context is left with an ended block, and goes on outside of it."""

    async def main() -> None:
        generator = _creating("a", "b")
        assert await anext(generator) == "a"
        await asyncio.create_task(generator.aclose())  # type: ignore[attr-defined]
        assert not connection.in_atomic_block
        await Author.objects.acreate(name="after")
        async with aatomic():
            await Author.objects.acreate(name="in a new one")
        assert await names() == ["after", "in a new one"]
        assert pool_stats()["used"] == 0

    run(main)


def test_a_consumer_that_breaks_early_and_closes(database: str, run: Run) -> None:
    async def main() -> None:
        async with contextlib.aclosing(_creating("a", "b")) as generator:  # type: ignore[type-var]
            async for _ in generator:
                break
        assert not connection.in_atomic_block
        assert await names() == []
        assert pool_stats()["used"] == 0

    run(main)


@pytest.mark.parametrize("in_task", [False, True])
def test_an_abandoned_async_generator_is_rolled_back(
    database: str, run: Run, in_task: bool
) -> None:
    """The garbage collector finds it; the loop closes it in a task of its own."""

    async def consume() -> None:
        async for _ in _creating("a", "b"):
            break

    async def main() -> None:
        await (asyncio.create_task(consume()) if in_task else consume())
        gc.collect()
        await until(lambda: pool_stats()["used"] == 0)
        assert not connection.in_atomic_block
        await Author.objects.acreate(name="after")
        assert await names() == ["after"]

    run(main)


def test_generators_that_end_in_the_order_they_began(database: str, run: Run) -> None:
    """Nested blocks left in the wrong order: the inner one is over with the outer."""

    async def main() -> None:
        outer = _creating("outer")
        inner = _creating("inner")
        await anext(outer)
        await anext(inner)
        await outer.aclose()  # type: ignore[attr-defined]
        with pytest.raises(ScopeEnded):
            await anext(inner)
        assert not connection.in_atomic_block
        assert await names() == []
        assert pool_stats()["used"] == 0

    run(main)


def test_a_portal_generator_holds_its_transaction_between_items(database: str, run: Run) -> None:
    @on_loop
    async def creating() -> AsyncIterator[str]:
        with transaction.atomic():
            for name in "ab":
                yield Author.objects.create(name=name).name

    async def main() -> None:
        assert [name async for name in creating()] == ["a", "b"]
        assert await names() == ["a", "b"]
        generator = creating()
        with pytest.raises(IntegrityError):
            await anext(generator)
        assert await names() == ["a", "b"]
        assert pool_stats()["used"] == 0

    run(main)
