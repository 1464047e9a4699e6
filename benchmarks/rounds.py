"""Which subject is visited when, and how long a run takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.subjects import Subject
from benchmarks.works import Work

T = TypeVar("T")

SERVER_OVERHEAD = 2.0
"""Seconds to start and to stop one subject's server, about."""
VISIT_OVERHEAD = 0.2
"""Seconds for a visit's checks and for starting wrk twice, about."""
DATABASE_OVERHEAD = 5.0
"""Seconds to make, fill and stop PostgreSQL, about."""


@dataclass(frozen=True)
class Plan:
    """How many rounds, and how many seconds of each visit."""

    rounds: int
    warm_up: int
    measured: int

    def seconds(self, subjects: int, works: int) -> float:
        """About how long the run takes."""
        visit = self.warm_up + self.measured + VISIT_OVERHEAD
        a_round = subjects * (SERVER_OVERHEAD + works * visit)
        return DATABASE_OVERHEAD + self.rounds * a_round


FULL = Plan(rounds=5, warm_up=2, measured=6)
QUICK = Plan(rounds=2, warm_up=1, measured=4)


def visits(
    number: int, subjects: Sequence[Subject], works: Sequence[Work]
) -> list[tuple[Work, Subject]]:
    """Return every pair once, in the order of that round (counted from 0).

    All subjects do one work before the next, so that what is compared is measured within a
    minute. Each round begins with another work and another subject, and every second round goes
    the other way round, so that nobody is always first or always follows the same neighbour.
    """
    ordered = _from(subjects, number, backwards=bool(number % 2))
    return [(work, subject) for work in _from(works, number) for subject in ordered]


def _from(items: Sequence[T], start: int, *, backwards: bool = False) -> list[T]:
    """Return all items, beginning with that one and wrapping around."""
    step = -1 if backwards else 1
    return [items[(start + step * offset) % len(items)] for offset in range(len(items))]
