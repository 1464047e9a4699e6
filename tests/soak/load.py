"""Who asks what: a bounded number of clients, each with a random sequence of its own."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.soak.client import Client, Leaving, Left
from tests.soak.kinds import KINDS, Faulty, Ledger, Visitor, Wrong

CLIENTS = 16
LEAVE = 0.06
"""How many requests are left before the answer, of one."""
SAMPLE_EVERY = (2.0, 5.0)
"""Seconds between two looks at the server, in a short and a long run: each costs a collection."""
MOST_WRONG = 20


@dataclass
class Load:
    port: int
    seed: int
    ledger: Ledger = field(default_factory=Ledger)
    counts: Counter[str] = field(default_factory=Counter)
    """Requests by kind."""
    requests: int = 0
    left: int = 0
    faulty: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    _stop: bool = False
    _round: int = 0

    async def run(self, requests: int, seconds: float) -> None:
        """Ask until so many requests were made and so many seconds have gone by."""
        self._round += 1
        self._stop = False
        begin = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for number in range(CLIENTS):
                tasks.create_task(self._visit(f"{self._round}-{number}"))
            while self.requests < requests or time.monotonic() - begin < seconds:
                await asyncio.sleep(0.1)
                if self.wrong:
                    break
            self._stop = True

    async def _visit(self, name: str) -> None:
        chance = random.Random(f"{self.seed} {name}")
        visitor = Visitor(Client(self.port), chance, self.ledger, name)
        kinds, weights = list(KINDS), list(KINDS.values())
        while not self._stop and len(self.wrong) < MOST_WRONG:
            (kind,) = chance.choices(kinds, weights)
            leaving = None
            if chance.random() < LEAVE:
                sent = chance.random() if chance.random() < 0.2 else 1.0
                leaving = Leaving(chance.random() ** 3 * 0.2, sent)
            try:
                await kind(visitor, leaving)
            except Left:
                self.left += 1
            except Faulty as error:
                self.faulty[f"{kind.__name__}: {error}"] += 1
            except (Wrong, OSError, EOFError, TimeoutError, asyncio.LimitOverrunError) as error:
                text = f"{kind.__name__}: {type(error).__name__}: {error}"
                self.wrong.append(f"{text}, after {list(visitor.client.asked)}")
            self.requests += 1
            self.counts[kind.__name__] += 1
        visitor.client.leave()

    async def sample(self, *, long: bool) -> None:
        """Measure now and then, until cancelled."""
        client = Client(self.port)
        try:
            while True:
                self.samples.append(await measure(client) | {"requests": self.requests})
                client.leave()
                await asyncio.sleep(SAMPLE_EVERY[long])
        finally:
            client.leave()


async def measure(client: Client) -> dict[str, Any]:
    """Ask the server what it says of itself."""
    answer = await client.ask("/measured/")
    if answer.status != 200:
        raise AssertionError(f"{answer.status} {answer.body[:500]!r}")
    found: dict[str, Any] = json.loads(answer.body)
    return found
