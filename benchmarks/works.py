"""The works, each a request and the answer that every subject must give to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CLIENTS = 32
"""Connections that wrk keeps busy."""

ROWS = 1000
KEY = 77
GATHERED_KEYS = (1, 2, 3)

PAUSE = 0.05
"""Seconds that each of the gathered queries takes on the server."""

POOL_SIZE = CLIENTS * len(GATHERED_KEYS)
"""Connections of every pool: with fewer, the gathered queries would measure the pool's size."""

TITLE, AUTHOR, BODY, VIEWS = "Article {}", "Author {}", "Some text. " * 20, 7
"""What the table's rows are made of; the first two take the key."""


@dataclass(frozen=True)
class Work:
    name: str
    title: str
    path: str
    answer: Any
    """The JSON of the answer."""


WORKS = (
    Work("hello", "JSON hello", "/hello", {"message": "hello"}),
    Work(
        "row",
        "one row by key",
        f"/row/{KEY}",
        {
            "id": KEY,
            "title": TITLE.format(KEY),
            "author": AUTHOR.format(KEY),
            "body": BODY,
            "published": True,
            "views": VIEWS,
        },
    ),
    Work(
        "gathered",
        f"three gathered queries of {PAUSE * 1000:.0f} ms",
        "/gathered",
        {"keys": list(GATHERED_KEYS)},
    ),
)
