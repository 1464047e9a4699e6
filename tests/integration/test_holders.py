"""Who holds a connection never waits for one that only such holders could give back.

`meet` is a barrier of as many as the pool has connections: all of them are in use when each of
their holders asks for one more.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import connection, transaction

from nuages import on_loop
from nuages.bridge import await_
from nuages.db import aatomic, acursor, detached, hold_connection
from nuages.db.pool.pool import open_pools
from nuages.db.transaction import request_connections
from tests.integration.conftest import Run
from tests.integration.pool_tools import assert_whole, committed, options, the_pool
from tests.integration.scope_tools import Failure, pool_stats, until
from tests.library.models import Author

pytestmark = [pytest.mark.every_database, pytest.mark.both_loops]

SIZE = 4
Meet = Callable[[], Awaitable[Any]]
Query = Callable[[], Awaitable[Any]]


class Peak:
    """The most connections that were open."""

    def __init__(self) -> None:
        self.size = 0

    def note(self) -> None:
        for pool in open_pools():
            self.size = max(self.size, pool.size)


@pytest.fixture
def rows(database: str) -> None:
    """More rows than a cursor brings at once; transactions of SQLite that only read are many."""
    if database == "sqlite":
        connection.settings_dict["OPTIONS"]["transaction_mode"] = "DEFERRED"
    Author.objects.bulk_create(Author(name=f"row {i}") for i in range(250))


# What holds a connection while it asks for another


async def in_transaction(meet: Meet, query: Query) -> None:
    async with aatomic():
        await Author.objects.acount()
        await meet()
        async with detached():
            await query()


async def in_hold(meet: Meet, query: Query) -> None:
    async with hold_connection():
        await meet()
        async with detached():
            await query()


async def in_request(meet: Meet, query: Query) -> None:
    async with request_connections():
        await Author.objects.acount()
        await meet()
        async with detached():
            await query()


async def in_transaction_of_a_request(meet: Meet, query: Query) -> None:
    async with request_connections(), aatomic():
        await Author.objects.acount()
        await meet()
        async with detached():
            await query()


async def in_cursor(meet: Meet, query: Query) -> None:
    async with acursor() as cursor:
        await cursor.execute("SELECT 1")
        await meet()
        await asyncio.create_task(query())  # type: ignore[arg-type]


async def in_iteration(meet: Meet, query: Query) -> None:
    async for _ in Author.objects.order_by("pk").aiterator(chunk_size=10):
        await meet()
        await asyncio.gather(query(), query())
        break


async def in_task_of_a_task_of_an_iteration(meet: Meet, query: Query) -> None:
    async def outer() -> None:
        await Author.objects.acount()
        await asyncio.create_task(query())  # type: ignore[arg-type]

    async for _ in Author.objects.order_by("pk").aiterator(chunk_size=10):
        await meet()
        await asyncio.create_task(outer())
        break


async def in_bridged_iteration(meet: Meet, query: Query) -> None:
    def work() -> None:
        rows = Author.objects.order_by("pk").iterator(chunk_size=10)
        next(rows)
        await_(meet())
        await_(asyncio.gather(query(), query()))
        rows.close()

    await on_loop(work)()


async def in_bridged_cursor(meet: Meet, query: Query) -> None:
    def work() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            await_(meet())
            await_(asyncio.gather(query(), query()))

    await on_loop(work)()


async def in_portal(meet: Meet, query: Query) -> None:
    @on_loop
    async def work() -> None:
        for _ in Author.objects.order_by("pk").iterator(chunk_size=10):
            await meet()
            async with asyncio.TaskGroup() as group:
                group.create_task(query())  # type: ignore[arg-type]
            break

    await work()


async def in_manual_mode(meet: Meet, query: Query) -> None:
    @on_loop
    async def work() -> None:
        transaction.set_autocommit(False)
        try:
            Author.objects.count()
            await meet()
            async with detached():
                await query()
        finally:
            transaction.rollback()
            transaction.set_autocommit(True)

    await work()


async def by_thread_in_detached(meet: Meet, query: Query) -> None:
    def work() -> None:
        Author.objects.count()

    async with aatomic():
        await Author.objects.acount()
        await meet()
        async with detached():
            await sync_to_async(work, thread_sensitive=False)()
            await query()


async def by_coroutine_of_a_thread(meet: Meet, query: Query) -> None:
    """The thread has a cursor open, and waits for a coroutine that queries."""
    loop = asyncio.get_running_loop()

    def work() -> None:
        rows = Author.objects.order_by("pk").iterator(chunk_size=10)
        next(rows)
        asyncio.run_coroutine_threadsafe(_awaited(meet), loop).result()
        async_to_sync(query)()  # type: ignore[arg-type]
        rows.close()

    await sync_to_async(work, thread_sensitive=False)()


async def _awaited(meet: Meet) -> None:
    await meet()


WAYS = [
    in_transaction,
    in_hold,
    in_request,
    in_transaction_of_a_request,
    in_cursor,
    in_iteration,
    in_task_of_a_task_of_an_iteration,
    in_bridged_iteration,
    in_bridged_cursor,
    in_portal,
    in_manual_mode,
    by_thread_in_detached,
    by_coroutine_of_a_thread,
]


async def _called(way: Callable[..., Awaitable[None]], meet: Meet, query: Query) -> None:
    await way(meet, query)


@pytest.mark.parametrize("way", WAYS, ids=[way.__name__ for way in WAYS])
def test_as_many_holders_as_connections_get_one_more(
    database: str, rows: None, run: Run, way: Callable[[Meet, Query], Awaitable[None]]
) -> None:
    options(max_size=SIZE, timeout=3)

    async def main() -> None:
        barrier, peak = asyncio.Barrier(SIZE), Peak()

        async def query() -> None:
            await Author.objects.acount()
            peak.note()

        async with asyncio.TaskGroup() as group:
            for _ in range(4 * SIZE):
                group.create_task(_called(way, barrier.wait, query))
        assert peak.size <= 2 * SIZE
        await until(lambda: pool_stats()["used"] == 0)
        assert_whole(the_pool())

    run(main)


def test_writes_of_64_detached_blocks_are_committed(database: str, rows: None, run: Run) -> None:
    """Their transactions fail. The judge is a connection of its own."""
    options(max_size=SIZE, timeout=10)

    async def main() -> None:
        barrier, peak = asyncio.Barrier(SIZE), Peak()

        async def work(number: int) -> None:
            with pytest.raises(Failure):
                async with aatomic():
                    await Author.objects.acount()
                    await barrier.wait()
                    async with detached():
                        await Author.objects.acreate(name=f"detached {number}")
                        peak.note()
                    raise Failure

        await asyncio.gather(*(work(number) for number in range(64)))
        assert SIZE < peak.size <= 2 * SIZE
        assert_whole(the_pool())

    run(main)
    found = committed("SELECT name FROM library_author WHERE name LIKE 'detached%'")
    assert sorted(found) == sorted(f"detached {number}" for number in range(64))


def test_detached_in_detached(database: str, rows: None, run: Run) -> None:
    """Each holds three connections and asks for a fourth."""
    options(max_size=2, timeout=3)
    depth = 3

    async def main() -> None:
        barriers = [asyncio.Barrier(2) for _ in range(depth)]
        peak = Peak()

        async def work() -> None:
            async with AsyncExitStack() as blocks:
                for barrier in barriers:
                    await blocks.enter_async_context(aatomic())
                    await Author.objects.acount()
                    await barrier.wait()
                    await blocks.enter_async_context(detached())
                await Author.objects.acount()
                peak.note()

        await asyncio.gather(*(work() for _ in range(8)))
        assert 2 * depth < peak.size <= 2 * (depth + 1)
        assert_whole(the_pool())

    run(main)


def test_what_comes_back_beyond_the_bound_is_not_for_others(
    database: str, rows: None, run: Run
) -> None:
    """It is closed: given to one who holds none, the next holders would find the bound reached."""
    options(max_size=1, timeout=30)

    async def main() -> None:
        inside, leave = asyncio.Event(), asyncio.Event()

        async def holder() -> None:
            async with aatomic():
                await Author.objects.acount()
                async with detached(), acursor() as cursor:
                    await cursor.execute("SELECT 1")
                    assert pool_stats()["used"] == pool_stats()["size"] == 2
                    inside.set()
                    await leave.wait()
                assert pool_stats()["used"] == pool_stats()["size"] == 1
                assert not plain.done()
                assert pool_stats()["waiting"] == 1

        holding = asyncio.create_task(holder())
        await inside.wait()
        plain = asyncio.create_task(Author.objects.acount())
        await until(lambda: pool_stats()["waiting"] == 1)
        leave.set()
        await holding
        assert await plain == 250
        assert_whole(the_pool())

    run(main)


def test_who_holds_comes_before_who_does_not(database: str, rows: None, run: Run) -> None:
    """Both wait; the holder's end is what the other waits for."""
    options(max_size=1, timeout=30)

    async def main() -> None:
        leave, order = asyncio.Event(), []
        inside = asyncio.Event()

        async def occupy() -> None:
            """The second connection, so that the next holder's task has to wait as well."""
            async with acursor() as cursor:
                await cursor.execute("SELECT 1")
                inside.set()
                await leave.wait()

        async def query(name: str) -> None:
            await Author.objects.acount()
            order.append(name)

        async with aatomic():
            await Author.objects.acount()
            async with detached():
                occupying = asyncio.create_task(occupy())
                await inside.wait()
        plain = asyncio.create_task(query("plain"))
        await until(lambda: pool_stats()["waiting"] == 1)
        # The block is over: the task that outlives it holds one, as anybody.
        assert pool_stats()["used"] == 1
        leave.set()
        await asyncio.gather(occupying, plain)
        assert order == ["plain"]
        assert_whole(the_pool())

    run(main)


