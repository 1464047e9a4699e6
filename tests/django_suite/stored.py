"""Results, kept between runs: ``<side>-<database>-<module>.json``.

Owns when a stored result still holds: stock's does as long as its fingerprint (interpreter,
Django, driver, server and the packages that the tests can use) is that of now; the loop's as long
as the package and this tool are what they were, too.
"""

import hashlib
import json
import platform
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.django_suite.databases import MySQLServer, Server
from tests.django_suite.outcomes import Counters, Ending, Kind, ModuleRun, Outcome

Fingerprint = dict[str, Any]


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
        "host": server.host,
        "port": server.port,
        "user": server.user,
    }


def digest(folders: Iterable[Path]) -> str:
    """Return a digest of every file of Python's, and every list, in ``folders``."""
    found = hashlib.sha256()
    for folder in folders:
        for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.toml")]):
            found.update(str(path.relative_to(folder)).encode())
            found.update(path.read_bytes())
    return found.hexdigest()


def path_of(cache: Path, database: str, module: str, side: str = "stock") -> Path:
    """Return where the module's results are stored."""
    return cache / f"{side}-{database}-{module}.json"


def load(path: Path, now: Fingerprint) -> ModuleRun | None:
    """Return the stored run, or None if there is none that still holds."""
    if not path.exists():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored["fingerprint"] != now:
        return None
    return ModuleRun(
        outcomes={
            test: Outcome(Kind(kind), detail) for test, (kind, detail) in stored["tests"].items()
        },
        databases=stored["databases"],
        counters=Counters(**stored["counters"]),
        blocked_stacks=stored["blocked_stacks"],
    )


def save(path: Path, run: ModuleRun, now: Fingerprint) -> None:
    """Store a run that came to its end; another one is no measure."""
    if run.ending is not Ending.FINISHED:
        return
    document = {
        "fingerprint": now,
        "databases": run.databases,
        "counters": asdict(run.counters),
        "blocked_stacks": run.blocked_stacks,
        "tests": {test: [one.kind, one.detail] for test, one in sorted(run.outcomes.items())},
    }
    part = path.with_suffix(".part")
    part.write_text(json.dumps(document, indent=1), encoding="utf-8")
    part.replace(path)
