"""What becomes of tasks and blocks that a transaction's end leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from django.db import connection, transaction

from nuages import on_loop
from nuages.db import aatomic, detached
from nuages.exceptions import OpenBlock, ScopeEnded
from tests.integration.conftest import Run
from tests.integration.scope_tools import (
    Child,
    Failure,
    names,
    observer,
    pool_stats,
    queued,
    rolled_back,
    until,
)
from tests.library.models import Author

pytestmark = [pytest.mark.every_database, pytest.mark.both_loops]

# A child's block is open when the parent leaves


@pytest.mark.parametrize("query_again", [False, True])
def test_a_childs_block_open_at_the_end_rolls_everything_back(
    database: str, run: Run, query_again: bool
) -> None:
    async def main() -> None:
        child = Child()
        with pytest.raises(OpenBlock, match="'the child'"):
            async with aatomic():
                await Author.objects.acreate(name="parent")
                task = asyncio.create_task(child.run(query_again=query_again), name="the child")
                await child.entered.wait()
        assert await names() == []
        child.leave.set()
        with pytest.raises(ScopeEnded, match="'the child'"):
            await task
        if query_again:
            assert isinstance(child.error_inside, ScopeEnded)
        assert await names() == []
        assert pool_stats()["used"] == 0

    run(main)


def test_a_childs_own_error_is_not_hidden_by_the_end_of_the_scope(database: str, run: Run) -> None:
    async def main() -> None:
        child = Child()
        with pytest.raises(OpenBlock):
            async with aatomic():
                task = asyncio.create_task(child.run(fail=True))
                await child.entered.wait()
        child.leave.set()
        with pytest.raises(Failure):
            await task
        assert await names() == []

    run(main)


def test_a_parent_that_fails_keeps_its_error_when_a_childs_block_is_open(
    database: str, run: Run
) -> None:
    async def main() -> None:
        child = Child()
        async with rolled_back():
            task = asyncio.create_task(child.run())
            await child.entered.wait()
        child.leave.set()
        with pytest.raises(ScopeEnded):
            await task
        assert await names() == []

    run(main)


def test_a_block_left_open_in_a_nested_block_costs_only_that_one(database: str, run: Run) -> None:
    async def main() -> None:
        child = Child()
        async with aatomic():
            await Author.objects.acreate(name="outer")
            with pytest.raises(OpenBlock):
                async with aatomic():
                    await Author.objects.acreate(name="inner")
                    task = asyncio.create_task(child.run())
                    await child.entered.wait()
            child.leave.set()
            with pytest.raises(ScopeEnded):
                await task
            await Author.objects.acreate(name="outer too")
            assert not connection.needs_rollback
        assert await names() == ["outer", "outer too"]
        assert pool_stats()["used"] == 0

    run(main)


def test_two_levels_left_open_are_both_refused(database: str, run: Run) -> None:
    async def outer_child(inner: Child, leave: asyncio.Event) -> None:
        async with aatomic():
            task = asyncio.create_task(inner.run())
            await inner.entered.wait()
            await leave.wait()
            with pytest.raises(ScopeEnded):
                await task

    async def main() -> None:
        inner, leave = Child(), asyncio.Event()
        with pytest.raises(OpenBlock):
            async with aatomic():
                task = asyncio.create_task(outer_child(inner, leave))
                await inner.entered.wait()
        inner.leave.set()
        leave.set()
        with pytest.raises(ScopeEnded):
            await task
        assert await names() == []
        async with aatomic():
            await Author.objects.acreate(name="next")
        assert await names() == ["next"]

    run(main)


# A task outlives its scope


async def _write() -> None:
    await Author.objects.acreate(name="late")


async def _write_in_transaction() -> None:
    async with aatomic():
        await Author.objects.acreate(name="late")


async def _write_in_portal() -> None:
    @on_loop
    async def portal() -> None:
        Author.objects.create(name="late")

    await portal()


async def _write_in_thread() -> None:
    await asyncio.to_thread(Author.objects.create, name="late")


async def _register_hook() -> None:
    await on_loop(lambda: transaction.on_commit(lambda: None))()


writes = pytest.mark.parametrize(
    "write",
    [_write, _write_in_transaction, _write_in_portal, _write_in_thread, _register_hook],
    ids=lambda function: function.__name__.strip("_"),
)


@writes
@pytest.mark.parametrize("queried_before", [False, True])
@pytest.mark.parametrize("failed", [False, True])
def test_a_task_that_outlives_its_transaction_cannot_write(
    database: str,
    run: Run,
    write: Callable[[], Awaitable[None]],
    queried_before: bool,
    failed: bool,
) -> None:
    async def late(queried: asyncio.Event, ended: asyncio.Event) -> None:
        if queried_before:
            await Author.objects.acreate(name="in time")
        queried.set()
        await ended.wait()
        with pytest.raises(ScopeEnded, match=r"task 'late'|thread"):
            await write()
        with pytest.raises(ScopeEnded):
            await Author.objects.acount()

    async def main() -> None:
        queried, ended = asyncio.Event(), asyncio.Event()
        async with rolled_back() if failed else aatomic():
            task = asyncio.create_task(late(queried, ended), name="late")
            await queried.wait()
        ended.set()
        await task
        assert await names() == (["in time"] if queried_before and not failed else [])
        assert pool_stats()["used"] == 0

    run(main)


@pytest.mark.parametrize("failed", [False, True])
@pytest.mark.parametrize("queried_before", [False, True])
def test_a_task_that_outlives_a_nested_block_cannot_write_into_the_outer_one(
    database: str, run: Run, failed: bool, queried_before: bool
) -> None:
    """The block it was started in is sealed; the outer one would commit what it rolled back."""

    async def late(queried: asyncio.Event, ended: asyncio.Event) -> None:
        if queried_before:
            await Author.objects.acreate(name="in time")
        queried.set()
        await ended.wait()
        with pytest.raises(ScopeEnded):
            await Author.objects.acreate(name="late")
        with pytest.raises(ScopeEnded):
            await _write_in_transaction()

    async def main() -> None:
        queried, ended = asyncio.Event(), asyncio.Event()
        async with aatomic():
            async with rolled_back() if failed else aatomic():
                task = asyncio.create_task(late(queried, ended))
                await queried.wait()
            ended.set()
            await task
            await Author.objects.acreate(name="outer")
        in_time = ["in time"] if queried_before and not failed else []
        assert await names() == [*in_time, "outer"]

    run(main)


def test_a_task_started_in_a_call_of_the_scope_goes_on_in_it(database: str, run: Run) -> None:
    """Only blocks seal: a task that a bridged function starts may use the transaction on."""

    async def main() -> None:
        go = asyncio.Event()

        async def later() -> None:
            await go.wait()
            await Author.objects.acreate(name="later")

        tasks = []

        @on_loop
        async def start() -> None:
            Author.objects.create(name="first")
            tasks.append(asyncio.create_task(later()))

        async def child() -> None:
            await start()

        async with aatomic():
            await asyncio.create_task(child())
            go.set()
            await tasks[0]
        assert await names() == ["first", "later"]

    run(main)


def test_a_task_in_line_at_the_end_is_refused(database: str, run: Run) -> None:
    """It waits for its turn when the transaction ends: it gets the error, not a statement."""

    async def main() -> None:
        child = Child()
        with pytest.raises(OpenBlock):
            async with aatomic():
                blocking = asyncio.create_task(child.run())
                await child.entered.wait()
                waiting = asyncio.create_task(_write())
                await until(lambda: queued() == 1)
        with pytest.raises(ScopeEnded):
            await waiting
        child.leave.set()
        with pytest.raises(ScopeEnded):
            await blocking
        assert await names() == []

    run(main)


@pytest.mark.parametrize("failed", [False, True])
def test_a_task_whose_turn_comes_as_its_block_ends_is_refused(
    database: str, run: Run, failed: bool
) -> None:
    """The inner block's end gives it the turn; before it wakes, the outer block ends too."""

    async def main() -> None:
        async with rolled_back() if failed else aatomic():
            waiting = asyncio.create_task(_write())
            async with aatomic():
                await Author.objects.acreate(name="inner")
                await until(lambda: queued() == 1)
        with pytest.raises(ScopeEnded):
            await waiting
        assert await names() == ([] if failed else ["inner"])
        assert pool_stats()["used"] == 0

    run(main)


