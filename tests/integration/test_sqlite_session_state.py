"""Every way to leave state in a SQLite connection: the next user is alone."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
from django.db import DatabaseError, connection
from django.db.backends.signals import connection_created

from nuages import on_loop
from nuages.db import aatomic, acursor, hold_connection
from nuages.db.backends.base import session_warning as session_state
from nuages.db.backends.sqlite3.session_state import NotesState
from tests.integration.conftest import Run
from tests.integration.pool_tools import options, the_pool
from tests.integration.scope_tools import receiving, rolled_back, until
from tests.library.models import Author

WAYS = {
    "ATTACH": "ATTACH ':memory:' AS dirt",
    "ATTACH, commented": "/* why */ -- indeed\n ATTACH ':memory:' AS dirt",
    "CREATE TEMP TABLE": "CREATE TEMP TABLE dirt (x)",
    "CREATE TEMPORARY VIEW": "CREATE/**/TEMPORARY VIEW dirt AS SELECT 1 AS x",
    "CREATE TABLE temp.": "CREATE TABLE IF NOT EXISTS temp.dirt (x)",
    'CREATE TABLE "temp".': 'CREATE TABLE "temp" . dirt (x)',
    "PRAGMA =": "PRAGMA cache_size = 77",
    "PRAGMA ()": "PRAGMA cache_size(77)",
    "PRAGMA of a schema": "PRAGMA main.cache_size = 77",
    "PRAGMA, commented": "/* why */ PRAGMA/**/cache_size/**/= 77",
    "PRAGMA foreign_keys": "PRAGMA foreign_keys = OFF",
    "PRAGMA foreign_keys()": "PRAGMA foreign_keys(0)",
    "PRAGMA legacy_alter_table": "PRAGMA legacy_alter_table = on",
    "PRAGMA query_only": "PRAGMA query_only = 1",
    "PRAGMA recursive_triggers": "PRAGMA recursive_triggers = 1",
}
PRAGMAS = ["foreign_keys", "legacy_alter_table", "cache_size", "query_only", "recursive_triggers"]


async def execute(*sql: str) -> None:
    async with acursor() as cursor:
        for each in sql:
            await cursor.execute(each)


async def state() -> list[Any]:
    found: list[Any] = []
    async with acursor() as cursor:
        for sql in ("PRAGMA database_list", "SELECT name FROM temp.sqlite_master", "SELECT 'text'",
                    *(f"PRAGMA {name}" for name in PRAGMAS)):  # fmt: skip
            await cursor.execute(sql)
            found.append(await cursor.fetchall())
    # SQLite names the temporary database where something has asked for it.
    found[0] = [row[1] for row in found[0] if row[1] != "temp"]
    return found


@pytest.fixture(autouse=True)
def _one_connection(sqlite: dict[str, Any]) -> None:
    session_state.warned.clear()
    options(max_size=1)


@pytest.mark.parametrize("way", WAYS)
def test_the_next_user_sees_nothing_of_it(
    run: Run, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    sql = WAYS[way]

    async def cancelled() -> None:
        with pytest.raises(asyncio.CancelledError):
            async with acursor() as cursor:
                await cursor.execute(sql)
                raise asyncio.CancelledError

    async def main() -> None:
        fresh = await state()
        await execute(sql)
        assert await state() == fresh
        assert "session state" in caplog.text
        with pytest.raises(DatabaseError):
            await execute(sql, "SELECT no_such_column")
        assert await state() == fresh
        await cancelled()
        assert await state() == fresh
        async with hold_connection():
            await execute(sql)
        assert await state() == fresh
        if not sql.startswith(("ATTACH", "/* why */ --")):
            async with aatomic():
                await execute(sql)
            assert await state() == fresh
            async with rolled_back():
                await execute(sql)
            assert await state() == fresh
        await Author.objects.acreate(name="Ursula")

    run(main)


class Total:
    def step(self, value: int) -> None: ...
    def finalize(self) -> int:
        return 5


def _trace(connection: Any) -> None:
    connection.set_trace_callback(lambda statement: OVERHEARD.append(statement))


OVERHEARD: list[str] = []
CALLS: dict[str, Callable[[Any], Any]] = {
    "create_function": lambda c: c.create_function("lower", 1, lambda value: "dirty"),
    "create_aggregate": lambda c: c.create_aggregate("sum", 1, Total),
    "create_collation": lambda c: c.create_collation("nocase", lambda a, b: 1),
    "create_window_function": lambda c: c.create_window_function("sum", 1, None),
    "set_authorizer": lambda c: c.set_authorizer(lambda *args: sqlite3.SQLITE_OK),
    "set_progress_handler": lambda c: c.set_progress_handler(lambda: 0, 1),
    "set_trace_callback": _trace,
    "setlimit": lambda c: c.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, 5_000),
    "row_factory": lambda c: setattr(c, "row_factory", sqlite3.Row),
    "text_factory": lambda c: setattr(c, "text_factory", bytes),
    "execute": lambda c: c.execute("PRAGMA cache_size = 77"),
    "executescript": lambda c: c.executescript("SELECT 1; /* ; */ PRAGMA cache_size = 77"),
    "cursor": lambda c: c.cursor().executescript("SELECT 1; CREATE TEMP TABLE dirt (x)"),
}


@pytest.mark.parametrize("way", CALLS)
def test_the_drivers_own_ways(run: Run, way: str) -> None:
    OVERHEARD.clear()

    @on_loop
    def use() -> Any:
        connection.ensure_connection()
        CALLS[way](connection.connection)
        return connection.connection

    @on_loop
    def after() -> tuple[Any, Any]:
        connection.ensure_connection()
        return connection.connection, connection.connection.row_factory

    async def main() -> None:
        fresh = await state()
        used = await use()
        OVERHEARD.clear()
        assert await state() == fresh
        assert OVERHEARD == []
        again, factory = await after()
        assert again is not used
        assert factory is None

    run(main)


@pytest.mark.parametrize(
    "sql",
    [
        ["SELECT 1"],
        ["PRAGMA foreign_keys"],
        ["PRAGMA table_info(library_author)"],
        ["PRAGMA foreign_keys = OFF", "PRAGMA foreign_keys = ON"],
        ["PRAGMA legacy_alter_table = ON", "PRAGMA legacy_alter_table = OFF"],
        ["BEGIN", "PRAGMA foreign_keys = OFF", "COMMIT"],
        ["CREATE TABLE IF NOT EXISTS template (x)", "DROP TABLE template"],
        ["SELECT 'ATTACH; PRAGMA x = 1'"],
    ],
)
def test_what_leaves_nothing_costs_no_connection(
    run: Run, sql: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        await execute(*sql)
        await execute(*sql)
        assert the_pool().opened == 1

    run(main)
    assert caplog.text == ""


def test_foreign_keys_switched_on_in_a_transaction_stay_off(run: Run) -> None:
    """SQLite ignores the pragma there, so what comes afterwards must not trust it."""

    async def main() -> None:
        fresh = await state()
        await execute("PRAGMA foreign_keys = OFF", "BEGIN", "PRAGMA foreign_keys = ON", "COMMIT")
        assert await state() == fresh

    run(main)


def test_what_receivers_set_on_every_connection_is_no_state(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    def configure(connection: Any, **kwargs: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA cache_size = 78")
        connection.connection.create_function("answer", 0, lambda: 42)

    async def main() -> None:
        with receiving(connection_created, configure):
            for _ in range(3):
                async with acursor() as cursor:
                    await cursor.execute("SELECT answer()")
                    assert await cursor.fetchone() == (42,)
                    await cursor.execute("PRAGMA cache_size")
                    assert await cursor.fetchone() == (78,)
            assert the_pool().opened == 1

    run(main)
    assert caplog.text == ""


def test_a_hold_that_set_nothing_silences_no_warning(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with hold_connection():
            await execute("SELECT 1")
        await execute("PRAGMA cache_size = 77")
        await until(lambda: the_pool().stats()["used"] == 0)

    run(main)
    assert "PRAGMA cache_size" in caplog.text


def test_every_lasting_call_of_sqlite3_is_noted() -> None:
    """One that a new Python brings must be looked at."""
    known = {
        "autocommit", "backup", "blobopen", "close", "commit", "cursor", "execute", "executemany",
        "executescript", "getconfig", "getlimit", "in_transaction", "interrupt",
        "isolation_level", "iterdump", "rollback", "row_factory", "serialize", "text_factory",
        "total_changes",
    }  # fmt: skip
    found = {name for name in vars(sqlite3.Connection) if name[0] != "_" and name[0].islower()}
    assert found - set(vars(NotesState)) <= known
