"""Writers of a SQLite file in line at its gate, and what becomes of their scopes meanwhile."""

from __future__ import annotations

import asyncio
import contextvars
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, closing, nullcontext
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, transaction
from django.test import override_settings

from nuages import on_loop
from nuages.db import aatomic, acursor, detached, hold_connection
from nuages.db.backends.base.statistics import statistics
from nuages.db.backends.sqlite3.connection import gate_of
from nuages.db.transaction import request_connections
from nuages.exceptions import ScopeEnded
from tests.integration.conftest import Run
from tests.integration.pool_tools import assert_whole, options, the_pool
from tests.integration.scope_tools import Child, names, queued, rolled_back, until
from tests.library.models import Author

pytestmark = [pytest.mark.sqlite, pytest.mark.usefixtures("sqlite", "nothing_blocks")]


@pytest.fixture
def deferred(sqlite: dict[str, Any]) -> None:
    """Transactions come to the gate with their first write."""
    sqlite["OPTIONS"]["transaction_mode"] = "DEFERRED"


def at_gate() -> int:
    """How many connections wait for the file's gate."""
    return len(gate_of(str(connection.settings_dict["NAME"]))._queue)


@asynccontextmanager
async def another_writer() -> AsyncIterator[Callable[[], Coroutine[Any, Any, None]]]:
    """A transaction of a task outside that has the gate; gives what ends it."""
    entered, leave = asyncio.Event(), asyncio.Event()

    async def block() -> None:
        async with aatomic():
            await write("another")
            entered.set()
            await leave.wait()

    async with detached():
        task = asyncio.create_task(block())
    await entered.wait()

    async def end() -> None:
        leave.set()
        await task

    try:
        yield end
    finally:
        await end()


async def write(name: str) -> None:
    await Author.objects.acreate(name=name)


def write_in_thread(name: str) -> Coroutine[Any, Any, Any]:
    return asyncio.to_thread(Author.objects.create, name=name)


@asynccontextmanager
async def hold_with_state() -> AsyncIterator[None]:
    """Its connection is closed at its end."""
    async with hold_connection(), acursor() as cursor:
        await cursor.execute("PRAGMA cache_size = 500")
        yield


# Blocks that end meanwhile


@pytest.mark.parametrize("way", [write, write_in_thread])
@pytest.mark.parametrize(
    "block", [aatomic, rolled_back, hold_connection, hold_with_state, request_connections]
)
def test_a_task_at_the_gate_is_refused_when_its_block_has_ended(
    deferred: None, run: Run, block: Any, way: Any
) -> None:
    async def main() -> None:
        async with another_writer() as end:
            async with block():
                assert await Author.objects.acount() == 0  # a request's connection is open
                late = asyncio.create_task(way("late"))
                await until(lambda: at_gate() == 1)
            await end()
            with pytest.raises(ScopeEnded):
                await late
        assert await names() == ["another"]
        await write("next")

    run(main)


def test_a_task_at_the_gate_is_refused_when_its_nested_block_has_ended(
    deferred: None, run: Run
) -> None:
    """Nor does it keep its turn from the block around."""

    async def main() -> None:
        async with another_writer() as end, aatomic():
            async with rolled_back():
                late = asyncio.create_task(write("late"))
                await until(lambda: at_gate() == 1)
            await end()
            with pytest.raises(ScopeEnded):
                await late
            await write("outer")
        assert await names() == ["another", "outer"]

    run(main)


@pytest.mark.parametrize("block", [hold_connection, hold_with_state])
def test_a_task_that_tries_again_is_refused_when_its_hold_has_ended(
    sqlite: dict[str, Any], run: Run, block: Any
) -> None:
    """Another process has SQLite's lock: the task has the gate and comes back every few ms."""

    async def main(other: sqlite3.Connection) -> None:
        assert await names() == []  # the connection is open
        other.execute("BEGIN IMMEDIATE")
        async with block():
            before = statistics.worker
            late = asyncio.create_task(write("late"))
            await until(lambda: statistics.worker >= before + 3)
        other.execute("ROLLBACK")
        with pytest.raises(ScopeEnded):
            await late
        await write("next")
        assert await names() == ["next"]

    with closing(sqlite3.connect(sqlite["NAME"], isolation_level=None)) as other:
        run(lambda: main(other))


def test_a_refused_task_leaves_the_connections_next_user_alone(deferred: None, run: Run) -> None:
    """Which may be in a transaction by then, and in line behind it."""

    async def main() -> None:
        async with another_writer() as end:
            async with hold_connection() as wrapper:
                held = wrapper.connection
                late = asyncio.create_task(write("late"))
                await until(lambda: at_gate() == 1)
            async with aatomic():
                assert await on_loop(lambda: connection.connection)() is held
                following = asyncio.create_task(write("next"))
                await until(lambda: at_gate() == 2)
                await end()
                with pytest.raises(ScopeEnded):
                    await late
                await following
        assert await names() == ["another", "next"]

    run(main)


# The pool, and the gate


