"""Management commands: async ones beside Django's, and whose `runserver` is used."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from django.utils.module_loading import import_string

from nuages.bridge import on_loop
from nuages.bridge.wrapping import is_async
from nuages.handling.placement import stepped
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


def _no_translations(original: Any) -> Any:
    @functools.wraps(original)
    def no_translations(handle_func: Any) -> Any:
        if not is_async(handle_func):
            return original(handle_func)

        # Django's decorator around a sync function that waits for the coroutine.
        untranslated = on_loop(original(stepped(handle_func)))
        return functools.update_wrapper(untranslated, handle_func)

    return no_translations


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
        Seam(
            "django.core.management.base:AsyncBaseCommand",
            "Where people look for it: beside BaseCommand.",
            # By name, because that module stands above the seams.
            lambda _: import_string("nuages.management.AsyncBaseCommand"),
            new=True,
        ),
        Seam(
            "django.core.management:acall_command",
            "Where people look for it: beside call_command.",
            lambda _: import_string("nuages.management.acall_command"),
            new=True,
        ),
        Seam(
            "django.core.management.base:no_translations",
            "Around a coroutine function Django's decorator would end before the work begins.",
            _no_translations,
            "(handle_func)",
        ),
    ]
