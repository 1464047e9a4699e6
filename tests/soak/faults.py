"""What goes wrong meanwhile: database sessions that are ended, and connections that are cut."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

import psycopg

from nuages.test import FaultProxy

_END_ONE = """
    SELECT count(pg_terminate_backend(pid)) FROM (
        SELECT pid FROM pg_stat_activity
        WHERE datname = current_database() AND backend_type = 'client backend'
          AND pid <> pg_backend_pid()
        ORDER BY random() LIMIT 1
    ) AS one
"""
KILLS_EVERY = 3.0
CUTS_EVERY = 11.0
"""Seconds, on average."""


@dataclass
class Faults:
    """Makes them, and counts how many requests they may have hit."""

    database: str
    proxy: FaultProxy
    random: random.Random
    ended: int = 0
    cuts: int = 0
    cut: int = 0
    """How many connections were cut."""

    @property
    def most_hit(self) -> int:
        """A session serves one request at a time, so a fault hits no more than one for each."""
        return self.ended + self.cut

    async def run(self) -> None:
        """Go on until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._end_sessions())
            tasks.create_task(self._cut())

    async def _end_sessions(self) -> None:
        async with await psycopg.AsyncConnection.connect(self.database, autocommit=True) as server:
            while True:
                await asyncio.sleep(self.random.expovariate(1 / KILLS_EVERY))
                cursor = await server.execute(_END_ONE)
                row = await cursor.fetchone()
                assert row is not None
                self.ended += row[0]

    async def _cut(self) -> None:
        while True:
            await asyncio.sleep(self.random.expovariate(1 / CUTS_EVERY))
            self.cuts += 1
            self.cut += self.proxy.cut()
