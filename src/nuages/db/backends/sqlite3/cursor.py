"""Cursors whose rows come from the connection's worker."""

from __future__ import annotations

import functools
import sqlite3
from collections import deque
from typing import TYPE_CHECKING, Any

from django.db.backends.sqlite3.base import SQLiteCursorWrapper

from nuages.bridge import current_bridge
from nuages.db.scopes.finalising import may_close

if TYPE_CHECKING:
    from nuages.db.backends.sqlite3.connection import Connection

PREFETCH = 100
"""How many rows come back with execute(): as many as Django fetches at a time."""

if TYPE_CHECKING:
    _CursorBase = sqlite3.Cursor
else:
    _CursorBase = object


class _WorkerCursor(_CursorBase):
    """Cursor mixin: rows come from the worker, the first ones with `execute()`."""

    connection: Connection

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._rows: deque[Any] = deque()
        self._exhausted = True
        self._closed = False

    def is_open(self) -> bool:
        """Tell whether the cursor was not closed."""
        return not self._closed

    def has_rows_left(self) -> bool:
        """Tell whether rows are left that the worker has not read yet."""
        return not (self._closed or self._exhausted)

    def forget(self) -> None:
        """Close the cursor without I/O: its connection goes to somebody else."""
        self._closed = True
        connection = self.connection
        if not self._exhausted and not connection.runs_here() and connection.is_alive():
            # The worker lets go of the statement before it runs the next user's.
            self._forget_rows(exhausted=True)
            connection.later(super().close)

    def _require_open(self) -> None:
        if self._closed:
            raise sqlite3.ProgrammingError("Cannot operate on a closed cursor.")

    def execute(self, *args: Any) -> Any:
        """Execute a statement and fetch its first rows."""
        self._require_open()
        connection = self.connection
        if connection.runs_here():
            self._rows.clear()
            self._exhausted = False
            connection.timed(functools.partial(super().execute, *args))
        else:
            connection.execute_in_turn(args[0], functools.partial(self._execute, args))
        return self

    def _execute(self, args: Any) -> None:
        self._forget_rows(exhausted=False)
        super().execute(*args)
        if self.description is None:
            self._exhausted = True
        else:
            self._fill(PREFETCH)

    def _fill(self, size: int) -> None:
        rows = super().fetchmany(size)
        self._exhausted = len(rows) < size
        self._rows.extend(rows)
        if not self._exhausted:
            # Until all rows are read, the connection belongs to this cursor.
            self.connection.open_cursors.add(self)
        elif self.connection.open_cursors:
            self.connection.open_cursors.discard(self)

    def _forget_rows(self, *, exhausted: bool) -> None:
        self._rows.clear()
        self._exhausted = exhausted
        if self.connection.open_cursors:
            self.connection.open_cursors.discard(self)

    def executemany(self, query: str, param_list: Any) -> Any:
        """Execute a statement for each of the parameters."""
        self._require_open()
        connection = self.connection
        if connection.runs_here():
            return connection.timed(functools.partial(super().executemany, query, param_list))
        self._forget_rows(exhausted=True)
        work = functools.partial(super().executemany, query, list(param_list))
        connection.execute_in_turn(query, functools.partial(connection.patiently, work))
        return self

    def executescript(self, script: str) -> Any:
        """Execute several statements."""
        self._require_open()
        connection = self.connection
        if not connection.runs_here():
            connection.note_script(script)
            work = functools.partial(super().executescript, script)
            connection.execute_in_turn("CREATE", functools.partial(connection.patiently, work))
            return self
        return super().executescript(script)

    def _more(self, size: int) -> None:
        self._require_open()
        if not self._exhausted and len(self._rows) < size:
            missing = size - len(self._rows)
            if self.connection.runs_here():
                self.connection.timed(functools.partial(self._fill, missing))
            else:
                self.connection.in_worker(functools.partial(self._fill, missing))

    def fetchone(self) -> Any:
        """Return the next row, or None."""
        if not self._rows:
            self._more(1 if self.connection.runs_here() else PREFETCH)
        return self._rows.popleft() if self._rows else None

    def fetchmany(self, size: int | None = None) -> list[Any]:
        """Return the next rows."""
        size = self.arraysize if size is None else size
        self._more(size)
        rows = self._rows
        return [rows.popleft() for _ in range(min(size, len(rows)))]

    def fetchall(self) -> list[Any]:
        """Return all remaining rows."""
        self._more(2**31 - 1)
        rows = list(self._rows)
        self._rows.clear()
        return rows

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        row = self.fetchone()
        if row is None and not self._rows and self._exhausted:
            raise StopIteration
        return row

    def close(self) -> None:
        """Close the cursor."""
        connection = self.connection
        exhausted, self._closed = self._exhausted, True
        if not connection.is_alive():
            # Closed with the connection; sqlite3 would raise, and hide an earlier error.
            self._rows.clear()
            return
        self._forget_rows(exhausted=True)
        if exhausted or connection.runs_here():
            super().close()
        elif not may_close(connection.wrapper, busy=connection.busy()):
            # Perhaps the cursor is finalised: the worker closes it when it comes to that.
            connection.later(super().close)
        elif (bridge := current_bridge()) is None:
            connection.in_worker(super().close)
        else:
            # Resetting the statement may write: INSERT ... RETURNING commits then. Shielded,
            # because a generator that is finalised would swallow a cancellation.
            with bridge.shield():
                connection.in_worker(super().close)


class Cursor(_WorkerCursor, SQLiteCursorWrapper):
    """Django's cursor, which takes %s placeholders."""


class PlainCursor(_WorkerCursor, sqlite3.Cursor):
    """sqlite3's own cursor."""
