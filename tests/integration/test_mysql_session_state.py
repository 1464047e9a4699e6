"""Every way to leave state in a MySQL session, and every way to end: the next user is alone."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import pymysql  # type: ignore[import-untyped]
import pytest
from django.db import DatabaseError, OperationalError, connection, connections

from nuages import on_loop
from nuages.db import aatomic, acursor, hold_connection
from nuages.db.backends.base import session_warning as session_state
from tests.integration.conftest import Run
from tests.integration.mysql_tools import server
from tests.integration.pool_tools import cancelled, fetch, options
from tests.integration.scope_tools import rolled_back
from tests.library.models import Author

LOCK = f"nuages-state-{os.getpid()}"
ROLE = f"nuages_state_{os.getpid()}"
TABLE = Author._meta.db_table

WAYS = {
    "SET @x": "SET @x = 5",
    "SET @x, commented": "/* why */ -- indeed\n SET @x = 5",
    "SELECT @x :=": "SELECT @x /* why */ := 5",
    "SELECT INTO @x": "SELECT 5 INTO/**/@x",
    "GET DIAGNOSTICS": "GET DIAGNOSTICS @x = NUMBER",
    "SET SESSION": "SET SESSION wait_timeout = 77",
    "SET @@": "SET @@wait_timeout = 77",
    "SET ROLE": f"SET ROLE {ROLE}",
    "SET NAMES": "SET NAMES latin1",
    "SET TRANSACTION": "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SET time_zone": "SET time_zone = '+09:00'",
    "SET sql_mode": "SET sql_mode = 'ANSI_QUOTES'",
    "SET STATEMENT FOR": f"SET STATEMENT max_statement_time = 9 FOR SELECT GET_LOCK('{LOCK}', 0)",
    "USE": "USE information_schema",
    "GET_LOCK": f"SELECT GET_LOCK('{LOCK}', 0)",
    "GET_LOCK, quoted": f"SELECT `get_lock` /* why */ ('{LOCK}', 0)",
    "DO GET_LOCK": f"DO GET_LOCK('{LOCK}', 0)",
    "CREATE TEMPORARY": "CREATE TEMPORARY TABLE dirt (a int)",
    "CREATE /*!TEMPORARY*/": "CREATE /*!50000 TEMPORARY */ TABLE dirt (a int)",
    "LOCK TABLES": f"LOCK TABLES {TABLE} WRITE",
    "FLUSH FOR EXPORT": f"FLUSH TABLES {TABLE} FOR EXPORT",
    "PREPARE": "PREPARE dirt FROM 'SELECT 1'",
    "HANDLER": f"HANDLER {TABLE} OPEN AS dirt",
    "CALL": "CALL leaving()",
    "CALL, for a role": "CALL playing()",
    "EXECUTE IMMEDIATE": "EXECUTE IMMEDIATE 'SET @x = 5'",
    "BEGIN NOT ATOMIC": "BEGIN NOT ATOMIC SET @x = 5; END",
    "IF": "IF 1 THEN SET @x = 5; END IF",
}
NEW_SESSION = {"SET ROLE", "CALL, for a role"}
"""What a reset of MariaDB's leaves."""
SILENT = {"CALL", "CALL, for a role", "EXECUTE IMMEDIATE", "BEGIN NOT ATOMIC", "IF"}
"""What may have set nothing."""
ONLY_AFTERWARDS = {"LOCK TABLES", "FLUSH FOR EXPORT", "USE"}
"""What ends a transaction, or hides from an observer that looks at its own database."""

STATE = """
    SELECT @x, @@wait_timeout, CURRENT_ROLE(), @@character_set_client, @@collation_connection,
        @@tx_isolation, @@time_zone, @@sql_mode, DATABASE(), @@autocommit, IS_USED_LOCK(%s),
        (SELECT count(*) FROM library_book)
"""


async def execute(*sql: str) -> None:
    """Execute statements on one connection, which then goes back to the pool."""
    async with acursor() as cursor:
        for each in sql:
            await cursor.execute(each)


async def refused(sql: str) -> str:
    try:
        await fetch(sql)
    except DatabaseError as error:
        return str(error)
    return "it worked"


async def state() -> Any:
    """What the next user finds, who looks for each thing in a session that has just come back."""
    async with acursor() as cursor:
        await cursor.execute(STATE, [LOCK])
        found = await cursor.fetchone()
    return found


async def what_is_there() -> list[str]:
    return [
        await refused("SELECT a FROM dirt"),
        await refused("EXECUTE dirt"),
        await refused("HANDLER dirt READ FIRST"),
    ]


# Ends


async def by_itself(sql: str) -> None:
    await execute(sql)


async def committed(sql: str) -> None:
    async with aatomic():
        await execute(sql)