@pytest.mark.parametrize("failed", [False, True])
def test_a_turn_that_comes_as_a_nested_block_ends_is_not_lost(
    database: str, run: Run, failed: bool
) -> None:
    """It is neither a write into the block around, nor does that wait for it for ever."""

    async def main() -> None:
        async with aatomic():
            async with rolled_back() if failed else aatomic():
                waiting = asyncio.create_task(_write())
                async with aatomic():
                    await Author.objects.acreate(name="inner")
                    await until(lambda: queued() == 1)
            with pytest.raises(ScopeEnded):
                await waiting
            async with asyncio.timeout(10):
                await asyncio.gather(*(Author.objects.acreate(name=f"{n}") for n in range(2)))
        assert await names() == ["0", "1", *([] if failed else ["inner"])]

    run(main)


def test_the_end_waits_for_the_statement_in_flight(postgresql: dict[str, Any], run: Run) -> None:
    """A child's statement is on the server when its parent leaves: it ends, then the COMMIT."""

    def locked_insert() -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO library_author (name) "
                "SELECT 'in flight' FROM (SELECT pg_advisory_xact_lock_shared(77)) AS waited"
            )

    async def main() -> None:
        async with observer() as client:
            await client.execute("SELECT pg_advisory_lock(77)")

            async def unlock_when_waiting() -> None:
                """Let it go when the parent stands in line for the connection."""
                await until(lambda: bool(lock._queue))
                await client.execute("SELECT pg_advisory_unlock(77)")

            async with aatomic():
                await Author.objects.acreate(name="parent")
                lock = connection.connection.lock
                task = asyncio.create_task(on_loop(locked_insert)())
                waiting = "SELECT count(*) FROM pg_locks WHERE objid = 77 AND NOT granted"
                async with asyncio.timeout(20):
                    while (await (await client.execute(waiting)).fetchone()) != (1,):
                        pass
                unlocking = asyncio.create_task(unlock_when_waiting())
            await task
            await unlocking
        assert await names() == ["in flight", "parent"]

    run(main)


def test_a_task_of_an_ended_scope_may_work_detached(database: str, run: Run) -> None:
    async def late(ended: asyncio.Event) -> None:
        await ended.wait()
        async with detached():
            await _write_in_transaction()
        with pytest.raises(ScopeEnded):
            await _write()

    async def main() -> None:
        ended = asyncio.Event()
        async with aatomic():
            task = asyncio.create_task(late(ended))
        ended.set()
        await task
        assert await names() == ["late"]

    run(main)


def test_the_opener_goes_on_outside_after_the_end(database: str, run: Run) -> None:
    """Whoever opened the block, and whatever it starts later, is outside again."""

    async def main() -> None:
        for fails in (False, True):
            async with rolled_back() if fails else aatomic():
                await Author.objects.acreate(name=f"inside {fails}")
            await Author.objects.acreate(name=f"after {fails}")
            await asyncio.create_task(Author.objects.acount())
        assert await names() == ["after False", "after True", "inside False"]

    run(main)
