"""Which cores the measured server runs on, and which everything else.

The server has one core for itself, wrk and PostgreSQL share the rest, so that neither the
scheduler's choices nor the load's own cost are part of what is measured. Where a process cannot be
placed (one core, or a system other than Linux), nothing is, and the report says so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    server: frozenset[int] = frozenset()
    others: frozenset[int] = frozenset()
    """Both are empty where nothing is placed."""

    def __str__(self) -> str:
        if not self.server:
            return "server, wrk and PostgreSQL wherever the system puts them"
        server, others = (", ".join(map(str, sorted(s))) for s in (self.server, self.others))
        return f"server on core {server}; wrk and PostgreSQL on {others}"


def place(cores: frozenset[int]) -> Placement:
    """Give the server the first of the cores, where there are two or more."""
    if len(cores) < 2:
        return Placement()
    first = min(cores)
    return Placement(frozenset({first}), cores - {first})


def usable_cores() -> frozenset[int]:
    """Cores that this process may be placed on; none where the system cannot do that."""
    if not hasattr(os, "sched_setaffinity"):
        return frozenset()
    return frozenset(os.sched_getaffinity(0))


@contextmanager
def on_cores(cores: frozenset[int]) -> Iterator[None]:
    """What this process starts inside the block runs on those cores; no cores: wherever."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
