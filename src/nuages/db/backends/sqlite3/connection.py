"""sqlite3's connection, worked by one thread of its own when it serves an event loop.

Every call that may touch the file runs in the connection's worker and is awaited in a bridge
(in a thread: waited for). Outside loops a connection has no worker and is plain sqlite3's.

Waiting for SQLite's write lock never blocks anything but the waiter: in-process writers queue in
a `FairLock` of their database file, first come, first served, and where another process has the
lock the statement is tried again until the connection's timeout.

This module is longer than most: half of it lists sqlite3's methods that touch the file.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import random
import re
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from django.db.backends.sqlite3.base import SQLiteCursorWrapper

from nuages.bridge import current_bridge
from nuages.db.backends.base.driver import GiveBack, RawConnection
from nuages.db.backends.sqlite3.cursor import Cursor, PlainCursor
from nuages.db.backends.sqlite3.session_state import NotesState
from nuages.db.backends.sqlite3.worker import Job, Worker
from nuages.db.pool.pool import on_loop_of
from nuages.db.scopes.admission import Admission
from nuages.db.scopes.fair_lock import FairLock
from nuages.db.scopes.finalising import end_left
from nuages.exceptions import ForkedDatabase

if TYPE_CHECKING:
    from nuages.db.backends.base.base import LoopWrapper
    from nuages.db.pool.pool import Pool

logger = logging.getLogger("nuages.sqlite3")

_BUSY = 5
_BUSY_SNAPSHOT = 517
_INTERRUPT = 9
_STEPS = 1000
"""Steps of SQLite's machine between two looks at the clock."""
_BEGIN = re.compile(r"\s*BEGIN\s+(IMMEDIATE|EXCLUSIVE)\b", re.IGNORECASE)
_WRITE = re.compile(
    r"\s*(INSERT|UPDATE|DELETE|REPLACE|CREATE|DROP|ALTER|REINDEX|VACUUM|ANALYZE)\b", re.IGNORECASE
)


class _BlockEnded(Exception):
    """A block of the connection began to end while a statement was on its way."""


_switching = threading.Lock()
"""Held by the worker that switches a file to WAL."""

gates: dict[str, FairLock] = {}
_living: weakref.WeakSet[Connection] = weakref.WeakSet()
"""The connections of this process, and in a forked child those of the parent."""
_in_use_by_parent: dict[str, list[Connection]] = {}
"""In a forked child: files on which something was under way in the parent, with the connections
that had them open. These are kept, because a connection that is collected is closed."""


class FileReplaced(sqlite3.OperationalError):
    """The name of a connection's file is that of another one, or of none."""


def _after_fork() -> None:
    global _switching
    # A thread that does not exist in the child may have held the lock.
    _switching = threading.Lock()
    gates.clear()
    for connection in tuple(_living):
        connection.leave_to_parent()


os.register_at_fork(after_in_child=_after_fork)


def gate_of(database: str) -> FairLock:
    """Return the queue of this process's writers of a database file."""
    return gates.setdefault(database, FairLock())


