"""Management commands: which `runserver` it is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from nuages.seams.table import Seam


def _get_commands(original: Any) -> Callable[[], dict[str, str]]:
    @functools.wraps(original)
    def get_commands() -> dict[str, str]:
        commands: dict[str, str] = original()
        if commands.get("runserver") == "django.contrib.staticfiles":
            return {**commands, "runserver": "nuages"}
        return commands

    # Django's is a cached function, and its test signals clear that cache.
    get_commands.cache_clear = original.cache_clear  # type: ignore[attr-defined]
    get_commands.cache_info = original.cache_info  # type: ignore[attr-defined]
    return get_commands


def seams() -> list[Seam]:
    """Return this area's seams."""
    return [
        Seam(
            "django.core.management:get_commands",
            "The app listed first provides a command. Ours contains staticfiles' runserver, so "
            "it takes that one's place wherever the two are listed. Any other app's runserver "
            "that is listed first keeps its place.",
            _get_commands,
            "()",
        ),
    ]
