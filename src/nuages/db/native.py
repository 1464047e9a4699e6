"""`native`: what stands where Django's ORM had `sync_to_async`.

The method runs on the loop, in a bridge. Where a project also has databases of other engines, a
call that concerns one of them goes to a thread, as in stock Django.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from asgiref.sync import sync_to_async
from django.core.signals import setting_changed
from django.db import DEFAULT_DB_ALIAS, connections

from nuages.bridge import on_loop

_OURS = "nuages.db.backends."
_foreign: frozenset[str] | None = None


def foreign_aliases() -> frozenset[str]:
    """The aliases whose engine is not one of ours."""
    global _foreign
    if _foreign is None:
        _foreign = frozenset(
            alias for alias in connections if alias not in _ours_by_class(connections.settings)
        )
    return _foreign


def _ours_by_class(databases: dict[str, Any]) -> set[str]:
    from django.db.utils import load_backend

    from nuages.db.backends.base import LoopWrapper

    found = set()
    for alias, entry in databases.items():
        engine = entry["ENGINE"]
        if engine.startswith("django."):
            continue  # without loading it: its driver need not be here
        if engine.startswith(_OURS) or issubclass(
            load_backend(engine).DatabaseWrapper, LoopWrapper
        ):
            found.add(alias)
    return found


def _alias_of(function: Callable[..., Any]) -> str:
    """The database that a bound ORM method will most likely use."""
    owner = getattr(function, "__self__", None)
    alias = getattr(owner, "db", None)
    if not isinstance(alias, str):
        alias = getattr(getattr(owner, "_state", None), "db", None)
    return alias if isinstance(alias, str) else DEFAULT_DB_ALIAS


def native(function: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return an async callable that runs a sync method of the ORM on the loop."""
    foreign = foreign_aliases()
    if foreign and _alias_of(function) in foreign:
        return sync_to_async(function)
    return on_loop(function)


def _changed(*, setting: str, **kwargs: Any) -> None:
    global _foreign
    if setting == "DATABASES":
        _foreign = None


setting_changed.connect(_changed, dispatch_uid="nuages.db.native")
