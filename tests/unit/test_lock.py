"""requirements/dev.lock is in step with pyproject.toml, on every Python that is supported."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements" / "dev.lock").read_text()


def locked(environment: dict[str, Any]) -> dict[str, str]:
    """The versions by name, in an environment."""
    found = {}
    for line in LOCK.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate(environment):
                name = canonicalize_name(requirement.name)
                assert name not in found, f"{name} is there twice"
                ((found[name]),) = [each.version for each in requirement.specifier]
    return found


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_what_the_project_asks_for_is_locked(python: str) -> None:
    environment = dict(default_environment()) | {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "extra": "",
    }
    versions = locked(environment)
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for text in [text for each in lists for text in each]:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if name == "nuages":
            continue
        if requirement.marker is None or requirement.marker.evaluate(environment):
            assert name in versions, f"{text}: run make lock"
            assert requirement.specifier.contains(versions[name], prereleases=True), (
                f"{text}, not {versions[name]}: run make lock"
            )


def test_the_lock_says_nothing_of_where_it_was_made() -> None:
    assert not re.search(r"://|^-|(?<!\w)/|@ ", LOCK, re.MULTILINE)
