"""`aatomic`: every way to decorate with it, share it and nest it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from django.db.transaction import TransactionManagementError

from nuages import on_loop
from nuages.db import aatomic
from tests.integration.conftest import Run
from tests.integration.scope_tools import (
    Failure,
    names,
    pool_stats,
)
from tests.library.models import Author

pytestmark = [pytest.mark.every_database, pytest.mark.both_loops]

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
