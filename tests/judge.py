"""A judge: a second, plain connection that tells what is committed.

It is the driver's own, outside of Django and of Nuages, and new for every question.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import psycopg
import pymysql
from django.db import connections


def connect(alias: str = "default") -> Any:
    """Open a plain connection of the driver to the database that `alias` names."""
    given = connections.settings[alias]
    engine = given["ENGINE"].rpartition(".")[2]
    if engine == "postgresql":
        return psycopg.connect(
            host=given["HOST"],
            port=given["PORT"] or None,
            user=given["USER"],
            password=given["PASSWORD"],
            dbname=given["NAME"],
            autocommit=True,
        )
    if engine == "mysql":
        return pymysql.connect(
            host=given["HOST"],
            port=int(given["PORT"]),
            user=given["USER"],
            password=given["PASSWORD"],
            database=given["NAME"],
            autocommit=True,
        )
    assert engine == "sqlite3", engine
    return sqlite3.connect(given["NAME"], timeout=20.0, isolation_level=None)


def rows(sql: str, alias: str = "default") -> list[Any]:
    """Return the rows that `sql` gives to somebody who has nothing to do with us."""
    with closing(connect(alias)) as connection, closing(connection.cursor()) as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall())


def authors() -> list[str]:
    """Return the names of the authors that are committed, in order of the alphabet."""
    return sorted(name for (name,) in rows("SELECT name FROM library_author"))
