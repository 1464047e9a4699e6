"""What is committed, asked over a connection that has nothing to do with Nuages."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import psycopg
import pymysql  # type: ignore[import-untyped]
from django.db import connections

QUERY = "SELECT name FROM library_author ORDER BY name"


def committed() -> list[str]:
    """Return the names of all authors that another session sees, in order."""
    given = connections.settings["default"]
    with closing(_connect(given)) as session, closing(session.cursor()) as cursor:
        cursor.execute(QUERY)
        return [name for (name,) in cursor.fetchall()]


def _connect(given: dict[str, Any]) -> Any:
    if given["ENGINE"].endswith("sqlite3"):
        return sqlite3.connect(given["NAME"])
    port = int(given["PORT"]) if given.get("PORT") else 0
    if given["ENGINE"].endswith("mysql"):
        return pymysql.connect(
            host=given["HOST"],
            port=port,
            user=given["USER"],
            password=given["PASSWORD"],
            database=given["NAME"],
        )
    return psycopg.connect(
        host=given["HOST"],
        port=port or None,
        user=given["USER"],
        password=given["PASSWORD"],
        dbname=given["NAME"],
    )
