"""`hold_connection`: one session for a block, with what is set in it, and nobody else's after."""

from __future__ import annotations

import asyncio
import threading
from contextlib import nullcontext
from typing import Any

import pytest
from django.db import connection, transaction

from nuages import on_loop
from nuages.bridge import await_, tasks
from nuages.db import aatomic, acursor, aon_commit, detached, hold_connection
from nuages.db.pool.pool import open_pools
from nuages.db.scopes.tree import State
from nuages.db.transaction import TransactionManagementError, request_connections
from nuages.exceptions import ScopeEnded
from tests import judge
from tests.integration.conftest import Run
from tests.integration.pool_tools import server
from tests.integration.scope_tools import (
    Child,
    Failure,
    names,
    pool_stats,
    queued,
    rolled_back,
    statements,
    until,
)
from tests.library.models import Author

pytestmark = [pytest.mark.every_database, pytest.mark.both_loops]


async def value(sql: str) -> Any:
    async with acursor() as cursor:
        await cursor.execute(sql)
        row = await cursor.fetchone()
        return row[0] if row else None


async def execute(sql: str) -> None:
    async with acursor() as cursor:
        await cursor.execute(sql)


async def backend_pid() -> int:
    return int(await value("SELECT pg_backend_pid()"))


async def given_back() -> None:
    """Wait until the connections are back: a hold's is reset first."""
    await until(lambda: pool_stats()["used"] == 0)


# State of the session


def test_a_setting_is_seen_inside_and_never_outside(postgresql: dict[str, Any], run: Run) -> None:
    postgresql["OPTIONS"] = {"pool": {"max_size": 2}}
    show = "SHOW application_name"

    async def main() -> None:
        before = await value(show)
        async with hold_connection():
            await execute("SET application_name = 'held'")
            assert await asyncio.gather(*(value(show) for _ in range(3))) == ["held"] * 3
            assert await asyncio.create_task(on_loop(_show_in_orm)()) == "held"
            async with detached():
                assert await value(show) == before
            outside = asyncio.create_task(_outside(show))
            assert await outside == before
        async with asyncio.timeout(10):
            # Every connection that the pool has, at the same time.
            async with hold_connection(), detached(), hold_connection():
                assert await value(show) == before
            assert await asyncio.gather(*(value(show) for _ in range(2))) == [before] * 2

    run(main)


async def _outside(sql: str) -> Any:
    async with detached():
        return await value(sql)


def _show_in_orm() -> Any:
    with connection.cursor() as cursor:
        cursor.execute("SHOW application_name")
        return cursor.fetchone()[0]


def test_a_temporary_table_lives_as_long_as_the_hold(database: str, run: Run) -> None:
    async def main() -> None:
        for _ in range(2):
            async with hold_connection():
                await execute("CREATE TEMPORARY TABLE scratch (n integer)")
                await asyncio.gather(
                    *(execute(f"INSERT INTO scratch VALUES ({i})") for i in range(3))
                )
                assert await value("SELECT sum(n) FROM scratch") == 3
            with pytest.raises(Exception, match="scratch"):
                await value("SELECT sum(n) FROM scratch")

    run(main)


def test_a_pragma_lives_as_long_as_the_hold(sqlite: dict[str, Any], run: Run) -> None:
    sqlite["OPTIONS"] = {"pool": {"max_size": 1}}

    async def main() -> None:
        before = await value("PRAGMA cache_size")
        async with hold_connection():
            await execute("PRAGMA cache_size = 77")
            assert await value("PRAGMA cache_size") == 77
            assert (
                await asyncio.gather(*(value("PRAGMA cache_size") for _ in range(3))) == [77] * 3
            )
        assert await value("PRAGMA cache_size") == before

    run(main)


# Who uses it


def test_everything_inside_uses_one_connection(postgresql: dict[str, Any], run: Run) -> None:
    async def main() -> None:
        async with hold_connection() as held:
            pids = await asyncio.gather(*(backend_pid() for _ in range(5)))
            pids.append(await backend_pid())
            assert held.connection.info.backend_pid == pids[0]
            assert connection.vendor == "postgresql"
            assert pool_stats()["used"] == 1
        assert len(set(pids)) == 1
        await given_back()

    run(main)


