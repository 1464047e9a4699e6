"""What one user leaves in a session, the next one never sees."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from django.db import connections
from psycopg.rows import dict_row
from psycopg.types.string import StrDumper

from nuages import on_loop
from nuages.db import aatomic, acursor, hold_connection
from nuages.db.backends.base import session_warning as session_state
from nuages.db.backends.postgresql import base
from tests.integration.conftest import Run
from tests.integration.pool_tools import backend, fetch, options, server, the_pool
from tests.integration.scope_tools import until
from tests.library.models import Author

pytestmark = [pytest.mark.every_database, pytest.mark.both_loops]


@pytest.fixture(autouse=True)
def _warnings_anew() -> None:
    session_state.warned.clear()


async def execute(*statements: str) -> None:
    """Execute statements on one connection, which then goes back to the pool."""
    async with acursor() as cursor:
        for statement in statements:
            await cursor.execute(statement)


def raw(function: Callable[[Any], Any]) -> Callable[[], Awaitable[Any]]:
    """Return an async function that calls `function` with psycopg's connection."""

    @on_loop
    def call() -> Any:
        wrapper = connections["default"]
        wrapper.ensure_connection()
        return function(wrapper.connection)

    return call


def statement(*sql: str) -> Callable[[], Awaitable[Any]]:
    return lambda: execute(*sql)


class ShoutingDumper(StrDumper):
    def dump(self, obj: Any) -> Any:
        return super().dump(obj.upper())


def _register(connection: Any) -> None:
    connection.adapters.register_dumper(str, ShoutingDumper)


def _open_cursor(connection: Any) -> None:
    cursor = connection.cursor("left_open", withhold=True)
    cursor.execute("SELECT generate_series(1, 10)")
    cursor._closed = True  # no ResourceWarning, which psycopg gives of a forgotten cursor


def _say(connection: Any) -> None:
    connection.add_notice_handler(print)


def _rows(connection: Any) -> None:
    connection.row_factory = dict_row


def _manual(connection: Any) -> None:
    connection.autocommit = False


DIRTY: dict[str, Callable[[], Awaitable[Any]]] = {
    "SET": statement("SET application_name = 'dirty'"),
    "SET ROLE": statement("SET ROLE pg_monitor"),
    "SET TIME ZONE": statement("SET TIME ZONE 'Asia/Tokyo'"),
    "set_config": statement("SELECT set_config('application_name', 'dirty', false)"),
    "LISTEN": statement("LISTEN dirt"),
    "CREATE TEMP": statement("CREATE TEMP TABLE dirt (x int)"),
    "CREATE TEMP AS": statement("CREATE TEMP TABLE dirt AS SELECT 1 AS x"),
    "SELECT INTO": statement("select 1 as x into temp dirt"),
    "PREPARE": statement("PREPARE dirt AS SELECT 1"),
    "DECLARE": statement("DECLARE dirt CURSOR WITH HOLD FOR SELECT 1"),
    "advisory lock": statement("SELECT pg_advisory_lock(99)"),
    "BEGIN": statement("BEGIN", "SET LOCAL application_name = 'dirty'"),
    "BEGIN, error": statement("BEGIN", "LISTEN dirt", "SAVEPOINT s"),
    "two statements": statement("SELECT 1; SET application_name = 'dirty'"),
    "cursor": raw(_open_cursor),
    "autocommit": raw(_manual),
    "row_factory": raw(_rows),
    "adapters": raw(_register),
    "notice handler": raw(_say),
}

STATE = """
    SELECT current_setting('application_name'), current_user, current_setting('TimeZone'),
        (SELECT count(*) FROM pg_listening_channels()),
        to_regclass('pg_temp.dirt') IS NULL,
        (SELECT count(*) FROM pg_prepared_statements WHERE name = 'dirt'),
        (SELECT count(*) FROM pg_cursors),
        (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
        %s
"""


async def _state() -> tuple[Any, ...]:
    async with acursor() as cursor:
        await cursor.execute(STATE, ["a string"])
        row = await cursor.fetchone()
        assert isinstance(row, tuple)
        connection = cursor.connection  # psycopg's
        assert connection.autocommit
        assert not connection._notice_handlers
        assert connection.info.transaction_status.name == "IDLE"
        return row


@pytest.mark.parametrize("dirt", DIRTY)
def test_the_next_user_sees_a_fresh_session(
    postgresql: dict[str, Any], run: Run, dirt: str
) -> None:
    options(max_size=1)

    async def main() -> None:
        fresh = await _state()
        await DIRTY[dirt]()
        assert await _state() == fresh
        assert await _state() == fresh
        async with server() as pg:
            await pg.until_sessions(1)
            await pg.until_idle()

    run(main)


