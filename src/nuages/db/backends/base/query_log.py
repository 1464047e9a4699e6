"""Query capture: in the context, not on one of many wrappers.

`connection.queries`, `force_debug_cursor` (`assertNumQueries`) and `execute_wrapper()` are
attributes of a wrapper in Django. On the loop a task may use many wrappers, one after another or
several at once, so these attributes live in a record in the context and apply to every lease
taken there, by child tasks too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from nuages.db.scopes.finalising import is_collecting
from nuages.db.scopes.tree import Kind

if TYPE_CHECKING:
    from nuages.db.scopes.family import Family
    from nuages.db.scopes.scope import Scope

_EMPTY: Mapping[str, Record] = MappingProxyType({})
records: ContextVar[Mapping[str, Record]] = ContextVar("nuages.db.records", default=_EMPTY)


class Record:
    """The capture of queries for one alias in one context."""

    __slots__ = ("execute_wrappers", "force_debug_cursor", "queries_log")

    def __init__(self, limit: int | None, execute_wrappers: Iterable[Any]) -> None:
        self.queries_log: deque[Any] = deque(maxlen=limit)
        self.force_debug_cursor = False
        self.execute_wrappers = list(execute_wrappers)


def begin(alias: str, limit: int | None, execute_wrappers: Iterable[Any]) -> Record:
    """Return the record of `alias` in the calling context; begin one if there is none.

    A new record has the execute wrappers that were put on the context's connection by hand.
    """
    current = records.get()
    found = current.get(alias)
    if found is None:
        found = Record(limit, execute_wrappers)
        records.set({**current, alias: found})
    return found


def _remove_last(wrappers: list[Any], wrapper: Any) -> None:
    for index in range(len(wrappers) - 1, -1, -1):
        if wrappers[index] is wrapper:
            del wrappers[index]
            return


class QueryCapture:
    """Mixin: for a lease, what Django keeps on the connection is kept in the context."""

    if TYPE_CHECKING:
        role: str
        scope: Scope | None
        family: Family | None
        alias: str
        queries_limit: int
        _force_debug_cursor: bool
        _queries_log: deque[Any]
        _execute_wrappers: list[Any]

    def _record(self) -> Record | None:
        if self.role == "plain" and (self.scope is None or self.scope.root.kind is not Kind.TEST):
            # A thread's own wrapper, which the coroutines that it waits for use as it is.
            return None
        return records.get().get(self.alias)

    def _begin_record(self) -> Record | None:
        if self.role == "plain":
            root = None if self.scope is None else self.scope.root
            if root is None or root.kind is not Kind.TEST or root.owned_by_caller:
                # For a test's connection, only code beside the test's own thread begins one.
                return self._record()
        return begin(self.alias, self.queries_limit, self._execute_wrappers)

    @property
    def queries_log(self) -> deque[Any]:
        """The context's log of queries."""
        record = self._record() if self.role == "plain" else self._begin_record()
        return self._queries_log if record is None else record.queries_log

    @queries_log.setter
    def queries_log(self, value: deque[Any]) -> None:
        self._queries_log = value

    @property
    def force_debug_cursor(self) -> bool:
        """Tell whether queries are logged in this context."""
        record = self._record()
        return self._force_debug_cursor if record is None else record.force_debug_cursor

    @force_debug_cursor.setter
    def force_debug_cursor(self, value: bool) -> None:
        if is_collecting():
            return  # of an abandoned capture: the context here is somebody else's
        record = self._begin_record()
        if record is None:
            self._force_debug_cursor = value
        else:
            record.force_debug_cursor = value

    @property
    def execute_wrappers(self) -> list[Any]:
        """The context's stack of execute wrappers."""
        record = self._record()
        return self._execute_wrappers if record is None else record.execute_wrappers

    @execute_wrappers.setter
    def execute_wrappers(self, value: list[Any]) -> None:
        if self.family is None:
            self._execute_wrappers = value
        else:
            self.family.set("_execute_wrappers", value)

    @contextmanager
    def execute_wrapper(self, wrapper: Any) -> Iterator[None]:
        """Install `wrapper` around the queries of this context."""
        record = self._begin_record()
        wrappers = self._execute_wrappers if record is None else record.execute_wrappers
        wrappers.append(wrapper)
        try:
            yield
        finally:
            # Not just the last one: another's, where the garbage collector comes here late.
            _remove_last(wrappers, wrapper)
