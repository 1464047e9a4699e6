"""Cancellations, wherever they arrive: what is cancelled ends on the server, and nothing leaks.

After every one of them the pool is whole and the next statement works.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import IntegrityError, OperationalError, connection, connections, transaction
from django.test import override_settings

from nuages import on_loop
from nuages.db import aatomic, acursor, aon_commit, detached, hold_connection
from nuages.db.scopes.tree import context_node
from nuages.exceptions import BlockInterrupted, OutcomeUnknown
from tests.integration.conftest import Run
from tests.integration.pool_tools import (
    Server,
    assert_whole,
    backend,
    cancelled,
    fetch,
    options,
    proxy_before,
    server,
    the_pool,
)
from tests.integration.scope_tools import names, until
from tests.library.models import Author, Book

pytestmark = [pytest.mark.every_database, pytest.mark.both_loops]

LOCK = 815


@pytest.fixture
def slow_commit(postgresql: dict[str, Any]) -> Iterator[None]:
    """COMMIT of a new author waits for the advisory lock LOCK; one called 'wrong' fails then."""
    table = Author._meta.db_table
    connections["default"].cursor().execute(
        f"""
        CREATE FUNCTION wait_at_commit() RETURNS trigger AS $$
        BEGIN
            PERFORM pg_advisory_xact_lock_shared({LOCK});
            IF NEW.name = 'wrong' THEN
                RAISE unique_violation;
            END IF;
            RETURN NULL;
        END $$ LANGUAGE plpgsql;
        CREATE CONSTRAINT TRIGGER wait_at_commit AFTER INSERT ON {table}
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait_at_commit();
        """
    )
    connections["default"].close()
    yield
    connections["default"].cursor().execute(
        f"DROP TRIGGER wait_at_commit ON {table}; DROP FUNCTION wait_at_commit()"
    )


# A statement


def test_a_cancelled_query_ends_on_the_server_and_its_connection_serves_again(
    postgresql: dict[str, Any], run: Run
) -> None:
    async def main() -> None:
        async with server() as pg:
            pid = await backend()
            task = asyncio.create_task(fetch("SELECT pg_sleep(60)"))
            await pg.until_running("pg_sleep")
            await cancelled(task)
            await pg.until_idle()
            assert await backend() == pid
            assert_whole(the_pool())

    run(main)


def test_a_timeout_in_a_transaction_marks_it_for_rollback(
    postgresql: dict[str, Any], run: Run
) -> None:
    async def main() -> None:
        async with server() as pg:
            with pytest.raises(BlockInterrupted):
                async with aatomic():
                    await Author.objects.acreate(name="Nobody")
                    pid = await backend()
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.02):
                            await fetch("SELECT pg_sleep(60)")
                    with pytest.raises(transaction.TransactionManagementError):
                        await Author.objects.acount()
            await pg.until_idle()
        assert await Author.objects.acount() == 0
        assert await backend() == pid
        assert_whole(the_pool())

    run(main)


def test_a_timeout_in_a_savepoint_leaves_the_outer_block_alone(
    postgresql: dict[str, Any], run: Run
) -> None:
    async def main() -> None:
        async with aatomic():
            await Author.objects.acreate(name="Outer")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    async with aatomic():
                        await Author.objects.acreate(name="Inner")
                        await fetch("SELECT pg_sleep(60)")
            await Author.objects.acreate(name="After")
        assert await names() == ["After", "Outer"]
        assert_whole(the_pool())

    run(main)


def test_a_timeout_elsewhere_marks_nothing(database: str, run: Run) -> None:
    async def main() -> None:
        async with aatomic():
            await Author.objects.acreate(name="Ursula")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await asyncio.Event().wait()
            await Author.objects.acreate(name="Octavia")
        assert await names() == ["Octavia", "Ursula"]

    run(main)


def test_a_failing_task_group_ends_its_other_queries(postgresql: dict[str, Any], run: Run) -> None:
    async def main() -> None:
        async with server() as pg:

            async def fail() -> None:
                await pg.until_running("pg_sleep", 2)
                raise ZeroDivisionError

            with pytest.raises(ExceptionGroup):
                async with asyncio.TaskGroup() as group:
                    group.create_task(fetch("SELECT pg_sleep(60)"))
                    group.create_task(fetch("SELECT pg_sleep(60)"))
                    group.create_task(fail())
            await pg.until_idle()
            assert_whole(the_pool())

    run(main)


@pytest.mark.parametrize("savepoint", ["SAVEPOINT", "RELEASE", "ROLLBACK TO"])
def test_cancelled_at_a_savepoint(postgresql: dict[str, Any], run: Run, savepoint: str) -> None:
    """Cancelled just as the statement about the savepoint was sent."""

    async def main() -> None:
        async def work(fail: bool) -> None:
            async with aatomic():
                await Author.objects.acreate(name="Outer")
                async with aatomic():
                    await Author.objects.acreate(name="Inner")
                    if fail:
                        raise ZeroDivisionError

        def strike(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
            if str(sql).startswith(savepoint):
                # The wait of this statement is where it arrives.
                task = asyncio.current_task()
                assert task is not None
                task.get_loop().call_soon(task.cancel)
            return execute(sql, params, many, context)

        async def struck() -> None:
            with connections["default"].execute_wrapper(strike):
                await work(fail=savepoint == "ROLLBACK TO")

        await asyncio.wait([task := asyncio.create_task(struck())])
        assert task.cancelled()
        assert await names() == []
        assert_whole(the_pool())
        await work(fail=False)
        assert await names() == ["Inner", "Outer"]

    run(main)


# Places where one waits


def test_cancelled_while_a_connection_is_opened(postgresql: dict[str, Any], run: Run) -> None:
    options(max_size=1)

    async def main() -> None:
        async with proxy_before(dict(postgresql)) as proxy, server() as pg:
            host, port = postgresql["HOST"], postgresql["PORT"]
            postgresql.update(HOST="127.0.0.1", PORT=str(proxy.port))
            proxy.stall()
            proxy.accepted.clear()
            task = asyncio.create_task(backend())
            await proxy.accepted.wait()
            await cancelled(task)
            assert the_pool().stats()["size"] == 0
            postgresql.update(HOST=host, PORT=port)
            await backend()
            assert await pg.sessions() == 1

    run(main)


def test_cancelled_while_waiting_for_a_turn(database: str, run: Run) -> None:
    async def main() -> None:
        async with aatomic():
            entered, leave = asyncio.Event(), asyncio.Event()

            async def hold() -> None:
                async with aatomic():
                    await Author.objects.acreate(name="Holder")
                    entered.set()
                    await leave.wait()

            holder = asyncio.create_task(hold())
            await entered.wait()
            waiting = [
                asyncio.create_task(Author.objects.acreate(name=name)) for name in ("A", "B", "C")
            ]
            await asyncio.sleep(0)
            await cancelled(waiting[1])
            leave.set()
            await asyncio.gather(holder, waiting[0], waiting[2])
        assert await names() == ["A", "C", "Holder"]

    run(main)


# COMMIT


def test_a_cancellation_during_commit_waits_for_its_outcome(slow_commit: None, run: Run) -> None:
    async def main() -> None:
        done: list[Any] = []

        async def hook() -> None:
            done.append(await Author.objects.acount())

        async def work() -> None:
            async with aatomic():
                await Author.objects.acreate(name="Ursula")
                await aon_commit(hook)
                await aon_commit(lambda: done.append("second"))
            done.append("not reached")

        async with server() as pg:
            async with pg.locked(LOCK):
                task = asyncio.create_task(work())
                await pg.until_running("COMMIT")
                task.cancel()
                for _ in range(5):
                    await asyncio.sleep(0)
                task.cancel()
                await pg.until_running("COMMIT")
                assert not task.done()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelled()
            assert done == [1, "second"]
            assert await names() == ["Ursula"]
            assert_whole(the_pool())

    run(main)


async def time_out_in_commit(pg: Server, timer: asyncio.Timeout) -> None:
    """Let `timer` expire while COMMIT waits for the lock, then let that go on."""
    await pg.until_running("COMMIT")
    timer.reschedule(0)
    for _ in range(5):
        await asyncio.sleep(0)  # turns of the loop, in which the task is cancelled
    await pg.unlock()


def test_a_timeout_during_commit_is_seen_after_it(slow_commit: None, run: Run) -> None:
    async def main() -> None:
        async with server() as pg, pg.locked(LOCK):
            timer = asyncio.timeout(None)
            helper = asyncio.create_task(time_out_in_commit(pg, timer))
            with pytest.raises(TimeoutError):
                async with timer, aatomic():
                    await Author.objects.acreate(name="Ursula")
            await helper
        assert await names() == ["Ursula"]
        assert_whole(the_pool())

    run(main)


def test_a_commit_that_fails_while_cancelled_runs_no_hook(slow_commit: None, run: Run) -> None:
    async def main() -> None:
        done: list[str] = []

        async def work() -> None:
            async with aatomic():
                await Author.objects.acreate(name="wrong")
                await aon_commit(lambda: done.append("hook"))

        async with server() as pg:
            async with pg.locked(LOCK):
                task = asyncio.create_task(work())
                await pg.until_running("COMMIT")
                task.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
        assert isinstance(caught.value.__cause__, IntegrityError)
        assert done == []
        assert await names() == []
        assert_whole(the_pool())

    run(main)


@pytest.mark.parametrize("block", [aatomic, hold_connection, acursor])
def test_a_cancellation_that_waited_for_commit_leaves_no_block_entered(
    slow_commit: None, run: Run, block: Any
) -> None:
    """Sync code of a portal commits; the cancellation is due at the block that follows."""
    options(max_size=1)

    @on_loop
    async def work() -> None:
        with transaction.atomic():
            Author.objects.create(name="Ursula")
        async with block():
            await Author.objects.acreate(name="not reached")

    async def main() -> None:
        async with server() as pg:
            async with pg.locked(LOCK):
                task = asyncio.create_task(work())
                await pg.until_running("COMMIT")
                task.cancel()
                await asyncio.sleep(0)
            await asyncio.wait([task])
        assert task.cancelled()
        await until(lambda: the_pool().stats()["used"] == 0)
        assert await names() == ["Ursula"]

    run(main)


def test_a_timeout_that_waited_for_commit_leaves_no_block_entered_in_a_hold(
    slow_commit: None, run: Run
) -> None:
    async def main() -> None:
        async with server() as pg, pg.locked(LOCK):

            @on_loop
            async def work() -> None:
                with transaction.atomic():
                    Author.objects.create(name="Ursula")
                async with aatomic():
                    await Author.objects.acreate(name="not reached")

            timer = asyncio.timeout(None)
            helper = asyncio.create_task(time_out_in_commit(pg, timer))
            async with hold_connection() as held:
                with pytest.raises(TimeoutError):
                    async with timer:
                        await work()
                assert not held.in_atomic_block
                await Author.objects.acreate(name="Octavia")
            await helper
        assert await names() == ["Octavia", "Ursula"]

    run(main)


@override_settings(NUAGES={"COMMIT_TIMEOUT": 0.05})
def test_a_commit_without_an_answer_is_an_unknown_outcome(
    slow_commit: None, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        done: list[str] = []

        async def work() -> None:
            async with aatomic():
                await Author.objects.acreate(name="Ursula")
                await aon_commit(lambda: done.append("hook"))

        async with server() as pg:
            async with pg.locked(LOCK):
                task = asyncio.create_task(work())
                await pg.until_running("COMMIT")
                task.cancel()
                with caplog.at_level(logging.ERROR, "nuages"):  # noqa: SIM117
                    with pytest.raises(asyncio.CancelledError) as caught:
                        await task
                assert isinstance(caught.value.__cause__, OutcomeUnknown)
                assert OutcomeUnknown.code in caplog.text
                assert the_pool().stats()["size"] == 0
            assert done == []
            await pg.until_sessions(0)

    run(main)


@override_settings(NUAGES={"COMMIT_TIMEOUT": 0.05})
def test_code_in_a_portal_sees_the_unknown_outcome_itself(slow_commit: None, run: Run) -> None:
    async def main() -> None:
        seen: list[Any] = []

        @on_loop
        async def work() -> None:
            try:
                async with aatomic():
                    await Author.objects.acreate(name="Ursula")
            except BaseException as error:
                seen.append(error)
                raise

        async with server() as pg, pg.locked(LOCK):
            task = asyncio.create_task(work())
            await pg.until_running("COMMIT")
            await cancelled(task)
        (error,) = seen
        assert isinstance(error, OutcomeUnknown) or isinstance(error.__cause__, OutcomeUnknown)

    run(main)


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_cancelled_while_the_end_of_the_block_waits_for_a_statement_in_flight(
    postgresql: dict[str, Any], run: Run, end: str
) -> None:
    """Nothing was sent yet. Instead of COMMIT there is a ROLLBACK; one that is cancelled itself
    has nothing left to wait for, and the connection is closed."""

    async def main() -> None:
        async with server() as pg:
            async with pg.locked(LOCK):
                started = asyncio.Event()
                stray: list[asyncio.Task[Any]] = []
                locks: list[Any] = []

                async def work() -> None:
                    async with aatomic():
                        await Author.objects.acreate(name="Nobody")
                        node = context_node("default")
                        assert node is not None
                        locks.append(node.wrapper.connection.lock)
                        query = fetch("SELECT pg_advisory_xact_lock(%s)", LOCK)
                        stray.append(asyncio.create_task(query))
                        await pg.until_blocked()
                        started.set()
                        if end == "rollback":
                            raise ZeroDivisionError

                task = asyncio.create_task(work())
                await started.wait()
                # The end of the block waits for the connection's lock.
                await until(lambda: bool(locks[0]._queue))
                task.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.gather(*stray, return_exceptions=True)
            assert the_pool().stats()["size"] == (1 if end == "commit" else 0)
            assert await names() == []
            await pg.until_idle()
            assert_whole(the_pool())

    run(main)


# ROLLBACK


def test_cancelled_during_rollback(postgresql: dict[str, Any], run: Run) -> None:
    async def main() -> None:
        async def work() -> None:
            async with aatomic():
                await Author.objects.acreate(name="Nobody")
                task = asyncio.current_task()
                assert task is not None
                task.get_loop().call_soon(task.cancel)
                raise ZeroDivisionError

        await asyncio.wait([task := asyncio.create_task(work())])
        assert task.cancelled()
        assert await names() == []
        assert_whole(the_pool())
        async with server() as pg:
            await pg.until_idle()

    run(main)


# Twice


@pytest.mark.parametrize("transactional", [False, True])
def test_a_second_cancellation_shortens_the_cleanup_to_closing_the_socket(
    postgresql: dict[str, Any], run: Run, transactional: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The server answers no more, the cancel request is lost: the first one waits in vain."""

    async def main() -> None:
        async def work() -> None:
            if transactional:
                async with aatomic():
                    await Author.objects.acreate(name="Nobody")
                    await fetch("SELECT pg_sleep(60)")
            else:
                await fetch("SELECT pg_sleep(60)")

        async with server() as pg, proxy_before(dict(postgresql)) as proxy:
            host, port = postgresql["HOST"], postgresql["PORT"]
            postgresql.update(HOST="127.0.0.1", PORT=str(proxy.port))
            task = asyncio.create_task(work())
            await pg.until_running("pg_sleep")
            proxy.stall()
            proxy.accepted.clear()
            task.cancel()
            await proxy.accepted.wait()  # the cancel request has been sent, and got lost
            assert not task.done()
            await cancelled(task)
            assert the_pool().stats()["size"] == 0
            postgresql.update(HOST=host, PORT=port)
            assert await names() == []
            await pg.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE "
                "'%%pg_sleep(60)' AND pid <> pg_backend_pid()"
            )
        assert "cancelled again" in caplog.text

    run(main)


