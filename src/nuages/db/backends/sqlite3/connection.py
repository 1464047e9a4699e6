"""sqlite3's connection, worked by one thread of its own when it serves an event loop.

Every call that may touch the file runs in the connection's worker and is awaited in a bridge
(in a thread: waited for). Outside loops a connection has no worker and is sqlite3's as it is.

Waiting for SQLite's write lock never blocks anything but the waiter: in-process writers queue in
a `Turns` of their database file, first come, first served, and where another process has the
lock the statement is tried again until the connection's timeout.
"""

from __future__ import annotations

import asyncio
import functools
import os
import queue
import random
import re
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django.db.backends.sqlite3.base import SQLiteCursorWrapper

from nuages.bridge import current_bridge
from nuages.db.backends.base import Verdict, may_do_io
from nuages.db.counters import statistics
from nuages.db.turns import Turns
from nuages.exceptions import BridgeClosed, SyncInCoroutine

if TYPE_CHECKING:
    from nuages.db.backends.base import LoopWrapper
    from nuages.db.pool import Pool

PREFETCH = 100
"""Rows that come back with execute(): as many as Django fetches at a time."""

_BUSY = 5
_BUSY_SNAPSHOT = 517
_INTERRUPT = 9
_STEPS = 1000
"""Steps of SQLite's machine between two looks at the clock."""
_LASTING = re.compile(
    r"\s*(CREATE\s+TEMP|ATTACH\b"
    r"|PRAGMA\s+(?!(\w+\.)?(foreign_keys|legacy_alter_table)\b)[\w.]+\s*=)",
    re.IGNORECASE,
)
"""What leaves state in a session. Django's schema editor sets the two pragmas back itself."""
_BEGIN = re.compile(r"\s*BEGIN\s+(IMMEDIATE|EXCLUSIVE)\b", re.IGNORECASE)
_WRITE = re.compile(
    r"\s*(INSERT|UPDATE|DELETE|REPLACE|CREATE|DROP|ALTER|REINDEX|VACUUM|ANALYZE)\b", re.IGNORECASE
)

gates: dict[str, Turns] = {}


def gate_of(database: str) -> Turns:
    """Return the queue of this process's writers of a database file."""
    return gates.setdefault(database, Turns())


class Job:
    """One call for the worker, and the way its end is told to whoever waits."""

    __slots__ = (
        "_event",
        "_function",
        "_future",
        "_loop",
        "abandoned",
        "done",
        "error",
        "result",
    )

    def __init__(
        self, function: Callable[[], Any], loop: asyncio.AbstractEventLoop | None
    ) -> None:
        self._function = function
        self._loop = loop
        self._future: asyncio.Future[None] | None = None
        self._event = threading.Event() if loop is None else None
        self.done = False
        self.abandoned = False
        """Whether it need not be begun any more."""
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self, ended: Callable[[Job], None]) -> None:
        """In the worker: call the function, then `ended`, then tell the waiter."""
        try:
            if self.abandoned:
                raise sqlite3.OperationalError("interrupted")
            self.result = self._function()
        except BaseException as error:
            self.error = error
        ended(self)
        if self._event is not None:
            self.done = True
            self._event.set()
        else:
            assert self._loop is not None
            try:
                self._loop.call_soon_threadsafe(self._finish)
            except RuntimeError:
                # The loop was closed before its work was done; nobody waits any more.
                self.done = True

    def _finish(self) -> None:
        self.done = True
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    def future(self) -> asyncio.Future[None]:
        """Return a new future of the job's end."""
        assert self._loop is not None
        self._future = self._loop.create_future()
        return self._future

    def wait_in_thread(self) -> None:
        """Block until the job has ended."""
        assert self._event is not None
        self._event.wait()

    def outcome(self) -> Any:
        """Return the function's result or raise its error."""
        if self.error is not None:
            try:
                raise self.error
            finally:
                self.error = None
        return self.result


