"""Whether it was well: the data, the log, what is left behind, and the memory.

*Memory.* The resident size jumps by whole arenas of the allocator and is measured while requests
are in flight, so neither the last sample nor a line by least squares says what it does in the long
run. The growth is that of the Theil-Sen line through the samples of the second half: the median of
the slopes between all pairs of samples, times the half's length, in relation to the half's median.
A leak of a few bytes a request is in every pair; one large sample is in few.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Any

from tests.soak.errors import is_lost
from tests.soak.kinds import ON_PURPOSE, Ledger

MOST_GROWTH = 0.01
LEFT = (
    *("tasks", "background", "bridges", "greenlets", "descriptors", "scopes"),
    "cache connections in use",
)
"""The gauges that must be back at where they were."""

FEW_ERRORS = 2
"""So many exceptions more may be kept, the last ones that a library has met, say. Dozens were
raised, and what keeps each of them is a leak."""

CUT_OFF = "cancellations whose connection was cut"
"""The request to the server travels on a connection of its own, which a fault may hit, too."""

_NOT_CANCELLED = (
    "closed a connection whose statement did not end: cancellation failed: ",
    "closed a connection whose statement could not be cancelled: ",
)

BELONGING = {
    "write": ("", " kept", " hook"),
    "tasks": ("", " kept", " task", " thread"),
    "far": ("", " kept"),
}
"""The rows of a write that are there with it, by view. A hook runs after the commit, so it may be
missing where the write was not acknowledged."""


@dataclass(frozen=True)
class Growth:
    """The line through the second half's samples."""

    begin: float
    end: float
    """Seconds, on the samples' clock."""
    size: float
    """The median, in bytes."""
    slope: float
    """Bytes in a second."""

    @property
    def part(self) -> float:
        """By what part of the size it grew over the half."""
        return self.slope * (self.end - self.begin) / self.size


def growth(samples: Sequence[Mapping[str, Any]]) -> Growth:
    """Fit the line; needs two samples in the second half at least."""
    begin, end = samples[0]["time"], samples[-1]["time"]
    half = [sample for sample in samples if sample["time"] >= (begin + end) / 2]
    slopes = [
        (late["rss"] - early["rss"]) / (late["time"] - early["time"])
        for early, late in combinations(half, 2)
    ]
    size = median(sample["rss"] for sample in half)
    return Growth(half[0]["time"], half[-1]["time"], size, median(slopes))


def judge_memory(found: Growth) -> list[str]:
    if found.part < MOST_GROWTH:
        return []
    return [f"the resident size grew by {found.part:.2%} over the second half"]


def same(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether what may be left is back at where it was."""
    return not judge_left(before, after)


def judge_left(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Compare the gauges of two quiet moments."""
    wrong = [
        f"{after[name]} {name}, {before[name]} before"
        for name in LEFT
        if after[name] > before[name]
    ]
    if len(after["errors kept"]) > len(before["errors kept"]) + FEW_ERRORS:
        wrong += [f"an error is kept: {text}" for text in after["errors kept"]]
    wrong += [f"a thread works on:\n{text}" for text in after["threads at work"]]
    if after["greenlets"] > before["greenlets"]:
        wrong += [f"a greenlet is left: {text}" for text in after["greenlets left"]]
    for alias, stats in after["pools"].items():
        if stats["used"] or stats["waiting"]:
            wrong.append(f"the pool of {alias!r} is not idle: {stats}")
        if stats["size"] > before["pools"].get(alias, stats)["size"]:
            wrong.append(f"the pool of {alias!r} has {stats['size']} connections")
    return wrong


def judge_data(there: Mapping[str, int], ledger: Ledger) -> list[str]:
    """Every acknowledged write is there once and whole, every other one wholly or not at all.

    One that was committed and whose hook failed is there, but for what the hook was to write.
    """
    wrong = [f"{name!r} is there {count} times" for name, count in there.items() if count != 1]
    wrong += [f"{name!r} was rolled back" for name in there if name.endswith(" gone")]
    expected = set()
    for state, writes in vars(ledger).items():
        for key, view in writes.items():
            names = [f"{key}{part}" for part in BELONGING[view]]
            expected.update(names)
            hooked = state == "acknowledged"
            found = [name in there for name in names if hooked or not name.endswith("hook")]
            if not all(found) and (state != "unknown" or any(found)):
                wrong.append(f"of {names} ({state}) there are {found}")
    wrong += [f"{name!r} was written by nobody" for name in there if name not in expected]
    return wrong


def judge_log(lines: Sequence[str]) -> tuple[list[str], Counter[str]]:
    """Return the lines that must not be there, and how many there were of the others."""
    wrong: list[str] = []
    counts: Counter[str] = Counter()
    for line in lines:
        try:
            record: dict[str, Any] = json.loads(line)
        except ValueError:
            wrong.append(line)  # A traceback at exit, or of what could not be raised.
            continue
        if (expected := _expected(record)) is None:
            wrong.append(f"{record['logger']} {record['message']}\n{record.get('traceback', '')}")
        else:
            counts[expected] += 1
    return wrong, counts


def _expected(record: Mapping[str, Any]) -> str | None:
    logger, message, errors = record["logger"], record["message"], record["errors"]
    if record["level"] == "INFO":
        return "information"
    if logger == "django.request":
        if message == "Not Found: /nothing/":
            return "not found"
        if message.startswith("Request took more than") and message.endswith(": /slow/"):
            return "deadlines"
        if message.startswith("Internal Server Error") and errors == ON_PURPOSE:
            return "errors on purpose"
    if errors and is_lost(errors):
        return "lost connections"
    if logger in ("nuages.postgresql", "nuages.mysql") and "cancelled again while" in message:
        return "clients that left while a deadline ended their statement"
    if logger in ("nuages.postgresql", "nuages.mysql") and message.startswith(_NOT_CANCELLED):
        return CUT_OFF
    if logger == "nuages.pool" and message.startswith("closed a connection of"):
        return "connections that could not be reset"
    return None
