"""The accepted differences: ``differences.toml``, read strictly.

Owns the file's format. Each entry names one test by its full id, the databases it holds for and
the reason, which must be that the test asserts the mechanism that Nuages replaces (a thread, an
executor, ``SynchronousOnlyOperation`` inside the bridge). Wildcards, unknown keys, missing reasons
and more than twenty entries for a database are refused, so that the list cannot quietly become a
way to pass.
"""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATABASES = ("postgresql", "sqlite", "mysql")
MOST_ENTRIES = 20
"""For each database."""
SHORTEST_REASON = 20

_KEYS = {"test", "databases", "reason"}
_OPTIONAL = {"since"}
_VERSION = re.compile(r"^\d+\.\d+$")
# package.module.Class.test_method: at least three dots, names only.
_FULL_ID = re.compile(r"^[^\W\d]\w*(\.[^\W\d]\w*){2,}\.test\w*$")


class DifferencesError(ValueError):
    """The list of accepted differences is not in the form that ``accepted`` describes."""


@dataclass(frozen=True)
class Accepted:
    """One accepted difference."""

    test: str
    databases: tuple[str, ...]
    reason: str
    since: tuple[int, ...] = (0, 0)
    """The first Django version that has the test."""


def read(path: Path, django_version: tuple[int, ...]) -> list[Accepted]:
    """Return the entries of the file at ``path`` that hold for a Django version."""
    entries = parse(path.read_text(encoding="utf-8"))
    return [entry for entry in entries if entry.since <= django_version]


def parse(text: str) -> list[Accepted]:
    """Return the entries of ``text``; raise `DifferencesError` for anything not as described."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DifferencesError(f"not TOML: {error}") from error
    if unknown := set(document) - {"difference"}:
        raise DifferencesError(f"unknown tables {sorted(unknown)}: use [[difference]]")
    entries = [_entry(raw) for raw in document.get("difference", [])]
    seen: set[str] = set()
    for entry in entries:
        if entry.test in seen:
            raise DifferencesError(f"{entry.test} is listed twice")
        seen.add(entry.test)
    for database in DATABASES:
        number = sum(database in entry.databases for entry in entries)
        if number > MOST_ENTRIES:
            raise DifferencesError(
                f"{number} entries for {database}: at most {MOST_ENTRIES} are admitted"
            )
    return entries


def _entry(raw: dict[str, Any]) -> Accepted:
    if set(raw) - _OPTIONAL != _KEYS:
        raise DifferencesError(
            f"an entry has exactly the keys {sorted(_KEYS)}, besides {sorted(_OPTIONAL)}: {raw}"
        )
    since = raw.get("since", "0.0")
    if not isinstance(since, str) or not _VERSION.match(since):
        raise DifferencesError(f'{raw["test"]}: since is a Django version such as "6.1"')
    test, databases, reason = raw["test"], raw["databases"], raw["reason"]
    if not isinstance(test, str) or not _FULL_ID.match(test):
        raise DifferencesError(f"{test!r} is not the full id of one test (no wildcards)")
    if not databases or not set(databases) <= set(DATABASES):
        raise DifferencesError(f"{test}: databases are some of {list(DATABASES)}")
    if not isinstance(reason, str) or len(reason.strip()) < SHORTEST_REASON:
        raise DifferencesError(f"{test}: the reason must say which mechanism the test asserts")
    version = tuple(map(int, since.split(".")))
    return Accepted(test, tuple(databases), reason.strip(), version)
