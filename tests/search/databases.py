"""The two databases of each worker, and the judge: a second connection to each, which blocks."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from tests import services

VENDORS = ("postgresql", "mysql", "sqlite")
ALIASES = ("default", "other")
VARIABLE = "SEARCH_DATABASES"
"""The environment variable that tells a worker its entries of DATABASES, as JSON."""
Entries = dict[str, dict[str, Any]]


@contextmanager
def servers(vendor: str) -> Iterator[Callable[[], Entries]]:
    """Have a server; gives a function that makes two new databases on it, one an alias."""
    with ExitStack() as stack:
        if vendor == "sqlite":
            home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            yield lambda: {alias: _sqlite(home) for alias in ALIASES}
        elif vendor == "mysql":
            server = services.mysql_server()
            yield lambda: {alias: _mysql(server, stack) for alias in ALIASES}
        else:
            url = stack.enter_context(services.postgres_server()).url
            yield lambda: {alias: _postgresql(url, stack) for alias in ALIASES}


def _sqlite(home: Path) -> dict[str, Any]:
    path = home / f"{len(list(home.iterdir()))}.sqlite3"
    with closing(sqlite3.connect(path)) as connection:
        # So that a cursor that is open keeps nobody from committing.
        connection.execute("PRAGMA journal_mode=WAL")
    options = {
        "timeout": 3,
        # What reads first and writes then could not wait for its turn.
        "transaction_mode": "IMMEDIATE",
        "init_command": "PRAGMA synchronous=OFF",
    }
    return {"ENGINE": "nuages.db.backends.sqlite3", "NAME": str(path), "OPTIONS": options}


def _mysql(server: services.MySQLServer, stack: ExitStack) -> dict[str, Any]:
    name = stack.enter_context(services.fresh_mysql_database(server))
    return {"ENGINE": "nuages.db.backends.mysql", "NAME": name, "OPTIONS": {}} | server.settings()


def _postgresql(url: str, stack: ExitStack) -> dict[str, Any]:
    parts = conninfo_to_dict(stack.enter_context(services.fresh_database(url)))
    return {
        "ENGINE": "nuages.db.backends.postgresql",
        "NAME": parts["dbname"],
        "HOST": parts["host"],
        "PORT": parts.get("port", ""),
        "USER": parts["user"],
        "PASSWORD": parts.get("password", ""),
        "OPTIONS": {},
    }


def entries() -> Entries:
    """A worker's own."""
    found: Entries = json.loads(os.environ[VARIABLE])
    return found


class Judge(ABC):
    """One database, asked over a connection that has nothing to do with Nuages."""

    def __init__(self, entry: dict[str, Any]) -> None:
        self.entry = entry
        self.connection = self.connect()

    @abstractmethod
    def connect(self) -> Any:
        """Open it, in autocommit."""

    def rows(self, sql: str, params: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Ask."""
        with closing(self.connection.cursor()) as cursor:
            cursor.execute(sql, params)
            return list(cursor.fetchall())

    def tags(self, mark: str) -> set[str]:
        """The tags of a run that are committed."""
        found = self.rows(
            "SELECT name FROM library_author"
            f" WHERE name >= {self.placeholder} AND name < {self.placeholder}",
            (f"{mark}:", f"{mark};"),
        )
        return {tag for (tag,) in found}

    placeholder = "%s"

    @abstractmethod
    def open_transactions(self) -> list[str]:
        """What is in a transaction, but the judge."""

    def clean(self) -> None:
        """Delete what programs wrote."""
        with closing(self.connection.cursor()) as cursor:
            cursor.execute("DELETE FROM library_author WHERE name NOT LIKE 'seed %'")


class PostgreSQL(Judge):
    def connect(self) -> psycopg.Connection[Any]:
        given = self.entry
        return psycopg.connect(
            host=given["HOST"],
            port=given["PORT"] or None,
            user=given["USER"],
            password=given["PASSWORD"],
            dbname=given["NAME"],
            autocommit=True,
        )

    def open_transactions(self) -> list[str]:
        found = self.rows(
            "SELECT state || ': ' || query FROM pg_stat_activity WHERE datname = %s"
            " AND pid <> pg_backend_pid() AND state <> 'idle'",
            (self.entry["NAME"],),
        )
        return [text for (text,) in found]


_ACTIVE = re.compile(r"^---TRANSACTION \d+, ACTIVE (?:.*\n(?!---))*?M\w+ thread id (\d+)", re.M)
"""Transactions that have begun, in InnoDB's status, with the number of their session."""


class MySQL(Judge):
    def connect(self) -> Any:
        given = self.entry
        server = services.MySQLServer(
            given["HOST"], int(given["PORT"]), given["USER"], given["PASSWORD"]
        )
        return server.connect(given["NAME"])

    def open_transactions(self) -> list[str]:
        """Ask for InnoDB's status: the list in `information_schema` is a copy, made anew only
        where nobody has asked for a tenth of a second.
        """
        sessions = dict(
            self.rows(
                "SELECT id, coalesce(info, '') FROM information_schema.processlist"
                " WHERE db = DATABASE() AND id <> CONNECTION_ID()"
            )
        )
        ((*_, status),) = self.rows("SHOW ENGINE INNODB STATUS")
        active = [int(number) for number in _ACTIVE.findall(status)]
        return [f"{number}: {sessions[number]}" for number in active if number in sessions]


class SQLite(Judge):
    placeholder = "?"

    def connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.entry["NAME"], timeout=0.5, isolation_level=None)

    def open_transactions(self) -> list[str]:
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            self.connection.execute("ROLLBACK")
        except sqlite3.OperationalError as error:
            return [f"the judge cannot write: {error}"]
        return []


def judge(entry: dict[str, Any]) -> Judge:
    """The judge of a database."""
    kinds = {"postgresql": PostgreSQL, "mysql": MySQL, "sqlite3": SQLite}
    return kinds[entry["ENGINE"].rpartition(".")[2]](entry)
