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
    "HOOKS_TIMEOUT": Key(
        30.0,
        (int, float),
        "Seconds the on-commit hooks of a transaction may take once their task was cancelled, "
        "before the one that runs is cancelled too and the others are given up.",
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
    "CHECK_SESSIONS": Key(
        None,
        (bool, type(None)),
        "Ask the server, each time a connection is given back, whether something was left in its "
        "session that no statement told, and warn. None: where DEBUG is on.",
    ),
    "SYNC_VIEWS": Key(
        "thread",
        (str,),
        'Where the project\'s own sync views, middleware and receivers run: "thread" or "loop". '
        "Django's own always run on the loop.",
        ("thread", "loop"),
    ),
    "LOOP_MIDDLEWARE": Key(
        (),
        (list, tuple),
        "Import paths, as in MIDDLEWARE, of sync middleware that runs on the loop.",
    ),
    "PRELOAD_SESSION": Key(
        True,
        (bool,),
        "Load the session and the user before an `async def` view when the request carries a "
        "session cookie, so that `request.user.id` works there.",
    ),
    "SHORTCUTS": Key(
        True,
        (bool,),
        "Leave out work of Django's that a request turns out not to need. Nothing else changes; "
        "off, to look for an error.",
    ),
    "FREEZE_GC": Key(
        True,
        (bool,),
        "When the server has started, take what is there then out of the garbage collector's way "
        "(gc.freeze).",
    ),
    "REQUEST_TIMEOUT": Key(
        0.0,
        (int, float),
        "Seconds a request may take until its response begins; past it the work is cancelled "
        "and the answer is 504. 0: any time.",
    ),
    "SHUTDOWN_TIMEOUT": Key(
        30.0,
        (int, float),
        "Seconds that requests in flight get to end when the server stops, before they are "
        "cancelled.",
    ),
    "MAX_REQUESTS": Key(
        10_000,
        (int,),
        "Requests that one process works on at the same time; past it the answer is 503. "
        "Responses that are being streamed do not count. 0: any number.",
    ),
    "MAX_WAITING": Key(
        5000,
        (int,),
        "Tasks that may wait for a connection of one database before new requests are answered "
        "503. 0: any number.",
    ),
    "RETRY_AFTER": Key(
        1,
        (int,),
        "Seconds that the Retry-After header of a 503 asks the client to wait.",
    ),
}


class _Values(dict[str, Any]):
    """The values of NUAGES' keys, or their defaults, each looked up once: then without a call."""

    def __missing__(self, name: str) -> Any:
        value = self[name] = getattr(settings, "NUAGES", {}).get(name, KEYS[name].default)
        return value


setting = _Values()
"""The project's value of each key of NUAGES, or the key's default."""


def _changed(**kwargs: Any) -> None:
    if kwargs["setting"] == "NUAGES":
        setting.clear()


setting_changed.connect(_changed, dispatch_uid="nuages.conf")