def test_a_cancel_request_that_overtakes_its_statement_is_repeated(
    postgresql: dict[str, Any], run: Run
) -> None:
    """The server ignores it: the session is idle still."""

    async def main() -> None:
        async with server() as pg, proxy_before(dict(postgresql)) as proxy:
            postgresql.update(HOST="127.0.0.1", PORT=str(proxy.port))
            await backend()
            proxy.stall("to_server", new=False)
            proxy.accepted.clear()
            proxy.ended.clear()
            task = asyncio.create_task(fetch("SELECT pg_sleep(60) /* late */"))
            await asyncio.sleep(0)
            task.cancel()
            await proxy.ended.wait()  # the request has come to the server, which closed
            assert not task.done()
            proxy.resume()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert the_pool().stats()["size"] == 1  # the connection is whole
            late = (
                "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE "
                "'SELECT pg_sleep(60) /* late */'"
            )
            assert await pg.value(late) == 0
            await backend()

    run(main)


@override_settings(NUAGES={"CANCEL_TIMEOUT": 0.05})
def test_a_server_that_does_not_end_the_statement_loses_its_connection(
    postgresql: dict[str, Any], run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with server() as pg, proxy_before(dict(postgresql)) as proxy:
            postgresql.update(HOST="127.0.0.1", PORT=str(proxy.port))
            task = asyncio.create_task(fetch("SELECT pg_sleep(60)"))
            await pg.until_running("pg_sleep")
            proxy.stall()
            await cancelled(task)
            assert the_pool().stats()["size"] == 0
            await pg.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE "
                "'%%pg_sleep(60)' AND pid <> pg_backend_pid()"
            )
        assert "did not end" in caplog.text

    run(main)


