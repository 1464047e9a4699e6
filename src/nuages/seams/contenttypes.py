"""Generic relations: the related manager's `a*` methods."""

from __future__ import annotations

from typing import Any

from nuages.db.orm.to_async import orm_to_async
from nuages.seams.table import Seam

_CALLERS = frozenset(
    ["aadd", "aremove", "aclear", "aset", "acreate", "aget_or_create", "aupdate_or_create"]
)


def seams() -> list[Seam]:
    """Return this area's seams; none where contenttypes is not installed."""
    from django.apps import apps

    if not apps.is_installed("django.contrib.contenttypes"):
        return []

    def make(original: Any) -> Any:
        return orm_to_async

    return [
        Seam(
            "django.contrib.contenttypes.fields:sync_to_async",
            "Every use of this name in the module calls the sync twin of an a* method.",
            make,
            callers=_CALLERS,
        )
    ]
