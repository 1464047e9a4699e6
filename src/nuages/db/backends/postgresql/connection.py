"""psycopg's sync connection, with its waits awaited on the event loop.

`wait` drives psycopg's generators as psycopg's own `AsyncConnection` does; `connect`,
`cancel_safe`, `cancel` and `close` do not pass through it and have overrides of their own, and
`lock` is replaced by one that never blocks the loop's thread.

A connection of the pool keeps its socket registered with the loop (`watching`), so that waiting
costs no system call and a connection the server closes is noticed while idle. The socket is
unregistered whenever data arrives that nobody waits for, before any close, and before a thread
uses it: a dead socket left registered spins the loop.

This module is longer than most: waiting, being interrupted and answering the pool share the state
of one socket, and are best read together.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import time
from collections import deque
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Self

import psycopg
from psycopg import errors as e
from psycopg import pq, sql, waiting

from nuages.bridge import Bridge, current_bridge
from nuages.conf import setting
from nuages.db.backends.base.connection_lock import ConnectionLock
from nuages.db.backends.base.driver import GiveBack, RawConnection, may_do_io
from nuages.db.backends.base.statistics import statistics
from nuages.db.backends.postgresql.connecting import CANCEL_AGAIN, INTERVAL, connect_on_loop
from nuages.db.backends.postgresql.duplicated_socket import DuplicatedSocket
from nuages.db.backends.postgresql.session_state import Adapters, Trace, noting
from nuages.db.scopes.fair_lock import Caller
from nuages.exceptions import SyncInCoroutine

if TYPE_CHECKING:
    from nuages.db.backends.base.base import LoopWrapper
    from nuages.db.pool.pool import Pool

logger = logging.getLogger("nuages.postgresql")

WAIT_R, WAIT_W = waiting.WAIT_R, waiting.WAIT_W
READY_NONE, READY_R, READY_W = waiting.READY_NONE, waiting.READY_R, waiting.READY_W
OK = pq.ConnStatus.OK
ACTIVE = pq.TransactionStatus.ACTIVE
IDLE = pq.TransactionStatus.IDLE


class Connection(psycopg.Connection[Any]):
    """A psycopg connection that awaits inside a bridge and blocks elsewhere, as ever."""

    wrapper: LoopWrapper | None = None
    pool: Pool | None = None
    state_is_meant = False
    session_state: str = ""
    """The first statement that left state behind in the session; empty for none."""
    maybe_state = False
    """Whether a statement may have left state of which nobody needs a warning."""
    lasting_state = False
    """Whether the state that was left is such that the session must end."""
    is_noted = False
    """Whether the query about to start comes from a cursor that notes what the query leaves."""
    recent: deque[Any] | None = None
    own_settings: list[str] | None = None
    """Settings named in the project's functions and policies, where sessions are checked."""
    types_changed = False
    """Whether a statement made or dropped types, whose oids other connections have looked up."""

    def __init__(self, pgconn: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(pgconn, *args, **kwargs)
        self.guard = ConnectionLock(self)
        self.lock = self.guard  # type: ignore[assignment]
        self.open_cursors: set[str] = set()
        self.orphaned_cursors: set[str] = set()
        self.held_cursors: set[str] = set()
        """The open cursors that outlive their transaction."""
        self.committed_failed = False
        """Whether the last COMMIT found a failed transaction, to which the answer is ROLLBACK."""
        self.savepoint_rollbacks = 0
        """How many savepoints were rolled back, each with the cursors declared in it."""
        self._watched: DuplicatedSocket | None = None
        self._future: asyncio.Future[None] | None = None
        self._ready = 0
        self._process = os.getpid()
        self._baseline: tuple[Any, ...] = ()

    # Connecting

    @classmethod
    def connect(cls, conninfo: str = "", **kwargs: Any) -> Self:
        """Do as psycopg does; inside a bridge nothing blocks, name resolution included."""
        bridge = current_bridge()
        if bridge is None:
            if not may_do_io():
                raise SyncInCoroutine()
            return super().connect(conninfo, **kwargs)
        return bridge.wait(connect_on_loop(cls, conninfo, **kwargs))

    # Waiting

    def wait(
        self, gen: Generator[Any, Any, Any], interval: float = INTERVAL,
        timeout: float | None = None,
    ) -> Any:  # fmt: skip
        """Consume one of psycopg's generators: awaited in a bridge, else blocking.

        Raises `psycopg.errors._WaitTimeout` past `timeout` seconds. An interruption (a
        cancellation, say) cancels the statement on the server before it is passed on.
        """
        bridge = current_bridge()
        if bridge is None:
            return self._wait_elsewhere(gen, interval, timeout)
        try:
            wanted = next(gen)
        except StopIteration as stop:
            return stop.value
        statistics.bridged += 1
        deadline = None if timeout is None else time.monotonic() + timeout
        tick = interval if interval != INTERVAL else None
        try:
            while True:
                ready = self._await_ready(bridge, wanted, tick, deadline)
                wanted = gen.send(ready)
                if deadline is not None and time.monotonic() >= deadline:
                    raise e._WaitTimeout("wait timeout expired")
        except StopIteration as stop:
            return stop.value
        except e.Error:
            raise
        except GeneratorExit:
            self.terminate()
            raise
        except asyncio.CancelledError as cancelled:
            if bridge.shields:
                return self._finish_shielded(bridge, gen, wanted, cancelled)
            self._interrupted(bridge, gen, wanted)
            raise
        except BaseException:
            self._interrupted(bridge, gen, wanted)
            raise
        finally:
            if self.pgconn.status != OK:
                self._leave_loop()
            elif self.pool is None:
                self.detach()

    def _wait_elsewhere(
        self, gen: Generator[Any, Any, Any], interval: float, timeout: float | None
    ) -> Any:
        # A thread that shares a scope waits by itself. The loop lets go of the socket when data
        # arrives that no bridge waits for, and takes it up again at its next wait.
        running = asyncio._get_running_loop()
        if running is not None:
            if not may_do_io():
                raise SyncInCoroutine()
            statistics.blocked += 1
            self.detach()
        return super().wait(gen, interval, timeout)

    def _await_ready(
        self, bridge: Bridge, wanted: int, tick: float | None, deadline: float | None
    ) -> int:
        loop = bridge.loop
        watched = self._watched
        if watched is None or watched.loop is not loop:
            watched = self._watch(loop)
        self._ready = 0
        future = self._future = loop.create_future()
        timer = None
        if tick is not None or deadline is not None:
            rest = tick if tick is not None else 3600.0
            if deadline is not None:
                rest = max(0.0, min(rest, deadline - time.monotonic()))
            timer = loop.call_later(rest, _wake, future)
        if wanted & WAIT_W:
            watched.watch_writing(loop, self._writable)
        try:
            bridge.wait(future)
        finally:
            self._future = None
            if timer is not None:
                timer.cancel()
            if wanted & WAIT_W:
                watched.unwatch_writing()
        if self._closed:
            # Closed meanwhile: the generator, written in C, would go on with freed memory.
            raise e.OperationalError("the connection is closed")
        return self._ready

    def _readable(self) -> None:
        future = self._future
        if future is None:
            # Nobody waits: a notice, the server's good-bye, or data of a COPY. Whatever it is,
            # the descriptor must not stay registered while it is readable.
            pool = self.pool if self.wrapper is None else None
            loop = self.loop
            self.detach()
            if pool is not None and loop is not None:
                if self.is_alive():
                    self._watch(loop)
                else:
                    pool.lost(self)
            return
        self._ready |= READY_R
        if self._watched is not None and self._watched.is_in_error():
            self.detach()
        if not future.done():
            future.set_result(None)

    def _writable(self) -> None:
        future = self._future
        self._ready |= READY_W
        if future is not None and not future.done():
            future.set_result(None)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> DuplicatedSocket:
        if self._watched is None:
            self._watched = DuplicatedSocket(self.pgconn.socket)
        if self._watched.loop is not loop:
            self._watched.watch(loop, self._readable)
        return self._watched

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that the socket is registered with."""
        return self._watched.loop if self._watched is not None else None

    def wait_for_statement(self) -> None:
        """Wait until the statement in flight has ended."""
        with self.lock:
            pass

    def attach(self, pool: Pool) -> None:
        """Keep the socket registered with the pool's loop from now on."""
        self.pool = pool
        if self.pgconn.status == OK:
            self._watch(pool.loop)

    def detach(self) -> None:
        """Take the socket out of the loop (on the loop's thread)."""
        if self._watched is not None:
            self._watched.unwatch()

    # Interruptions

    def _interrupted(self, bridge: Bridge, gen: Generator[Any, Any, Any], wanted: int) -> None:
        """Cancel the statement on the server and let it end; close where that fails.

        The request travels on another connection, and the server ignores one that comes before
        its statement; so it is repeated while the statement goes on. A second cancellation
        meanwhile only shortens this to closing the socket.
        """
        if self.wrapper is not None:
            self.wrapper.note_interruption()
        if self.pgconn.status != OK or self.pgconn.transaction_status != ACTIVE:
            return
        limit = float(setting["CANCEL_TIMEOUT"])
        deadline = time.monotonic() + limit
        try:
            pause = CANCEL_AGAIN
            bridge.wait(self._cancel_on_loop(limit))
            while True:
                begun = time.monotonic()
                ready = self._await_ready(bridge, wanted, pause, deadline)
                wanted = gen.send(ready)
                now = time.monotonic()
                if now >= deadline:
                    raise e._WaitTimeout("the server did not end the statement")
                if not ready and now - begun >= pause:
                    bridge.wait(self._cancel_on_loop(deadline - now))
                    pause *= 2
        except StopIteration:
            return  # the statement had ended before the request arrived
        except e.QueryCanceled:
            return
        except e.Error as error:
            if self.pgconn.transaction_status == ACTIVE:
                logger.warning("closed a connection whose statement did not end: %s", error)
                self.terminate()
        except asyncio.CancelledError:
            logger.warning("closed a connection: cancelled again while its statement ended")
            self.terminate()
        except BaseException:
            self.terminate()
            raise

    def _finish_shielded(
        self,
        bridge: Bridge,
        gen: Generator[Any, Any, Any],
        wanted: int,
        cancelled: asyncio.CancelledError,
    ) -> Any:
        """Wait for the end of a statement (a COMMIT) although the task was cancelled."""
        bridge.deferred_cancel = cancelled
        deadline = time.monotonic() + float(setting["COMMIT_TIMEOUT"])
        try:
            while True:
                try:
                    ready = self._await_ready(bridge, wanted, None, deadline)
                except asyncio.CancelledError as again:
                    bridge.deferred_cancel = again
                    ready = self._ready
                wanted = gen.send(ready)
                if time.monotonic() >= deadline:
                    self.terminate()
                    raise e.OperationalError("the server did not answer in time")
        except StopIteration as stop:
            return stop.value

    async def _cancel_on_loop(self, timeout: float) -> None:
        try:
            await waiting.wait_conn_async(
                self._cancel_gen(), interval=INTERVAL, timeout=timeout or None
            )
        except e._WaitTimeout:
            raise e.CancellationTimeout("cancellation timeout expired") from None

    def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """Do as psycopg does; awaited in a bridge."""
        bridge = current_bridge()
        if bridge is None:
            super().cancel_safe(timeout=timeout)
        elif self._should_cancel():
            bridge.wait(self._cancel_on_loop(timeout))

    def cancel(self) -> None:
        """Do as psycopg does; awaited in a bridge."""
        if current_bridge() is None:
            super().cancel()
        else:
            self.cancel_safe()

    def close(self) -> None:
        """Close the connection; its socket leaves the loop first."""
        if self.closed:
            self._finish()  # perhaps it was lost with its socket in the loop
        else:
            self.terminate()

    def cursor(self, name: str = "", **kwargs: Any) -> Any:
        """Do as psycopg does; the cursor notes what its statements leave in the session."""
        if name:
            return super().cursor(name, **kwargs)
        self._check_connection_ok()
        row_factory = kwargs.pop("row_factory", None) or self.row_factory
        factory: Any = self.cursor_factory
        cursor = noting(factory)(self, row_factory=row_factory)
        if kwargs.pop("binary", False):
            cursor.format = pq.Format.BINARY
        if kwargs:
            raise TypeError(f"a client-side cursor takes no {', '.join(sorted(kwargs))}")
        return cursor

    def _check_intrans_gen(self, attribute: str) -> Any:
        # Of a lost connection psycopg says that a transaction is in the way.
        self._check_connection_ok()
        return super()._check_intrans_gen(attribute)

    # What its statements leave

    def _start_query(self) -> Generator[Any, Any, None]:
        if self.is_noted:
            self.is_noted = False
        else:
            # The query comes from a cursor that `cursor()` did not make.
            self.maybe_state = True
        if self.orphaned_cursors and self._pipeline is None:
            return self._start_without_orphans()
        return super()._start_query()

    def _start_without_orphans(self) -> Generator[Any, Any, None]:
        yield from self._close_orphans()
        yield from super()._start_query()

    def _close_orphans(self) -> Generator[Any, Any, None]:
        """Close, on the server, the cursors that finalisers have left and that still exist."""
        if self.pgconn.transaction_status not in (IDLE, pq.TransactionStatus.INTRANS):
            return
        # A copy, because a finaliser may come in between.
        orphans = self.orphaned_cursors.copy()
        found = yield from self._exec_command(b"SELECT name FROM pg_catalog.pg_cursors")
        assert found is not None
        encoding = self.pgconn._encoding
        for row in range(found.ntuples):
            name = (found.get_value(row, 0) or b"").decode(encoding)
            if name in orphans:
                yield from self._exec_command(sql.SQL("CLOSE {}").format(sql.Identifier(name)))
        self.open_cursors -= orphans
        self.held_cursors -= orphans
        self.orphaned_cursors -= orphans

    def note(self, trace: Trace, query: bytes) -> None:
        """Note what the statement `query` leaves in the session."""
        if trace == "maybe":
            self.maybe_state = True
        elif trace:
            self.lasting_state = self.lasting_state or trace == "lasting"
            if not self.session_state:
                self.session_state = query[:200].decode("utf-8", "replace")

    def forget_state(self) -> None:
        """Note that the session is like a fresh one."""
        self.session_state = ""
        self.maybe_state = self.lasting_state = self.state_is_meant = self.is_noted = False
        # Forget notifications for another user's channels.
        self._notifies_backlog = deque()

    # What the pool asks

    @property
    def closed(self) -> bool:
        """Do as psycopg does; also for a connection to be freed once a thread has left it."""
        return self._closed or super().closed

    def keep_descriptor(self) -> None:
        """Make a descriptor of the socket that stays valid, whichever thread is inside libpq."""
        if self._watched is None:
            self._watched = DuplicatedSocket(self.pgconn.socket)

    def terminate(self) -> None:
        """Close at once, without waiting: a thread's call inside ends with an error."""
        self._closed = True
        self._finish()

    def _finish(self) -> None:
        loop = self.loop
        if loop is not None and loop.is_running() and asyncio._get_running_loop() is not loop:
            # The socket is in another thread's loop, which it must leave before it is closed.
            loop.call_soon_threadsafe(self._finish_here)
        else:
            self._finish_here()

    def _finish_here(self) -> None:
        watched = self._watched
        if watched is not None:
            watched.leave()  # as only this thread may
        if not self.guard.end_when_free(self._free):
            self._shut_down(watched)
        if self._future is not None:
            _wake(self._future)  # whoever waits gets psycopg's error of a closed connection

    def _shut_down(self, watched: DuplicatedSocket | None) -> None:
        if watched is None:
            try:
                watched = DuplicatedSocket(self.pgconn.socket)
            except (e.OperationalError, OSError):
                return  # the thread that is inside has found the connection lost
        watched.shut_down()

    def _free(self) -> None:
        self._leave_loop()
        if self._process == os.getpid():
            self.pgconn.finish()

    def _leave_loop(self) -> None:
        watched, self._watched = self._watched, None
        if watched is not None:
            watched.close()

    def is_alive(self) -> bool:
        """Tell whether the connection is open, as far as can be told without a round trip."""
        if self._closed or self.pgconn.status != OK:
            return False
        poll = select.poll()
        poll.register(self.pgconn.socket, select.POLLIN)
        loop = self.loop
        if not poll.poll(0) or self.pgconn.transaction_status == ACTIVE:
            return True
        if loop is not None and loop.is_running() and asyncio._get_running_loop() is not loop:
            return True  # a loop in another thread watches the socket, and will find out
        if not self.guard.acquire_nowait(Caller()):
            return True  # whoever is inside will find out
        try:
            return self._is_open(loop)
        finally:
            self.guard.release()

    def _is_open(self, loop: asyncio.AbstractEventLoop | None) -> bool:
        """Look at what can be read; with the lock, because a thread could be inside libpq."""
        poll = select.poll()
        poll.register(self.pgconn.socket, select.POLLIN)
        self.detach()  # the socket must not stay there if this is the end of the stream
        try:
            # Behind the server's last words comes the end of the stream, which one read misses.
            while poll.poll(0):
                self.pgconn.consume_input()
        except e.OperationalError:
            return False
        if self.pgconn.status != OK:
            return False
        if loop is not None:
            self._watch(loop)
        return True

    def is_idle(self) -> bool:
        """Tell whether nothing is under way: no statement, transaction or open cursor."""
        if self.pgconn.transaction_status != IDLE:
            is_closed = self._closed or self.pgconn.status != OK
            return is_closed and not self.lock.locked()
        return (
            not self.lock.locked()
            and self.open_cursors <= self.orphaned_cursors
            and self._pipeline is None
        )

    def is_working(self) -> bool:
        """Tell whether a statement is in flight."""
        return self.lock.locked()

    def is_outside_transaction(self) -> bool:
        """Tell whether the session is in no transaction."""
        return self.pgconn.transaction_status == IDLE

    def _commit_gen(self) -> Generator[Any, Any, None]:
        # In the connection's lock, and so after any statement in flight.
        self.committed_failed = self.is_failed()
        yield from super()._commit_gen()

    def is_failed(self) -> bool:
        """Tell whether the session is in a transaction that can only be rolled back."""
        return self.pgconn.transaction_status == pq.TransactionStatus.INERROR

    def quiesce(self) -> bool:
        """Tell whether no statement is in flight: only its own loop could end one."""
        return self.pgconn.transaction_status != ACTIVE and not self.lock.locked()

    def note_baseline(self) -> None:
        """Remember the settings of a fresh connection, to see later whether they changed."""
        self._adapters = Adapters(self.adapters)
        self._baseline = self._settings()
        self.forget_state()

    def _settings(self) -> tuple[Any, ...]:
        return (
            self.row_factory,
            self.cursor_factory,
            self.server_cursor_factory,
            self.isolation_level,
            self.read_only,
            self.deferrable,
            self.prepare_threshold,
            self._autocommit,
            self.prepared_max,
            getattr(self._adapters, "changes", None),
            *self._notice_handlers,
            None,
            *self._notify_handlers,
        )

    def inspect(self) -> GiveBack:
        """Return what must be done before another user gets this connection."""
        status = self.pgconn.transaction_status
        if self.closed or self.pgconn.status != OK or self.lock.locked() or self._pipeline:
            return "close"
        if status not in (IDLE, pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR):
            return "close"
        if self._settings() != self._baseline:
            return "close"
        if (
            status != IDLE
            or self.open_cursors
            or self.session_state
            or self.maybe_state
            # What a function has set in a hold left no trace.
            or self.state_is_meant
        ):
            return "reset"
        return "reuse"


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


_: type[RawConnection] = Connection  # mypy sees that the contract is kept