# GeneratorExit


CLOSED_KINDS = ["query", "transaction", "portal", "hold", "between", "sync"]
CLOSED_IN_A_THREAD = ["portal", "between", "sync"]
"""Those that leave no `async with`: another thread has no loop to await its end on."""


@pytest.mark.parametrize(
    ("kind", "where"),
    [(kind, "here") for kind in CLOSED_KINDS] + [(kind, "thread") for kind in CLOSED_IN_A_THREAD],
)
def test_a_coroutine_closed_by_hand_lets_its_connection_go_without_io(
    postgresql: dict[str, Any], run: Run, kind: str, where: str
) -> None:
    """As the garbage collector does, in any thread."""
    options(max_size=2)

    async def main() -> None:
        waiting = asyncio.Event()

        async def in_transaction() -> None:
            async with aatomic():
                await Author.objects.acreate(name="Nobody")
                if kind == "between":
                    waiting.set()
                    await asyncio.Event().wait()
                await fetch("SELECT pg_sleep(60)")

        async def in_hold() -> None:
            async with hold_connection():
                await fetch("SELECT pg_sleep(60)")

        def in_bridge() -> None:
            with transaction.atomic(), connection.cursor() as cursor:
                Author.objects.create(name="Nobody")
                cursor.execute("SELECT pg_sleep(60)")

        coroutine: Any = {
            "sync": on_loop(in_bridge),
            "query": lambda: fetch("SELECT pg_sleep(60)"),
            "transaction": in_transaction,
            "between": in_transaction,
            "portal": on_loop(in_transaction),
            "hold": in_hold,
        }[kind]()

        async with server() as pg:
            task = asyncio.create_task(step(coroutine))
            if kind == "between":
                await waiting.wait()
            else:
                await pg.until_running("pg_sleep")
            if where == "here":
                coroutine.close()
            else:
                await asyncio.to_thread(coroutine.close)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            # Between two statements a task of the loop rolls back.
            await until(lambda: the_pool().stats()["used"] == 0)
            await pg.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE "
                "'%%pg_sleep(60)' AND pid <> pg_backend_pid()"
            )
            assert await names() == []
            assert_whole(the_pool())

    async def step(coroutine: Any) -> Any:
        """Drive `coroutine` by hand, so that it can be closed by hand while it waits."""
        value: Any = None
        while True:
            try:
                future = coroutine.send(value)
            except StopIteration as stop:
                return stop.value
            future._asyncio_future_blocking = False
            await asyncio.wait([future])
            value = None

    run(main)


