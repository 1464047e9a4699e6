"""What leaves no trace, set in a hold: the session is reset whatever was seen."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from django.db import connection

from nuages.db import aatomic, hold_connection
from nuages.db.transaction import request_connections
from tests.integration.conftest import Run
from tests.integration.pool_tools import fetch, options

POSTGRESQL = """
    CREATE OR REPLACE FUNCTION set_tenant(name text) RETURNS int LANGUAGE plpgsql AS $$ BEGIN
        PERFORM set_config('app.tenant', name, false), pg_advisory_lock(7);
        RETURN 1;
    END $$
"""
MYSQL = """
    CREATE OR REPLACE FUNCTION set_tenant(name text) RETURNS int MODIFIES SQL DATA
    BEGIN SET @tenant = name; RETURN 1; END
"""
LOOK = {
    "postgresql": "SELECT concat(current_setting('app.tenant', true), (SELECT count(*) FROM "
    "pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()))",
    "mysql": "SELECT coalesce(@tenant, '0')",
}
SESSION = {"postgresql": "SELECT pg_backend_pid()", "mysql": "SELECT CONNECTION_ID()"}


async def returns() -> None: ...


async def fails() -> None:
    raise LookupError


async def is_cancelled() -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize("end", [returns, fails, is_cancelled])
@pytest.mark.parametrize("held", [hold_connection, request_connections])
@pytest.mark.parametrize("database", ["postgresql", "mysql"], indirect=True)
def test_a_functions_state_ends_with_the_hold(
    database: str,
    run: Run,
    held: Callable[[], AbstractAsyncContextManager[Any]],
    end: Callable[[], Awaitable[None]],
) -> None:
    with connection.cursor() as cursor:
        cursor.execute(POSTGRESQL if database == "postgresql" else MYSQL)
    connection.close()
    options(max_size=1)
    look = LOOK[database]

    async def main() -> None:
        fresh, number = await fetch(look), await fetch(SESSION[database])
        try:
            async with held():
                await fetch("SELECT set_tenant('seven')")
                assert "seven" in str(await fetch(look))
                async with aatomic():
                    assert "seven" in str(await fetch(look))
                await end()
        except (LookupError, asyncio.CancelledError):
            assert end is not returns
        assert await fetch(look) == fresh
        assert await fetch(SESSION[database]) == number

    try:
        run(main)
    finally:
        with connection.cursor() as cursor:
            signature = "(text)" if database == "postgresql" else ""
            cursor.execute(f"DROP FUNCTION set_tenant{signature}")
