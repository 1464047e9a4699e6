"""KILL QUERY: how a statement is cancelled, over a connection of its own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pymysql import err  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from nuages.db.backends.mysql.connection import Connection

_FIRST_PAUSE = 0.1
"""Seconds until a statement that goes on is cancelled once more; doubled each time."""

Identity = tuple[Any, ...]
_IDENTITY = "SELECT @@hostname, @@port, @@server_id"

_NO_SUCH_THREAD = 1094


class SessionOver(Exception):
    """The session whose statement was to be cancelled has ended, and the statement with it."""


class NotTheServer(err.OperationalError):  # type: ignore[misc]
    """Another server answers at this address, where the number is somebody else's session."""


def identity_of(connection: Connection) -> Identity:
    """Ask which server answers on `connection`."""
    connection.query(_IDENTITY)
    (row,) = connection._result.rows
    return tuple(row)


class Killer:
    """A side connection that cancels statements of `victim`; used in a bridge, then closed.

    Every `KILL QUERY` is answered before the next thing happens, so that none can arrive late. The
    number of a session means something on its own server only: where another server answers
    (behind a load balancer, say), nothing is cancelled and `NotTheServer` is raised.
    """

    def __init__(self, victim: Connection, deadline: float) -> None:
        self._victim = victim
        self._deadline = deadline
        self._side: Connection | None = None
        self._pause = _FIRST_PAUSE
        self.count = 0
        """How many times the server has answered KILL QUERY."""
        self.next_at = 0.0
        """When the statement, if it goes on, should be cancelled again."""

    def kill(self) -> None:
        """Cancel what the session does now. Raises SessionOver, and errors on the way."""
        side = self._side
        if side is None:
            side = self._side = self._victim.beside(self._deadline)
            if identity_of(side) != self._victim.identity:
                raise NotTheServer(_NO_SUCH_THREAD, "another server answers at this address")
        try:
            side.query(f"KILL QUERY {self._victim.thread_id():d}")
        except err.OperationalError as error:
            if error.args[0] != _NO_SUCH_THREAD:
                raise
            raise SessionOver from error
        self.count += 1
        self.next_at = time.monotonic() + self._pause
        self._pause *= 2

    def close(self) -> None:
        """Close the side connection."""
        if self._side is not None:
            self._side.terminate()
