"""Transactions without a `with`: autocommit by hand, blocks as Django's test cases have them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, transaction

from nuages import on_loop
from nuages.db import aatomic, acursor, hold_connection
from tests import judge
from tests.integration.conftest import Run
from tests.integration.scope_tools import Failure, names, observer, pool_stats, turns, until
from tests.integration.sweep_tools import TIMINGS, Cut, Timing, settled
from tests.library.models import Author

pytestmark = [pytest.mark.every_database, pytest.mark.both_loops]

set_autocommit = on_loop(transaction.set_autocommit)
commit = on_loop(transaction.commit)
rollback = on_loop(transaction.rollback)


def test_autocommit_off_is_a_transaction_until_it_is_on(database: str, run: Run) -> None:
    async def main() -> None:
        await set_autocommit(False)
        await Author.objects.acreate(name="rolled back")
        assert pool_stats()["used"] == 1
        assert await names() == []
        await rollback()
        await asyncio.gather(*(Author.objects.acreate(name=f"{i}") for i in range(3)))
        await commit()
        assert await names() == ["0", "1", "2"]
        await Author.objects.acreate(name="last")
        await commit()
        await set_autocommit(True)
        assert await names() == ["0", "1", "2", "last"]
        assert pool_stats()["used"] == 0
        await Author.objects.acreate(name="autocommitted")
        assert len(await names()) == 5

    run(main)


def test_atomic_blocks_in_manual_mode_are_savepoints(database: str, run: Run) -> None:
    async def main() -> None:
        await set_autocommit(False)
        await Author.objects.acreate(name="one")
        with pytest.raises(Failure):
            async with aatomic():
                await Author.objects.acreate(name="two")
                raise Failure
        async with aatomic():
            await Author.objects.acreate(name="three")
        assert await names() == []
        await commit()
        assert await names() == ["one", "three"]
        await set_autocommit(True)
        assert pool_stats()["used"] == 0

    run(main)


def test_manual_mode_within_one_sync_function(database: str, run: Run) -> None:
    def work() -> None:
        transaction.set_autocommit(False)
        try:
            Author.objects.create(name="one")
            transaction.rollback()
            Author.objects.create(name="two")
            transaction.commit()
        finally:
            transaction.set_autocommit(True)

    async def main() -> None:
        await on_loop(work)()
        assert await names() == ["two"]
        assert pool_stats()["used"] == 0

    run(main)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("timing", TIMINGS)
def test_what_is_rolled_back_by_hand_is_not_committed_whenever_it_is_cancelled(
    database: str, run: Run, timing: Timing, times: int
) -> None:
    """With the transaction still open, switching autocommit on would commit it."""

    def work() -> None:
        transaction.set_autocommit(False)
        try:
            Author.objects.create(name="one")
            Author.objects.create(name="two")
            transaction.rollback()
        except BaseException:
            transaction.rollback()
            raise
        finally:
            transaction.set_autocommit(True)

    async def main() -> None:
        for point in itertools.count(1):
            cut = Cut(on_loop(work)(), range(point, point + times), timing)
            task = asyncio.create_task(cut.run())
            await asyncio.wait([task])
            await settled()
            assert judge.authors() == [], point
            assert task.cancelled() == bool(cut.cancelled), point
            await Author.objects.acreate(name="after")
            assert judge.authors() == ["after"], point
            await Author.objects.all().adelete()
            await until(lambda: pool_stats()["used"] == 0)
            if not cut.cancelled:
                break
        assert point > 3

    run(main)


SLOW = {
    "postgresql": "SELECT pg_sleep(2)",
    "mysql": "SELECT SLEEP(2)",
    "sqlite": (
        "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 200000000)"
        " SELECT max(i) FROM n"
    ),
}


AT_WORK = {
    "postgresql": (
        "SELECT pid FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep(%'"
        " AND pid <> pg_backend_pid()"
    ),
    "mysql": (
        "SELECT id FROM information_schema.processlist WHERE info LIKE 'SELECT SLEEP(%'"
        " AND id <> CONNECTION_ID()"
    ),
}


@pytest.mark.parametrize("times", [1, 2])
def test_a_rollback_by_hand_that_is_cancelled_before_it_is_sent(
    database: str, run: Run, times: int
) -> None:
    """It waits for a task's statement, and the transaction would be open and be committed."""

    async def slow() -> None:
        async with acursor() as cursor:
            await cursor.execute(SLOW[database])

    async def main() -> None:
        others: list[asyncio.Task[None]] = []

        async def work() -> None:
            await set_autocommit(False)
            try:
                await Author.objects.acreate(name="one")
                others.append(asyncio.create_task(slow()))
                await until(connection.scope.wrapper.connection.is_working)
                await rollback()
            finally:
                await set_autocommit(True)

        task = asyncio.create_task(work())
        await until(lambda: bool(others))
        await turns(20)  # where it waits for the other
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        others[0].cancel()
        await asyncio.wait(others)
        await settled()
        if database in AT_WORK:
            # The server goes on with a statement whose client is gone.
            async with asyncio.timeout(30):
                while judge.rows(AT_WORK[database]):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        assert judge.authors() == []
        await Author.objects.acreate(name="after")
        assert judge.authors() == ["after"]
        await until(lambda: pool_stats()["used"] == 0)

    run(main)


