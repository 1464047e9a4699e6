"""Every way to leave state in a PostgreSQL session, and every way to end: the next user is alone.

The pool has one connection, so the next user gets the same session, or a new one where a reset
would not be enough (`NEW_SESSION`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import psycopg
import pytest
from django.db import DatabaseError, connections

from nuages import on_loop
from nuages.db import aatomic, acursor, hold_connection
from nuages.db.backends.base import session_warning as session_state
from tests.integration.conftest import Run
from tests.integration.pool_tools import backend, cancelled, fetch, options, server
from tests.integration.scope_tools import Failure, rolled_back

FUNCTIONS = """
    CREATE OR REPLACE PROCEDURE leaving() LANGUAGE plpgsql AS $$ BEGIN
        SET application_name = 'dirty';
        PERFORM set_config('app.tenant', 'dirty', false);
    END $$;
    CREATE TABLE IF NOT EXISTS leavings (x text);
"""

WAYS = {
    "SET": "SET application_name = 'dirty'",
    "SET, commented": "/* why */ -- indeed\n SET application_name = 'dirty'",
    "SET SESSION": "SET SESSION application_name TO 'dirty'",
    "SET of one's own": "SET app.tenant = 'dirty'",
    "SET search_path": "SET search_path = pg_catalog",
    "SET ROLE": "SET ROLE pg_monitor",
    "SET SESSION AUTHORIZATION": "SET SESSION AUTHORIZATION pg_monitor",
    "SET TIME ZONE": "SET TIME ZONE 'Asia/Tokyo'",
    "SET NAMES": "SET NAMES 'latin1'",
    "SET CHARACTERISTICS": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "RESET": "RESET TimeZone",
    "RESET ALL": "RESET ALL",
    "set_config": "SELECT set_config('application_name', 'dirty', false)",
    "set_config, quoted": """SELECT "set_config"('app.tenant', 'dirty', false), (true)""",
    "set_config in WITH": "WITH x AS (SELECT set_config('app.tenant', 'dirty', false)) TABLE x",
    "set_config in VALUES": "VALUES (set_config('app.tenant', 'dirty', false))",
    "set_config in INSERT": "INSERT INTO leavings VALUES (set_config('app.tenant', 'd', false))",
    "set_config in EXPLAIN": "EXPLAIN ANALYZE SELECT set_config('app.tenant', 'dirty', false)",
    "DO": "DO $$ BEGIN SET application_name = 'dirty'; END $$",
    "CALL": "CALL leaving()",
    "LISTEN": "LISTEN dirt",
    "CREATE TEMP TABLE": "CREATE TEMP TABLE dirt (x int)",
    "CREATE TEMPORARY TABLE AS": "CREATE TEMPORARY TABLE dirt AS SELECT 1 AS x",
    "CREATE TABLE pg_temp": "CREATE TABLE pg_temp.dirt (x int)",
    "CREATE TEMP VIEW": "CREATE TEMP VIEW dirt AS SELECT 1 AS x",
    "CREATE TEMP SEQUENCE": "CREATE TEMP SEQUENCE dirt",
    "SELECT INTO TEMP": "SELECT 1 AS x INTO/**/TEMP dirt",
    "CREATE FUNCTION pg_temp": "CREATE FUNCTION pg_temp.f() RETURNS int RETURN 1",
    "PREPARE": "PREPARE dirt AS SELECT 1",
    "DECLARE WITH HOLD": "DECLARE dirt CURSOR WITH HOLD FOR SELECT 1",
    "advisory lock": "SELECT pg_advisory_lock(99)",
    "advisory lock, tried": "SELECT 1 WHERE pg_try_advisory_lock_shared(99)",
    "setseed": "SELECT setseed(0.5)",
    "SET seed": "SET seed = 0.5",
    "LOAD": "LOAD 'plpgsql'",
}
NEW_SESSION = {"setseed", "SET seed", "LOAD"}
"""What DISCARD ALL leaves."""

STATE = """
    SELECT current_setting('application_name'), coalesce(current_setting('app.tenant', true), ''),
        current_user, session_user, current_setting('TimeZone'), current_setting('search_path'),
        current_setting('client_encoding'), current_setting('default_transaction_read_only'),
        (SELECT count(*) FROM pg_listening_channels()),
        (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()),
        (SELECT count(*) FROM pg_proc WHERE pronamespace = pg_my_temp_schema()),
        (SELECT count(*) FROM pg_prepared_statements),
        (SELECT count(*) FROM pg_cursors),
        (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())
