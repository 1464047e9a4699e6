"""PyMySQL's results and cursors, which share what their connection has received.

A connection has one result, that of its last command, and PyMySQL's cursors take it from there
after the command: by then the result may be another thread's, or gone. So a cursor takes its
result in the exchange that asked for it. Unbuffered cursors read from the socket long afterwards.
"""

from __future__ import annotations

import functools
import struct
from typing import TYPE_CHECKING, Any

from pymysql.connections import MySQLResult  # type: ignore[import-untyped]
from pymysql.cursors import Cursor, SSCursor  # type: ignore[import-untyped]

from nuages.db.scopes.finalising import may_close

if TYPE_CHECKING:
    from nuages.db.backends.mysql.connection import Connection

    class _Cursor:
        """PyMySQL's cursor, for which PyMySQL has no types."""

        connection: Connection | None
        _result: Any

        def _get_db(self) -> Connection: ...
        def _query(self, query: Any) -> Any: ...
        def _nextset(self, unbuffered: bool = False) -> Any: ...
        def close(self) -> None: ...

else:
    _Cursor = object


class Result(MySQLResult):  # type: ignore[misc]
    """A result that keeps the server's status, and reads its rows in the connection's turn."""

    connection: Any

    def _check_packet_is_eof(self, packet: Any) -> bool:
        if not super()._check_packet_is_eof(packet):
            return False
        # PyMySQL drops the status, which says whether there is a transaction after a SELECT.
        (self.server_status,) = struct.unpack_from("<H", packet.get_all_data(), 3)
        if self.connection is not None:
            self.connection.server_status = self.server_status
        return True

    def _read_rowdata_packet_unbuffered(self) -> Any:
        if self.connection is None:
            return None
        with self.connection.exchange:
            return super()._read_rowdata_packet_unbuffered()

    def __del__(self) -> None:
        """Do no I/O, in whatever task the garbage collector runs."""


class _Own(_Cursor):
    """Cursor mixin: its result is that of its own command, whoever uses the connection next."""

    def _query(self, query: Any) -> Any:
        with self._get_db().exchange:
            return super()._query(query)

    def _nextset(self, unbuffered: bool = False) -> Any:
        if self._result is None or not self._result.has_next:
            return super()._nextset(unbuffered)  # sends nothing
        with self._get_db().exchange:
            return super()._nextset(unbuffered)


class _Tracked(_Own):
    """Cursor mixin: rows left unread by a cursor that goes are read when reading is allowed."""

    def close(self) -> None:
        connection, result = self.connection, self._result
        if connection is None:
            return
        if (
            result is not None
            and result is connection._result
            and (result.unbuffered_active or result.has_next)
        ):
            if not may_close(connection.wrapper, busy=connection.lock.locked()):
                self._leave()
                return
            if result.unbuffered_active:
                with connection.exchange:
                    result._finish_unbuffered_query()
        super().close()

    def _leave(self) -> None:
        """Leave it to the connection's next statement, or its give-back, to read the rest."""
        if self.connection is not None and self._result is not None:
            self.connection.abandoned = self._result
        self.connection = None


class _TrackedUnbuffered(_Tracked):
    """Unbuffered cursor mixin: PyMySQL would read the rest wherever the cursor is finalised."""

    def __del__(self) -> None:
        self._leave()


@functools.cache
def tracked(kind: type[Any]) -> type[Any]:
    """Return a subclass of a cursor class that takes its own results, and reads where it may."""
    if not issubclass(kind, Cursor) or issubclass(kind, _Own):
        return kind
    mixin = _TrackedUnbuffered if issubclass(kind, SSCursor) else _Tracked
    return type(kind.__name__, (mixin, kind), {"__module__": kind.__module__})
