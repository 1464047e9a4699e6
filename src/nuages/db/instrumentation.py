"""Query capture that lives in the context instead of on one connection.

`connection.queries`, `force_debug_cursor` (`assertNumQueries`) and `execute_wrapper()` are
attributes of a wrapper in Django. On the loop a task may use many wrappers, one after another or
several at once, so they live in a record in the context and apply to every lease taken there,
by child tasks too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

_EMPTY: Mapping[str, Record] = MappingProxyType({})
records: ContextVar[Mapping[str, Record]] = ContextVar("nuages.db.records", default=_EMPTY)


class Record:
    """What is captured for one alias in one context."""

    __slots__ = ("execute_wrappers", "force_debug_cursor", "queries_log")

    def __init__(self, limit: int | None) -> None:
        self.queries_log: deque[Any] = deque(maxlen=limit)
        self.force_debug_cursor = False
        self.execute_wrappers: list[Any] = []


def record(alias: str) -> Record | None:
    """Return the record of `alias` in the calling context, if one was begun there."""
    return records.get().get(alias)


def begin(alias: str, limit: int | None) -> Record:
    """Return the record of `alias` in the calling context; begin one if there is none."""
    current = records.get()
    found = current.get(alias)
    if found is None:
        found = Record(limit)
        records.set({**current, alias: found})
    return found
