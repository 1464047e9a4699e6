"""Interleaved requests of many users: never another's session, language, zone, row or message.

`make test` plays a part of the 10,000 requests that `NUAGES_ISOLATION=10000` plays.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import os
import random
import zoneinfo
from collections.abc import Iterator

import pytest
from django.contrib.auth import get_user_model
from django.test import override_settings
from django.utils import translation

from nuages.asgi import get_asgi_application
from nuages.db.pool.pool import open_pools
from tests.integration import asgi_tools
from tests.integration.asgi_tools import Exchange
from tests.integration.conftest import Run
from tests.integration.full_site import log_in
from tests.integration.isolation_site import LANGUAGES, NOON, SITE, ZONES
from tests.integration.pool_tools import assert_whole, options
from tests.library.models import Author, Book

USERS = 50
IN_FLIGHT = 200
# The time limit is for a hang; the full number takes longer than that on a busy machine.
pytestmark = [pytest.mark.both_loops, pytest.mark.timeout(600)]
REQUESTS = int(os.environ.get("NUAGES_ISOLATION", "800"))
KINDS = ["native", "loop", "threaded", "class", "atomic", "session"]
WEIGHTS = [4, 4, 1, 4, 4, 2]


@pytest.fixture(autouse=True)
def _site(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # With so many in flight each takes long on a busy machine.
    monkeypatch.setattr(asgi_tools, "PATIENCE", 300.0)
    logging.disable(logging.CRITICAL)  # the views that raise on purpose
    with override_settings(**SITE):
        yield
    logging.disable(logging.NOTSET)


class Visitor:
    """One of the users: what every answer to it must say."""

    def __init__(self, index: int) -> None:
        self.name = f"user{index:02}"
        user = get_user_model().objects.create(
            username=self.name, password="!", last_name=str(index)
        )
        Author.objects.create(name=self.name)
        self.cookies = {"sessionid": log_in(user)}
        self.language = LANGUAGES[index // len(ZONES) % len(LANGUAGES)]
        self.zone = ZONES[index % len(ZONES)]
        with translation.override(self.language):
            self.yes = translation.gettext("Yes")
        noon: datetime.datetime = NOON.astimezone(zoneinfo.ZoneInfo(self.zone))
        self.noon = noon.strftime("%H:%M")

    def headers(self) -> list[tuple[bytes, bytes]]:
        cookies = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        return [
            (b"cookie", cookies.encode()),
            (b"accept-language", self.language.encode()),
        ]

    def check(self, text: str, number: str) -> None:
        said, messages = text.rsplit("|", 1)
        wanted = [self.name, self.language, self.yes, self.zone, self.noon, number, self.name]
        assert said.split("|") == wanted
        # Others of the same user may have left theirs to be shown, nobody else.
        assert f"{self.name}:{number};" in messages
        for message in messages.split(";")[:-1]:
            assert message.startswith(f"{self.name}:"), messages


class Crowd:
    """Plays the requests and remembers what the answers said."""

    def __init__(self, visitors: list[Visitor], seed: int) -> None:
        self.visitors = visitors
        self.random = random.Random(seed)
        self.application = get_asgi_application()
        self.committed: set[tuple[str, str]] = set()
        self.unknown: set[tuple[str, str]] = set()
        """Of requests whose client left: committed or not."""
        self.statuses: dict[int | str, int] = {}
        self.flying = self.most = 0

    async def play(self, count: int, in_flight: int) -> None:
        numbers = iter(range(count))

        async def worker() -> None:
            for number in numbers:
                self.flying += 1
                self.most = max(self.most, self.flying)
                await self.request(f"row {number}")
                self.flying -= 1

        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(worker())

    async def request(self, number: str) -> None:
        visitor = self.random.choice(self.visitors)
        (kind,) = self.random.choices(KINDS, WEIGHTS)
        fails = self.random.random() < 0.1
        leaves = self.random.randrange(1, 60) if self.random.random() < 0.1 else None
        headers = [*visitor.headers(), (b"x-number", number.encode())]
        if fails:
            headers.append((b"x-fail", b"1"))
        method = "GET" if kind == "session" else "POST"
        playing = Exchange(self.application, f"/{kind}/", method=method, headers=headers)
        if leaves is None:
            await playing()
        else:
            task = asyncio.create_task(playing())
            for _ in range(leaves):
                await asyncio.sleep(0)
            playing.disconnect()
            await task
        self.note(playing, visitor, kind, number, fails)

    def note(
        self, playing: Exchange, visitor: Visitor, kind: str, number: str, fails: bool
    ) -> None:
        row = (visitor.name, number)
        status: int | str = playing.status if playing.complete else "left"
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if not playing.complete:
            assert playing.disconnected
            if kind != "session" and not fails:
                self.unknown.add(row)
        elif kind == "session":
            said = f'{{"user": "{visitor.name}", "last": "{visitor.name}"}}'
            assert (playing.status, playing.text) == (200, said), playing
        elif fails:
            assert playing.status == 500, playing
        else:
            assert playing.status == 200, playing
            visitor.check(playing.text, number)
            self.committed.add(row)


def test_requests_see_nothing_of_each_other(
    database: str, run: Run, request: pytest.FixtureRequest
) -> None:
    """All on PostgreSQL and uvloop, a tenth in asyncio's debug mode and on SQLite."""
    whole = database == "postgresql" and request.node.callspec.params["run"] == "uvloop"
    count, in_flight = (REQUESTS, IN_FLIGHT) if whole else (max(REQUESTS // 10, 300), 50)
    visitors = [Visitor(index) for index in range(USERS)]
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    crowd = Crowd(visitors, seed)

    async def main() -> None:
        await crowd.play(count, in_flight)
        for pool in open_pools():
            assert_whole(pool)

    options(max_size=20, timeout=60)
    run(main)
    assert crowd.most == min(count, in_flight)
    rows = {(book.author.name, book.title) for book in Book.objects.select_related("author")}
    assert Book.objects.count() == len(rows)
    assert crowd.committed <= rows
    assert rows - crowd.committed <= crowd.unknown
    statuses = crowd.statuses
    assert statuses[200] > count / 2, statuses
    assert statuses[500] > 0, statuses
    assert statuses["left"] > 0, statuses
