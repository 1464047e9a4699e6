"""Clients that ask for transfers, and what they were told."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

from tests.bank.verdict import ACCOUNTS, Asked, Ledger
from tests.soak.client import Answer, Client, Leaving, Left
from tests.soak.errors import HOOK_FAILED, is_lost

CLIENTS = 16
LEAVE = 0.08
"""How many requests are left before their answer, of one."""
MOST_WRONG = 40
STREAMED = b"begun done"
GIVEN = 409
"""The answer of a view that gave up."""
REFUSED = 503
"""The answer where no connection of the pool came free."""


@dataclass
class Load:
    port: int
    styles: list[str]
    seed: int
    may_fail: bool
    """Whether connections to the database are lost meanwhile."""
    ledger: Ledger = field(default_factory=Ledger)
    left: int = 0
    cut: int = 0
    given: int = 0
    refused: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """Answers with errors of a lost connection."""
    wrong: list[str] = field(default_factory=list)
    _stop: bool = False

    async def run(self, seconds: float) -> None:
        """Ask for so long."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(CLIENTS):
                tasks.create_task(self._visit(number))
            await asyncio.sleep(seconds)
            self._stop = True

    async def _visit(self, number: int) -> None:
        chance = random.Random(f"{self.seed} {number}")
        client = Client(self.port)
        count = 0
        while not self._stop and len(self.wrong) < MOST_WRONG:
            count += 1
            await self._ask(client, chance, f"{number}-{count}")
        client.leave()

    async def _ask(self, client: Client, chance: random.Random, key: str) -> None:
        source, target = chance.sample(range(ACCOUNTS), 2)
        asked = Asked(chance.choice(self.styles), source, target, chance.randint(1, 500))
        self.ledger.asked[key] = asked
        leaving = None
        if chance.random() < LEAVE:
            leaving = Leaving(chance.random() ** 3 * 0.1)
        path = f"/{asked.style}/{key}/{source}/{target}/{asked.amount}/"
        try:
            answer = await client.ask(path, leaving=leaving)
        except Left:
            self.left += 1
        except (OSError, EOFError):
            # The server's process went away; the next one is on its way.
            self.cut += 1
            client.leave()
        else:
            self._told(key, asked, answer)

    def _told(self, key: str, asked: Asked, answer: Answer) -> None:
        if answer.status == 201 and not answer.cut:
            if asked.style == "stream" and answer.body != STREAMED:
                self.wrong.append(f"the stream of {key} ended with {answer.body!r}")
                return
            self.ledger.acknowledged.add(key)
        elif answer.cut:
            self.cut += 1
        elif answer.status == GIVEN:
            self.given += 1
        elif answer.status == REFUSED:
            self.refused += 1
        elif self.may_fail and answer.status == 500 and is_lost(answer.body.decode()):
            self.failed[f"{answer.body.decode()} of {asked.style}"] += 1
            if HOOK_FAILED in answer.body.decode().split(","):
                self.ledger.committed.add(key)
        else:
            self.wrong.append(f"{asked.style} {key}: {answer.status} {answer.body[:300]!r}")
