"""The databases that a soak can run on: where they are, who is in them, and what is there."""

from __future__ import annotations

import sqlite3
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from tests import services
from tests.soak.kinds import SQLITE_FILE

VENDORS = ("postgresql", "mysql", "sqlite")
_TAGS = "SELECT name, count(*) FROM library_tag GROUP BY name"


class Database(ABC):
    """An empty database of its own; asked over a connection of its own, which blocks."""

    entry: dict[str, Any]
    """Of Django's DATABASES, without options."""

    @abstractmethod
    def end_one(self) -> int:
        """End a session at random, but this one; return how many were ended."""

    @abstractmethod
    def tags(self) -> dict[str, int]:
        """Return how often each name is there."""


class PostgreSQL(Database):
    def __init__(self, url: str) -> None:
        parts = conninfo_to_dict(url)
        self.entry = {
            "ENGINE": "nuages.db.backends.postgresql",
            "NAME": parts["dbname"],
            "HOST": parts["host"],
            "PORT": parts["port"],
            "USER": parts["user"],
            "PASSWORD": parts.get("password", ""),
        }
        self._connection = psycopg.connect(url, autocommit=True)

    def end_one(self) -> int:
        found = self._connection.execute("""
            SELECT count(pg_terminate_backend(pid)) FROM (
                SELECT pid FROM pg_stat_activity
                WHERE datname = current_database() AND backend_type = 'client backend'
                  AND pid <> pg_backend_pid()
                ORDER BY random() LIMIT 1
            ) AS one
        """).fetchone()
        assert found is not None
        return int(found[0])

    def tags(self) -> dict[str, int]:
        return dict(self._connection.execute(_TAGS).fetchall())

    def close(self) -> None:
        self._connection.close()


class MySQL(Database):
    def __init__(self, server: services.MySQLServer, name: str) -> None:
        self.entry = {
            "ENGINE": "nuages.db.backends.mysql",
            "NAME": name,
            "HOST": server.host,
            "PORT": str(server.port),
            "USER": server.user,
            "PASSWORD": server.password,
        }
        self._connection = server.connect(name)

    def end_one(self) -> int:
        with self._connection.cursor() as cursor:
            cursor.execute(
                "SELECT id FROM information_schema.processlist"
                " WHERE db = DATABASE() AND id <> CONNECTION_ID() ORDER BY RAND() LIMIT 1"
            )
            found = cursor.fetchone()
            if found is None:
                return 0
            try:
                cursor.execute(f"KILL {found[0]}")
            except self._connection.OperationalError as error:
                if error.args[0] != _NO_SUCH_THREAD:
                    raise
                return 0
            return 1

    def tags(self) -> dict[str, int]:
        with self._connection.cursor() as cursor:
            cursor.execute(_TAGS)
            return dict(cursor.fetchall())

    def close(self) -> None:
        self._connection.close()


class SQLite(Database):
    """A file: there are no sessions that could be ended, and nothing that could be cut."""

    def __init__(self, path: Path) -> None:
        self.entry = {"ENGINE": "nuages.db.backends.sqlite3", "NAME": str(path)}
        self._path = path

    def end_one(self) -> int:
        return 0

    def tags(self) -> dict[str, int]:
        with closing(sqlite3.connect(self._path)) as connection:
            return dict(connection.execute(_TAGS).fetchall())


_NO_SUCH_THREAD = 1094


@contextmanager
def fresh(vendor: str) -> Iterator[Database]:
    """An empty database of one of the VENDORS: of a PostgreSQL that is started for it, of the
    MySQL that is there, or a file.

    Raises `services.NotAnswering` where no MySQL is.
    """
    if vendor == "sqlite":
        with tempfile.TemporaryDirectory() as home:
            yield SQLite(Path(home) / SQLITE_FILE)
        return
    if vendor == "mysql":
        server = services.mysql_server()
        with services.fresh_mysql_database(server) as name:
            mysql = MySQL(server, name)
            try:
                yield mysql
            finally:
                mysql.close()
        return
    with services.postgres_server() as postgres, services.fresh_database(postgres.url) as url:
        postgresql = PostgreSQL(url)
        try:
            yield postgresql
        finally:
            postgresql.close()
