"""What goes wrong meanwhile: database sessions that are ended, and connections that are cut."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from nuages.test import FaultProxy
from tests.soak.databases import Database

KILLS_EVERY = 3.0
CUTS_EVERY = 11.0
"""Seconds, on average."""


@dataclass
class Faults:
    """Makes them, and counts how many requests they may have hit."""

    database: Database
    proxy: FaultProxy
    random: random.Random
    times: float
    """How many times more often than usual."""
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
        while True:
            await self._pause(KILLS_EVERY)
            self.ended += await asyncio.to_thread(self.database.end_one)

    async def _cut(self) -> None:
        while True:
            await self._pause(CUTS_EVERY)
            self.cuts += 1
            self.cut += self.proxy.cut()

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(self.random.expovariate(self.times / seconds))
