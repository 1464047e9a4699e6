"""Print constraints: the lowest versions that pyproject.toml declares, the rest as in the lock.

Lowest is whatever a site installs with Nuages: its dependencies, and those of the extras that the
tests use. Run in the root of the repository.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

EXTRAS = ("postgresql", "mysql", "redis", "mail", "server")
BINARY = {"psycopg": "psycopg-binary"}
"""What comes with another in the same version."""


def lowest() -> Iterator[tuple[str, str]]:
    """Yield names and lowest versions."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    declared = list(project["dependencies"])
    for extra in EXTRAS:
        declared += project["optional-dependencies"][extra]
    for line in declared:
        found = re.match(r"([\w.-]+)(?:\[\w+\])?>=([\w.]+)", line)
        if found is None:
            raise SystemExit(f"pyproject.toml declares no lowest version: {line}")
        name = normal(found[1])
        yield name, found[2]
        if name in BINARY:
            yield BINARY[name], found[2]


def normal(name: str) -> str:
    """Write a name as PEP 503 has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    """Print them."""
    pins = dict(lowest())
    for line in Path("requirements/dev.lock").read_text().splitlines():
        name = re.match(r"[\w.-]+", line)
        if name and normal(name[0]) not in pins:
            print(line)
    for name, version in pins.items():
        print(f"{name}=={version}")


main()
