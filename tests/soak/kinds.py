"""The requests, and what each of them must be answered.

A kind asks and checks. What it writes is noted in the ledger: an acknowledged write must be there
exactly once at the end, with all that belongs to it; one that was not acknowledged wholly, or not
at all.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tests.soak.client import Answer, Client, Leaving
from tests.soak.errors import HOOK_FAILED, is_lost

SQLITE_FILE = "soak.sqlite3"
AUTHORS = 30
EVENTS = 5
BOUNDARY = "between-the-parts-of-an-upload"
ON_PURPOSE = "Failure"
"""The class of what the failing views raise."""
BOOKS = [f"author {number // 2:02}" for number in range(5)]
"""The authors of the first five books: each has two."""


class Wrong(AssertionError):
    """An answer that it must not be."""


class Faulty(Exception):
    """An answer that only a fault of the database explains."""


@dataclass
class Ledger:
    """What was written: keys, by the view that writes them."""

    acknowledged: dict[str, str] = field(default_factory=dict)
    committed: dict[str, str] = field(default_factory=dict)
    """Those of which it was said that they are, and that their hook failed."""
    unknown: dict[str, str] = field(default_factory=dict)


@dataclass
class Visitor:
    """One client, with what it knows from before."""

    client: Client
    random: random.Random
    ledger: Ledger
    name: str
    number: int = 0
    session_count: int | None = None
    """What its session has counted; None where it has none, or left before the answer."""

    def key(self) -> str:
        """A key that nobody else uses."""
        self.number += 1
        return f"{self.name}-{self.number}"


Kind = Callable[[Visitor, Leaving | None], Awaitable[None]]


def _expect(answer: Answer, status: int, body: bytes | None = None) -> Answer:
    if answer.status == 500 and is_lost(answer.body.decode()):
        raise Faulty(answer.body.decode())
    if answer.cut:
        raise Faulty("the answer was cut")
    if answer.status != status or (body is not None and answer.body != body):
        raise Wrong(f"{answer.status} {answer.body[:500]!r}, not {status} {body!r}")
    return answer


def _expect_json(answer: Answer, wanted: Any) -> None:
    _expect(answer, 200)
    try:
        found = json.loads(answer.body)
    except ValueError:
        raise Wrong(f"no JSON: {answer}") from None
    if found != wanted:
        raise Wrong(f"{found!r}, not {wanted!r}")


async def gathered(visitor: Visitor, leaving: Leaving | None) -> None:
    answer = await visitor.client.ask("/gathered/", leaving=leaving)
    _expect_json(answer, {"name": "author 07", "authors": AUTHORS, "books": BOOKS})


async def on_the_loop(visitor: Visitor, leaving: Leaving | None) -> None:
    answer = await visitor.client.ask("/loop/", leaving=leaving)
    _expect_json(answer, {"titles": ["book 006", "book 007"]})


async def in_a_thread(visitor: Visitor, leaving: Leaving | None) -> None:
    answer = await visitor.client.ask("/thread/", leaving=leaving)
    _expect_json(answer, {"titles": ["book 008", "book 009"]})


async def _write(visitor: Visitor, leaving: Leaving | None, view: str) -> None:
    key, ledger = visitor.key(), visitor.ledger
    ledger.unknown[key] = view
    try:
        _expect(await visitor.client.ask(f"/{view}/{key}/", leaving=leaving), 201)
    except Faulty as error:
        if HOOK_FAILED in str(error).split(","):
            ledger.committed[key] = ledger.unknown.pop(key)
        raise
    ledger.acknowledged[key] = ledger.unknown.pop(key)


async def write(visitor: Visitor, leaving: Leaving | None) -> None:
    await _write(visitor, leaving, "write")


async def write_in_tasks(visitor: Visitor, leaving: Leaving | None) -> None:
    await _write(visitor, leaving, "tasks")


async def write_far(visitor: Visitor, leaving: Leaving | None) -> None:
    await _write(visitor, leaving, "far")


async def roll_back(visitor: Visitor, leaving: Leaving | None) -> None:
    answer = await visitor.client.ask(f"/back/{visitor.key()}/", leaving=leaving)
    _expect(answer, 500, ON_PURPOSE.encode())


async def stream(visitor: Visitor, leaving: Leaving | None) -> None:
    lines = "".join(f"author {number:02}\n" for number in range(AUTHORS))
    _expect(await visitor.client.ask("/stream/", leaving=leaving), 200, lines.encode())


async def events(visitor: Visitor, leaving: Leaving | None) -> None:
    answer = _expect(await visitor.client.ask("/events/", leaving=leaving), 200)
    found = [line for line in answer.body.decode().split("\n") if line.startswith("data:")]
    wanted = [f"data: {number} {AUTHORS}" for number in range(EVENTS)]
    if [line.replace("data:", "data: ").replace("  ", " ") for line in found] != wanted:
        raise Wrong(f"{answer.body!r}")


async def upload(visitor: Visitor, leaving: Leaving | None) -> None:
    content = visitor.random.randbytes(visitor.random.choice([1_000, 100_000, 300_000]))
    head = 'Content-Disposition: form-data; name="file"; filename="f"'
    body = f"--{BOUNDARY}\r\n{head}\r\n\r\n".encode() + content
    body += f"\r\n--{BOUNDARY}--\r\n".encode()
    content_type = f"multipart/form-data; boundary={BOUNDARY}"
    answer = await visitor.client.ask(
        "/upload/", body=body, content_type=content_type, leaving=leaving
    )
    digest = hashlib.sha256(content).hexdigest()
    _expect_json(answer, {"sha256": digest, "size": len(content)})


async def log_in(visitor: Visitor, leaving: Leaving | None) -> None:
    # Without the old session, which a client that leaves would not know to be over.
    visitor.client.cookies.clear()
    visitor.session_count = None
    answer = await visitor.client.ask(
        "/login/",
        body=b"name=staff",
        content_type="application/x-www-form-urlencoded",
        leaving=leaving,
    )
    visitor.client.cookies.update(_expect(answer, 204).cookies())
    visitor.session_count = 0


async def count(visitor: Visitor, leaving: Leaving | None) -> None:
    if visitor.session_count is None:
        await log_in(visitor, None)
    before, visitor.session_count = visitor.session_count, None
    assert before is not None
    answer = await visitor.client.ask("/count/", leaving=leaving)
    _expect_json(answer, {"count": before + 1, "user": "staff"})
    visitor.client.cookies.update(answer.cookies())
    visitor.session_count = before + 1


async def admin(visitor: Visitor, leaving: Leaving | None) -> None:
    if visitor.session_count is None:
        await log_in(visitor, None)
    answer = await visitor.client.ask("/admin/library/author/?q=&o=1", leaving=leaving)
    if b"author 29" not in _expect(answer, 200).body:
        raise Wrong("the admin's list without the authors")


async def template(visitor: Visitor, leaving: Leaving | None) -> None:
    answer = _expect(await visitor.client.ask("/template/", leaving=leaving), 200)
    if b"<li>author 00: 2</li>" not in answer.body or b"csrfmiddlewaretoken" not in answer.body:
        raise Wrong(f"{answer.body!r}")


async def cached(visitor: Visitor, leaving: Leaving | None) -> None:
    key = visitor.key()
    answer = await visitor.client.ask(f"/cached/{key}/", leaving=leaving)
    _expect_json(answer, {"found": {"key": key}, "counted": 1, "computed": AUTHORS})


async def fail(visitor: Visitor, leaving: Leaving | None) -> None:
    answer = await visitor.client.ask("/fail/", leaving=leaving)
    _expect(answer, 500, ON_PURPOSE.encode())


async def slow(visitor: Visitor, leaving: Leaving | None) -> None:
    _expect(await visitor.client.ask("/slow/", leaving=leaving), 504)


async def missing(visitor: Visitor, leaving: Leaving | None) -> None:
    _expect(await visitor.client.ask("/nothing/", leaving=leaving), 404)


KINDS: dict[Kind, int] = {
    gathered: 20,
    on_the_loop: 14,
    in_a_thread: 8,
    write: 10,
    write_in_tasks: 5,
    write_far: 4,
    roll_back: 2,
    stream: 3,
    events: 2,
    upload: 2,
    log_in: 1,
    count: 12,
    admin: 1,
    template: 3,
    cached: 20,
    fail: 3,
    slow: 1,
    missing: 12,
}
"""With their weights."""
