"""The MySQL server's own view of our sessions, for the tests of that backend."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pymysql  # type: ignore[import-untyped]
from django.db import connections

OURS = """
    FROM information_schema.processlist
    WHERE db = DATABASE() AND id <> CONNECTION_ID()
"""


class Observer:
    """Asks the server, over a blocking connection that has nothing to do with Nuages."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def rows(self, sql: str, *params: Any) -> Any:
        with self.client.cursor() as cursor:
            cursor.execute(sql, params or None)
            return cursor.fetchall()

    def value(self, sql: str, *params: Any) -> Any:
        found = self.rows(sql, *params)
        return found[0][0] if found else None

    async def until(
        self, sql: str, wanted: Any, *params: Any, seconds: float = 15.0, pause: float = 0.0
    ) -> None:
        """Poll until the query's value is `wanted`, other tasks running meanwhile."""
        found: Any = None
        try:
            async with asyncio.timeout(seconds):
                while (found := self.value(sql, *params)) != wanted:  # noqa: ASYNC110
                    await asyncio.sleep(pause)
        except TimeoutError:
            raise AssertionError(f"{sql} gave {found!r}, not {wanted!r}") from None

    async def until_sessions(self, wanted: int) -> None:
        await self.until(f"SELECT count(*) {OURS}", wanted)

    async def until_idle(self) -> None:
        """Until no session of ours executes anything."""
        await self.until(f"SELECT count(*) {OURS} AND command <> 'Sleep'", 0)

    async def until_running(self, fragment: str, count: int = 1) -> None:
        running = f"SELECT count(*) {OURS} AND command = 'Query' AND info LIKE %s"
        await self.until(running, count, f"%{fragment}%")

    async def end_all(self) -> None:
        """End what is left: the server notices late that a client is gone while it sleeps."""
        for (number,) in self.rows(f"SELECT id {OURS}"):
            with suppress(pymysql.OperationalError):  # it has ended by itself
                self.rows("KILL %s", number)
        await self.until_sessions(0)

    async def kill(self, number: int) -> None:
        """End a session and wait until it is gone."""
        self.rows("KILL %s", number)
        await self.until(
            "SELECT count(*) FROM information_schema.processlist WHERE id = %s", 0, number
        )

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold a named lock for the length of the block, or until `unlock`."""
        got, holder = self.rows("SELECT GET_LOCK(%s, 0), IS_USED_LOCK(%s)", name, name)[0]
        assert got == 1, f"session {holder} has it"
        try:
            yield
        finally:
            self.unlock()

    def unlock(self) -> None:
        self.value("SELECT RELEASE_ALL_LOCKS()")


@contextmanager
def server() -> Iterator[Observer]:
    given = connections.settings["default"]
    client = pymysql.connect(
        host=given["HOST"],
        port=int(given["PORT"]),
        user=given["USER"],
        password=given["PASSWORD"],
        database=given["NAME"],
        autocommit=True,
    )
    try:
        yield Observer(client)
    finally:
        client.close()