def test_transactions_in_a_hold(database: str, run: Run) -> None:
    calls: list[str] = []

    async def main() -> None:
        async with hold_connection():
            async with aatomic():
                await Author.objects.acreate(name="committed")
                await aon_commit(lambda: calls.append("hook"))
                assert await names() == []
                assert calls == []
            assert calls == ["hook"]
            # Committed at the end of its block, not of the hold; which goes on.
            assert await names() == ["committed"]
            assert not connection.in_atomic_block
            assert connection.scope is not None
            async with rolled_back():
                await Author.objects.acreate(name="rolled back")
            async with aatomic(durable=True):
                async with aatomic():
                    await Author.objects.acreate(name="second")
                with pytest.raises(Failure):
                    async with aatomic():
                        await Author.objects.acreate(name="third")
                        raise Failure
            await Author.objects.acreate(name="autocommitted")
            assert await names() == ["autocommitted", "committed", "second"]
            assert pool_stats()["used"] == 1
        await given_back()

    run(main)


def test_gathered_transactions_in_a_hold_take_turns(database: str, run: Run) -> None:
    """One session has one transaction at a time: they follow one another and share nothing."""

    async def work(name: str) -> None:
        async with aatomic():
            await Author.objects.acreate(name=f"{name} first")
            await Author.objects.acreate(name=f"{name} second")
            if name == "b":
                raise Failure

    def sync_work(name: str) -> None:
        with transaction.atomic():
            Author.objects.create(name=name)

    async def main() -> None:
        async with asyncio.timeout(10), hold_connection():
            with statements() as sent:
                results = await asyncio.gather(
                    *map(work, "abc"), on_loop(sync_work)("sync"), return_exceptions=True
                )
                assert [type(r) for r in results if r is not None] == [Failure]
            assert not any("SAVEPOINT" in sql for sql in sent)
            expected = ["a first", "a second", "c first", "c second", "sync"]
            assert await names() == expected

    run(main)


def test_a_hook_in_a_hold_may_start_tasks(database: str, run: Run) -> None:
    async def main() -> None:
        async def hook() -> None:
            await asyncio.gather(*(Author.objects.acreate(name=f"{i}") for i in range(3)))
            async with aatomic():
                await Author.objects.acreate(name="in a transaction")

        async with asyncio.timeout(10), hold_connection():
            async with aatomic():
                await Author.objects.acreate(name="saved")
                await aon_commit(hook)
            assert await names() == ["0", "1", "2", "in a transaction", "saved"]
        await given_back()

    run(main)


def test_a_manual_transaction_in_a_hold(database: str, run: Run) -> None:
    async def main() -> None:
        async with hold_connection():
            await on_loop(transaction.set_autocommit)(False)
            await Author.objects.acreate(name="rolled back")
            await on_loop(transaction.rollback)()
            await Author.objects.acreate(name="committed")
            await on_loop(transaction.commit)()
            await on_loop(transaction.set_autocommit)(True)
            assert await names() == ["committed"]
            await Author.objects.acreate(name="held")
            assert pool_stats()["used"] == 1
        await given_back()

    run(main)


def test_a_hold_left_in_manual_mode_gives_nothing_on(database: str, run: Run) -> None:
    """The connection is closed: what was not committed is gone, and autocommit is on again."""

    async def main() -> None:
        async with hold_connection():
            await on_loop(transaction.set_autocommit)(False)
            await Author.objects.acreate(name="uncommitted")
        await given_back()
        assert pool_stats()["size"] == 0
        await Author.objects.acreate(name="next")
        assert await names() == ["next"]

    run(main)


# Beside another task's transaction

shared = pytest.mark.parametrize("share", [hold_connection, request_connections])


@shared
def test_a_failure_beside_a_tasks_transaction_does_not_roll_that_back(
    database: str, run: Run, share: Any
) -> None:
    """The connection is in that transaction, the code whose save fails is not."""

    async def main() -> None:
        child = Child()
        async with share():
            task = asyncio.create_task(child.run())
            await child.entered.wait()
            with pytest.raises(ValueError, match="expected a number"):
                await Author.objects.acreate(pk="no number", name="bad")
            child.leave.set()
            await task
        assert await names() == ["child"]

    run(main)


@shared
def test_a_query_beside_a_broken_transaction_is_not_refused(
    database: str, run: Run, share: Any
) -> None:
    """It waits for the connection, and then is outside of what was broken."""

    async def main() -> None:
        broken, leave = asyncio.Event(), asyncio.Event()

        async def break_it() -> None:
            async with aatomic():
                with pytest.raises(ValueError, match="expected a number"):
                    await Author.objects.acreate(pk="no number", name="bad")
                broken.set()
                await leave.wait()

        async with share():
            task = asyncio.create_task(break_it())
            await broken.wait()
            waiting = asyncio.create_task(Author.objects.acreate(name="beside"))
            await until(lambda: queued() == 1)
            leave.set()
            await asyncio.gather(task, waiting)
        assert await names() == ["beside"]

    run(main)