class Worker:
    """The thread of one connection."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="nuages-sqlite", daemon=True)
        self._thread.start()
        # Added to by whoever submits, taken from by the worker: each is one atomic step.
        self._jobs: set[Job] = set()
        self._stopped = False
        self._mutex = threading.Lock()

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            job.run(self._jobs.discard)
            del job

    @property
    def busy(self) -> bool:
        """Whether a job is queued or running."""
        return bool(self._jobs)

    def is_current(self) -> bool:
        """Whether the calling thread is this worker."""
        return threading.get_ident() == self._thread.ident

    def submit(self, job: Job) -> None:
        """Queue a job; raises what sqlite3 raises on a closed connection."""
        with self._mutex:
            if self._stopped:
                # Nobody would run it, and whoever waits would wait for ever.
                raise sqlite3.ProgrammingError("Cannot operate on a closed database.")
            self._jobs.add(job)
            self._queue.put(job)

    def stop(self) -> None:
        """End the thread when its queue is done."""
        with self._mutex:
            self._stopped = True
            self._queue.put(None)

    def call(self, function: Callable[[], Any], connection: Connection | None = None) -> Any:
        """Run `function` in the worker: awaited in a bridge, waited for in a thread.

        A cancellation interrupts the statement and arrives when it has ended, unless the bridge
        is shielded.
        """
        statistics.worker += 1
        bridge = current_bridge()
        if bridge is None:
            if asyncio._get_running_loop() is not None:
                if not may_do_io():
                    raise SyncInCoroutine()
                statistics.blocked += 1
            job = Job(function, None)
            self.submit(job)
            job.wait_in_thread()
            return job.outcome()
        job = Job(function, bridge.loop)
        self.submit(job)
        cancelled: asyncio.CancelledError | None = None
        while not job.done:
            try:
                bridge.wait(job.future())
            except asyncio.CancelledError as error:
                if bridge.shields:
                    bridge.deferred_cancel = error
                    continue
                cancelled = error
                job.abandoned = True
                if connection is not None:
                    connection.interrupt_until_done(job)
            except (GeneratorExit, BridgeClosed):
                if connection is not None:
                    connection.terminate()
                raise
        if cancelled is not None:
            job.error = None
            raise cancelled
        return job.outcome()


if TYPE_CHECKING:
    _CursorBase = sqlite3.Cursor
else:
    _CursorBase = object


class _WorkerCursor(_CursorBase):
    """Cursor mixin: rows come from the worker, the first ones with `execute()`."""

    connection: Connection

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._rows: deque[Any] = deque()
        self._exhausted = True
        self._closed = False

    def execute(self, *args: Any) -> Any:
        """Execute a statement and fetch its first rows."""
        connection = self.connection
        if connection.runs_here():
            self._rows.clear()
            self._exhausted = False
            connection.timed(functools.partial(super().execute, *args))
        else:
            connection.execute_in_turn(args[0], functools.partial(self._execute, args))
        return self

    def _execute(self, args: Any) -> None:
        self._rows.clear()
        self._exhausted = False
        super().execute(*args)
        if self.description is None:
            self._exhausted = True
        else:
            self._fill(PREFETCH)

    def _fill(self, size: int) -> None:
        rows = super().fetchmany(size)
        self._exhausted = len(rows) < size
        self._rows.extend(rows)

    def executemany(self, query: str, param_list: Any) -> Any:
        """Execute a statement for each of the parameters."""
        connection = self.connection
        if connection.runs_here():
            return connection.timed(functools.partial(super().executemany, query, param_list))
        self._rows.clear()
        self._exhausted = True
        work = functools.partial(super().executemany, query, list(param_list))
        connection.execute_in_turn(query, functools.partial(connection.patiently, work))
        return self

    def executescript(self, script: str) -> Any:
        """Execute several statements."""
        connection = self.connection
        if not connection.runs_here():
            work = functools.partial(super().executescript, script)
            connection.execute_in_turn("CREATE", functools.partial(connection.patiently, work))
            return self
        return super().executescript(script)

    def _more(self, size: int) -> None:
        if self._closed:
            super().fetchone()  # raises sqlite3's error
        if not self._exhausted and len(self._rows) < size:
            missing = size - len(self._rows)
            if self.connection.runs_here():
                self.connection.timed(functools.partial(self._fill, missing))
            else:
                self.connection.in_worker(functools.partial(self._fill, missing))

    def fetchone(self) -> Any:
        """Return the next row, or None."""
        if not self._rows:
            self._more(1 if self.connection.runs_here() else PREFETCH)
        return self._rows.popleft() if self._rows else None

    def fetchmany(self, size: int | None = None) -> list[Any]:
        """Return the next rows."""
        size = self.arraysize if size is None else size
        self._more(size)
        rows = self._rows
        return [rows.popleft() for _ in range(min(size, len(rows)))]

    def fetchall(self) -> list[Any]:
        """Return all remaining rows."""
        self._more(2**31 - 1)
        rows = list(self._rows)
        self._rows.clear()
        return rows

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        row = self.fetchone()
        if row is None and not self._rows and self._exhausted:
            raise StopIteration
        return row

    def close(self) -> None:
        """Close the cursor."""
        self._rows.clear()
        connection = self.connection
        exhausted, self._exhausted, self._closed = self._exhausted, True, True
        if exhausted or connection.runs_here() or not connection.is_alive():
            super().close()
        elif current_bridge() is None and asyncio._get_running_loop() is not None:
            # Finalised outside a bridge.
            connection.later(super().close)
        elif (bridge := current_bridge()) is None:
            connection.in_worker(super().close)
        else:
            # Resetting its statement may write: INSERT ... RETURNING commits then. Shielded,
            # since a generator that is finalised would swallow a cancellation.
            with bridge.shield():
                connection.in_worker(super().close)


class Cursor(_WorkerCursor, SQLiteCursorWrapper):
    """Django's cursor, which takes %s placeholders."""


