"""What goes wrong meanwhile: the server's process, sessions, and the database's server end."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from dataclasses import dataclass, field

from tests.bank.load import CLIENTS
from tests.bank.server import Site
from tests.faults.databases import Database, SQLite

EVERY = 4.0
"""Seconds between two, on average."""
SESSIONS = 4
"""So many are ended at once, at most."""


@dataclass
class Disturbance:
    site: Site
    database: Database
    chance: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    most_hit: int = 0
    """How many requests may have been hit: a session serves one at a time, as a client asks."""

    async def run(self) -> None:
        """Go on until cancelled; what has begun is brought to its end."""
        kinds = {self._terminate: 2, self._kill: 2}
        if not isinstance(self.database, SQLite):
            kinds |= {self._end_sessions: 8, self._restart_database: 1}
        while True:
            await asyncio.sleep(self.chance.expovariate(1 / EVERY))
            self.site.check()
            (kind,) = self.chance.choices(list(kinds), list(kinds.values()))
            task = asyncio.create_task(kind())
            try:
                await asyncio.shield(task)
            finally:
                await task
            self.counts[kind.__name__.strip("_")] += 1

    async def _terminate(self) -> None:
        await self.site.stop(signal.SIGTERM)
        self.site.start()

    async def _kill(self) -> None:
        await self.site.stop(signal.SIGKILL)
        self.site.start()

    async def _end_sessions(self) -> None:
        sessions = await asyncio.to_thread(self.database.sessions)
        for number in self.chance.sample(sessions, min(len(sessions), SESSIONS)):
            self.most_hit += 1
            await asyncio.to_thread(self.database.end_session, number)

    async def _restart_database(self) -> None:
        # Each client once at the end of the old one, and once before the new one answers.
        self.most_hit += 2 * CLIENTS
        await asyncio.to_thread(self.database.server.restart)