@shared
@pytest.mark.parametrize("robust", [False, True])
def test_a_hook_beside_a_tasks_transaction_runs_at_once(
    database: str, run: Run, share: Any, robust: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It waits for no commit of another task, and is not lost with what that rolls back."""

    async def main() -> None:
        child = Child()
        calls: list[str] = []

        async def note() -> None:
            await asyncio.sleep(0)
            calls.append("coroutine")

        def fail() -> None:
            raise Failure("of a hook")

        async with share():
            task = asyncio.create_task(child.run(fail=True))
            await child.entered.wait()
            await aon_commit(lambda: calls.append("awaited"), robust=robust)
            await aon_commit(note, robust=robust)
            connection.on_commit(lambda: calls.append("called"), robust=robust)
            assert calls == ["awaited", "coroutine", "called"]
            with nullcontext() if robust else pytest.raises(Failure):
                await aon_commit(fail, robust=robust)
            child.leave.set()
            with pytest.raises(Failure):
                await task
        assert calls == ["awaited", "coroutine", "called"]

    run(main)
    assert ("of a hook" in caplog.text) == robust


# Nesting and ends


def test_holds_nest(postgresql: dict[str, Any], run: Run) -> None:
    async def main() -> None:
        async with hold_connection() as outer:
            async with hold_connection() as inner:
                assert inner is outer
                pid = await backend_pid()
            assert await backend_pid() == pid
            async with aatomic(), hold_connection() as in_transaction:
                assert in_transaction is outer
                await Author.objects.acreate(name="one")
        async with rolled_back(), hold_connection():
            await Author.objects.acreate(name="two")
        assert await names() == ["one"]
        await given_back()

    run(main)


def test_a_task_that_outlives_a_hold_gets_an_error(database: str, run: Run) -> None:
    async def main() -> None:
        ended = asyncio.Event()

        async def late() -> None:
            await Author.objects.acount()
            await ended.wait()
            with pytest.raises(ScopeEnded):
                await Author.objects.acount()

        async with hold_connection():
            task = asyncio.create_task(late())
            await asyncio.sleep(0)
        ended.set()
        await task
        await given_back()

    run(main)


def test_a_hold_is_given_back_after_an_error(database: str, run: Run) -> None:
    async def main() -> None:
        with pytest.raises(Failure):
            async with hold_connection():
                await Author.objects.acreate(name="autocommitted")
                raise Failure
        await given_back()
        assert await names() == ["autocommitted"]

    run(main)


def test_an_advisory_lock_is_released_with_the_hold(postgresql: dict[str, Any], run: Run) -> None:
    """Session state that no command tag tells: the session's locks."""

    async def main() -> None:
        async with hold_connection():
            await value("SELECT pg_advisory_lock(99)")
        async with asyncio.timeout(10), hold_connection(), detached(), hold_connection():
            assert await value("SELECT pg_try_advisory_lock(99)") is True
            await value("SELECT pg_advisory_unlock(99)")

    run(main)


def test_a_hold_needs_one_of_our_engines(sqlite: dict[str, Any], run: Run) -> None:
    from django.db import connections

    async def main() -> None:
        connections.settings["other"] = {
            **sqlite,
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": ":memory:",
        }
        try:
            with pytest.raises(TransactionManagementError, match="hold_connection"):
                async with hold_connection("other"):
                    pytest.fail("entered")
        finally:
            del connections["other"]
            del connections.settings["other"]

    run(main)


def test_hooks_of_a_commit_that_was_not_sent_never_run(
    postgresql: dict[str, Any], run: Run
) -> None:
    """COMMIT waits for a statement of a task, and is cancelled; the hold goes on."""

    async def main() -> None:
        ran: list[str] = []

        async def transaction() -> None:
            async with aatomic():
                await Author.objects.acreate(name="first")
                await aon_commit(lambda: ran.append("first"))
                slow.append(asyncio.create_task(execute("SELECT pg_advisory_lock_shared(7)")))
                await watching.until_blocked()

        slow: list[asyncio.Task[None]] = []
        async with server() as watching, watching.locked(7), hold_connection() as wrapper:
            committing = asyncio.create_task(transaction())
            await until(lambda: wrapper.scope.ending is not None)
            committing.cancel()
            await asyncio.sleep(0)
            await watching.unlock()
            with pytest.raises(asyncio.CancelledError):
                await committing
            await asyncio.gather(*slow, return_exceptions=True)
            async with aatomic():
                await Author.objects.acreate(name="second")
        assert ran == []
        assert [one.name async for one in Author.objects.all()] == ["second"]

    run(main)


def test_hooks_of_two_transactions_at_once(mysql: dict[str, Any], run: Run) -> None:
    """A hook of the first ends while the second is between its COMMIT and its hooks."""

    async def main() -> None:
        ran: list[str] = []
        waits, go_on, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def slow_hook() -> None:
            waits.set()
            await go_on.wait()
            ran.append("first")

        async def first() -> None:
            async with aatomic():
                await aon_commit(slow_hook)
            ended.set()

        async def second(wrapper: Any) -> None:
            await waits.wait()
            async with aatomic():
                await aon_commit(lambda: ran.append("second"))
                raw = wrapper.connection
                autocommit = raw.autocommit

                def after_the_first(value: bool) -> None:
                    del raw.autocommit
                    go_on.set()
                    await_(ended.wait())
                    autocommit(value)

                raw.autocommit = after_the_first

        async with hold_connection() as wrapper:
            await asyncio.gather(first(), second(wrapper))
            assert ran == ["first", "second"]
            assert wrapper.run_on_commit == []

    run(main)


@pytest.mark.parametrize("failed", [False, True])
def test_a_hold_that_ends_while_a_task_commits_in_it(
    database: str, run: Run, failed: bool
) -> None:
    """The hold's end waits for COMMIT, and goes on before whoever has sent it."""

    async def main() -> None:
        ran: list[str] = []
        committed = asyncio.Event()

        async def transaction() -> None:
            async with aatomic():
                await Author.objects.acreate(name="committed")
                await aon_commit(lambda: ran.append("hook"))
                raw: Any = wrapper.connection
                root = wrapper.scope.root
                ending = asyncio.create_task(until(lambda: root.state is State.ENDING))

                def answered() -> None:
                    type(raw).commit(raw)
                    committed.set()
                    if wrapper.vendor == "sqlite":
                        began = threading.Event()
                        ending.add_done_callback(lambda _: began.set())
                        raw.in_worker(began.wait)
                    else:
                        with raw.lock:
                            await_(ending)

                raw.commit = answered

        with pytest.raises(Failure) if failed else nullcontext():
            async with hold_connection() as wrapper:
                task = asyncio.create_task(transaction())
                await committed.wait()
                if failed:
                    raise Failure
        await task
        assert ran == ["hook"]
        await given_back()

    run(main)
    assert judge.authors() == ["committed"]


def test_a_hold_in_a_hold_ends_nothing_of_the_tasks_of_the_outer_one(
    database: str, run: Run
) -> None:
    async def main() -> None:
        entered, go_on = asyncio.Event(), asyncio.Event()

        async def transaction() -> None:
            async with aatomic():
                await Author.objects.acreate(name="by a task")
                entered.set()
                await go_on.wait()
                await Author.objects.acreate(name="by it, later")

        async with hold_connection():
            task = asyncio.create_task(transaction())
            await entered.wait()
            async with hold_connection():
                pass
            go_on.set()
            await task
        await given_back()

    run(main)
    assert judge.authors() == ["by a task", "by it, later"]


@pytest.mark.parametrize("stage", ["get_new_connection", "init_connection_state"])
def test_a_hold_that_ends_while_a_task_connects_in_it(
    database: str, run: Run, monkeypatch: Any, stage: str
) -> None:
    """The new connection is closed: nobody would have it."""

    async def main() -> None:
        opened: list[Any] = []
        over = asyncio.Event()

        def get(wrapper: Any, params: dict[str, Any]) -> Any:
            made = original(wrapper, params)
            opened.append(made)
            await_(over.wait())
            return made

        def begin(wrapper: Any) -> None:
            opened.append(wrapper.connection)
            await_(over.wait())
            original(wrapper)

        async with hold_connection() as held:
            wrapper: Any = held
            wrapper.connection.terminate()
            wrapper.connection = None
            original = getattr(type(wrapper), stage)
            replaced = get if stage == "get_new_connection" else begin
            monkeypatch.setattr(type(wrapper), stage, replaced)
            task = asyncio.create_task(Author.objects.acount())
            await until(lambda: bool(opened))
            monkeypatch.undo()
            leaving = asyncio.create_task(until(lambda: wrapper.scope is None))
        await leaving
        over.set()
        with pytest.raises(ScopeEnded):
            await task
        assert not opened[0].is_alive()
        await given_back()

    run(main)


def test_a_loop_that_shuts_down_waits_for_a_session_that_is_being_reset(
    database: str, run: Run
) -> None:
    """Its tasks are cancelled by then; async generators that it closes may hold one."""

    async def main() -> None:
        async with hold_connection():
            await Author.objects.acount()
            if database == "postgresql":
                await execute("SET application_name = 'held'")
            elif database == "mysql":
                await execute("SET @held = 1")
            else:
                await execute("PRAGMA cache_size = 77")
        assert tasks._spawned
        await asyncio.get_running_loop().shutdown_asyncgens()
        assert not tasks._spawned
        assert open_pools() == []

    run(main)
