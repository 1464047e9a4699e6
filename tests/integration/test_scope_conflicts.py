"""Tasks of one transaction in each other's way: deadlocks, failures, foreign connections."""

from __future__ import annotations

import asyncio

import pytest
from django.db import IntegrityError, connection, transaction
from django.test import override_settings

from nuages import on_loop
from nuages.db import aatomic, aon_commit
from nuages.exceptions import ForeignConnection, ScopeDeadlock
from tests.integration.conftest import Run
from tests.integration.scope_tools import (
    Child,
    Failure,
    names,
    pool_stats,
    queued,
    until,
)
from tests.library.models import Author

pytestmark = [pytest.mark.every_database, pytest.mark.both_loops]

# Tasks that wait for each other


def test_tasks_that_wait_for_each_other_get_an_error_that_names_both(
    database: str, run: Run
) -> None:
    """The parent awaits, from inside a nested block, a task that needs the block around it."""

    async def main() -> None:
        go = asyncio.Event()

        async def wait_and_query() -> None:
            await go.wait()
            await Author.objects.acount()

        async def hold_and_await(waiter: asyncio.Task[None]) -> None:
            async with aatomic():
                await Author.objects.acreate(name="holder")
                go.set()
                await waiter

        with override_settings(NUAGES={"SCOPE_TIMEOUT": 0.05}):
            async with aatomic():
                waiter = asyncio.create_task(wait_and_query(), name="the waiter")
                holder = asyncio.create_task(hold_and_await(waiter), name="the holder")
                with pytest.raises(ScopeDeadlock) as caught:
                    await holder
                await Author.objects.acreate(name="goes on")
        assert "task 'the waiter'" in str(caught.value)
        assert "task 'the holder'" in str(caught.value)
        assert await names() == ["goes on"]
        assert pool_stats()["used"] == 0

    run(main)


def test_a_child_that_awaits_its_parent_names_both(database: str, run: Run) -> None:
    """The other way round: the owner of the transaction waits for a block of its child."""

    async def main() -> None:
        entered = asyncio.Event()
        parent_done = asyncio.Event()

        async def child() -> None:
            async with aatomic():
                await Author.objects.acreate(name="child")
                entered.set()
                await parent_done.wait()

        me = asyncio.current_task()
        assert me is not None
        me.set_name("the parent")
        with override_settings(NUAGES={"SCOPE_TIMEOUT": 0.05}):
            async with aatomic():
                task = asyncio.create_task(child(), name="the child")
                await entered.wait()
                with pytest.raises(ScopeDeadlock) as caught:
                    await Author.objects.acount()
                parent_done.set()
                await task
        assert "task 'the parent'" in str(caught.value)
        assert "task 'the child'" in str(caught.value)
        assert await names() == ["child"]

    run(main)


# One task's failure while another's block is open


def test_a_failure_outside_a_nested_block_does_not_roll_that_back(database: str, run: Run) -> None:
    """Django marks the connection when a save fails; it must hit the block of that save."""

    async def main() -> None:
        child = Child()
        async with aatomic():
            await Author.objects.acreate(name="outer")
            async with aatomic():
                task = asyncio.create_task(child.run(query_again=True))
                await child.entered.wait()
                with pytest.raises(ValueError, match="expected a number"):
                    await Author.objects.acreate(pk="no number", name="bad")
                child.leave.set()
                await task
                assert child.error_inside is None
                # The child's block is well; this one is marked, as in Django.
                assert connection.needs_rollback
        assert await names() == ["outer"]

    run(main)


def test_a_failed_save_does_not_cost_a_block_of_another_task(database: str, run: Run) -> None:
    """Two siblings with a block each: what the one holds is committed."""

    async def main() -> None:
        child = Child()
        async with aatomic():
            task = asyncio.create_task(child.run())
            await child.entered.wait()

            async def fail() -> None:
                async with aatomic():
                    await Author.objects.acreate(pk="no number", name="bad")

            failing = asyncio.create_task(fail())
            await until(lambda: queued() == 1)
            child.leave.set()
            await task
            with pytest.raises(ValueError, match="expected a number"):
                await failing
            assert not connection.needs_rollback
        assert await names() == ["child"]

    run(main)


