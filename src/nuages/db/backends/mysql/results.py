"""PyMySQL's results and unbuffered cursors, which read from the socket behind their connection."""

from __future__ import annotations

import asyncio
import functools
import struct
from typing import TYPE_CHECKING, Any

from pymysql.connections import MySQLResult  # type: ignore[import-untyped]
from pymysql.cursors import SSCursor  # type: ignore[import-untyped]

from nuages.bridge import current_bridge

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
    """Unbuffered cursor mixin: what is left to read when it goes is read when it may be."""

    def close(self) -> None:
        connection, result = self.connection, self._result
        if connection is None:
            return
        unread = result is not None and result is connection._result and result.unbuffered_active
        if unread:
            bridge = current_bridge()
            if asyncio._get_running_loop() is not None and (
                bridge is None or bridge.closing or connection.wrapper is None
            ):
                self.__del__()
                return
            with connection.exchange:
                result._finish_unbuffered_query()
        super().close()

    def __del__(self) -> None:
        # The rest is read before the next statement, or the connection closed at its give-back.
        if self.connection is not None and self._result is not None:
            self.connection.abandoned = self._result
        self.connection = None


@functools.cache
def tracked(kind: type[Any]) -> type[Any]:
    """Return a subclass of an unbuffered cursor class that never reads where it must not."""
    if not issubclass(kind, SSCursor) or issubclass(kind, _Tracked):
        return kind
    return type(kind.__name__, (_Tracked, kind), {"__module__": kind.__module__})