@pytest.mark.parametrize("where", ["task", "thread"])
def test_writers_at_the_gate_keep_no_reader_from_a_connection(run: Run, where: str) -> None:
    """They wait with a connection in their hands."""
    options(max_size=2, timeout=5)

    async def main() -> None:
        async with another_writer() as end:
            in_thread = sync_to_async(Author.objects.create, thread_sensitive=False)
            late = asyncio.ensure_future(
                write("late") if where == "task" else in_thread(name="late")
            )
            await until(lambda: at_gate() == 1)
            assert await names() == []
            assert the_pool().stats()["size"] == 3
            await end()
            await late
        assert await names() == ["another", "late"]
        assert_whole(the_pool())

    run(main)


@pytest.mark.parametrize("where", ["task", "thread"])
def test_whoever_has_the_gate_waits_for_nobody_who_waits_for_it(run: Run, where: str) -> None:
    """More than may wait beside the pool: each would wait for the other until a timeout."""
    options(max_size=2, timeout=5)

    async def main() -> None:
        outside = contextvars.copy_context()
        async with aatomic():
            await write("first")
            late = [asyncio.create_task(write(name), context=outside.copy()) for name in "abcde"]
            await until(lambda: at_gate() == 3 and the_pool().waiting() == 2)
            async with detached():
                if where == "task":
                    assert await names() == []
                else:
                    assert await sync_to_async(Author.objects.count)() == 0
        await asyncio.gather(*late)
        assert await names() == [*"abcde", "first"]
        assert_whole(the_pool())

    run(main)


# The turn of the scope, and the gate


def test_the_turn_comes_before_the_gate(sqlite: dict[str, Any], run: Run) -> None:
    """A hold's single statement and its block would wait for each other."""

    async def block() -> None:
        async with aatomic():
            await write("in the block")

    async def main() -> None:
        async with another_writer() as end, hold_connection():
            single = asyncio.create_task(write("single"))
            await until(lambda: at_gate() == 1)
            inside = asyncio.create_task(block())
            await until(lambda: queued() + at_gate() == 2)
            await end()
            await asyncio.gather(single, inside)
        assert await names() == ["another", "in the block", "single"]

    run(main)


def test_a_task_does_not_come_before_the_block_it_was_started_in(deferred: None, run: Run) -> None:
    """The block's own code is at the gate; both would wait there for one connection."""

    @on_loop
    async def work() -> None:
        async with aatomic():
            task = asyncio.create_task(write("task"))
            Author.objects.create(name="own")
            await task

    async def main() -> None:
        async with another_writer() as end:
            working = asyncio.create_task(work())
            await until(lambda: at_gate() == 1)
            await end()
            await working
        assert await names() == ["another", "own", "task"]

    run(main)


def test_a_statement_cancelled_in_line_does_not_roll_back_what_a_sibling_began(
    sqlite: dict[str, Any], run: Run
) -> None:
    child = Child()

    async def main() -> None:
        async with another_writer() as end, hold_connection():
            block = asyncio.create_task(child.run())
            await until(lambda: at_gate() == 1)
            single = asyncio.create_task(write("single"))
            await until(lambda: queued() + at_gate() == 2)
            await end()
            async with asyncio.timeout(10):
                await child.entered.wait()
            single.cancel()
            with pytest.raises(asyncio.CancelledError):
                await single
            child.leave.set()
            await block
        assert await names() == ["another", "child"]

    run(main)


def test_a_cursor_that_the_garbage_collector_closes_in_a_statement_needs_no_turn(
    sqlite: dict[str, Any], run: Run
) -> None:
    @on_loop
    def work() -> None:
        with transaction.atomic():
            raw, dropped = connection.connection, connection.cursor()
            rows = (
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"
            )
            dropped.execute(rows)
            raw.note = lambda query: dropped.close()  # in the middle of the next statement
            Author.objects.create(name="whole")
            del raw.note

    async def main() -> None:
        with override_settings(NUAGES={"SCOPE_TIMEOUT": 0.05}):
            await work()
        assert await names() == ["whole"]

    run(main)


# Leaving the gate


@on_loop
def raw_commit() -> None:
    with connection.cursor() as cursor:
        for statement in ("BEGIN IMMEDIATE", "INSERT INTO library_tag VALUES (1, 'a')", "COMMIT"):
            cursor.execute(statement)


@on_loop
def autocommit_switched_on() -> None:
    transaction.set_autocommit(False)
    Author.objects.create(name="by hand")
    transaction.set_autocommit(True)


@pytest.mark.parametrize("way", [raw_commit, autocommit_switched_on])
@pytest.mark.parametrize("held", [False, True])
def test_the_gate_is_left_however_a_transaction_ends(
    sqlite: dict[str, Any], run: Run, way: Any, held: bool
) -> None:
    async def main() -> None:
        async with hold_connection() if held else nullcontext():
            await way()
            gate = gate_of(str(sqlite["NAME"]))
            assert not gate.locked()
            async with detached():
                await write("next")

    run(main)