def test_an_aiterator_cancelled_in_the_middle_lets_its_connection_go(
    postgresql: dict[str, Any], run: Run
) -> None:
    author = Author.objects.create(name="Ursula")
    Book.objects.bulk_create([Book(title=str(n), author=author) for n in range(20)])

    async def main() -> None:
        inside = asyncio.Event()

        async def walk() -> None:
            async for _ in Book.objects.aiterator(chunk_size=5):
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(walk())
        await inside.wait()
        assert the_pool().stats()["used"] == 1
        await cancelled(task)
        del task
        gc.collect()
        await until(lambda: the_pool().stats()["used"] == 0)
        async with server() as pg:
            await pg.until_idle()
        assert await fetch("SELECT count(*) FROM pg_cursors") == 0
        assert_whole(the_pool())

    run(main)


# SQLite

LONG = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"


def test_a_cancelled_query_is_interrupted_in_sqlite(sqlite: dict[str, Any], run: Run) -> None:
    async def main() -> None:
        for spins in (1, 2, 50):
            task = asyncio.create_task(fetch(LONG))
            for _ in range(spins):
                await asyncio.sleep(0)
            await cancelled(task)
        assert await fetch("SELECT 1") == 1
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await fetch(LONG)
        await until(lambda: the_pool().stats()["used"] == 0)
        assert_whole(the_pool())

    run(main)


