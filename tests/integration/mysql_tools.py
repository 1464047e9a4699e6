"""The MySQL server's own view of our sessions, for the tests of that backend."""

from __future__ import annotations

import asyncio
import re
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

    async def until(self, sql: str, wanted: Any, *params: Any, seconds: float = 15.0) -> None:
        """Poll until the query's value is `wanted`, other tasks running meanwhile."""
        found: Any = None
        try:
            async with asyncio.timeout(seconds):
                while (found := self.value(sql, *params)) != wanted:  # noqa: ASYNC110
                    await asyncio.sleep(0)
        except TimeoutError:
            raise AssertionError(f"{sql} gave {found!r}, not {wanted!r}") from None

    async def until_sessions(self, wanted: int) -> None:
        await self.until(f"SELECT count(*) {OURS}", wanted)

    async def until_idle(self) -> None:
        """Until no session of ours executes anything."""
        await self.until(f"SELECT count(*) {OURS} AND command <> 'Sleep'", 0)

    async def until_none_open(self) -> None:
        """Until no session of ours has a transaction open.

        INNODB_TRX would be shorter, but shows what it showed before to whoever asks within a tenth
        of a second after anybody else.
        """
        left: set[int] = set()
        try:
            async with asyncio.timeout(15.0):
                while left := self._in_transaction():  # noqa: ASYNC110
                    await asyncio.sleep(0)
        except TimeoutError:
            raise AssertionError(f"sessions {left} are in a transaction") from None

    def _in_transaction(self) -> set[int]:
        ((_, _, status),) = self.rows("SHOW ENGINE INNODB STATUS")
        _, found, listed = status.partition("LIST OF TRANSACTIONS FOR EACH SESSION:")
        assert found, status
        open_ = {
            int(match[1])
            for each in listed.split("---TRANSACTION ")
            if (
                match := re.match(
                    r"[^\n]*, ACTIVE.*?(?:MySQL|MariaDB) thread id (\d+)", each, re.S
                )
            )
        }
        return open_ & {number for (number,) in self.rows(f"SELECT id {OURS}")}

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
