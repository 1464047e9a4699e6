"""`native`: what stands where Django's ORM had `sync_to_async`.

The method runs on the loop, in a bridge. Where a project also has databases of other engines, a
call that concerns one of them goes to a thread, as in stock Django.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from asgiref.sync import sync_to_async
from django.core.signals import setting_changed
from django.db import DEFAULT_DB_ALIAS, connections, router
from django.db.models import Model, QuerySet

from nuages.bridge import run_on_loop

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


_WRITES = frozenset(
    {
        "bulk_create",
        "bulk_update",
        "create",
        "delete",
        "get_or_create",
        "update",
        "update_or_create",
    }
)


def _alias_of(function: Callable[..., Any], args: Any, kwargs: Any) -> str:
    """The database that an ORM method will use, as Django finds it; at a guess, the default."""
    using = kwargs.get("using")
    owner = getattr(function, "__self__", None)
    instance = getattr(owner, "instance", owner)
    if owner is None and args and isinstance(args[0], (list, tuple)) and args[0]:
        instance = args[0][0]  # prefetch_related_objects()
    if isinstance(using, str):
        alias: Any = using
    elif isinstance(instance, Model):
        model = getattr(owner, "model", None) or type(instance)
        alias = router.db_for_write(model, instance=instance)
    elif isinstance(owner, QuerySet) and function.__name__ in _WRITES:
        own = vars(owner)
        alias = own["_db"] or router.db_for_write(owner.model, **own["_hints"])
    else:
        alias = getattr(owner, "db", None)
    return alias if isinstance(alias, str) else DEFAULT_DB_ALIAS


def native(function: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return an async callable that runs a sync method of the ORM on the loop."""
    foreign = foreign_aliases()

    def on_its_loop(*args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        return run_on_loop(function, args, kwargs)

    async def where_its_database_is(*args: Any, **kwargs: Any) -> Any:
        if _alias_of(function, args, kwargs) in foreign:
            return await sync_to_async(function)(*args, **kwargs)
        return await on_its_loop(*args, **kwargs)

    return where_its_database_is if foreign else on_its_loop


def _changed(*, setting: str, **kwargs: Any) -> None:
    global _foreign
    if setting == "DATABASES":
        _foreign = None


setting_changed.connect(_changed, dispatch_uid="nuages.db.native")
