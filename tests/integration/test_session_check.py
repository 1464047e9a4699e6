"""CHECK_SESSIONS: what no statement tells of is found in development, warned of and undone."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection, connections
from django.test import override_settings

from nuages import on_loop
from nuages.db import aatomic, acursor, hold_connection
from nuages.db.backends.base import session_check
from nuages.db.backends.base import session_warning as session_state
from tests.integration.conftest import Run
from tests.integration.pool_tools import fetch, options, the_pool
from tests.integration.scope_tools import until
from tests.library.models import Author

pytestmark = pytest.mark.every_database

POSTGRESQL = {
    "setting": "PERFORM set_config('work_mem', '5MB', false)",
    "setting app.tenant": "PERFORM set_config('app.tenant', 'secret', false)",
    "setting app.other": "SET app.other = 'secret'",
    "current user": "SET ROLE pg_monitor",
    "channel dirt": "LISTEN dirt",
    "advisory lock": "PERFORM pg_advisory_lock(99)",
    "temporary dirt": "CREATE TEMP TABLE dirt (x int)",
    "prepared dirt": "EXECUTE 'PREPARE dirt AS SELECT 1'",
}
MYSQL = {
    "variable @x": "SET @x = 'secret'",
    "variable wait_timeout": "SET SESSION wait_timeout = 77",
    "locks": "DO GET_LOCK(concat('nuages-check-', CONNECTION_ID()), 0)",
    "temporary tables": "CREATE TEMPORARY TABLE dirt (x int)",
}
OF_MYSQL = "SELECT @x, @@wait_timeout, IS_USED_LOCK(concat('nuages-check-', CONNECTION_ID()))"
OF_POSTGRESQL = """
    SELECT current_setting('work_mem'), coalesce(current_setting('app.tenant', true), ''),
        coalesce(current_setting('app.other', true), ''), current_user,
        (SELECT count(*) FROM pg_listening_channels()), to_regclass('pg_temp.dirt') IS NULL,
        (SELECT count(*) FROM pg_prepared_statements WHERE name = 'dirt'),
        (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())
