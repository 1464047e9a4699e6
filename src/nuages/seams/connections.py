"""`django.db.connections`: which wrapper serves the code that is running."""

from __future__ import annotations

from typing import Any

from django.db.utils import ConnectionHandler

from nuages.db import forking
from nuages.db.backends.base.base import LoopWrapper
from nuages.db.routing import Storage, has_none
from nuages.seams.table import Seam


def _all(original: Any) -> Any:
    every = ConnectionHandler.all

    def all(self: Any, initialized_only: bool = False) -> list[Any]:
        if initialized_only and has_none():
            return []
        return list(every(self, initialized_only))

    return all


def seams() -> list[Seam]:
    """Return this area's seams."""

    def route(original: Any) -> Storage:
        forking.install_hook()
        return Storage(original, LoopWrapper)

    return [
        Seam(
            "django.db:connections._connections",
            "Django stores wrappers in a Local that on a loop's thread is a contextvar: shared "
            "with child tasks, or invisible to the parent. Ours are found by scope and by chain "
            "of calls.",
            route,
        ),
        Seam(
            "django.db.utils:ConnectionHandler.all",
            "Django's receivers ask three times a request for the wrappers that are there, and "
            "on the loop there is none then.",
            _all,
            new=True,
        ),
    ]
