"""A command and its answer: one exchange, which is brought to its end even if interrupted.

The statement is cancelled on the server (`kill_query.py`), PyMySQL reads the answer as ever, and
the cancellation is raised when the exchange is over and the session is known to be at rest. A
connection whose exchange cannot be brought to its end is closed.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import TYPE_CHECKING, Any, NoReturn

from pymysql import err  # type: ignore[import-untyped]
from pymysql.constants import COMMAND  # type: ignore[import-untyped]

from nuages.bridge import current_bridge
from nuages.bridge.tasks import current_task
from nuages.conf import setting
from nuages.db.backends.base.statistics import statistics
from nuages.db.backends.mysql.kill_query import Killer, SessionOver
from nuages.exceptions import BridgeClosed
from nuages.tracebacks import PASSWORD_FRAMES, hide_frames

if TYPE_CHECKING:
    from nuages.db.backends.mysql.connection import Connection

logger = logging.getLogger("nuages.mysql")

INTERRUPTED = 1317
"""ER_QUERY_INTERRUPTED: the answer of a statement that was ended by KILL QUERY."""
_AGAIN = "closed a connection: cancelled again while its statement ended"


class Exchange:
    """`with connection.exchange:` around a command and its answer; takes the connection's lock.

    Reentrant where PyMySQL nests commands.
    """

    __slots__ = (
        *("_connection", "_depth", "_give_up", "_interruption", "_killer", "_owner"),
        "_shielded_until",
    )

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._owner: Any = None
        self._depth = 0
        self._interruption: BaseException | None = None
        """What interrupted the exchange that is going on."""
        self._killer: Killer | None = None
        self._give_up = 0.0
        self._shielded_until: float | None = None
        """Until when an exchange may go on after its task was cancelled."""

    @property
    def open(self) -> bool:
        """Tell whether an exchange is going on."""
        return self._depth > 0

    def __enter__(self) -> None:
        caller = _caller()
        if self._depth and self._owner == caller:
            self._depth += 1
            return
        self._connection.lock.__enter__()
        self._owner, self._depth = caller, 1
        if current_bridge() is not None:
            statistics.bridged += 1

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if self._depth > 1:
            self._depth -= 1
            return
        connection = self._connection
        interruption = None
        try:
            if self._interruption is not None:
                interruption = self._end_interrupted(self._interruption, error)
        finally:
            self._shielded_until = None
            if connection.pool is None:
                # A test's connection, say, is registered with a loop only while it waits there.
                connection.detach()
            self._owner, self._depth = None, 0
            connection.lock.__exit__()
        if interruption is not None:
            try:
                raise interruption
            finally:
                del interruption  # which refers to this frame

    # While it waits

    def look_again_at(self, limit: float | None) -> float | None:
        """Return when, by `time.monotonic()`, a wait limited by `limit` ends; None for no end."""
        if self._killer is not None:
            return min(self._give_up, self._killer.next_at)
        return limit if self._shielded_until is None else self._shielded_until

    def waited_long(self) -> None:
        """Cancel the statement again, or give up: the time of `look_again_at` has come.

        Raises TimeoutError, and ConnectionAbortedError where the connection was closed.
        """
        if self._killer is None:
            raise TimeoutError("timed out")
        if time.monotonic() >= self._give_up:
            self._abort("closed a connection whose statement did not end")
        self._kill(self._killer)

    def shield(self) -> None:
        """Let the exchange (of a COMMIT, say) go on after a cancellation, for COMMIT_TIMEOUT."""
        if self._shielded_until is None:
            self._shielded_until = time.monotonic() + float(setting["COMMIT_TIMEOUT"])

    def interrupt(self, interruption: BaseException, *, can_go_on: bool) -> None:
        """Cancel the statement on the server; its answer is read as if nothing had happened.

        A second interruption meanwhile only shortens this to closing the socket. Unless the
        exchange `can_go_on`, or where the server cannot be told, the connection is closed at once.
        """
        connection = self._connection
        wrapper = connection.wrapper
        if wrapper is not None:
            wrapper.note_interruption()
        if self._interruption is not None:
            self._abort(_AGAIN)
        if not (can_go_on and connection.identity):
            connection.terminate()
            raise interruption
        self._interruption = interruption
        self._give_up = time.monotonic() + float(setting["CANCEL_TIMEOUT"])
        self._killer = Killer(connection, self._give_up)
        self._kill(self._killer)

    def _kill(self, killer: Killer) -> None:
        try:
            killer.kill()
        except SessionOver as over:
            self._connection.terminate()
            raise ConnectionAbortedError("the session has ended") from over
        except (err.Error, OSError) as error:
            hide_frames(error, PASSWORD_FRAMES)
            self._abort("closed a connection whose statement could not be cancelled: %s", error)
        except asyncio.CancelledError:
            self._abort(_AGAIN)
        except BaseException:
            self._connection.terminate()
            raise

    def _abort(self, why: str, *args: Any) -> NoReturn:
        """Close the connection in the middle of an interrupted exchange."""
        logger.warning(why, *args)
        self._connection.terminate()
        raise ConnectionAbortedError("the connection was closed")

    # At its end

    def _end_interrupted(
        self, interruption: BaseException, error: BaseException | None
    ) -> BaseException:
        """Make sure of the session, return what to raise (at the end of an interrupted exchange).

        A KILL QUERY that came when the statement had ended by itself may be kept by the server
        for the next statement. So the server gets one that may be killed.
        """
        connection, killer = self._connection, self._killer
        assert killer is not None
        struck = isinstance(error, err.MySQLError) and error.args[:1] == (INTERRUPTED,)
        try:
            while connection.is_open() and connection.has_more():
                struck = self._read_the_rest() or struck
            settled = struck and killer.count == 1
            while connection.is_open() and not settled:
                settled = self._is_undisturbed(killer)
        except Exception as reason:
            if connection.is_open():
                logger.warning("closed a connection after a cancellation: %s", reason)
                connection.terminate()
        except BaseException:
            connection.terminate()
            raise
        finally:
            self._interruption = self._killer = None
            killer.close()
        if isinstance(error, (GeneratorExit, BridgeClosed)):
            return error
        return interruption

    def _read_the_rest(self) -> bool:
        """Read what is left of the result; tell whether it was cut off by KILL QUERY."""
        connection = self._connection
        result = connection._result
        try:
            if result.unbuffered_active:
                result._finish_unbuffered_query()
            else:
                connection.next_result()
        except err.OperationalError as error:
            connection._result = None
            if error.args[0] != INTERRUPTED:
                raise
            return True
        return False

    def _is_undisturbed(self, killer: Killer) -> bool:
        before = killer.count
        try:
            self._connection._execute_command(COMMAND.COM_QUERY, b"DO 0")
            self._connection._read_ok_packet()
        except err.OperationalError as error:
            if error.args[0] != INTERRUPTED:
                raise
            return False
        return killer.count == before


def _caller() -> Any:
    loop = asyncio._get_running_loop()
    return (current_task(loop) if loop is not None else None) or threading.get_ident()
