"""`orm_to_async`: what stands where Django's ORM had `sync_to_async`.

The method runs on the loop, in a bridge. Where a project also has databases of other engines, a
call that concerns one of them goes to a thread, as in stock Django.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from asgiref.sync import sync_to_async
from django.db import DEFAULT_DB_ALIAS, router
from django.db.models import Model, QuerySet

from nuages.bridge import run_on_loop
from nuages.db.engines import foreign_aliases

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
    """The database that an ORM method will use, found as Django does; the default if unclear."""
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


def orm_to_async(function: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return an async callable that runs a sync method of the ORM on the loop."""
    foreign = foreign_aliases()

    def on_its_loop(*args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        return run_on_loop(function, args, kwargs)

    async def where_its_database_is(*args: Any, **kwargs: Any) -> Any:
        if _alias_of(function, args, kwargs) in foreign:
            return await sync_to_async(function)(*args, **kwargs)
        return await on_its_loop(*args, **kwargs)

    return where_its_database_is if foreign else on_its_loop