"""


async def execute(*statements: str) -> None:
    """Execute statements on one connection, which then goes back to the pool."""
    async with acursor() as cursor:
        for statement in statements:
            await cursor.execute(statement)


async def state() -> tuple[Any, ...]:
    async with acursor() as cursor:
        await cursor.execute(STATE)
        row = await cursor.fetchone()
        assert isinstance(row, tuple)
        return row


# Ends: what becomes of the one who sets it


async def by_itself(sql: str) -> None:
    await execute(sql)


async def committed(sql: str) -> None:
    async with aatomic():
        await execute(sql)


async def is_rolled_back(sql: str) -> None:
    async with rolled_back():
        await execute(sql)


async def committed_and_failed(sql: str) -> None:
    with pytest.raises(Failure):
        await committed(sql)
        raise Failure


async def failed(sql: str) -> None:
    """In the same text: what is not transactional stays."""
    with pytest.raises(DatabaseError):
        await execute(f"{sql}; SELECT 1 / (SELECT 0)")


async def failed_after_commit(sql: str) -> None:
    with pytest.raises(DatabaseError):
        await execute(f"BEGIN; {sql}; COMMIT; SELECT 1 / (SELECT 0)")


async def cut_off(running: Callable[[], Awaitable[Any]]) -> None:
    """Run it until the server sleeps, and cancel it."""
    async with server() as pg:
        task = asyncio.ensure_future(running())
        await pg.until_running("pg_sleep")
        await cancelled(task)


async def is_cancelled(sql: str) -> None:
    await cut_off(lambda: execute(f"{sql}; SELECT pg_sleep(600)"))


async def cancelled_after_commit(sql: str) -> None:
    await cut_off(lambda: execute(f"BEGIN; {sql}; COMMIT; SELECT pg_sleep(600)"))


async def cancelled_in_a_transaction(sql: str) -> None:
    async def running() -> None:
        async with aatomic():
            await execute(sql, "SELECT pg_sleep(600)")

    await cut_off(running)


async def held(sql: str) -> None:
    async with hold_connection():
        await execute(sql)


ENDS = [
    by_itself,
    committed,
    is_rolled_back,
    committed_and_failed,
    failed,
    failed_after_commit,
    is_cancelled,
    cancelled_after_commit,
    cancelled_in_a_transaction,
    held,
]


@pytest.fixture(autouse=True)
def _warnings_anew() -> None:
    session_state.warned.clear()


@pytest.fixture
def leaving(postgresql: dict[str, Any]) -> Iterator[None]:
    """PostgreSQL, a pool of one, and a procedure that sets something."""
    # Not one of the settings' own: RESET must find something to set back.
    postgresql["TIME_ZONE"] = "Europe/Vienna"
    with connections["default"].cursor() as cursor:
        cursor.execute(FUNCTIONS)
    options(max_size=1)
    yield
    with connections["default"].cursor() as cursor:
        cursor.execute("DROP TABLE leavings; DROP PROCEDURE leaving")


@pytest.mark.parametrize("way", WAYS)
def test_the_next_user_sees_nothing_of_it(
    leaving: None, run: Run, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        fresh, pid = await state(), await backend()
        for end in ENDS:
            await end(WAYS[way])
            assert await state() == fresh, end.__name__
            before, pid = pid, await backend()
            assert (pid != before) is (way in NEW_SESSION), end.__name__

    run(main)
    told = [r.getMessage() for r in caplog.records if r.name == "nuages.pool"]
    # A procedure may have set nothing.
    assert len(told) == (0 if way == "CALL" else 1)
    assert all("hold_connection()" in message for message in told)


@pytest.mark.parametrize("way", ["setseed", "SET seed"])
def test_a_seed_is_nobody_elses(leaving: None, run: Run, way: str) -> None:
    async def main() -> None:
        async with hold_connection():
            await execute(WAYS[way])
            expected = await fetch("SELECT random()")
        await execute(WAYS[way])
        assert await fetch("SELECT random()") != expected

    run(main)


# psycopg's own API


def raw(function: Callable[[Any], Any]) -> Callable[[], Awaitable[Any]]:
    """Return an async function that calls `function` with psycopg's connection."""

    @on_loop
    def call() -> Any:
        wrapper = connections["default"]
        wrapper.ensure_connection()
        return function(wrapper.connection)

    return call


