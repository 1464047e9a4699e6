"""Caches that block are handed to a thread; the local-memory and database ones run on the loop."""

from __future__ import annotations

from nuages.seams.handoff import family
from nuages.seams.table import Seam


def seams() -> list[Seam]:
    """Return this area's seams."""
    return [
        family(
            "django.core.cache.backends.base:BaseCache",
            (
                *("add", "get", "set", "touch", "delete", "has_key", "incr", "decr", "clear"),
                *("get_many", "set_many", "delete_many"),
            ),
            "Files, memcached, Redis and the caches of users block. close() is not among them: "
            "it runs at the end of every request, to put a connection away at most.",
            (f"django.core.cache.backends.{name}" for name in ("locmem", "dummy", "db")),
        )
    ]
