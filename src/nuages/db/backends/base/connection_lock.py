"""The lock of a driver's connection, and the connection's end, which waits for callers inside.

A thread that holds the lock may be in the driver's C code, or wait for its socket. If something
that the thread uses is freed or closed, the process ends, or the thread waits for ever. So a
connection that must end at once has its socket shut down, which ends the thread's call with an
error; it is freed when the thread has let go of the lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from nuages.db.scopes.admission import Admission
from nuages.db.scopes.fair_lock import Caller, FairLock
from nuages.db.scopes.finalising import end_left

if TYPE_CHECKING:
    from nuages.db.backends.base.driver import RawConnection


class ConnectionLock(FairLock):
    """A connection's lock: first the turn in its scope, then the connection itself."""

    __slots__ = ("_admission", "_connection", "_end")

    def __init__(self, connection: RawConnection) -> None:
        super().__init__()
        self._connection = connection
        self._admission: Admission | None = None
        self._end: Callable[[], None] | None = None
        """The call that frees the connection, if a thread that was inside is still to make it."""

    def __enter__(self) -> bool:
        wrapper = self._connection.wrapper
        scope = None if wrapper is None else wrapper.scope
        if scope is None:
            return self.acquire(Caller())
        if scope.unended:
            end_left(scope)
        admission = Admission(wrapper, self._connection)
        admission.take_turn()
        try:
            taken = self.acquire(Caller())
            try:
                admission.look_again()
            except BaseException:
                self.release()
                raise
        except BaseException:
            admission.give_back()
            raise
        self._admission = admission
        return taken

    def __exit__(self, *exc_info: object) -> None:
        admission, self._admission = self._admission, None
        self.release()
        if admission is not None and admission.call is not None:
            admission.give_back()

    def end_when_free(self, end: Callable[[], None]) -> bool:
        """Call `end`, which frees the connection, while no other thread is inside the driver.

        The call is made now, or when the thread that holds the lock lets go of it, in that thread;
        False where it is still to come. `end` may be called twice.
        """
        self._end = end
        self.on_release = self._end_if_free
        return self._end_if_free()

    def _end_if_free(self) -> bool:
        # A thread that has let go of the lock looks here, too: one of the two finds it free.
        while (end := self._end) is not None:
            if self.acquire_nowait(Caller()):
                self._end = None
                try:
                    end()
                finally:
                    self.release()
                return True
            holder = self.holder
            if holder is not None:
                if holder.thread != threading.get_ident():
                    return False
                # The holder is code of this thread that awaits: it is not inside the driver now.
                self._end = None
                end()
        return True
