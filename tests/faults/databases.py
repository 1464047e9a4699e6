"""The databases that faults are tried on: where they are, and what their servers see of us.

The views are the test's own, by the drivers as they are, straight to the server: what is read
there was committed, whatever anybody was told.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pymysql  # type: ignore[import-untyped]
from django.db import connections

from tests.faults.servers import Server, connect_to_mariadb, connect_to_postgres

NAME = "faults"


class Database:
    """One kind of database; `server` is None where there is none."""

    name: str
    path: Path
    """Of a file."""
    sleep: str
    """A query that takes a minute."""
    commit: bytes
    """What a COMMIT on its way can be told by."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def up(self) -> None:
        """Start the server if a test has left it down, so that only that one fails."""
        if not self.server.is_running():
            self.server.start()

    def entry(self) -> dict[str, Any]:
        """The server's entry of DATABASES, straight to it."""
        raise NotImplementedError

    def address(self) -> tuple[str, int] | None:
        """Where the server is that may be reached through a proxy."""
        return "127.0.0.1", self.server.port

    def through(self, port: int) -> None:
        """From now on, reach it at that port."""
        connections.settings["default"]["PORT"] = str(port)

    def create(self) -> None:
        """Create the database."""

    def connect(self) -> Any:
        """A connection of the test's own, in autocommit."""
        raise NotImplementedError

    @contextmanager
    def client(self) -> Iterator[Any]:
        """A cursor of the test's own."""
        with closing(self.connect()) as connection, closing(connection.cursor()) as cursor:
            yield cursor

    def rows(self, sql: str, *params: Any) -> list[tuple[Any, ...]]:
        with self.client() as cursor:
            cursor.execute(sql, params)
            return list(cursor.fetchall()) if cursor.description else []

    def committed(self) -> Counter[str]:
        """How often each name is in the table."""
        return Counter(name for (name,) in self.rows("SELECT name FROM library_tag"))

    def sessions(self, fragment: str = "") -> list[int]:
        """The numbers of our sessions, of those whose statement contains `fragment`."""
        raise NotImplementedError

    def end_session(self, number: int) -> None:
        """End a session of ours, as an administrator does."""
        raise NotImplementedError

    async def until_running(self, fragment: str, count: int = 1) -> list[int]:
        """Wait until `count` sessions execute what contains `fragment`; their numbers."""
        async with asyncio.timeout(20):
            while len(found := self.sessions(fragment)) != count:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        return found

    async def until_there(self, name: str) -> None:
        """Wait until a row with that name is committed."""
        async with asyncio.timeout(20):
            while not self.committed()[name]:  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    def end_all(self) -> None:
        """End what is left of ours."""
        for number in self.sessions():
            self.end_session(number)


class Postgres(Database):
    name = "postgresql"
    sleep = "SELECT pg_sleep(60)"
    commit = b"COMMIT\0"

    def entry(self) -> dict[str, Any]:
        return {
            "ENGINE": "nuages.db.backends.postgresql",
            "NAME": NAME,
            "HOST": "127.0.0.1",
            "PORT": str(self.server.port),
            "USER": "postgres",
            "PASSWORD": "",
        }

    def create(self) -> None:
        with connect_to_postgres(self.server.port) as client:
            client.execute(f"CREATE DATABASE {NAME}")

    def connect(self) -> psycopg.Connection[Any]:
        return connect_to_postgres(self.server.port, NAME)

    def sessions(self, fragment: str = "") -> list[int]:
        found = self.rows(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid() AND backend_type = 'client backend' "
            "AND (%s = '' OR state = 'active' AND position(%s in query) > 0)",
            fragment,
            fragment,
        )
        return [pid for (pid,) in found]

    def end_session(self, number: int) -> None:
        self.rows("SELECT pg_terminate_backend(%s)", number)


class MariaDB(Database):
    name = "mysql"
    sleep = "SELECT SLEEP(60)"
    commit = b"\3COMMIT"

    def entry(self) -> dict[str, Any]:
        return {
            "ENGINE": "nuages.db.backends.mysql",
            "NAME": NAME,
            "HOST": "127.0.0.1",
            "PORT": str(self.server.port),
            "USER": "root",
            "PASSWORD": "",
        }

    def create(self) -> None:
        with closing(connect_to_mariadb(self.server.port)) as client:
            client.cursor().execute(f"CREATE DATABASE {NAME} CHARACTER SET utf8mb4")

    def connect(self) -> Any:
        return connect_to_mariadb(self.server.port, NAME)

    def sessions(self, fragment: str = "") -> list[int]:
        found = self.rows(
            "SELECT id FROM information_schema.processlist WHERE db = DATABASE() "
            "AND id <> CONNECTION_ID() AND (%s = '' OR command = 'Query' AND info LIKE %s)",
            fragment,
            f"%{fragment}%",
        )
        return [number for (number,) in found]

    def end_session(self, number: int) -> None:
        with suppress(pymysql.OperationalError):  # it has ended by itself
            self.rows("KILL %s", number)


class SQLite(Database):
    name = "sqlite"

    def __init__(self, path: Path) -> None:
        self.path = path

    def entry(self) -> dict[str, Any]:
        return {"ENGINE": "nuages.db.backends.sqlite3", "NAME": str(self.path)}

    def connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=10, isolation_level=None)

    def address(self) -> None:
        """There is no server."""

    def up(self) -> None:
        """There is none."""

    def end_all(self) -> None:
        """There are no sessions."""


class Cache(SQLite):
    """A Valkey beside a file: the fault is the cache's, the rows are the file's."""

    name = "redis"
    url: str

    def __init__(self, path: Path, server: Server) -> None:
        super().__init__(path)
        self.server = server

    def address(self) -> tuple[str, int]:  # type: ignore[override]
        return "127.0.0.1", self.server.port

    def through(self, port: int) -> None:
        self.url = f"redis://127.0.0.1:{port}"

    def up(self) -> None:
        Database.up(self)
