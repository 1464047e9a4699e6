"""`aatomic` in async generators, however they are left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator

import pytest
from django.db import IntegrityError, connection, transaction

from nuages import on_loop
from nuages.db import aatomic
from nuages.exceptions import EnteredElsewhere, ScopeEnded
from tests.integration.conftest import Run
from tests.integration.scope_tools import (
    names,
    pool_stats,
    until,
)
from tests.library.models import Author

pytestmark = [pytest.mark.every_database, pytest.mark.both_loops]


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
        # A task of the pool's loop ends the block.
        await until(lambda: pool_stats()["used"] == 0)

        generator = _creating("c")
        assert await asyncio.create_task(anext(generator)) == "c"  # type: ignore[arg-type]
        # What it does in this task would not be in the block.
        with pytest.raises(EnteredElsewhere):
            await anext(generator)
        assert not connection.in_atomic_block
        assert await names() == []
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
