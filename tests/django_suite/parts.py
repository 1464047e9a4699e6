"""Which modules a part of the whole suite has, and in which order modules are run.

Owns ``seconds.json``: how long each module took on both sides together, on SQLite, at some time
on some machine. Only the proportions matter: the longest modules are dealt first, each to the part
that has the least yet, so that the parts take about the same time; and a run begins with its
longest module, so that no process is left with that one at the end.
"""

import json
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median

from tests.django_suite.source import SourceError

HASH = "hash"
UNKNOWN_SECONDS = 5.0
"""What a module counts for while no module's time is known."""

_SOURCES = ("src", "tests/django_suite/*.py")

Seconds = Mapping[str, float]


def read_seconds(path: Path) -> dict[str, float]:
    """Return the seconds of each module that ``path`` knows; none where there is no such file."""
    if not path.exists():
        return {}
    known: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return known


def write_seconds(path: Path, seconds: Seconds) -> None:
    """Write the seconds of each module, one a line."""
    rounded = {module: round(seconds[module], 1) for module in sorted(seconds)}
    path.write_text(f"{json.dumps(rounded, indent=1)}\n", encoding="utf-8")


def longest_first(modules: Iterable[str], seconds: Seconds) -> list[str]:
    """Return the modules in the order of running; one without a time is taken as the median."""
    usual = median(seconds.values()) if seconds else UNKNOWN_SECONDS
    return sorted(modules, key=lambda module: (-seconds.get(module, usual), module))


def part_of(modules: Iterable[str], number: int, parts: int, seconds: Seconds) -> list[str]:
    """Return the modules of part ``number`` (from 1) of ``parts``, in the order of running.

    Every module is in exactly one of them, the same for the same modules and seconds.
    """
    usual = median(seconds.values()) if seconds else UNKNOWN_SECONDS
    dealt: list[list[str]] = [[] for _ in range(parts)]
    sums = [0.0] * parts
    for module in longest_first(modules, seconds):
        least = sums.index(min(sums))
        dealt[least].append(module)
        sums[least] += seconds.get(module, usual)
    return dealt[number - 1]


def parse(part: str, commit: str) -> tuple[int, int]:
    """Return N and M of ``N/M``, or of ``hash/M`` the N that ``commit`` has.

    ``commit`` is hexadecimal digits. Raises `SourceError` for anything else.
    """
    number, _, parts = part.partition("/")
    if number == HASH and parts.isdecimal() and int(parts) >= 1:
        if not commit:
            raise SourceError(f"--part {part}: there is no commit here to choose by")
        number = str(int(commit, 16) % int(parts) + 1)
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise SourceError(
            f"--part {part}: it is N/M with N from 1 to M, as in 3/8, or hash/M, which lets the "
            "commit choose"
        )
    return int(number), int(parts)


def commit_of(folder: Path) -> str:
    """Return the full hash of the commit that is checked out in ``folder``; empty without one."""
    return _git(folder, "rev-parse", "HEAD")


def sources_of(folder: Path, digest: str) -> str:
    """Return a name for the sources in ``folder``: the commit, or what their digest begins with.

    Of sources that no commit has, ``digest`` tells one from another.
    """
    commit = commit_of(folder)
    if commit and not _git(folder, "status", "--porcelain", "--", *_SOURCES):
        return f"commit {commit[:10]}"
    return f"digest {digest[:10]}"


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:  # a machine without git has the sources from an archive
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