async def is_rolled_back(sql: str) -> None:
    async with rolled_back():
        await execute(sql)


async def failed(sql: str) -> None:
    with pytest.raises(OperationalError):
        await execute(sql, "SELECT no_such_column")


async def is_cancelled(sql: str) -> None:
    with server() as observer:
        task = asyncio.create_task(execute(sql, "SELECT SLEEP(600)"))
        await observer.until_running("SLEEP")
        await cancelled(task)


async def cancelled_in_a_transaction(sql: str) -> None:
    async def running() -> None:
        async with aatomic():
            await execute(sql, "SELECT SLEEP(600)")

    with server() as observer:
        task = asyncio.create_task(running())
        await observer.until_running("SLEEP")
        await cancelled(task)


async def held(sql: str) -> None:
    async with hold_connection():
        await execute(sql)


ENDS = [
    by_itself, failed, held,
    committed, is_rolled_back, is_cancelled, cancelled_in_a_transaction,
]  # fmt: skip


@pytest.fixture(autouse=True)
def _warnings_anew() -> None:
    session_state.warned.clear()


@pytest.fixture
def leaving(mysql: dict[str, Any]) -> Iterator[None]:
    """MySQL, a pool of one, a role, and a procedure that sets something."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE OR REPLACE PROCEDURE leaving() SET @x = 5")
        cursor.execute(f"CREATE OR REPLACE ROLE {ROLE}")
        cursor.execute(f"GRANT {ROLE} TO CURRENT_USER")
        cursor.execute(f"CREATE OR REPLACE PROCEDURE playing() SET ROLE {ROLE}")
    options(max_size=1)
    yield
    with connection.cursor() as cursor:
        cursor.execute("DROP PROCEDURE leaving")
        cursor.execute("DROP PROCEDURE playing")
        cursor.execute(f"DROP ROLE {ROLE}")


@pytest.mark.parametrize("way", WAYS)
def test_the_next_user_sees_nothing_of_it(
    leaving: None, run: Run, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    ends = ENDS[:3] if way in ONLY_AFTERWARDS else ENDS

    async def main() -> None:
        fresh, number = await state(), await fetch("SELECT CONNECTION_ID()")
        nothing = await what_is_there()
        for end in ends:
            await end(WAYS[way])
            assert await state() == fresh, end.__name__
            if way in ("CREATE TEMPORARY", "CREATE /*!TEMPORARY*/", "PREPARE", "HANDLER"):
                await end(WAYS[way])
                assert await what_is_there() == nothing, end.__name__
            before, number = number, await fetch("SELECT CONNECTION_ID()")
            assert (number != before) is (way in NEW_SESSION), end.__name__
            await Author.objects.acreate(name=end.__name__)

    run(main)
    statement = f"({session_state.without_values(WAYS[way])})"
    told = [r.getMessage() for r in caplog.records if statement in r.getMessage()]
    assert len(told) == (0 if way in SILENT else 1)
    assert all("hold_connection()" in message for message in told)


def test_several_statements_in_one_text(leaving: None, run: Run) -> None:
    """Off unless the project switches it on."""
    flag = pymysql.constants.CLIENT.MULTI_STATEMENTS
    connections.settings["default"]["OPTIONS"]["client_flag"] = flag

    async def main() -> None:
        fresh = await state()
        await execute("SELECT 1; SET @x = 5")
        assert await state() == fresh

    run(main)


@pytest.mark.parametrize(
    "call",
    [
        lambda raw: raw.query("SET @x = 5"),
        lambda raw: raw.cursor().execute("SET @x = %s", [5]),
        lambda raw: raw.cursor().executemany("SELECT @x := %s", [[4], [5]]),
        lambda raw: raw.cursor().callproc("leaving"),
        lambda raw: raw.cursor(pymysql.cursors.SSCursor).execute("SET @x = 5"),
        lambda raw: raw.select_db("information_schema"),
        lambda raw: raw.set_character_set("latin1"),
        lambda raw: raw.autocommit(False),
        lambda raw: raw.begin(),
    ],
)
def test_the_drivers_own_ways(leaving: None, run: Run, call: Any) -> None:
    @on_loop
    def use() -> None:
        connection.ensure_connection()
        call(connection.connection)

    async def main() -> None:
        fresh = await state()
        await use()
        assert await state() == fresh

    run(main)


def test_backslashes_that_escape_nothing(leaving: None, run: Run) -> None:
    """In that mode a string may end with one, and what follows is no string."""
    connections.settings["default"]["OPTIONS"]["sql_mode"] = "NO_BACKSLASH_ESCAPES"

    async def main() -> None:
        fresh = await state()
        await execute(rf"SELECT '\', GET_LOCK('{LOCK}', 0), ' '")
        assert await state() == fresh

    run(main)
