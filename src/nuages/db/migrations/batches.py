"""The run of a backfill: several batches at once, each in its own transaction."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from django.db import OperationalError, connections

from nuages.bridge import on_loop
from nuages.db.backends.base.base import LoopWrapper
from nuages.db.migrations import locks, report
from nuages.db.migrations.checkpoint import Checkpoint, Divided, done_rows
from nuages.db.transaction import aatomic, detached

ATTEMPTS = 6
"""Tries of a batch that meets a deadlock, a serialization failure or a busy database."""
_AGAIN = frozenset({"40P01", "40001", "55P03"})
"""SQLSTATEs: deadlock_detected, serialization_failure, lock_not_available."""


@dataclass(frozen=True)
class Work:
    """The work on the rows of one batch, and its pace."""

    change: Any
    """A dict for `update()`, or a function of the apps and the batch's rows."""
    apps: Any
    concurrency: int
    load: float
    wait: Callable[[], Any] | None


class Batches:
    """One run of a backfill in this process."""

    def __init__(self, divided: Divided, checkpoint: Checkpoint, work: Work) -> None:
        self._divided = divided
        self._checkpoint = checkpoint
        self._work = work
        self._alias = divided.alias
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Do what is left. A cancellation lets batches under way end; a second one does not."""
        if self._joins():
            await self._run(1)
            return
        async with detached(self._alias):
            await self._run(self._concurrency())

    def _joins(self) -> bool:
        """Tell whether the batches use the migration's own connection.

        They do in a transaction of the caller's, which a test may have, because another connection
        would not see what it did; and where the database has only one connection.
        """
        wrapper = connections[self._alias]
        return wrapper.in_atomic_block or self._pool_size(wrapper) < 2

    def _concurrency(self) -> int:
        wrapper = connections[self._alias]
        if wrapper.vendor == "sqlite":
            return 1  # there is one writer
        # One connection is the migration's own.
        return min(self._work.concurrency, self._pool_size(wrapper) - 1)

    def _pool_size(self, wrapper: Any) -> int:
        assert isinstance(wrapper, LoopWrapper)
        return wrapper.pool_options().max_size

    async def _run(self, concurrency: int) -> None:
        key, total = self._checkpoint.key, self._checkpoint.total
        start = await on_loop(done_rows)(self._checkpoint)
        with report.progress(key, total, start) as self._progress:
            # Batches that an earlier run, or another process, has begun.
            self._left = await on_loop(self._divided.begun)(self._checkpoint)
            await self._work_on(concurrency)
            # Batches that others still work on are waited for, or taken over.
            while numbers := await on_loop(self._divided.begun)(self._checkpoint):
                for number in numbers:
                    await self._patiently(number, wait=True)
        await on_loop(self._divided.finish)(self._checkpoint)

    async def _work_on(self, concurrency: int) -> None:
        workers = [asyncio.create_task(self._worker()) for _ in range(concurrency)]
        try:
            await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
        except asyncio.CancelledError:
            self._stop.set()
            await self._ended(workers)
            self._progress.write(
                f"Stopped between batches, with {self._progress.done:,} of "
                f"{self._checkpoint.total:,} rows done; the next run goes on from here."
            )
            raise
        self._stop.set()  # in case a worker has failed
        await self._ended(workers)
        for worker in workers:
            worker.result()

    async def _ended(self, workers: list[asyncio.Task[None]]) -> None:
        try:
            await asyncio.wait(workers)
        except asyncio.CancelledError:
            for worker in workers:
                worker.cancel()
            await asyncio.wait(workers)
            raise

    async def _worker(self) -> None:
        pause = 0.0
        while await self._may_go_on(pause):
            if self._left:
                number: int | None = self._left.pop(0)
            else:
                number = await on_loop(self._divided.claim)(self._checkpoint)
            if number is None:
                return
            begun = time.monotonic()
            await self._patiently(number)
            pause = (time.monotonic() - begun) * (1 / self._work.load - 1)

    async def _may_go_on(self, pause: float) -> bool:
        """Wait as long as the load and `wait` ask for; return whether to do another batch."""
        while not self._stop.is_set():
            if pause > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._stop.wait()
                        return False
            if self._work.wait is None:
                return True
            answer = await _called(self._work.wait)
            if not answer:
                return True
            pause = float(answer)
        return False

    async def _patiently(self, number: int, wait: bool = False) -> None:
        """Do a batch; repeat it where the server ended it for a reason that may pass."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await self._batch(number, wait)
                return
            except OperationalError as error:
                if attempt == ATTEMPTS or not _may_pass(error):
                    raise
            await asyncio.sleep(0.1 * 2**attempt * random.uniform(0.5, 1.5))  # noqa: S311 - a pause

    async def _batch(self, number: int, wait: bool) -> None:
        work = self._work
        async with aatomic(self._alias):
            await on_loop(self._set_lock_timeout)()
            batch = await on_loop(self._divided.take)(number, wait)
            if batch is None:
                return
            rows = self._divided.of(batch)
            if isinstance(work.change, dict):
                await rows.aupdate(**work.change)
            else:
                await _called(work.change, work.apps, rows)
            await on_loop(self._divided.done)(batch)
        self._progress.advance(batch.size)

    def _set_lock_timeout(self) -> None:
        seconds = locks.lock_timeout()
        if seconds is not None and connections[self._alias].vendor == "postgresql":
            locks.set_timeout(connections[self._alias], seconds, local=True)


async def _called(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of the migration's, sync or async, on the loop."""
    on_the_loop: Callable[..., Any] = on_loop(function)
    return await on_the_loop(*args)


def _may_pass(error: OperationalError) -> bool:
    cause = error.__cause__
    return getattr(cause, "sqlstate", None) in _AGAIN or (
        getattr(cause, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
    )
