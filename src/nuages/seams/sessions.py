"""Sessions: file sessions and users' own engines in threads, the database's `a*` natively."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from asgiref.sync import sync_to_async

from nuages.bridge import on_loop
from nuages.db.engines import foreign_aliases
from nuages.handling.preload import do_deferred
from nuages.seams.table import Seam
from nuages.seams.to_thread import family, in_thread_on_loop

_BACKENDS = "django.contrib.sessions.backends"
_FILE = {
    "aclear_expired": "(cls)",
    "aload": "(self)",
    "acreate": "(self)",
    "asave": "(self, must_create=False)",
    "aexists": "(self, session_key)",
    "adelete": "(self, session_key=None)",
}


def _native(original: Any) -> Any:
    def where_the_databases_are(function: Callable[..., Any]) -> Callable[..., Any]:
        # From outside one cannot tell which database the function saves to.
        return sync_to_async(function) if foreign_aliases() else on_loop(function)

    return where_the_databases_are


def _process_response(original: Any) -> Any:
    @functools.wraps(original)
    def process_response(self: Any, request: Any, response: Any) -> Any:
        do_deferred(request)
        return original(self, request, response)

    return process_response


def seams() -> list[Seam]:
    """Return this area's seams."""
    table = [
        family(
            f"{_BACKENDS}.base:SessionBase",
            ("load", "create", "save", "exists", "delete"),
            "File sessions block, and an engine of the user's is sync code that may. Django's "
            "other engines await through the database or the cache; what a subclass of theirs "
            "does not override stays on the loop.",
            (f"{_BACKENDS}.{name}" for name in ("db", "cache", "cached_db", "signed_cookies")),
        ),
        Seam(
            f"{_BACKENDS}.cached_db:SessionStore.aexists",
            "It asks the cache by a sync call.",
            on_loop,
            "(self, session_key)",
        ),
    ]
    table += [
        Seam(
            f"{_BACKENDS}.file:SessionStore.{name}",
            f"It calls {name[1:]}() in the coroutine, which blocks on the file.",
            on_loop,
            signature,
        )
        for name, signature in _FILE.items()
    ]
    table.append(
        Seam(
            f"{_BACKENDS}.file:SessionStore.clear_expired",
            "It reads every session file there is.",
            lambda original: classmethod(in_thread_on_loop(original.__func__)),
            "(cls)",
        )
    )
    table.append(
        Seam(
            f"{_BACKENDS}.db:sync_to_async",
            "asave() saves in a thread for want of async transactions.",
            _native,
            callers=frozenset(["asave"]),
        )
    )
    table.append(
        Seam(
            "django.contrib.sessions.middleware:SessionMiddleware.process_response",
            "A preloaded session that a view in a coroutine found void is deleted here, or gets "
            "its new key, where that can be awaited.",
            _process_response,
            "(self, request, response)",
        )
    )
    return table