@pytest.mark.parametrize(
    "clean",
    [
        ["SELECT 1"],
        ["BEGIN", "SET LOCAL application_name = 'local'", "COMMIT"],
        ["BEGIN", "SET CONSTRAINTS ALL DEFERRED", "COMMIT"],
        ["BEGIN", "SET TRANSACTION READ ONLY", "COMMIT"],
        ["SELECT set_config('application_name', 'x', true)"],
        ["SELECT pg_advisory_xact_lock(1)"],
        ["NOTIFY nobody"],
    ],
)
def test_what_leaves_nothing_costs_no_reset(
    postgresql: dict[str, Any], run: Run, clean: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options(max_size=1)
    resets: list[Any] = []
    reset = base.DatabaseWrapper.reset_session

    def counted(self: Any) -> None:
        resets.append(self)
        reset(self)

    monkeypatch.setattr(base.DatabaseWrapper, "reset_session", counted)

    async def main() -> None:
        await execute(*clean)
        async with aatomic():
            await Author.objects.acreate(name="Ursula")
        assert await Author.objects.acount() == 1
        await fetch("SELECT 1")
        assert resets == []
        await execute("SET application_name = 'the control'")
        await until(lambda: bool(resets))

    run(main)


def test_the_developer_is_warned_once_with_the_remedy(
    postgresql: dict[str, Any], run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        with caplog.at_level(logging.WARNING, "nuages.pool"):
            await execute("SET search_path = public")
            await backend()
            await execute("SET search_path = public")
            await backend()
            await until(lambda: the_pool().stats()["used"] == 0)

    run(main)
    (record,) = [r for r in caplog.records if r.name == "nuages.pool"]
    message = record.getMessage()
    for word in ("SET search_path = public", "SET LOCAL", "hold_connection()", "CONNECTION_PER"):
        assert word in message


def test_state_lives_as_long_as_a_hold(postgresql: dict[str, Any], run: Run) -> None:
    options(max_size=1)

    async def main() -> None:
        async with hold_connection():
            await execute("SET application_name = 'held'")
            await Author.objects.acreate(name="Ursula")
            assert await fetch("SHOW application_name") == "held"
        assert await fetch("SHOW application_name") != "held"

    run(main)


def test_role_and_time_zone_are_right_after_a_reset(postgresql: dict[str, Any], run: Run) -> None:
    postgresql["OPTIONS"].update(assume_role="pg_monitor")
    postgresql["TIME_ZONE"] = "Europe/Vienna"
    options(max_size=1)

    async def main() -> None:
        for _ in range(2):
            assert await fetch("SELECT current_user::text") == "pg_monitor"
            assert await fetch("SHOW TimeZone") == "Europe/Vienna"
            pid = await backend()
            await execute("RESET ROLE", "SET TIME ZONE 'Asia/Tokyo'")
            assert await backend() == pid

    run(main)


@pytest.mark.parametrize("threshold", [0, 1])
def test_prepared_statements_work_after_a_reset(
    postgresql: dict[str, Any], run: Run, threshold: int
) -> None:
    """DISCARD ALL drops them on the server; psycopg must not use their names any more."""
    postgresql["OPTIONS"].update(prepare_threshold=threshold, server_side_binding=True)
    options(max_size=1)

    async def main() -> None:
        await Author.objects.acreate(name="Ursula")
        pid = await backend()
        for _ in range(3):
            for _ in range(3):
                assert (await Author.objects.aget(name="Ursula")).name == "Ursula"
            assert await fetch("SELECT count(*) > 0 FROM pg_prepared_statements")
            await execute("SET application_name = 'dirty'")
        assert await backend() == pid

    run(main)


def test_a_session_that_cannot_be_reset_is_closed(
    postgresql: dict[str, Any], run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    options(max_size=1)

    async def main() -> None:
        async with server() as pg:
            async with hold_connection():
                pid = await backend()
                await execute("SET application_name = 'dirty'")
                await pg.kill(pid)
            assert await backend() != pid
            await pg.until_sessions(1)

    run(main)


def test_a_reset_cancelled_with_its_loop_leaves_nothing(
    postgresql: dict[str, Any],
) -> None:
    async def main() -> None:
        await execute("SET application_name = 'dirty'")

    asyncio.run(main())
