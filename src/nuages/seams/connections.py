"""`django.db.connections`: which wrapper serves the code that is running."""

from __future__ import annotations

from typing import Any

from nuages.db.backends.base import LoopWrapper
from nuages.db.connections import Storage
from nuages.seams.table import Seam


def seams() -> list[Seam]:
    """Return this area's seams."""

    def route(original: Any) -> Storage:
        return Storage(original, LoopWrapper)

    return [
        Seam(
            "django.db:connections._connections",
            "Django stores wrappers in a Local that on a loop's thread is a contextvar: shared "
            "with child tasks, or invisible to the parent. Ours are found by scope and by chain "
            "of calls.",
            route,
        )
    ]
