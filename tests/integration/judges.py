"""A judge: a plain connection of the driver's, outside of Django and Nuages."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import psycopg
import pymysql
from django.db import connections


def judge(sql: str, alias: str = "default") -> list[Any]:
    """Return the rows of one query, of what is committed."""
    entry = connections.settings[alias]
    engine = entry["ENGINE"].rpartition(".")[2]
    made: Any
    if engine == "sqlite3":
        made = sqlite3.connect(entry["NAME"])
    elif engine == "mysql":
        made = pymysql.connect(
            host=entry.get("HOST") or "127.0.0.1",
            port=int(entry.get("PORT") or 3306),
            user=entry["USER"],
            password=entry.get("PASSWORD") or "",
            database=entry["NAME"],
        )
    else:
        made = psycopg.connect(
            host=entry["HOST"],
            port=entry["PORT"] or None,
            user=entry["USER"],
            password=entry["PASSWORD"],
            dbname=entry["NAME"],
        )
    with closing(made), closing(made.cursor()) as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall())
