"""The lock of a driver's connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nuages.db.scopes.fair_lock import FairLock
from nuages.db.scopes.finalising import end_abandoned

if TYPE_CHECKING:
    from nuages.db.backends.base.base import LoopWrapper
    from nuages.db.backends.base.driver import RawConnection


class ConnectionLock(FairLock):
    """A connection's lock: first the turn in its scope, then the connection itself."""

    __slots__ = ("_connection", "_turn")

    def __init__(self, connection: RawConnection) -> None:
        super().__init__()
        self._connection = connection
        self._turn: Any = None

    def __enter__(self) -> bool:
        wrapper = self._connection.wrapper
        if wrapper is not None and wrapper.abandoned:
            end_abandoned(wrapper)
        if wrapper is None or wrapper.node is None:
            taken = super().__enter__()
            self._turn = None
            return taken
        seals = wrapper.seals
        turn = wrapper.take_turn()
        try:
            taken = super().__enter__()
            if wrapper.seals != seals:
                self._require_scope(wrapper)
        except BaseException:
            if turn is not None:
                turn.end()
            raise
        self._turn = turn
        return taken

    def _require_scope(self, wrapper: LoopWrapper) -> None:
        """Let the lock go again where the caller's block began to end while this waited."""
        try:
            wrapper.require_scope()
        except BaseException:
            super().__exit__()
            raise

    def __exit__(self, *exc_info: object) -> None:
        turn, self._turn = self._turn, None
        super().__exit__(*exc_info)
        if turn is not None:
            turn.end()
