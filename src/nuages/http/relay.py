"""An open event stream: its source runs in a task, its events are handed over one at a time.

The source has a task of its own, because a heartbeat must go out while the source waits, and a
wait that is interrupted for it would lose an event. There is one task for the whole stream and not
one for each event, so that timeouts, task groups and transactions around a `yield` see the task
they began in. The source goes on when the event has been sent (back-pressure), and ends in its
task, too: by its own `finally`, which is awaited.

An open stream costs that task and one timer, which is armed anew when it runs out, not for each
event.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Any

from nuages.bridge.tasks import spawn
from nuages.http.event import HEARTBEAT
from nuages.http.streams import aclose
from nuages.stopping import call_at_stop, forget_at_stop

Open = Callable[[], Awaitable[AsyncIterable[Any]]]


class Relay:
    """A relay that hands the events of a source over to one reader.

    Args:
        open_source: Awaited in the source's task; returns what to iterate.
        close_unopened: Awaited where the stream ends before it began.
        encode: Makes bytes of an item.
        opening: What is read first, so that the client sees the stream open.
        heartbeat: Seconds of silence after which a comment is read, or None.
    """

    __slots__ = (
        "_beat",
        "_chunk",
        "_close_unopened",
        "_closing",
        "_demand",
        "_encode",
        "_heartbeat",
        "_last",
        "_loop",
        "_open_source",
        "_opening",
        "_stopped",
        "_task",
        "_timer",
        "_told",
        "_waiter",
    )

    def __init__(
        self,
        open_source: Open,
        close_unopened: Callable[[], Awaitable[None]],
        encode: Callable[[Any], bytes],
        opening: bytes | None,
        heartbeat: float | None,
    ) -> None:
        self._open_source = open_source
        self._close_unopened = close_unopened
        self._encode = encode
        self._opening = opening
        self._heartbeat = heartbeat
        self._loop: Any = None
        self._task: asyncio.Task[None] | None = None
        self._chunk: bytes | None = None
        self._demand: asyncio.Future[None] | None = None
        """The future that the source's task waits for, with its event handed over."""
        self._waiter: asyncio.Future[None] | None = None
        """The future that the reader waits for: an event, a heartbeat or the end."""
        self._timer: asyncio.TimerHandle | None = None
        self._last = 0.0
        self._beat = self._stopped = self._closing = self._told = False

    async def next(self) -> bytes:
        """Return the next bytes. Raises StopAsyncIteration at the end, or the source's error."""
        if self._opening is not None:
            opening, self._opening = self._opening, None
            return opening
        if self._closing:
            raise StopAsyncIteration
        if self._task is None:
            self._start()
        elif self._chunk is None and self._demand is not None:
            self._demand.set_result(None)
            self._demand = None
        while self._chunk is None:
            if self._stopped or self._task is None or self._task.done():
                await self.aclose()
                raise StopAsyncIteration
            if self._beat:
                self._beat = False
                return HEARTBEAT
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        chunk, self._chunk = self._chunk, None
        self._last = self._loop.time()
        return chunk

    async def aclose(self) -> None:
        """End the source and wait for its end; raises what the source raises, once.

        The source gets CancelledError in a wait, GeneratorExit at a `yield`. A cancellation of
        the caller is passed on to a source that takes long to end, and raised afterwards.
        """
        begun, self._closing = self._closing, True
        self._opening = None
        if self._timer is not None:
            self._timer.cancel()
        task = self._task
        if task is None:
            if not begun:
                await self._close_unopened()
            return
        ours = not task.done() and task.cancel()
        cancelled = None
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                cancelled, ours = error, True
                task.cancel()
        if cancelled is not None:
            raise cancelled
        if self._told:
            return
        self._told = True
        if not task.cancelled():
            task.result()
        elif not ours and not begun:
            raise asyncio.CancelledError("the source of the event stream was cancelled")

    def stop(self) -> None:
        """End the stream at the next read, or at the one that waits now."""
        self._stopped = True
        self._wake()

    def abandon(self) -> None:
        """Close the stream without anybody waiting for it; from any thread, even a destructor."""
        if self._task is not None and not self._closing and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(spawn, self._loop, self.aclose)

    def _start(self) -> None:
        self._loop = loop = asyncio.get_running_loop()
        call_at_stop(self.stop)
        if self._stopped:  # an eager task would ask the source before anybody could cancel it
            return
        self._task = loop.create_task(self._run())
        self._task.add_done_callback(self._ended)
        if self._heartbeat is not None:
            self._last = loop.time()
            self._timer = loop.call_later(self._heartbeat, self._tick)

    async def _run(self) -> None:
        iterator = None
        try:
            iterator = aiter(await self._open_source())
            async for item in iterator:
                if self._closing:  # the source swallowed its cancellation
                    break
                self._chunk = self._encode(item)
                self._demand = demand = asyncio.get_running_loop().create_future()
                self._wake()
                await demand
        finally:
            await aclose(iterator)

    def _ended(self, task: asyncio.Task[None]) -> None:
        forget_at_stop(self._loop, self.stop)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _tick(self) -> None:
        """Send a heartbeat if the stream was silent long enough; look again when it may be."""
        assert self._heartbeat is not None
        now = self._loop.time()
        due = self._last + self._heartbeat
        if due - now < 0.001:  # uvloop's timers count in milliseconds
            due = now + self._heartbeat
            if self._waiter is not None:
                self._beat, self._last = True, now
                self._wake()
            # Else the last bytes are still on their way: the client reads slowly.
        self._timer = self._loop.call_at(due, self._tick)
