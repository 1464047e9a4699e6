"""The lock of a driver's connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nuages.db.scopes.admission import Admission
from nuages.db.scopes.fair_lock import FairLock
from nuages.db.scopes.finalising import end_left

if TYPE_CHECKING:
    from nuages.db.backends.base.driver import RawConnection


class ConnectionLock(FairLock):
    """A connection's lock: first the turn in its scope, then the connection itself."""

    __slots__ = ("_admission", "_connection")

    def __init__(self, connection: RawConnection) -> None:
        super().__init__()
        self._connection = connection
        self._admission: Admission | None = None

    def __enter__(self) -> bool:
        wrapper = self._connection.wrapper
        scope = None if wrapper is None else wrapper.scope
        if scope is None:
            return super().__enter__()
        if scope.unended:
            end_left(scope)
        admission = Admission(wrapper, self._connection)
        admission.take_turn()
        try:
            taken = super().__enter__()
            try:
                admission.look_again()
            except BaseException:
                super().__exit__()
                raise
        except BaseException:
            admission.give_back()
            raise
        self._admission = admission
        return taken

    def __exit__(self, *exc_info: object) -> None:
        admission, self._admission = self._admission, None
        super().__exit__(*exc_info)
        if admission is not None:
            admission.give_back()