class Connection(NotesState):
    """A connection that, with a worker, never touches the file on a loop's thread."""

    wrapper: LoopWrapper | None = None
    pool: Pool | None = None
    statement_timeout: float | None = None
    """`OPTIONS["statement_timeout"]`, seconds; waiting for locks (`timeout`) does not count."""
    unverified = False
    """Whether it has a new user, and nobody has checked yet that its file is still there."""
    _file: tuple[int, int] | None = None
    kept = False
    """Whether it is a whole database in memory, which outlives pools and loops."""

    shared = 0
    """How many others have opened the same database in memory, and got this connection."""

    in_use_by_parent = False
    """Whether, in a forked child, something was under way on it in the parent."""
    in_test = False
    """Whether it has the transaction of a test, which must outlive cancellations in the test."""
    _write_of_test = False
    """Whether its last statement writes: if interrupted, SQLite would roll back everything."""

    def __init__(self, database: Any, *args: Any, **kwargs: Any) -> None:
        self.worker: Worker | None = None
        self.timeout = float(kwargs.get("timeout", 5.0))
        self.database = _identity(database)
        self._gate_held = False
        self._broken = False
        self._deadline: float | None = None
        self.open_cursors: weakref.WeakSet[Any] = weakref.WeakSet()
        """Cursors that have rows left; a cursor that is dropped is closed."""
        self._thread_ident = threading.get_ident()
        if self.database in _in_use_by_parent:
            raise ForkedDatabase(database=self.database)
        super().__init__(database, *args, **kwargs)
        _living.add(self)
        self.forget_state()

    def leave_to_parent(self) -> None:
        """Close the copy, or note that the file was in use (in a forked child).

        SQLite counts the locks that it has on a file process by process, and a fork copies the
        counts but not the locks. Closing a connection at rest puts the counts right; one with
        work under way cannot be closed: its transaction would be rolled back in the parent's
        journal.
        """
        worker, self.worker = self.worker, None
        self._gate_held = False
        if worker is not None and worker.busy:
            self._leave_in_use()
        elif self._broken:
            pass
        elif self.database is None:
            # A copy of the database. One that loops shared may be in a transaction of the parent.
            if self.kept and self.in_transaction:
                super().rollback()
        elif self.in_transaction or self.open_cursors:
            self._leave_in_use()
        elif worker is not None or self._thread_ident == threading.get_ident():
            # No other thread can be at work on the connection.
            self._broken = True
            super().close()

    def _leave_in_use(self) -> None:
        self.in_use_by_parent = True
        _in_use_by_parent.setdefault(self.database or ":memory:", []).append(self)

    def runs_here(self) -> bool:
        """Tell whether calls run in the calling thread as they are."""
        worker = self.worker
        return worker is None or worker.is_current()

    def busy(self) -> bool:
        """Tell whether the worker has something to do."""
        return self.worker is not None and self.worker.busy

    def serve_loop(self, worker: Worker) -> None:
        """Use `worker` from now on; the waiting for locks is ours then, not SQLite's."""
        self.worker = worker
        self._file = _file_at(self.database)
        super().execute("PRAGMA busy_timeout = 0")

    def _verify(self) -> None:
        """See that the file's name still means the same file (in the worker).

        SQLite would go on with a file that was replaced (by a restored backup) or removed, and
        what is committed there is lost.
        """
        self.unverified = False
        if self._file is not None and _file_at(self.database) != self._file:
            raise FileReplaced(
                f"{self.database!r} was replaced or removed while it was open; its connections "
                "are closed, and the next one opens what is there now"
            )

    def begin_sharing(self) -> bool:
        """Use a worker from now on, outside loops too; False where there is one already."""
        if self.worker is not None or self._broken:
            return False
        self.worker = Worker()
        # Whatever comes next queues behind this.
        self.later(functools.partial(super().execute, "PRAGMA busy_timeout = 0"))
        return True

    def end_sharing(self) -> None:
        """Undo `begin_sharing`, with nothing under way."""
        worker, timeout = self.worker, round(self.timeout * 1000)
        if worker is None or self._broken:
            return
        worker.call(functools.partial(super().execute, f"PRAGMA busy_timeout = {timeout}"))
        self.leave_gate_after_transaction()
        self.worker = None
        worker.stop()

    def switch_to_wal(self) -> None:
        """Put the file in WAL mode, unless others prevent that for `timeout` (in the worker).

        The mode belongs to the file: only the first connection changes it. SQLite refuses the
        change at once while anybody else reads, so connections of this process that open at the
        same time wait for each other. A file that stays in use is used in the mode it is in.
        """
        deadline = time.monotonic() + self.timeout
        if self._journal_mode("") == "wal":
            return
        if not _switching.acquire(timeout=self.timeout):
            logger.info("%r stays out of WAL mode: others are switching", self.database)
            return
        try:
            while self._journal_mode("") != "wal":
                try:
                    self._journal_mode("= WAL")
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode & 0xFF != _BUSY:
                        raise
                    if time.monotonic() >= deadline:
                        logger.info("%r stays out of WAL mode: it is in use", self.database)
                        return
                    time.sleep(0.005)
        finally:
            _switching.release()

    def _journal_mode(self, change: str) -> str:
        row = super().execute(f"PRAGMA journal_mode {change}").fetchone()
        return str(row[0])

    def later(self, function: Callable[[], Any]) -> None:
        """Run `function` in the worker, unawaited."""
        assert self.worker is not None
        self.worker.submit(Job(function, None), awaited=False)

    def in_worker(self, function: Callable[[], Any]) -> Any:
        """Run `function` in the worker and wait for it, in turn with other users of the scope."""
        return self._in_turn(functools.partial(self._send, function))

    def _in_turn(self, work: Callable[[Admission], Any]) -> Any:
        """Call `work` while nothing else of the scope uses the connection.

        The turn is taken before the file's gate, as for a block that begins: where one caller had
        the turn and another the gate, neither could go on.
        """
        wrapper = self.wrapper
        if wrapper is not None and wrapper.scope is not None and wrapper.scope.unended:
            end_left(wrapper.scope)
        while True:
            use = Admission(self.wrapper, self)
            use.take_turn(keep=True)
            try:
                use.look_again()
                return work(use)
            except _BlockEnded:
                # The block was this code's, which is refused now, or one beside it.
                use.look_again()
            finally:
                use.give_back()

    def _send(self, function: Callable[[], Any], use: Admission) -> Any:
        work = functools.partial(self.timed, function)
        if current_bridge() is None:
            # A block may begin to end, in another thread, before the worker comes to this call.
            work = functools.partial(self._in_scope, work, use)
        return self._call_worker(work)

    def _in_scope(self, work: Callable[[], Any], use: Admission) -> Any:
        """Call `work`, unless a block has begun to end since it was queued (in the worker)."""
        if use.block_began_to_end():
            raise _BlockEnded
        return work()

    def _call_worker(self, function: Callable[[], Any]) -> Any:
        assert self.worker is not None
        wrapper = self.wrapper
        rolled_back: list[bool] = []
        try:
            return self.worker.call(functools.partial(self._observed, function, rolled_back), self)
        except FileReplaced:
            if self.pool is not None:
                on_loop_of(self.pool, self.pool.clear)
            self.terminate()
            raise
        except sqlite3.Error:
            self._note_rollback(rolled_back)
            raise
        except asyncio.CancelledError:
            self._note_rollback(rolled_back)
            if wrapper is not None:
                wrapper.note_interruption()
            raise

    def _observed(self, function: Callable[[], Any], rolled_back: list[bool]) -> Any:
        """Call `function`; put a mark into `rolled_back` if it fails and the transaction with it.

        This is in the worker, because by the time that the caller looks the worker may have gone
        on to a COMMIT, and there is no transaction after that either.
        """
        was_outside = self.is_outside_transaction()
        try:
            return function()
        except sqlite3.Error:
            if not was_outside and self.is_outside_transaction():
                rolled_back.append(True)
            raise

    def patiently(self, function: Callable[[], Any]) -> Any:
        """Call what runs several statements; SQLite itself waits for its locks (in the worker).

        A call that began anew after a busy error would repeat the statements that had succeeded.
        """
        wait = super().execute
        wait(f"PRAGMA busy_timeout = {round(self.timeout * 1000)}")
        try:
            return function()
        finally:
            wait("PRAGMA busy_timeout = 0")

    def _note_rollback(self, rolled_back: list[bool]) -> None:
        # An interrupted or failed write has dropped the whole transaction; the statements that
        # follow must not run in autocommit unseen, nor COMMIT seem to commit.
        wrapper = self.wrapper
        if wrapper is None or not rolled_back:
            return
        scope = wrapper.scope
        if wrapper.in_atomic_block or (scope is not None and scope.blocks):
            wrapper.note_interruption(lost=True)
            self.leave_gate_after_transaction()

    def execute_in_turn(self, query: str, function: Callable[[], Any]) -> None:
        """Run a statement in the worker, waiting for SQLite's locks where it needs them."""
        self._in_turn(functools.partial(self._execute, query, function))

    def _execute(self, query: str, function: Callable[[], Any], use: Admission) -> None:
        deadline = time.monotonic() + self.timeout
        self.leave_gate_after_transaction()
        if not self._gate_held and (_BEGIN.match(query) or _WRITE.match(query)):
            self._enter_gate(use)
        if self.in_test:
            self._write_of_test = _WRITE.match(query) is not None
        was_outside = self.is_outside_transaction()
        try:
            self.note(query)
            self._until(deadline, function, use)
        except Exception:
            raise
        except BaseException:
            # Cancelled, but the worker had begun a transaction before it was interrupted.
            if was_outside and not self.is_outside_transaction():
                self._undo()
            raise
        finally:
            self.leave_gate_after_transaction()

    def timed(self, function: Callable[[], Any]) -> Any:
        """Call `function`, interrupted at the statement's timeout (in the connection's thread)."""
        if self.unverified:
            self._verify()
        if not self.statement_timeout or self._deadline is not None:
            return function()
        deadline = self._deadline = time.monotonic() + self.statement_timeout
        watch = functools.partial(sqlite3.Connection.set_progress_handler, self)
        watch(lambda: time.monotonic() >= deadline, _STEPS)
        try:
            return function()
        except sqlite3.OperationalError as error:
            code = getattr(error, "sqlite_errorcode", 0)
            if code != _INTERRUPT or time.monotonic() < deadline:
                raise
            raise sqlite3.OperationalError(
                f"canceling statement due to statement timeout: {self.statement_timeout:g} s"
            ) from error
        finally:
            self._deadline = None
            watch(None, 0)

    def _undo(self) -> None:
        bridge = current_bridge()
        assert bridge is not None
        assert self.worker is not None
        try:
            with bridge.shield():
                self.worker.call(super().rollback)
        except BaseException:
            self.terminate()
            raise

    def interrupt_until_done(self, job: Job) -> None:
        """Interrupt the worker, repeatedly: between two steps there is nothing to interrupt."""
        if not job.done:
            if not self._write_of_test:
                self._interrupt()
            asyncio.get_running_loop().call_later(0.01, self.interrupt_until_done, job)

    def _interrupt(self) -> None:
        with suppress(sqlite3.ProgrammingError):  # closed meanwhile
            self.interrupt()

    def _interrupt_all(self, worker: Worker) -> None:
        """Have what the worker does and is to do end soon, without waiting for it."""
        jobs = worker.abandon()
        if not jobs:
            return
        self._interrupt()
        if asyncio._get_running_loop() is not None:
            for job in jobs:
                self.interrupt_until_done(job)

    def _enter_gate(self, use: Admission) -> None:
        if self.database is None or self._broken:
            return
        gate = gate_of(self.database)
        pool = self.pool if gate.locked() else None
        if pool is not None:
            # The wait must not keep readers, or the code that has the gate, from a connection.
            on_loop_of(pool, pool.park)
        try:
            entered = gate.acquire(self, self.timeout)
        finally:
            if pool is not None:
                on_loop_of(pool, pool.unpark)
        try:
            use.look_again()
        except BaseException:
            if entered:
                gate.release()
            raise
        if not entered:
            raise sqlite3.OperationalError("database is locked")
        self._gate_held = True

    def _until(self, deadline: float, function: Callable[[], Any], use: Admission) -> None:
        pause = 0.001
        while True:
            try:
                self._send(function, use)
                return
            except sqlite3.OperationalError as error:
                code = getattr(error, "sqlite_errorcode", 0)
                if code & 0xFF != _BUSY or (
                    code == _BUSY_SNAPSHOT and not self.is_outside_transaction()
                ):
                    # In a transaction waiting cannot help; outside one, only a cursor that is
                    # being closed is still in the way.
                    raise
                if time.monotonic() + pause >= deadline:
                    raise
            self._pause(pause)
            use.look_again()
            pause = min(pause * 2, 0.05) * random.uniform(0.8, 1.2)  # noqa: S311 - a pause

    @staticmethod
    def _pause(seconds: float) -> None:
        bridge = current_bridge()
        if bridge is None:
            time.sleep(seconds)
        else:
            bridge.wait(asyncio.sleep(seconds))

    def leave_gate_after_transaction(self) -> None:
        """Let the file's next writer go on, unless a transaction is open."""
        if self._gate_held and self.is_outside_transaction():
            self._leave_gate()

    def _leave_gate(self) -> None:
        if self._gate_held and self.database is not None:
            self._gate_held = False
            gate_of(self.database).release()

    @property
    def label(self) -> str:
        """The name of this holder of the write queue, for messages."""
        return f"the SQLite connection of {self.database!r}"

    # sqlite3.Connection's methods that touch the file

    def cursor(self, factory: Any = None) -> Any:
        """Return a cursor; Django's kind becomes ours."""
        if factory is None:
            factory = PlainCursor
        elif factory is SQLiteCursorWrapper:
            factory = Cursor
        return super().cursor(factory)

    def execute(self, *args: Any) -> Any:
        """Do as sqlite3 does."""
        if self.runs_here():
            return super().execute(*args)
        run = super().execute
        result: list[Any] = []
        self.execute_in_turn(args[0], lambda: result.append(run(*args)))
        return result[0]

    def executemany(self, *args: Any) -> Any:
        """Do as sqlite3 does."""
        run = super().executemany
        return run(*args) if self.runs_here() else self._several(args[0], run, *args)

    def executescript(self, *args: Any) -> Any:
        """Do as sqlite3 does."""
        run = super().executescript
        if self.runs_here():
            return run(*args)
        self.note_script(args[0])
        return self._several("CREATE", run, *args)

    def _several(self, query: str, run: Callable[..., Any], *args: Any) -> Any:
        result: list[Any] = []
        self.execute_in_turn(query, lambda: result.append(self.patiently(lambda: run(*args))))
        return result[0]

    def commit(self) -> None:
        """Do as sqlite3 does; waits for readers where the journal mode makes it."""
        run = super().commit
        if self.runs_here():
            run()
        elif self.in_transaction:
            try:
                self._in_turn(functools.partial(self._until, time.monotonic() + self.timeout, run))
            finally:
                self.leave_gate_after_transaction()

    def rollback(self) -> None:
        """Do as sqlite3 does."""
        run = super().rollback
        if self.runs_here():
            run()
        elif self.in_transaction:
            try:
                self.in_worker(run)
            finally:
                self.leave_gate_after_transaction()

    def backup(self, target: sqlite3.Connection, **kwargs: Any) -> None:
        """Do as sqlite3 does."""
        run = super().backup
        if self.runs_here():
            run(target, **kwargs)
        else:
            self.in_worker(lambda: run(target, **kwargs))

    def _call(self, function: Callable[[], Any]) -> Any:
        return function() if self.runs_here() else self.in_worker(function)

    def close(self) -> None:
        """Do as sqlite3 does, and end the worker. A database in memory ends with its last user."""
        if self.shared > 0:
            self.shared -= 1
            return
        worker = self.worker
        closed, self._broken = self._broken, True
        if worker is None:
            super().close()
            return
        if closed:
            return  # the worker does it, or has done it
        self._leave_gate()
        run = self._end
        if worker.is_current():
            run()
        else:
            worker.call(run)
        worker.stop()

    # What the pool asks

    def is_alive(self) -> bool:
        """Tell whether the connection is open."""
        return not self._broken

    def is_idle(self) -> bool:
        """Tell whether nothing is under way; true if closed, because the pool must hear of it."""
        return self._broken or not (self.in_transaction or self.busy() or self.open_cursors)

    def is_working(self) -> bool:
        """Tell whether a statement is in flight."""
        return self.busy()

    def is_outside_transaction(self) -> bool:
        """Tell whether the connection is in no transaction; a closed one is in none."""
        return self._broken or not self.in_transaction

    def inspect(self) -> GiveBack:
        """Return what must be done before another user gets this connection."""
        if self._broken or (self.has_settings_of_its_own() and not self.kept):
            return "close"
        if self.in_transaction or self.busy() or self.what_was_left():
            return "reset"
        return "reuse"

    def wait_for_statement(self) -> None:
        """Wait until the statement in flight has ended."""
        if not self.runs_here() and not self._broken:
            self.in_worker(lambda: None)

    def quiesce(self) -> bool:
        """Wait until the worker has done what was queued, whoever waits for that.

        Returns False where a failure has ended the transaction.
        """
        if self.worker is not None and not self._broken:
            self.worker.call(lambda: None)
        return not self.is_outside_transaction()

    def attach(self, pool: Pool) -> None:
        """Remember the pool; a worker serves any loop."""
        self.pool = pool

    def detach(self) -> None:
        """Do nothing: a worker serves any thread."""

    def _end(self) -> None:
        """Roll back and close (in the worker).

        As long as somebody keeps a cursor SQLite does not close a connection, and keeps its locks.
        An interruption lasts as long as a statement has rows left, and ends a ROLLBACK as well.
        """
        for cursor in self._cursors_with_rows():
            with suppress(sqlite3.Error):
                sqlite3.Cursor.close(cursor)
        with suppress(sqlite3.Error):
            super().rollback()
        super().close()

    def _cursors_with_rows(self) -> list[Any]:
        while True:
            try:
                return list(self.open_cursors)
            except RuntimeError:
                continue  # another thread has let one go meanwhile

    def terminate(self) -> None:
        """Interrupt what runs and close, without waiting."""
        worker = self.worker
        if self._broken or worker is None:
            return
        if self.kept:
            if self.busy():
                self._interrupt()  # what is queued may be others'
            elif not self.in_transaction:
                return
            worker.submit(Job(super().rollback, None))
            return
        self._broken = True
        self._interrupt_all(worker)
        self._leave_gate()
        worker.submit(Job(self._end, None))
        worker.stop()


def _identity(database: Any) -> str | None:
    """Name the file behind a database, for its queue of writers; None for one in memory."""
    name = os.fsdecode(database)
    if name == ":memory:" or "mode=memory" in name or not name:
        return None
    if name.startswith("file:"):
        name = name[5:].partition("?")[0]
    return os.path.realpath(name)


def _file_at(database: str | None) -> tuple[int, int] | None:
    """Return which file a database is; None for one in memory, and where there is no file."""
    if database is None:
        return None
    try:
        found = os.stat(database)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


_: type[RawConnection] = Connection  # mypy sees that the contract is kept
