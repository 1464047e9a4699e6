"""Results, kept between runs: ``<side>-<database>-<module>.json``.

Owns when a stored result still holds: stock's does as long as its fingerprint (interpreter,
Django, driver, the server's version and nature, and the packages that the tests can use) is that
of now, whatever the server's address; the loop's as long as the package is what it was, too, and
what of this tool is in the process of the tests.
"""

import hashlib
import json
import platform
import sqlite3
from collections.abc import Collection, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.django_suite.databases import MySQLServer, Server
from tests.django_suite.outcomes import Counters, Ending, Kind, ModuleRun, Outcome

Fingerprint = dict[str, Any]

# What of this tool the loop's results depend on; the rest only judges and tells.
_INSIDE = tuple(
    f"{name}.py"
    for name in ("launch", "recorder", "blocking", "databases", "processes", "outcomes")
)


def fingerprint(packages: Mapping[str, str | None], server: Server | None) -> Fingerprint:
    """Return what stock's results depend on."""
    found: Fingerprint = {
        "python": platform.python_version(),
        "django": metadata.version("django"),
        "asgiref": metadata.version("asgiref"),
        "redis": metadata.version("redis"),
        "packages": dict(packages),
    }
    if server is None:
        return found | {"sqlite": sqlite3.sqlite_version}
    driver = "PyMySQL" if isinstance(server, MySQLServer) else "psycopg"
    return found | {
        driver.lower(): metadata.version(driver),
        "server": server.version(),
        "nature": server.nature(),
        "user": server.user,
    }


def digest(package: Path, tool: Path) -> str:
    """Return a digest of all Python in ``package``, and of what in ``tool`` runs the tests."""
    found = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        found.update(str(path.relative_to(package)).encode())
        found.update(path.read_bytes())
    for name in _INSIDE:
        found.update((tool / name).read_bytes())
    return found.hexdigest()


def path_of(cache: Path, database: str, module: str, side: str = "stock") -> Path:
    """Return where the module's results are stored."""
    return cache / f"{side}-{database}-{module}.json"


def load(path: Path, now: Fingerprint, but: Collection[str] = ()) -> ModuleRun | None:
    """Return the stored run, or None if there is none that still holds.

    What the fingerprint says under the names ``but`` need not be that of now.
    """
    if not path.exists():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    if _without(stored["fingerprint"], but) != _without(now, but):
        return None
    return ModuleRun(
        outcomes={
            test: Outcome(Kind(kind), detail) for test, (kind, detail) in stored["tests"].items()
        },
        databases=stored["databases"],
        counters=Counters(**stored["counters"]),
        blocked_stacks=stored["blocked_stacks"],
        seconds=stored["seconds"],
        sources=stored["sources"],
    )


def _without(fingerprint: Fingerprint, names: Collection[str]) -> Fingerprint:
    return {name: value for name, value in fingerprint.items() if name not in names}


def save(path: Path, run: ModuleRun, now: Fingerprint) -> None:
    """Store a run that came to its end; another one is no measure."""
    if run.ending is not Ending.FINISHED:
        return
    document = {
        "fingerprint": now,
        "sources": run.sources,
        "seconds": round(run.seconds, 1),
        "databases": run.databases,
        "counters": asdict(run.counters),
        "blocked_stacks": run.blocked_stacks,
        "tests": {test: [one.kind, one.detail] for test, one in sorted(run.outcomes.items())},
    }
    part = path.with_suffix(".part")
    part.write_text(json.dumps(document, indent=1), encoding="utf-8")
    part.replace(path)