"""


@pytest.fixture(autouse=True)
def _checked() -> Iterator[None]:
    session_state.warned.clear()
    with override_settings(NUAGES={"CHECK_SESSIONS": True}):
        yield


def sql(*statements: str) -> None:
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


async def idle() -> None:
    await until(lambda: the_pool().stats()["used"] == 0)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "nuages.sessions"]


async def state(query: str) -> Any:
    async with acursor() as cursor:
        await cursor.execute(query)
        return await cursor.fetchone()


@pytest.mark.parametrize("left", POSTGRESQL)
def test_what_a_function_sets_is_found(
    postgresql: dict[str, Any], run: Run, left: str, caplog: pytest.LogCaptureFixture
) -> None:
    sql(f"CREATE OR REPLACE FUNCTION leaving(text) RETURNS int LANGUAGE plpgsql AS "
        f"$$ BEGIN {POSTGRESQL[left]}; RETURN 1; END $$")  # fmt: skip
    options(max_size=1)

    async def main() -> None:
        fresh = await state(OF_POSTGRESQL)
        for _ in range(2):
            async with acursor() as cursor:
                await cursor.execute("SELECT leaving(%s)", ["a password"])
                await cursor.execute("SELECT 2")
            assert await state(OF_POSTGRESQL) == fresh
        await idle()

    run(main)
    (message,) = warnings(caplog)
    assert left in message
    for word in ("SELECT leaving(%s); SELECT 2", "hold_connection()", "CONNECTION_PER"):
        assert word in message
    assert "secret" not in message
    assert "password" not in message


@pytest.mark.parametrize("left", MYSQL)
def test_what_a_function_sets_is_found_on_mysql(
    mysql: dict[str, Any], run: Run, left: str, caplog: pytest.LogCaptureFixture
) -> None:
    sql(f"CREATE OR REPLACE FUNCTION leaving(given text) RETURNS int MODIFIES SQL DATA "
        f"BEGIN {MYSQL[left]}; RETURN 1; END")  # fmt: skip
    options(max_size=1)

    async def main() -> None:
        fresh = await state(OF_MYSQL)
        for _ in range(2):
            async with acursor() as cursor:
                await cursor.execute("SELECT leaving(%s)", ["a password"])
            assert await state(OF_MYSQL) == fresh
        await idle()

    run(main)
    sql("DROP FUNCTION leaving")
    (message,) = warnings(caplog)
    assert left in message
    assert "SELECT leaving('...')" in message
    assert "secret" not in message


def test_a_cursor_of_sqlites_own_is_found(
    sqlite: dict[str, Any], run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    options(max_size=1)

    @on_loop
    def leave() -> None:
        connection.ensure_connection()
        raw = connection.connection
        raw.in_worker(lambda: sqlite3.Cursor(raw).execute("PRAGMA cache_size = 77"))

    async def main() -> None:
        fresh = await fetch("PRAGMA cache_size")
        await leave()
        assert await fetch("PRAGMA cache_size") == fresh
        await idle()

    run(main)
    (message,) = warnings(caplog)
    assert "pragma cache_size" in message


def test_ordinary_work_leaves_nothing(
    database: str, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    options(max_size=1)

    async def main() -> None:
        for _ in range(8):  # psycopg prepares what is repeated
            author = await Author.objects.acreate(name="Ursula")
            async with aatomic():
                await author.asave()
                async for _each in Author.objects.aiterator():
                    pass
            await author.adelete()
            async with hold_connection():
                await Author.objects.acount()
        if database == "postgresql":
            async with aatomic(), acursor() as cursor:
                await cursor.execute("SET LOCAL app.tenant = 'x'")
        await idle()
        assert the_pool().stats()["opened"] == 1

    run(main)
    assert warnings(caplog) == []
    assert caplog.text == ""


def test_what_is_told_is_not_reported_twice(
    postgresql: dict[str, Any], run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        await fetch("SELECT set_config('work_mem', '5MB', false)")
        await idle()
        await Author.objects.acount()
        await idle()

    run(main)
    assert warnings(caplog) == []
    assert "session state" in caplog.text


def test_its_queries_are_in_nobodys_capture(database: str, run: Run) -> None:
    connection.close()

    async def main() -> None:
        sent: list[str] = []

        def record(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
            sent.append(sql)
            return execute(sql, params, many, context)

        with connection.execute_wrapper(record):
            await Author.objects.acount()
            await idle()
            await Author.objects.acount()
            await idle()
        assert len([s for s in sent if "library_author" in s]) == 2
        assert not [s for s in sent if "UNION" in s]

    run(main)


@pytest.mark.parametrize(
    ("value", "debug", "expected"),
    [(None, False, False), (None, True, True), (False, True, False), (True, False, True)],
)
def test_when_it_is_on(
    postgresql: dict[str, Any], run: Run, value: Any, debug: bool, expected: bool
) -> None:
    async def main() -> None:
        async with hold_connection() as wrapper:
            assert (wrapper.session.baseline is not None) is expected
            assert (wrapper.connection.recent is not None) is expected

    with override_settings(NUAGES={"CHECK_SESSIONS": value}, DEBUG=debug):
        assert session_check.is_on() is expected
        run(main)


def test_a_server_that_does_not_say_is_not_asked_again(
    postgresql: dict[str, Any], run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """A role that may not look, say."""
    options(max_size=1)
    sql("CREATE ROLE nuages_blind", "REVOKE SELECT ON pg_policies FROM PUBLIC")
    connections.settings["default"]["OPTIONS"]["assume_role"] = "nuages_blind"

    async def main() -> None:
        for _ in range(2):
            assert await fetch("SELECT 1") == 1
        await idle()
        assert the_pool().stats()["opened"] == 1

    try:
        run(main)
    finally:
        connection.close()
        del connections.settings["default"]["OPTIONS"]["assume_role"]
        sql("GRANT SELECT ON pg_policies TO PUBLIC", "DROP ROLE nuages_blind")
    (message,) = warnings(caplog)
    assert "cannot be checked" in message
