"""Putting the seams in place: all of them, or none where one does not fit."""

from __future__ import annotations

from importlib import import_module

from django.core.exceptions import ImproperlyConfigured

from nuages.db.orm import related
from nuages.db.testing import transactions as testing
from nuages.seams.table import Seam

_installed = False
_installed_for_tests = False
_problems: list[str] = []


def test_seams() -> list[Seam]:
    """Return the seams that only a process that runs tests needs."""
    from nuages.seams import test

    return test.seams()


def all_seams() -> list[Seam]:
    """Return the table: every seam of every area, for this Django."""
    areas = (
        "asgiref",
        "backends",
        "connections",
        "transaction",
        "dispatch",
        "orm",
        "contenttypes",
        "forms",
        "handlers",
        "auth",
        "sessions",
        "mail",
        "files",
        "storage",
        "firstuse",
        "cache",
        "commands",
        "shell",
        "messages",
        "migrations",
        "urls",
    )
    return [
        seam
        for area in areas
        for seam in import_module(f"nuages.seams.{area}").seams()
        if seam.applies()
    ]


def install() -> None:
    """Install every seam, or none where one does not fit (`problems()`). Idempotent.

    Models get their `a<relation>` attributes at the same time.
    """
    global _installed
    if _installed:
        return
    seams = all_seams()
    _problems[:] = [problem for seam in seams if (problem := seam.problem()) is not None]
    if _problems:
        return
    for seam in seams:
        seam.install()
    related.install()
    testing.run_hooks.append(install_for_tests)
    _installed = True


def install_for_tests() -> None:
    """Install the seams of `django.test` as well. Idempotent.

    Raises ImproperlyConfigured where one does not fit, which ends the test run.
    """
    global _installed_for_tests
    if _installed_for_tests or not _installed:
        return
    seams = test_seams()
    found = [problem for seam in seams if (problem := seam.problem()) is not None]
    if found:
        raise ImproperlyConfigured("Nuages does not know this Django's tests: " + "; ".join(found))
    for seam in seams:
        seam.install()
    _installed_for_tests = True


def problems() -> list[str]:
    """Return why the seams were not installed; empty where they were."""
    return list(_problems)


def installed() -> bool:
    """Tell whether the seams are in place."""
    return _installed
