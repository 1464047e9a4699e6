"""Query capture on a wrapper: in the context, not on one of many wrappers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nuages.db import instrumentation

if TYPE_CHECKING:
    from nuages.db.scope import Node


class QueryCapture:
    """Mixin: what Django keeps on the connection is kept in the context of a lease."""

    if TYPE_CHECKING:
        role: str
        node: Node | None
        alias: str
        queries_limit: int
        _force_debug_cursor: bool
        _queries_log: deque[Any]
        _execute_wrappers: list[Any]

    def _record(self) -> instrumentation.Record | None:
        if self.role == "plain" and self.node is None:
            return None
        return instrumentation.record(self.alias)

    def _begin_record(self) -> instrumentation.Record | None:
        if self.role == "plain" and (self.node is None or self.node.owned_by_caller):
            # Of a test's connection only what uses it beside the test's own thread.
            return self._record()
        return instrumentation.begin(self.alias, self.queries_limit)

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
        """Whether queries are logged in this context."""
        record = self._record()
        return self._force_debug_cursor if record is None else record.force_debug_cursor

    @force_debug_cursor.setter
    def force_debug_cursor(self, value: bool) -> None:
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
        self._execute_wrappers = value

    @contextmanager
    def execute_wrapper(self, wrapper: Any) -> Iterator[None]:
        """Install `wrapper` around the queries of this context."""
        record = self._begin_record()
        wrappers = self._execute_wrappers if record is None else record.execute_wrappers
        wrappers.append(wrapper)
        try:
            yield
        finally:
            wrappers.pop()