def test_a_failed_nested_block_does_not_stop_others(database: str, run: Run) -> None:
    """Its error is caught inside it and it is still open: others wait, and are not refused."""

    async def main() -> None:
        failed, go = asyncio.Event(), asyncio.Event()

        async def nested() -> None:
            async with aatomic():
                with pytest.raises(IntegrityError):
                    await Author.objects.acreate(name="outer")
                failed.set()
                await go.wait()

        async with aatomic():
            await Author.objects.acreate(name="outer")
            block = asyncio.create_task(nested())
            await failed.wait()
            other = asyncio.create_task(Author.objects.acreate(name="other"))
            await until(lambda: queued() == 1)
            go.set()
            await asyncio.gather(block, other)
        assert await names() == ["other", "outer"]

    run(main)


def test_a_statement_that_waited_while_its_block_was_broken_is_refused(
    database: str, run: Run
) -> None:
    """As if it had come after the failure: what it wrote would be rolled back."""

    async def main() -> None:
        leave = asyncio.Event()

        async def fail() -> None:
            async with aatomic(savepoint=False):
                await leave.wait()
                raise Failure

        async with aatomic():
            failing = asyncio.create_task(fail())
            await until(lambda: len(connection.atomic_blocks) == 2)
            waiting = asyncio.create_task(Author.objects.acreate(name="waiting"))
            await until(lambda: queued() == 1)
            leave.set()
            with pytest.raises(Failure):
                await failing
            with pytest.raises(transaction.TransactionManagementError, match="end of the"):
                await waiting
        assert await names() == []

    run(main)


def test_a_broken_block_stays_broken_beside_a_block_of_another_task(
    database: str, run: Run
) -> None:
    async def main() -> None:
        child = Child()
        async with aatomic():
            with pytest.raises(ValueError, match="expected a number"):
                await Author.objects.acreate(pk="no number", name="bad")

            async def enter() -> None:
                async with aatomic():
                    child.entered.set()
                    await child.leave.wait()

            task = asyncio.create_task(enter())
            await child.entered.wait()
            assert connection.needs_rollback
            with pytest.raises(transaction.TransactionManagementError):
                await Author.objects.acreate(name="refused")
            child.leave.set()
            await task
            assert connection.needs_rollback
        assert await names() == []

    run(main)


def test_a_hook_is_not_lost_with_a_block_of_another_task(database: str, run: Run) -> None:
    """`on_commit` notes the open savepoints; only those of its own caller count."""
    called: list[str] = []

    async def main() -> None:
        child = Child()
        async with aatomic():
            task = asyncio.create_task(child.run(fail=True))
            await child.entered.wait()
            connection.on_commit(lambda: called.append("from coroutine code"))
            await aon_commit(lambda: called.append("awaited"))
            child.leave.set()
            with pytest.raises(Failure):
                await task
            assert called == []
        assert called == ["from coroutine code", "awaited"]
        called.clear()

    run(main)


# Connection objects of somebody else


def test_a_connection_object_of_a_foreign_scope_is_refused(database: str, run: Run) -> None:
    async def main() -> None:
        wrapper = None
        got, done = asyncio.Event(), asyncio.Event()

        async def owner() -> None:
            nonlocal wrapper
            async with aatomic():
                await Author.objects.acreate(name="owner")
                wrapper = connection.ops.connection
                got.set()
                await done.wait()

        def use() -> None:
            with wrapper.cursor() as cursor:
                cursor.execute("DELETE FROM library_author")

        def use_in_transaction() -> None:
            Author.objects.count()
            with transaction.atomic():
                use()

        task = asyncio.create_task(owner(), name="the owner")
        await got.wait()
        with pytest.raises(ForeignConnection, match="'the owner'"):
            await on_loop(use)()
        if database == "postgresql":  # SQLite's one writer is the owner
            with pytest.raises(ForeignConnection, match="'the owner'"):
                await on_loop(use_in_transaction)()
            async with aatomic():
                with pytest.raises(ForeignConnection, match="'the owner'"):
                    await on_loop(use)()
        done.set()
        await task
        assert await names() == ["owner"]

    run(main)