def test_a_task_that_outlives_the_block_counts_as_any_other(
    database: str, rows: None, run: Run
) -> None:
    options(max_size=1, timeout=30)

    async def main() -> None:
        go = asyncio.Event()

        async def outlives() -> int:
            await go.wait()
            return await Author.objects.acount()

        async with aatomic():
            await Author.objects.acount()
            async with detached():
                task = asyncio.create_task(outlives())
        async with aatomic():
            await Author.objects.acount()
            go.set()
            await until(lambda: pool_stats()["waiting"] == 1)
            assert pool_stats()["size"] == 1
        assert await task == 250

    run(main)


def test_a_holder_that_is_cancelled_while_it_waits(database: str, rows: None, run: Run) -> None:
    """Two detached tasks of one block wait beyond the bound; nothing of theirs is left."""
    options(max_size=1, timeout=30)

    async def main() -> None:
        inside, leave = asyncio.Event(), asyncio.Event()

        async def occupy() -> None:
            async with acursor() as cursor:
                await cursor.execute("SELECT 1")
                inside.set()
                await leave.wait()

        async with aatomic():
            await Author.objects.acount()
            async with detached():
                occupying = asyncio.create_task(occupy())
                await inside.wait()
                waiting = [asyncio.create_task(Author.objects.acount()) for _ in range(3)]
                await until(lambda: pool_stats()["waiting"] == 3)
                assert pool_stats()["size"] == 2
                waiting[0].cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting[0]
                assert pool_stats()["waiting"] == 2
                leave.set()
                await occupying
                assert await asyncio.gather(*waiting[1:]) == [250, 250]
        assert_whole(the_pool())

    run(main)


def test_threads_in_detached_blocks(database: str, rows: None, run: Run) -> None:
    """Each thread works in a transaction beside that of its task, at the same time."""
    options(max_size=SIZE, timeout=3)

    async def main() -> None:
        barrier, met = asyncio.Barrier(SIZE), threading.Barrier(SIZE)

        def work() -> None:
            with transaction.atomic():
                Author.objects.count()
                met.wait(timeout=10)

        async def one() -> None:
            async with aatomic():
                await Author.objects.acount()
                await barrier.wait()
                async with detached():
                    await sync_to_async(work, thread_sensitive=False)()

        await asyncio.gather(*(one() for _ in range(SIZE)))
        await until(lambda: pool_stats()["used"] == 0)
        assert_whole(the_pool())

    run(main)
