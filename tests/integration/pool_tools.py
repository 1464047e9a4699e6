"""What the tests of pools, sessions and cancellations share: the server's own view of us."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sqlite3
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, closing, suppress
from typing import Any

import psycopg
import pymysql  # type: ignore[import-untyped]
from django.db import connections

from nuages.db import acursor
from nuages.db.pool.pool import Pool, open_pools
from nuages.test import FaultProxy
from tests.integration.scope_tools import observer

OURS = """
    FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend'
      AND pid <> pg_backend_pid()
"""


class Server:
    """Asks PostgreSQL, over a connection of its own, what our sessions do."""

    def __init__(self, client: psycopg.AsyncConnection[Any]) -> None:
        self.client = client

    async def value(self, sql: str, *params: Any) -> Any:
        cursor = await self.client.execute(sql, params)  # type: ignore[call-overload]
        row = await cursor.fetchone()
        return None if row is None else row[0]

    async def execute(self, sql: str, *params: Any) -> None:
        await self.client.execute(sql, params)  # type: ignore[call-overload]

    async def until(self, sql: str, wanted: Any, *params: Any, seconds: float = 15.0) -> None:
        """Poll until the query's value is `wanted`."""
        found: Any = None
        try:
            async with asyncio.timeout(seconds):
                while (found := await self.value(sql, *params)) != wanted:
                    pass
        except TimeoutError:
            raise AssertionError(f"{sql} gave {found!r}, not {wanted!r}") from None

    async def sessions(self) -> int:
        """How many sessions we have."""
        return int(await self.value(f"SELECT count(*) {OURS}"))

    async def until_sessions(self, wanted: int) -> None:
        await self.until(f"SELECT count(*) {OURS}", wanted)

    async def until_idle(self) -> None:
        """Until no session of ours runs a query or is in a transaction."""
        await self.until(f"SELECT count(*) {OURS} AND state <> 'idle'", 0)

    async def until_running(self, fragment: str, count: int = 1) -> None:
        """Until `count` sessions run a query that contains `fragment`."""
        await self.until(
            f"SELECT count(*) {OURS} AND state = 'active' AND position(%s in query) > 0",
            count,
            fragment,
        )

    async def until_blocked(self, count: int = 1) -> None:
        """Until `count` sessions wait for a lock."""
        await self.until(f"SELECT count(*) {OURS} AND wait_event_type = 'Lock'", count)

    async def kill(self, pid: int) -> None:
        """End the session `pid` and wait until it is gone."""
        await self.execute("SELECT pg_terminate_backend(%s)", pid)
        await self.until("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", 0, pid)

    @asynccontextmanager
    async def locked(self, key: int) -> AsyncIterator[None]:
        """Hold an advisory lock for the length of the block (or until `unlock`)."""
        await self.execute("SELECT pg_advisory_lock(%s)", key)
        try:
            yield
        finally:
            await self.unlock()

    async def unlock(self) -> None:
        await self.execute("SELECT pg_advisory_unlock_all()")


@asynccontextmanager
async def server() -> AsyncIterator[Server]:
    async with observer() as client:
        yield Server(client)


async def ran_in_a_context(request: Callable[[], Coroutine[Any, Any, Any]]) -> Callable[[], bool]:
    """Await `request` in a task; what is returned says whether anybody keeps its context."""

    class Value:
        pass

    async def run() -> weakref.ref[Value]:
        value = Value()
        contextvars.ContextVar[Value]("value").set(value)
        await request()
        return weakref.ref(value)

    value = await asyncio.create_task(run())

    def is_kept() -> bool:
        gc.collect()
        return value() is not None

    return is_kept


def options(**pool: Any) -> None:
    """Set options of the default database's pool."""
    connections.settings["default"].setdefault("OPTIONS", {})["pool"] = pool


def the_pool() -> Pool:
    """The running loop's pool of the default database."""
    (pool,) = [pool for pool in open_pools() if pool.alias == "default"]
    return pool


def assert_whole(pool: Pool) -> None:
    """Nothing is in use, nobody waits, and no dead request is left in the queue."""
    stats = pool.stats()
    assert (stats["used"], stats["waiting"]) == (0, 0), pool
    assert stats["size"] == stats["idle"] <= stats["max_size"], pool


@asynccontextmanager
async def occupied(count: int = 1) -> AsyncIterator[None]:
    """Connections of the pool are in use, for the length of the block, by tasks of others."""
    entered, leave = asyncio.Barrier(count + 1), asyncio.Event()

    async def occupy() -> None:
        async with acursor():
            await entered.wait()
            await leave.wait()

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(occupy(), context=contextvars.Context())
        await entered.wait()
        try:
            yield
        finally:
            leave.set()


async def fetch(sql: str, *params: Any) -> Any:
    """The first column of the first row of a query of ours."""
    async with acursor() as cursor:
        await cursor.execute(sql, params or None)
        row = await cursor.fetchone()
        return None if row is None else row[0]


async def backend() -> int:
    """The server process of a connection of ours."""
    return int(await fetch("SELECT pg_backend_pid()"))


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for its end, which must be the cancellation."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled(), f"{task} swallowed its cancellation"


class Heartbeat:
    """Counts the turns of the loop while something else goes on."""

    def __init__(self) -> None:
        self.beats = 0

    async def _beat(self) -> None:
        while True:
            self.beats += 1
            await asyncio.sleep(0)

    async def __aenter__(self) -> Heartbeat:
        self._task = asyncio.create_task(self._beat())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await cancelled(self._task)

    async def more(self, count: int = 20) -> None:
        """Wait for `count` more beats."""
        wanted = self.beats + count
        while self.beats < wanted:  # noqa: ASYNC110
            await asyncio.sleep(0)


def proxy_before(entry: dict[str, Any], listen: int = 0) -> FaultProxy:
    """A proxy before the server of a DATABASES entry; to be entered."""
    return FaultProxy(entry["HOST"], int(entry["PORT"] or 5432), listen=listen)


def outside() -> Any:
    """A plain connection of the driver to the default database, in autocommit: the judge."""
    given = connections.settings["default"]
    engine = given["ENGINE"].rpartition(".")[2]
    if engine == "sqlite3":
        return sqlite3.connect(given["NAME"], isolation_level=None)
    names = {"HOST": "host", "USER": "user", "PASSWORD": "password"}
    params = {name: given[key] for key, name in names.items() if given[key]}
    if given["PORT"]:
        params["port"] = int(given["PORT"])
    if engine == "mysql":
        return pymysql.connect(database=given["NAME"], autocommit=True, **params)
    return psycopg.connect(dbname=given["NAME"], autocommit=True, **params)


def committed(sql: str) -> list[Any]:
    """The first column of a query that the judge asks."""
    with closing(outside()) as judge:
        cursor = judge.cursor()
        cursor.execute(sql)
        return [row[0] for row in cursor.fetchall()]
