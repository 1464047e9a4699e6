"""Gathered queries run at the same time: the server says so, and of stock Django it says not."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from typing import Any

import psycopg
import pytest
from django.contrib.contenttypes.models import ContentType
from django.db import connections
from django.db.models import Func, IntegerField, QuerySet, TextField

from nuages.db import aatomic
from tests.integration.conftest import Run
from tests.integration.scope_tools import observer

pytestmark = pytest.mark.both_loops

LOCK = 4711
WAITING = """
    SELECT count(*), count(DISTINCT pid) FROM pg_locks
    WHERE locktype = 'advisory' AND objid = %s AND NOT granted
"""

# The same scenario on Django's own backend: an async view's three gathered queries.
STOCK = """
import asyncio, json, sys
import django
from django.conf import settings

entry = json.loads(sys.argv[1])
settings.configure(DATABASES={"default": entry}, INSTALLED_APPS=["django.contrib.contenttypes"])
django.setup()
from django.contrib.contenttypes.models import ContentType
from django.db.models import Func, IntegerField, TextField

def waiting_query():
    locked = Func(4711, function="pg_advisory_xact_lock_shared", output_field=TextField())
    pid = Func(function="pg_backend_pid", output_field=IntegerField())
    return ContentType.objects.annotate(locked=locked, pid=pid).values_list("locked", "pid")

async def main():
    tasks = [asyncio.create_task(waiting_query().afirst()) for _ in range(3)]
    print("started", flush=True)
    await asyncio.gather(*tasks)

asyncio.run(main())
"""


def waiting_query() -> QuerySet[Any, Any]:
    """Waits on the server for the advisory lock; the same query as in STOCK."""
    locked = Func(LOCK, function="pg_advisory_xact_lock_shared", output_field=TextField())
    pid = Func(function="pg_backend_pid", output_field=IntegerField())
    return ContentType.objects.annotate(locked=locked, pid=pid).values_list("locked", "pid")


async def _most_waiting(client: psycopg.AsyncConnection[Any], wanted: int) -> int:
    """Poll until `wanted` sessions wait, or as many as there are have waited for a while."""
    most = 0
    async with asyncio.timeout(20):
        polls_since_first = 0
        while most < wanted and polls_since_first < 300:
            row = await (await client.execute(WAITING, [LOCK])).fetchone()
            assert row is not None
            assert row[0] == row[1], "one session waits twice"
            most = max(most, row[1])
            polls_since_first += most > 0
    return most


def test_three_gathered_queries_wait_on_one_lock_at_the_same_time(
    postgresql: dict[str, Any], run: Run
) -> None:
    async def main() -> None:
        async with observer() as client:
            await client.execute("SELECT pg_advisory_lock(%s)", [LOCK])
            tasks = [asyncio.create_task(waiting_query().afirst()) for _ in range(3)]
            assert await _most_waiting(client, 3) == 3
            assert not any(task.done() for task in tasks)
            await client.execute("SELECT pg_advisory_unlock(%s)", [LOCK])
            assert len({pid for _, pid in await asyncio.gather(*tasks)}) == 3

    run(main)


def test_in_a_transaction_gathered_queries_wait_one_after_another(
    postgresql: dict[str, Any], run: Run
) -> None:
    """The counterpart: one transaction is one session, whoever works in it."""

    async def main() -> None:
        async with observer() as client:
            await client.execute("SELECT pg_advisory_lock(%s)", [LOCK])
            async with aatomic():
                tasks = [asyncio.create_task(waiting_query().afirst()) for _ in range(3)]
                assert await _most_waiting(client, 3) == 1
                await client.execute("SELECT pg_advisory_unlock(%s)", [LOCK])
                assert len({pid for _, pid in await asyncio.gather(*tasks)}) == 1

    run(main)


def test_stock_django_has_only_one_waiting(postgresql: dict[str, Any]) -> None:
    """Its gathered queries go to one thread and one connection, one after another."""
    given = connections.settings["default"]
    entry = {key: given[key] for key in ("NAME", "HOST", "PORT", "USER", "PASSWORD")}
    entry["ENGINE"] = "django.db.backends.postgresql"

    async def main() -> None:
        async with observer() as client:
            await client.execute("SELECT pg_advisory_lock(%s)", [LOCK])
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                STOCK,
                json.dumps(entry),
                stdout=subprocess.PIPE,
                env={**os.environ, "DJANGO_SETTINGS_MODULE": ""},
            )
            try:
                assert process.stdout is not None
                assert await process.stdout.readline() == b"started\n"
                assert await _most_waiting(client, 3) == 1
                await client.execute("SELECT pg_advisory_unlock(%s)", [LOCK])
                assert await asyncio.wait_for(process.wait(), 30) == 0
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()

    asyncio.run(main())
