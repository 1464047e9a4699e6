"""The thread of one connection, and the calls it is given."""

from __future__ import annotations

import asyncio
import atexit
import queue
import sqlite3
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nuages.bridge import current_bridge
from nuages.db.backends.base.driver import may_do_io
from nuages.db.backends.base.statistics import statistics
from nuages.exceptions import BridgeClosed, SyncInCoroutine

if TYPE_CHECKING:
    from nuages.db.backends.sqlite3.connection import Connection


class Job:
    """One call for the worker, and the way its end is reported to the waiter."""

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
        """Whether the job need not be begun any more."""
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self, ended: Callable[[Job], None]) -> None:
        """Call the function, then `ended`, then tell the waiter (in the worker)."""
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


_PATIENCE = 10.0
"""Seconds that an interrupted statement gets to end."""


_ending: set[Worker] = set()
"""The workers that were told to stop and have not ended yet."""


@atexit.register
def _join_ending() -> None:
    # While closing a connection, sqlite3 calls the destructors of Django's functions, which
    # crashes where the interpreter is gone by then.
    for worker in list(_ending):
        worker.join()


class Worker:
    """The thread of one connection."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="nuages-sqlite", daemon=True)
        self._thread.start()
        # Callers of `submit` add to this, the worker takes from it: each is one atomic step.
        self._jobs: set[Job] = set()
        self._stopped = False
        # Reentrant, because a finaliser may submit something in between.
        self._mutex = threading.RLock()

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            job.run(self._jobs.discard)
            del job
        _ending.discard(self)

    @property
    def busy(self) -> bool:
        """Tell whether a job is queued or running."""
        return bool(self._jobs)

    def abandon(self) -> list[Job]:
        """Let no job begin any more that has not begun; return those whose end is awaited."""
        with self._mutex:
            jobs = list(self._jobs)
        for job in jobs:
            job.abandoned = True
        return jobs

    def is_current(self) -> bool:
        """Tell whether the calling thread is this worker."""
        return threading.get_ident() == self._thread.ident

    def submit(self, job: Job, *, awaited: bool = True) -> None:
        """Queue a job; raises what sqlite3 raises on a closed connection.

        A job that is not `awaited` does not make the worker busy: it is done before the next one.
        """
        with self._mutex:
            if self._stopped:
                # Nobody would run the job, and the waiter would wait for ever.
                raise sqlite3.ProgrammingError("Cannot operate on a closed database.")
            if awaited:
                self._jobs.add(job)
            self._queue.put(job)

    def stop(self) -> None:
        """End the thread when its queue is done."""
        with self._mutex:
            self._stopped = True
            _ending.add(self)
            self._queue.put(None)

    def join(self) -> None:
        """Block until the thread has ended, after `stop()`; not longer than an interrupt takes."""
        self._thread.join(_PATIENCE)

    def call(self, function: Callable[[], Any], connection: Connection | None = None) -> Any:
        """Run `function` in the worker: awaited in a bridge, waited for in a thread.

        A cancellation interrupts the statement and arrives when that has ended, unless the bridge
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
            try:
                raise cancelled
            finally:
                del cancelled  # which refers to this frame
        return job.outcome()