# A scope that is never ended


def test_manual_mode_ends_with_its_task(
    database: str, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """A task ends without switching autocommit on: rolled back, said, and the place is free."""

    async def forgetful() -> None:
        await set_autocommit(False)
        await Author.objects.acreate(name="forgotten")

    async def main() -> None:
        await asyncio.create_task(forgetful(), name="forgetful")
        await until(lambda: pool_stats()["used"] == 0)
        async with aatomic():
            await Author.objects.acreate(name="next")
        assert await names() == ["next"]

    with caplog.at_level(logging.WARNING, "nuages"):
        run(main)
    assert "'forgetful'" in caplog.text
    assert "rolled back" in caplog.text


@pytest.mark.parametrize("sensitive", [True, False])
def test_manual_mode_of_a_thread_ends_with_the_task_that_awaits_it(
    database: str, run: Run, caplog: pytest.LogCaptureFixture, sensitive: bool
) -> None:
    def fail() -> None:
        transaction.set_autocommit(False)
        Author.objects.create(name="forgotten")
        raise Failure

    async def main() -> None:
        task = asyncio.create_task(sync_to_async(fail, thread_sensitive=sensitive)())
        with pytest.raises(Failure):
            await task
        await until(lambda: pool_stats()["used"] == 0)
        await Author.objects.acreate(name="next")
        assert await names() == ["next"]

    with caplog.at_level(logging.WARNING, "nuages"):
        run(main)
    assert "rolled back" in caplog.text


def test_manual_mode_of_a_thread_goes_on_in_its_task(database: str, run: Run) -> None:
    """As middleware does it: off in one call, on in another."""

    async def main() -> None:
        await sync_to_async(transaction.set_autocommit)(False)
        await sync_to_async(Author.objects.create)(name="rolled back")
        await rollback()
        await Author.objects.acreate(name="committed")
        await sync_to_async(transaction.commit)()
        assert await names() == ["committed"]
        await sync_to_async(transaction.set_autocommit)(True)
        assert pool_stats()["used"] == 0

    run(main)


def test_a_thread_that_its_task_gave_up_ends_its_own_manual_mode(database: str, run: Run) -> None:
    """asgiref lets a task go that is cancelled twice, whatever its thread does."""
    begun, go = threading.Event(), threading.Event()

    def work() -> None:
        transaction.set_autocommit(False)
        begun.set()
        go.wait()
        Author.objects.create(name="saved")
        transaction.commit()
        transaction.set_autocommit(True)

    async def main() -> None:
        task = asyncio.create_task(sync_to_async(work)())
        await until(begun.is_set)
        while not task.done():
            task.cancel()
            await asyncio.sleep(0)
        go.set()
        await until(lambda: pool_stats()["used"] == 0)
        assert await names() == ["saved"]

    run(main)


@pytest.mark.parametrize("balanced_in", ["one call", "two calls", "threads"])
def test_manual_mode_that_was_ended_leaves_nothing_on_its_task(
    database: str, run: Run, balanced_in: str
) -> None:
    """A worker's task lives long, and every callback left on it keeps a connection's wrapper."""

    class Task(asyncio.Task[Any]):
        callbacks = 0

        def add_done_callback(self, *args: Any, **kwargs: Any) -> None:
            self.callbacks += 1
            super().add_done_callback(*args, **kwargs)

        def remove_done_callback(self, *args: Any) -> int:
            removed = super().remove_done_callback(*args)
            self.callbacks -= removed
            return removed

    def both() -> None:
        transaction.set_autocommit(False)
        transaction.commit()
        transaction.set_autocommit(True)

    async def worker() -> int:
        for _ in range(3):
            if balanced_in == "one call":
                await on_loop(both)()
            elif balanced_in == "two calls":
                await set_autocommit(False)
                await commit()
                await set_autocommit(True)
            else:
                await sync_to_async(transaction.set_autocommit)(False)
                await sync_to_async(transaction.set_autocommit)(True)
        task = asyncio.current_task()
        assert isinstance(task, Task)
        return task.callbacks

    async def main() -> None:
        task = Task(worker())
        while not task.done():  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert task.result() == 0

    run(main)


@pytest.mark.parametrize("kind", ["atomic", "hold"])
def test_what_is_open_when_the_loop_ends_is_closed_and_said(
    postgresql: dict[str, Any], run: Run, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    pids: list[int] = []
    entered: list[Any] = []

    async def main() -> None:
        # Entered, and never left: what a `with` cannot do.
        manager = aatomic() if kind == "atomic" else hold_connection()
        entered.append(manager)
        await manager.__aenter__()
        await Author.objects.acreate(name="forgotten")
        pids.append(connection.connection.info.backend_pid)

    async def look() -> None:
        async with observer() as client:
            query = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
            async with asyncio.timeout(20):
                while (await (await client.execute(query, pids)).fetchone()) != (0,):
                    pass
        assert await names() == ([] if kind == "atomic" else ["forgotten"])

    with caplog.at_level(logging.WARNING, "nuages"):
        run(main)
    assert "its event loop ended" in caplog.text
    run(look)


def test_a_generator_that_the_loop_closes_rolls_back_quietly(
    database: str, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """Suspended in its block when the loop shuts down: that is an end like any other."""
    kept: list[Any] = []

    async def creating() -> AsyncIterator[None]:
        async with aatomic():
            await Author.objects.acreate(name="forgotten")
            yield

    async def main() -> None:
        kept.append(creating())
        await anext(kept[0])

    async def look() -> None:
        assert await names() == []

    with caplog.at_level(logging.WARNING):
        run(main)
    assert caplog.text == ""
    run(look)


# As Django's test cases do it


def test_nested_atomics_entered_by_hand(database: str, run: Run) -> None:
    """setUpClass, setUp, test, tearDown, tearDownClass: each a call of its own on the loop."""

    async def main() -> None:
        class_atomic = transaction.atomic()
        await on_loop(class_atomic.__enter__)()
        await Author.objects.acreate(name="class")
        for test in ("one", "two"):
            test_atomic = transaction.atomic()
            await on_loop(test_atomic.__enter__)()
            async with aatomic():
                await Author.objects.acreate(name=test)
            await asyncio.gather(Author.objects.acreate(name="gathered"))
            await on_loop(lambda: Author.objects.create(name="sync"))()
            assert await Author.objects.acount() == 4
            await on_loop(transaction.set_rollback)(True)
            await on_loop(test_atomic.__exit__)(None, None, None)
            assert [a.name for a in await Author.objects.alist()] == ["class"]
        await on_loop(transaction.set_rollback)(True)
        await on_loop(class_atomic.__exit__)(None, None, None)
        assert not connection.in_atomic_block
        assert await names() == []
        assert pool_stats()["used"] == 0

    run(main)


def test_atomics_entered_by_hand_within_one_bridged_call(database: str, run: Run) -> None:
    """A whole sync test case in one greenlet, async test method by `async_to_sync` included."""
    from asgiref.sync import async_to_sync

    async def async_test() -> None:
        async with aatomic():
            await Author.objects.acreate(name="async test")
        await asyncio.gather(*(Author.objects.acreate(name=f"{i}") for i in range(2)))

    def case() -> None:
        class_atomic, test_atomic = transaction.atomic(), transaction.atomic()
        class_atomic.__enter__()
        Author.objects.create(name="class")
        test_atomic.__enter__()
        async_to_sync(async_test)()
        assert Author.objects.count() == 4
        transaction.set_rollback(True)
        test_atomic.__exit__(None, None, None)
        assert Author.objects.count() == 1
        transaction.set_rollback(True)
        class_atomic.__exit__(None, None, None)

    async def main() -> None:
        await on_loop(case)()
        assert await names() == []
        assert pool_stats()["used"] == 0

    run(main)


def test_an_exit_stack_may_leave_blocks(database: str, run: Run) -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            for name in "abc":
                await stack.enter_async_context(aatomic())
                await Author.objects.acreate(name=name)
        assert await names() == ["a", "b", "c"]

    run(main)
