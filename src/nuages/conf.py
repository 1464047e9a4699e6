"""The NUAGES setting: one typed place, every key with its default and meaning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.core.signals import setting_changed


@dataclass(frozen=True)
class Key:
    """One key of the NUAGES setting."""

    default: Any
    types: tuple[type, ...]
    meaning: str
    choices: tuple[Any, ...] = ()


KEYS: dict[str, Key] = {
    "CONNECTION_PER": Key(
        "query",
        (str,),
        'When a connection is held: "query" (only while it works) or "request" (each request '
        "keeps one from its first query to its end).",
        ("query", "request"),
    ),
    "SCOPE_TIMEOUT": Key(
        30.0,
        (int, float),
        "Seconds a task waits for its turn in a transaction it shares with other tasks; past "
        "it ScopeDeadlock names both.",
    ),
    "COMMIT_TIMEOUT": Key(
        30.0,
        (int, float),
        "Seconds a COMMIT may take once its task was cancelled, before its outcome is given up "
        "as unknown and the connection closed.",
    ),
    "CANCEL_TIMEOUT": Key(
        5.0,
        (int, float),
        "Seconds to wait for the server to end a cancelled statement before the connection is "
        "closed.",
    ),
    "RESET_WARNING": Key(
        True,
        (bool,),
        "Warn once when a connection was given back with session state (SET, LISTEN, temporary "
        "tables) that had to be discarded.",
    ),
}

_cache: dict[str, Any] = {}


def setting(name: str) -> Any:
    """Return the value of a key of NUAGES, or its default."""
    try:
        return _cache[name]
    except KeyError:
        value = getattr(settings, "NUAGES", {}).get(name, KEYS[name].default)
        _cache[name] = value
        return value


def _changed(*, setting: str, **kwargs: Any) -> None:
    if setting == "NUAGES":
        _cache.clear()


setting_changed.connect(_changed, dispatch_uid="nuages.conf")
