"""Whose a connection is, looked at again by code that waited for something else than its turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nuages.db.scopes.fair_lock import caller_label
from nuages.exceptions import ScopeEnded

if TYPE_CHECKING:
    from nuages.db.backends.sqlite3.connection import Connection
    from nuages.db.scopes.tree import Node


class Use:
    """One use of a connection, from before its turn to the end of its statement.

    A block does not wait for those inside that have not sent their statement yet. By the time
    they go on it may have ended, and the connection serve somebody else.
    """

    __slots__ = ("_connection", "_node", "_seals", "_wrapper")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._wrapper = wrapper = connection.wrapper
        self._node = None if wrapper is None else wrapper.node
        self._seals = 0 if wrapper is None else wrapper.seals

    def take_turn(self) -> Node | None:
        """Wait until nothing else of the scope uses it; what is returned ends that."""
        if self._wrapper is None or self._node is None:
            return None
        return self._wrapper.take_turn(keep=True)

    def block_began_to_end(self) -> bool:
        """Whether a block of the connection did, the caller's or one beside it."""
        return self._wrapper is not None and self._wrapper.seals != self._seals

    def look_again(self) -> None:
        """After a wait: raise `ScopeEnded` where the caller's block has ended."""
        wrapper = self._wrapper
        if self._connection.wrapper is not wrapper:
            raise ScopeEnded(task=caller_label())
        if wrapper is None or self._node is None:
            return
        if wrapper.node is not self._node:
            raise ScopeEnded(task=caller_label())
        if wrapper.seals != self._seals:
            self._seals = wrapper.seals
            wrapper.require_scope()
