"""The ORM's `a*` methods, run natively, and what Nuages adds to QuerySet and Model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from django.db.models.query import MAX_GET_RESULTS

from nuages.conf import setting
from nuages.db.orm import compiled_get as compiled
from nuages.db.orm import queryset, related
from nuages.db.orm.to_async import orm_to_async
from nuages.seams.table import Seam

_QUERY = frozenset(
    [
        "_async_generator",
        "generator",
        "aaggregate",
        "acount",
        "aget",
        "acreate",
        "abulk_create",
        "abulk_update",
        "aget_or_create",
        "aupdate_or_create",
        "aearliest",
        "alatest",
        "afirst",
        "alast",
        "ain_bulk",
        "adelete",
        "aupdate",
        "aexists",
        "acontains",
        "aexplain",
        "aprefetch_related_objects",
    ]
)
_MODEL = frozenset(["arefresh_from_db", "asave", "adelete"])
_RELATED = frozenset(
    ["aadd", "acreate", "aget_or_create", "aupdate_or_create", "aremove", "aclear", "aset"]
)
_WHY = (
    "Every use of this name in the module calls the sync twin of an a* method: it runs on the "
    "loop in a bridge, through the user's own overrides, instead of in a thread."
)


def _native(original: Any) -> Any:
    return orm_to_async


def _put(function: Any) -> Callable[[Any], Any]:
    return lambda original: function


def _get(original: Any) -> Any:
    @functools.wraps(original)
    def get(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = compiled.find(self, args, kwargs) if setting["SHORTCUTS"] else None
        if found is None:
            return original(self, *args, **kwargs)
        if len(found) == 1:
            return found[0]
        name = self.model._meta.object_name
        if not found:
            raise self.model.DoesNotExist(f"{name} matching query does not exist.")
        many = len(found) if len(found) < MAX_GET_RESULTS else f"more than {MAX_GET_RESULTS - 1}"
        raise self.model.MultipleObjectsReturned(
            f"get() returned more than one {name} -- it returned {many}!"
        )

    return get


def seams() -> list[Seam]:
    """Return this area's seams."""
    added: list[tuple[str, Any, str]] = [
        ("query:QuerySet.alist", queryset.alist, "The async twin of list(queryset)."),
        (
            "query:QuerySet.aselect_related",
            queryset.aselect_related,
            "select_related() under the async prefix, so that chains read evenly.",
        ),
        (
            "query:QuerySet.aprefetch_related",
            queryset.aprefetch_related,
            "prefetch_related() under the async prefix, so that chains read evenly.",
        ),
        ("query:RawQuerySet.alist", queryset.alist_raw, "The async twin of list(raw queryset)."),
        (
            "manager:BaseManager.alist",
            queryset.manager_alist,
            "Managers have copies of QuerySet's methods, made when their class was.",
        ),
        (
            "manager:BaseManager.aselect_related",
            queryset.manager_aselect_related,
            "As alist().",
        ),
        (
            "manager:BaseManager.aprefetch_related",
            queryset.manager_aprefetch_related,
            "As alist().",
        ),
    ]
    table = [
        Seam("django.db.models.query:sync_to_async", _WHY, _native, callers=_QUERY),
        Seam("django.db.models.base:sync_to_async", _WHY, _native, callers=_MODEL),
        Seam(
            "django.db.models.fields.related_descriptors:sync_to_async",
            _WHY,
            _native,
            callers=_RELATED,
        ),
        Seam(
            "django.db.models.query:BaseIterable._async_generator",
            "Chunks come from one lease, which is pinned while the cursor is open and given "
            "back at exhaustion, close or abandonment.",
            lambda original: queryset.iterate,
            "(self)",
        ),
        Seam(
            "django.db.models.query:QuerySet.get",
            "The SQL of a get() by plain equality is kept instead of being compiled each time: "
            "half of what such a get() costs.",
            _get,
            "(self, *args, **kwargs)",
        ),
        Seam(
            "django.db.models.query:QuerySet.aiterator",
            "Closes what it iterates over when it is closed, instead of leaving that to the "
            "garbage collector.",
            lambda original: queryset.aiterator,
            "(self, chunk_size=2000)",
        ),
    ]
    if not queryset.RAW_HAS_AITER:
        table.append(
            Seam(
                "django.db.models.query:RawQuerySet.__aiter__",
                "async for over raw().",
                lambda original: queryset.iterate_raw,
                new=True,
            )
        )
    for path, function, reason in added:
        table.append(
            Seam(
                f"django.db.models.{path}",
                reason,
                _put(function),
                new=True,
            )
        )
    for name, method in related.MODEL_METHODS.items():
        table.append(
            Seam(
                f"django.db.models.base:Model.{name}",
                f"The async twin of {name[1:]}().",
                _put(method),
                new=True,
            )
        )
    return table