SETS = "SELECT set_config('app.tenant', 'dirty', false)"
SETS_WITH = "SELECT set_config('app.tenant', %s, false)"


def _named(connection: Any) -> None:
    with connection.cursor("mine", withhold=True) as cursor:
        cursor.execute(SETS)
        cursor.fetchall()


def _named_by_hand(connection: Any) -> None:
    with psycopg.ServerCursor(connection, "mine", withhold=True) as cursor:
        cursor.execute(SETS)
        cursor.fetchall()


def _streamed(connection: Any) -> None:
    list(connection.cursor().stream(SETS))


def _copied(connection: Any) -> None:
    with connection.cursor().copy(f"COPY ({SETS}) TO STDOUT") as copy:
        list(copy)


def _copied_with_parameters(connection: Any) -> None:
    with connection.cursor().copy(f"COPY ({SETS_WITH}) TO STDOUT", ["dirty"]) as copy:
        list(copy)


def _many(connection: Any) -> None:
    connection.cursor().executemany(SETS_WITH, [["first"], ["dirty"]])


def _many_by_hand(connection: Any) -> None:
    psycopg.ClientCursor(connection).executemany(SETS_WITH, [["first"], ["dirty"]])


def _pipelined(connection: Any) -> None:
    with connection.pipeline():
        connection.execute("/* why */ SET application_name = 'dirty'")
        connection.execute(SETS_WITH, ["dirty"])


def _prepared(connection: Any) -> None:
    psycopg.Cursor.execute(connection.cursor(), SETS_WITH, ["dirty"], prepare=True)


def _prepared_by_ours(connection: Any) -> None:
    connection.execute(SETS_WITH, ["dirty"], prepare=True)


def _by_client_cursor(connection: Any) -> None:
    psycopg.ClientCursor(connection).execute("SET application_name = %s", ["dirty"])


def _by_raw_cursor(connection: Any) -> None:
    psycopg.RawCursor(connection).execute(SETS.replace("'dirty'", "$1"), ["dirty"])


def _in_transaction(connection: Any) -> None:
    with connection.transaction():
        connection.execute("SET application_name = 'dirty'")


def _by_sql(connection: Any) -> None:
    connection.execute(psycopg.sql.SQL("SET application_name = {}").format("dirty"))


DRIVER = {
    function.__name__: function
    for function in (
        _named,
        _named_by_hand,
        _streamed,
        _copied,
        _copied_with_parameters,
        _many,
        _many_by_hand,
        _pipelined,
        _prepared,
        _prepared_by_ours,
        _by_client_cursor,
        _by_raw_cursor,
        _in_transaction,
        _by_sql,
    )
}


@pytest.mark.parametrize("server_side_binding", [False, True], ids=["client", "server"])
@pytest.mark.parametrize("way", DRIVER)
def test_the_drivers_own_ways(
    leaving: None, run: Run, way: str, server_side_binding: bool
) -> None:
    connections.settings["default"]["OPTIONS"]["server_side_binding"] = server_side_binding

    async def main() -> None:
        fresh, pid = await state(), await backend()
        call = raw(DRIVER[way])
        await call()
        assert await state() == fresh
        async with rolled_back():
            await call()
        assert await state() == fresh
        assert await backend() == pid

    run(main)


def test_notifications_of_one_listener_do_not_reach_the_next(leaving: None, run: Run) -> None:
    """psycopg keeps what came while nobody asked for it."""

    def listen(connection: Any) -> None:
        connection.execute("LISTEN dirt")
        connection.execute("NOTIFY dirt, 'for me'")

    def hear(connection: Any) -> list[str]:
        connection.execute("LISTEN dirt")
        connection.execute("NOTIFY dirt, 'mine'")
        return [n.payload for n in connection.notifies(timeout=10, stop_after=1)]

    async def main() -> None:
        await raw(listen)()
        assert await raw(hear)() == ["mine"]

    run(main)
