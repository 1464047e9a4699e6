"""`detached`: code that is outside the transaction around it, on purpose."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection

from nuages.db import aatomic, detached
from tests import judge
from tests.integration.conftest import Run
from tests.integration.scope_tools import (
    Failure,
    names,
    pool_stats,
    rolled_back,
    turns,
)
from tests.library.models import Author

pytestmark = [pytest.mark.every_database, pytest.mark.both_loops]


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


async def _leave_by_drop() -> None:
    async for _ in _detached_inside():
        break


async def _leave_by_error() -> None:
    with pytest.raises(Failure):
        async for _ in _detached_inside():
            raise Failure


async def _leave_a_step() -> None:
    await anext(_detached_inside())


async def _leave_the_first_of_two() -> None:
    generator = _detached_inside()
    await anext(generator)
    await _leave_by_drop()
    del generator


async def _leave_nested() -> None:
    async for _ in _twice_detached():
        break


async def _leave_with_a_transaction() -> None:
    async for _ in _detached_in_a_transaction():
        break


async def _detached_inside() -> AsyncIterator[None]:
    async with detached():
        assert not connection.in_atomic_block
        await Author.objects.acount()
        yield
        yield


async def _twice_detached() -> AsyncIterator[None]:
    async with detached():
        async for each in _detached_inside():
            yield each


async def _detached_in_a_transaction() -> AsyncIterator[None]:
    async with detached(), aatomic():
        await Author.objects.acount()
        yield


LEFT = [
    _leave_by_drop,
    _leave_by_error,
    _leave_a_step,
    _leave_the_first_of_two,
    _leave_nested,
]


async def _write(name: str) -> None:
    await Author.objects.acreate(name=name)


async def _write_in_task(name: str) -> None:
    await asyncio.create_task(_write(name))


async def _write_in_thread(name: str) -> None:
    await sync_to_async(Author.objects.create)(name=name)


async def _write_in_block(name: str) -> None:
    async with aatomic():
        await _write(name)


@pytest.mark.parametrize("write", [_write, _write_in_task, _write_in_thread, _write_in_block])
@pytest.mark.parametrize("leave", LEFT)
def test_a_dropped_generator_leaves_its_consumer_in_its_transaction(
    database: str, run: Run, leave: Any, write: Any
) -> None:
    """What it does next is of its transaction again, and rolled back with it."""

    async def main() -> None:
        async with rolled_back():
            await _write("before")
            await leave()
            await write("after")
            assert connection.in_atomic_block
        async with aatomic():
            await leave()
            await write("committed")

    run(main)
    assert judge.authors() == ["committed"]


@pytest.mark.parametrize("write", [_write, _write_in_task, _write_in_thread, _write_in_block])
def test_a_dropped_transaction_of_a_detached_generator(
    postgresql: dict[str, Any], run: Run, write: Any
) -> None:
    async def main() -> None:
        async with rolled_back():
            await _leave_with_a_transaction()
            await write("after")

    run(main)
    assert judge.authors() == []


def test_a_task_of_a_dropped_generator_stays_outside(postgresql: dict[str, Any], run: Run) -> None:
    async def main() -> None:
        go, ready = asyncio.Event(), asyncio.Event()

        async def outlives() -> None:
            assert await Author.objects.acount() == 0
            ready.set()
            await go.wait()
            await Author.objects.acreate(name="outside")

        async def generate() -> AsyncIterator[asyncio.Task[None]]:
            async with detached():
                task = asyncio.create_task(outlives())
                await ready.wait()
                yield task

        async with rolled_back():
            await _write("inside")
            async for task in generate():  # noqa: B007 - it is dropped
                break
            go.set()
            await task

    run(main)
    assert judge.authors() == ["outside"]


@pytest.mark.parametrize("drop_in", ["before", "inside"])
def test_a_dropped_block_around_it_leaves_the_code_in_the_transaction_after_it(
    database: str, run: Run, drop_in: str
) -> None:
    async def with_block() -> AsyncIterator[None]:
        async with aatomic():
            await Author.objects.acreate(name="of the generator")
            yield None

    async def unwound() -> None:
        await turns()
        await Author.objects.acount()

    async def main() -> None:
        async with rolled_back():
            await Author.objects.acreate(name="inside")
            generators = [with_block()]
            await anext(generators[0])
            if drop_in == "before":
                generators.clear()
                await unwound()
            async with detached():
                generators.clear()
                await unwound()
                assert not connection.in_atomic_block
            assert connection.in_atomic_block
            await Author.objects.acreate(name="after")

    run(main)
    assert judge.authors() == []
