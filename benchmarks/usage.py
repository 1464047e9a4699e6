"""How much processor time a server took, and how much of its core others took meanwhile.

Read from Linux' /proc, where a server is placed on a core of its own; elsewhere nothing is known.
A visit during which something else ran on the server's core says little, so the report counts
those.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

DISTURBED = 0.1
"""The share of the server's core, taken by others, from which a visit counts as disturbed."""

PROC = Path("/proc")
USER, SYSTEM = 11, 12
"""Where utime and stime are among what /proc/PID/stat tells after the name; PPID is second."""


@dataclass(frozen=True)
class Usage:
    """Shares of one core's time during a visit."""

    server: float
    others: float

    @property
    def disturbed(self) -> bool:
        return self.others > DISTURBED


class Meter:
    """Measures from its making to `read()`."""

    def __init__(self, process: int, core: int) -> None:
        self.process = process
        self.core = core
        self.start = self._now()

    def read(self) -> Usage:
        clock, busy, server = (
            now - then for now, then in zip(self._now(), self.start, strict=True)
        )
        return Usage(server / clock, max(0.0, busy - server) / clock)

    def _now(self) -> tuple[float, float, float]:
        tick = os.sysconf("SC_CLK_TCK")
        return (
            time.monotonic(),
            core_ticks((PROC / "stat").read_text(), self.core) / tick,
            sum(process_ticks(each) for each in family(process_table(), self.process)) / tick,
        )


def core_ticks(stat: str, core: int) -> int:
    """Return the ticks that one core spent on programs, from the text of /proc/stat."""
    for line in stat.splitlines():
        name, *numbers = line.split()
        if name == f"cpu{core}":
            user, nice, system = map(int, numbers[:3])
            return user + nice + system
    raise ValueError(f"/proc/stat has no core {core}")


def process_ticks(fields: list[str]) -> int:
    return int(fields[USER]) + int(fields[SYSTEM])


def process_table() -> dict[int, list[str]]:
    """Return what /proc tells of every process after its name, by process id."""
    found = {}
    for path in PROC.glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended since it was listed
        found[int(path.parent.name)] = text.rpartition(")")[2].split()
    return found


def family(table: dict[int, list[str]], process: int) -> list[list[str]]:
    """Return the entries of a process and all that descend from it."""
    found = [table[process]]
    for child, fields in table.items():
        if int(fields[1]) == process:
            found += family(table, child)
    return found