class PlainCursor(_WorkerCursor, sqlite3.Cursor):
    """sqlite3's own cursor."""


class Connection(sqlite3.Connection):
    """A connection that, with a worker, never touches the file on a loop's thread."""

    wrapper: LoopWrapper | None = None
    pool: Pool | None = None
    state_is_meant = False
    session_state: str = ""
    """The first statement that left state behind in the session; empty for none."""
    statement_timeout: float | None = None
    """`OPTIONS["statement_timeout"]`, seconds; waiting for locks, `timeout`, does not count."""
    kept = False
    """Whether it is a whole database, in memory: it outlives pools and loops."""

    def __init__(self, database: Any, *args: Any, **kwargs: Any) -> None:
        self.worker: Worker | None = None
        self.timeout = float(kwargs.get("timeout", 5.0))
        self.database = _identity(database)
        self._gate_held = False
        self._broken = False
        self._deadline: float | None = None
        super().__init__(database, *args, **kwargs)

    def runs_here(self) -> bool:
        """Whether calls run in the calling thread as they are."""
        worker = self.worker
        return worker is None or worker.is_current()

    def busy(self) -> bool:
        """Whether the worker has something to do."""
        return self.worker is not None and self.worker.busy

    def serve_loop(self, worker: Worker) -> None:
        """From now on use `worker`; waiting for locks is ours, not SQLite's."""
        self.worker = worker
        super().execute("PRAGMA busy_timeout = 0")

    def later(self, function: Callable[[], Any]) -> None:
        """Run `function` in the worker, unawaited."""
        assert self.worker is not None
        self.worker.submit(Job(function, None))

    def in_worker(self, function: Callable[[], Any]) -> Any:
        """Run `function` in the worker and wait for it, in turn with the others of a scope."""
        assert self.worker is not None
        wrapper = self.wrapper
        turn = None if wrapper is None or wrapper.node is None else wrapper.take_turn()
        try:
            return self.worker.call(functools.partial(self.timed, function), self)
        except sqlite3.Error:
            self._check_transaction()
            raise
        except asyncio.CancelledError:
            self._check_transaction()
            if wrapper is not None and wrapper.in_atomic_block:
                wrapper.needs_rollback = True
            raise
        finally:
            if turn is not None:
                turn.end()

    def patiently(self, function: Callable[[], Any]) -> Any:
        """In the worker: call what runs several statements, SQLite waiting for its locks itself.

        Begun anew after a busy error, it would repeat the statements that had succeeded.
        """
        wait = super().execute
        wait(f"PRAGMA busy_timeout = {round(self.timeout * 1000)}")
        try:
            return function()
        finally:
            wait("PRAGMA busy_timeout = 0")

    def _check_transaction(self) -> None:
        # An interrupted or failed write may have dropped the whole transaction; what follows
        # must not run in autocommit unseen.
        wrapper = self.wrapper
        if wrapper is not None and wrapper.in_atomic_block and not self.in_transaction:
            wrapper.needs_rollback = True
            self._leave_gate()

    def execute_in_turn(self, query: str, function: Callable[[], Any]) -> None:
        """Run a statement in the worker, waiting for SQLite's locks where it needs them."""
        self._leave_gate_after_transaction()
        settled = not self.in_transaction
        if not self.session_state and _LASTING.match(query):
            self.session_state = query[:200]
        try:
            self._execute_in_turn(query, function)
        except Exception:
            raise
        except BaseException:
            # Cancelled, and the worker had begun a transaction before it was interrupted.
            if settled and not self._broken and self.in_transaction:
                self._undo()
            raise

    def timed(self, function: Callable[[], Any]) -> Any:
        """In the thread that may: call `function`, interrupted at the statement's timeout."""
        if not self.statement_timeout or self._deadline is not None:
            return function()
        deadline = self._deadline = time.monotonic() + self.statement_timeout
        self.set_progress_handler(lambda: time.monotonic() >= deadline, _STEPS)
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
            self.set_progress_handler(None, 0)

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
        self._leave_gate_after_transaction()

    def interrupt_until_done(self, job: Job) -> None:
        """Interrupt the worker, again and again: between two steps there is nothing to."""
        if not job.done and not self._broken:
            self.interrupt()
            asyncio.get_running_loop().call_later(0.01, self.interrupt_until_done, job)

    def _execute_in_turn(self, query: str, function: Callable[[], Any]) -> None:
        deadline = time.monotonic() + self.timeout
        begins = _BEGIN.match(query) is not None
        writes = begins or (not self._gate_held and _WRITE.match(query) is not None)
        if not writes or self._gate_held or self.database is None:
            self._until(deadline, function)
            return
        gate = gate_of(self.database)
        if not gate.acquire(self, self.timeout):
            raise sqlite3.OperationalError("database is locked")
        self._gate_held = True
        try:
            self._until(deadline, function)
        finally:
            self._leave_gate_after_transaction()

    def _until(self, deadline: float, function: Callable[[], Any]) -> None:
        pause = 0.001
        while True:
            try:
                self.in_worker(function)
                return
            except sqlite3.OperationalError as error:
                code = getattr(error, "sqlite_errorcode", 0)
                if code & 0xFF != _BUSY or code == _BUSY_SNAPSHOT:
                    raise
                if time.monotonic() + pause >= deadline:
                    raise
            self._pause(pause)
            pause = min(pause * 2, 0.05) * random.uniform(0.8, 1.2)  # noqa: S311

    @staticmethod
    def _pause(seconds: float) -> None:
        bridge = current_bridge()
        if bridge is None:
            time.sleep(seconds)
        else:
            bridge.wait(asyncio.sleep(seconds))

    def _leave_gate_after_transaction(self) -> None:
        if not self.in_transaction:
            self._leave_gate()

    def _leave_gate(self) -> None:
        if self._gate_held and self.database is not None:
            self._gate_held = False
            gate_of(self.database).release()

    @property
    def label(self) -> str:
        """Who holds the write queue, for messages."""
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
        """As sqlite3's."""
        if self.runs_here():
            return super().execute(*args)
        run = super().execute
        result: list[Any] = []
        self.execute_in_turn(args[0], lambda: result.append(run(*args)))
        return result[0]

    def executemany(self, *args: Any) -> Any:
        """As sqlite3's."""
        run = super().executemany
        return run(*args) if self.runs_here() else self._several(args[0], run, *args)

    def executescript(self, *args: Any) -> Any:
        """As sqlite3's."""
        run = super().executescript
        return run(*args) if self.runs_here() else self._several("CREATE", run, *args)

    def _several(self, query: str, run: Callable[..., Any], *args: Any) -> Any:
        result: list[Any] = []
        self.execute_in_turn(query, lambda: result.append(self.patiently(lambda: run(*args))))
        return result[0]

    def commit(self) -> None:
        """As sqlite3's; waits for readers where the journal mode makes it."""
        run = super().commit
        if self.runs_here():
            run()
        elif self.in_transaction:
            try:
                self._until(time.monotonic() + self.timeout, run)
            finally:
                self._leave_gate_after_transaction()

    def rollback(self) -> None:
        """As sqlite3's."""
        run = super().rollback
        if self.runs_here():
            run()
        else:
            try:
                if self.in_transaction:
                    self.in_worker(run)
            finally:
                self._leave_gate_after_transaction()

    def backup(self, target: sqlite3.Connection, **kwargs: Any) -> None:
        """As sqlite3's."""
        run = super().backup
        if self.runs_here():
            run(target, **kwargs)
        else:
            self.in_worker(lambda: run(target, **kwargs))

    def create_function(self, *args: Any, **kwargs: Any) -> None:
        """As sqlite3's."""
        run = super().create_function
        if self.runs_here():
            run(*args, **kwargs)
        else:
            self.in_worker(lambda: run(*args, **kwargs))

    def close(self) -> None:
        """As sqlite3's; the worker ends too."""
        worker = self.worker
        if worker is None or self._broken:
            super().close()
            return
        self._broken = True
        self._leave_gate()
        run = super().close
        if worker.is_current():
            run()
        else:
            worker.call(run)
        worker.stop()

    # What the pool asks

    def is_alive(self) -> bool:
        """Whether it is open."""
        return not self._broken

    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        return not self.in_transaction and not self.busy()

    def is_settled(self) -> bool:
        """Whether it is in no transaction."""
        return not self.in_transaction

    def inspect(self) -> Verdict:
        """What must be done before another user gets it."""
        if self._broken:
            return "close"
        return "reset" if self.in_transaction or self.busy() or self.session_state else "reuse"

    def settle(self) -> None:
        """Wait until the statement in flight has ended."""
        if not self.runs_here() and not self._broken:
            self.in_worker(lambda: None)

    def attach(self, pool: Pool) -> None:
        """Remember the pool; a worker serves any loop."""
        self.pool = pool

    def detach(self) -> None:
        """Nothing: a worker serves any thread."""

    def terminate(self) -> None:
        """Interrupt what runs and close, without waiting."""
        worker = self.worker
        if self._broken or worker is None:
            return
        if self.kept:
            if self.busy():
                self.interrupt()
            worker.submit(Job(super().rollback, None))
            return
        self._broken = True
        if self.busy():
            self.interrupt()
        self._leave_gate()
        worker.submit(Job(super().close, None))
        worker.stop()


def _identity(database: Any) -> str | None:
    """Name the file behind a database, for its queue of writers; None for one in memory."""
    name = os.fsdecode(database)
    if name == ":memory:" or "mode=memory" in name or not name:
        return None
    if name.startswith("file:"):
        name = name[5:].partition("?")[0]
    return os.path.realpath(name)
