"""PyMySQL's results and unbuffered cursors, which read from the socket behind their connection."""

from __future__ import annotations

import functools
import struct
from typing import TYPE_CHECKING, Any

from pymysql.connections import MySQLResult  # type: ignore[import-untyped]
from pymysql.cursors import SSCursor  # type: ignore[import-untyped]

from nuages.db.scopes.finalising import may_close

if TYPE_CHECKING:
    from nuages.db.backends.mysql.connection import Connection

    class _Unbuffered:
        """`SSCursor`, of which PyMySQL has no types."""

        connection: Connection | None
        _result: Any

        def close(self) -> None: ...

else:
    _Unbuffered = object


class Result(MySQLResult):  # type: ignore[misc]
    """A result that keeps the server's status, and reads its rows in the connection's turn."""

    connection: Any

    def _check_packet_is_eof(self, packet: Any) -> bool:
        if not super()._check_packet_is_eof(packet):
            return False
        # PyMySQL drops it: whether there is a transaction now, after a SELECT.
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
        """No I/O, in whatever task the garbage collector runs."""


class _Tracked(_Unbuffered):
    """Cursor mixin: what is left to read when it goes is read when it may be."""

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
        """Leave it to the connection's next statement to read the rest, or to its give-back."""
        if self.connection is not None and self._result is not None:
            self.connection.abandoned = self._result
        self.connection = None


class _TrackedUnbuffered(_Tracked):
    """Unbuffered cursor mixin: PyMySQL would read what is left wherever it is finalised."""

    def __del__(self) -> None:
        self._leave()


@functools.cache
def tracked(kind: type[Any]) -> type[Any]:
    """Return a subclass of a cursor class that never reads where it must not."""
    if issubclass(kind, _Tracked):
        return kind
    mixin = _TrackedUnbuffered if issubclass(kind, SSCursor) else _Tracked
    return type(kind.__name__, (mixin, kind), {"__module__": kind.__module__})