def test_a_cancelled_statement_in_a_sqlite_transaction_marks_it_for_rollback(
    sqlite: dict[str, Any], run: Run
) -> None:
    async def main() -> None:
        insert = f"INSERT INTO {Author._meta.db_table} (name) {LONG}"
        with pytest.raises(BlockInterrupted):
            async with aatomic():
                await Author.objects.acreate(name="Nobody")
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.02), acursor() as cursor:
                        await cursor.execute(insert)
                with pytest.raises(transaction.TransactionManagementError):
                    await Author.objects.acount()
        assert await names() == []
        await Author.objects.acreate(name="Ursula")
        assert await names() == ["Ursula"]
        assert_whole(the_pool())

    run(main)


def test_begin_cancelled_leaves_no_transaction_behind(sqlite: dict[str, Any], run: Run) -> None:
    """However far the worker has got: the same chain goes on in autocommit."""

    async def main() -> None:
        @on_loop
        async def work(spins: int) -> None:
            async def begin() -> None:
                async with aatomic():
                    await asyncio.sleep(0)

            task = asyncio.current_task()
            assert task is not None

            def strike(count: int) -> None:
                if count:
                    task.get_loop().call_soon(strike, count - 1)
                else:
                    task.cancel()

            strike(spins)
            try:
                await begin()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                task.uncancel()
            async with aatomic():
                await Author.objects.acreate(name=f"after {spins}")

        for spins in range(8):
            await asyncio.create_task(work(spins))
        assert len(await names()) == 8
        assert_whole(the_pool())

    run(main)


def test_a_coroutine_closed_by_hand_in_sqlite(sqlite: dict[str, Any], run: Run) -> None:
    async def main() -> None:
        coroutine = fetch(LONG)
        future = coroutine.send(None)
        assert future is not None
        coroutine.close()
        assert the_pool().stats()["used"] == 0
        assert await fetch("SELECT 1") == 1
        assert_whole(the_pool())

    run(main)


def test_a_lost_connection_is_an_operational_error(postgresql: dict[str, Any], run: Run) -> None:
    """As the control of the tests with a proxy: cut, the statement fails at once."""

    async def main() -> None:
        async with server() as pg, proxy_before(dict(postgresql)) as proxy:
            postgresql.update(HOST="127.0.0.1", PORT=str(proxy.port))
            async with detached():
                task = asyncio.create_task(fetch("SELECT pg_sleep(60)"))
                await pg.until_running("pg_sleep")
                proxy.cut()
                with pytest.raises(OperationalError):
                    await task
            assert the_pool().stats()["size"] == 0
            await pg.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE "
                "'%%pg_sleep(60)' AND pid <> pg_backend_pid()"
            )

    run(main)
