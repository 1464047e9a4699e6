"""What type checkers are told that Django's classes have is what they have at run time."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from nuages import additions, seams
from nuages.mypy import ADDED

NOT_FOR_PROJECTS = {
    # Called by Django's receivers; projects call it as ever.
    "django.db.utils:ConnectionHandler.all",
}


def declared() -> dict[str, set[str]]:
    """The methods of every class in `nuages.additions`, those under `if TYPE_CHECKING:` too."""
    assert additions.__file__
    tree = ast.parse(Path(additions.__file__).read_text())
    return {
        node.name: {
            inner.name
            for inner in ast.walk(node)
            if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef))
        }
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }


def class_of(fullname: str) -> Any:
    module, _, name = fullname.rpartition(".")
    return getattr(import_module(module), name)


@pytest.fixture(scope="module", autouse=True)
def _those_of_tests_too() -> None:
    seams.install_for_tests()


def test_every_addition_of_the_seams_is_declared() -> None:
    methods = declared()
    missing = []
    for seam in [*seams.all_seams(), *seams.test_seams()]:
        module, _, path = seam.target.partition(":")
        owner, _, name = path.rpartition(".")
        if not seam.new or not owner or name == "__init_subclass__":
            continue
        if seam.target in NOT_FOR_PROJECTS:
            continue
        if not isinstance(getattr(import_module(module), owner, None), type):
            continue
        ours, _ = ADDED.get(f"{module}.{owner}", ("", ()))
        if name not in methods.get(ours, set()):
            missing.append(seam.target)
    assert missing == []


@pytest.mark.parametrize("fullname", ADDED)
def test_whatever_is_declared_is_there(fullname: str) -> None:
    names = declared()[ADDED[fullname][0]]
    assert names
    assert {name for name in names if not hasattr(class_of(fullname), name)} == set()


def test_the_declarations_do_nothing_at_run_time() -> None:
    for name in declared():
        own = vars(getattr(additions, name))
        assert [key for key in own if callable(own[key]) and key != "__class_getitem__"] == []
