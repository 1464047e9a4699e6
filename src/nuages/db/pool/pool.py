"""The connection pool: open, check out, return, close; one per event loop and alias.

It holds raw driver connections (`Session`), not Django wrappers: a wrapper belongs to the chain
of calls that uses it and gets a session for as long as it works, so that nobody can keep hold of
a connection that serves somebody else by now. Decisions are plain code on the loop's thread;
only `acquire` waits. Option names and meanings are those of psycopg_pool.

Code that holds k connections of the pool while it asks for one more may take it as long as fewer
than `max_size * (k + 1)` are in use. So the last one that holders wait for can always be had: the
connections in use were given to code that held k - 1 at most, while fewer than `max_size * k` were
in use. A connection that comes back is given away by the same rule; else code that holds none
would use up the room of the holders.

A thread lends its connection between two statements: it can go on with the connection until
somebody else takes it. While anybody waits nothing is lent: what a thread lets go is given back.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import random
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from nuages.bridge.tasks import spawn, wait_for_spawned
from nuages.db.pool.options import PoolOptions
from nuages.exceptions import PoolClosed, PoolTimeout, TooManyWaiting

if TYPE_CHECKING:
    from nuages.db.backends.base.base import LoopWrapper
    from nuages.db.scopes.scope import Scope

logger = logging.getLogger("nuages.pool")
_LAST_WAIT = 1.0
"""Seconds, twice at most, that a loop that shuts down waits for what is being given back."""


class Session:
    """One place in the pool: a raw connection, or the right to open one."""

    __slots__ = ("baseline", "expires", "generation", "pool", "raw", "returned")

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.generation = pool.generation
        self.raw: Any = None
        self.expires: float | None = None
        self.returned = 0.0
        self.baseline: Any = None
        """What was set in the session when it was opened, where sessions are checked."""

    def opened(self, raw: Any) -> None:
        """Note the connection that was opened for this place."""
        self.raw = raw
        lifetime = self.pool.options.max_lifetime
        if lifetime is not None:
            # Spread, so that connections opened together do not end together.
            self.expires = time.monotonic() + lifetime * random.uniform(0.9, 1.0)  # noqa: S311 - spread


class Pool:
    """The connections of one alias on one event loop."""

    def __init__(
        self,
        alias: str,
        loop: asyncio.AbstractEventLoop,
        options: PoolOptions,
        fingerprint: int = 0,
        *,
        single: bool = False,
    ) -> None:
        self.alias = alias
        self.loop = loop
        self.options = options
        self.fingerprint = fingerprint
        self._single = single
        """Whether there is one connection, for holders too: a database in memory."""
        self.generation = 0
        self.size = 0
        self.parked = 0
        """How many of the connections in use are of no use while they wait for something."""
        self._parks = False
        """Whether any connections were ever parked."""
        self.closed = False
        self.requests = 0
        self.waited = 0
        self.opened = 0
        self._idle: deque[Session] = deque()
        self._queue: deque[asyncio.Future[Session]] = deque()
        self._holders: dict[asyncio.Future[Session], int] = {}
        """The requests in line of code that holds connections, with how many: they come first."""
        self._lent: OrderedDict[Session, Callable[[], None]] = OrderedDict()
        """Sessions of threads between two statements, each with a call that gives it back, on the
        loop's thread. Whoever takes an entry out, in one atomic step, has the session."""
        self._reaper: asyncio.TimerHandle | None = None
        self._guard: AsyncGenerator[None, None] | None = None
        self.scopes: set[Scope] = set()
        """The open scopes on this pool's connections."""
        self._no_scopes: asyncio.Event | None = None

    def __repr__(self) -> str:
        state = "closed" if self.closed else ", ".join(f"{k}={v}" for k, v in self.stats().items())
        return f"<Pool {self.alias!r}: {state}>"

    def waiting(self) -> int:
        """Return how many tasks wait for a connection."""
        return sum(not future.done() for line in (self._holders, self._queue) for future in line)

    def has_waiting(self, count: int) -> bool:
        """Tell whether `count` tasks or more wait for a connection."""
        return len(self._queue) + len(self._holders) >= count and self.waiting() >= count

    def stats(self) -> dict[str, int]:
        """Return counts: open, idle, used and waiting now; requests, waits and openings so far.

        A session that a thread has lent counts as used; "size" is above "max_size" where holders
        have more than one connection.
        """
        return {
            "size": self.size,
            "idle": len(self._idle),
            "used": self.size - len(self._idle),
            "waiting": self.waiting(),
            "max_size": self.options.max_size,
            "requests": self.requests,
            "waited": self.waited,
            "opened": self.opened,
        }

    # Check out

    def acquire_nowait(self, held: int = 0) -> Session | None:
        """Return an idle session, or an empty one to open; None where the caller has to wait.

        `held` is how many of this pool's connections the caller holds meanwhile.
        """
        if self.closed:
            raise PoolClosed(alias=self.alias)
        if self._queue and not held and any(not future.done() for future in self._queue):
            return None
        session = self._take(held)
        if session is None and self._reclaim():
            session = self._take(held)
        return session

    def _take(self, held: int) -> Session | None:
        while self._idle:
            session = self._idle.pop()
            if session.generation == self.generation and session.raw.is_alive():
                return session
            self._drop(session)
        if self.size < self._limit(held):
            self.size += 1
            return Session(self)
        return None

    def _limit(self, held: int = 0) -> int:
        """Return below how many in use a caller that holds `held` may have one more."""
        size = self.options.max_size
        if not held or self._single:
            return size + min(self.parked, size)
        # Some may be parked no more: what others had meanwhile does not come back at once.
        return size * (held + 1 + self._parks)

    def lend(self, session: Session, give_back: Callable[[], None]) -> None:
        """Let others have a session (in a thread that does not need it for now).

        The session is given back at once where somebody waits. Otherwise the thread gets it again
        by `reclaim_own`, unless somebody came before.
        """
        self._lent[session] = give_back
        # In this order: code that comes to wait looks here after it has joined the queue.
        if (self._queue or self._holders) and self.reclaim_own(session):
            on_loop_of(self, give_back)

    def reclaim_own(self, session: Session) -> bool:
        """Take a session back; False where somebody else has it (in the thread that lent it)."""
        return self._lent.pop(session, None) is not None

    def _reclaim(self) -> bool:
        """Take back the session lent for the longest time; False where nothing is lent."""
        if not self._lent:
            return False
        try:
            _, give_back = self._lent.popitem(last=False)
        except KeyError:
            return False  # its thread was faster
        give_back()
        return True

    def park(self) -> None:
        """Note that code that has a connection waits for others who need one.

        It keeps its connection, which does not count; `max_size` of these at most.
        """
        self.parked += 1
        self._parks = True
        self._serve()

    def unpark(self) -> None:
        """Undo `park`."""
        self.parked -= 1

    def enqueue(self, held: int = 0) -> asyncio.Future[Session]:
        """Return a future that gets a session in its turn, or the error of a full queue."""
        limit = self.options.max_waiting
        if limit and self.has_waiting(limit):
            raise TooManyWaiting(alias=self.alias, waiting=self.waiting())
        self.waited += 1
        future: asyncio.Future[Session] = self.loop.create_future()
        if held:
            self._holders[future] = held
        else:
            self._queue.append(future)
        timer = self.loop.call_later(self.options.timeout, self._time_out, future)
        future.add_done_callback(lambda _: timer.cancel())
        self._reclaim()
        return future

    def _time_out(self, future: asyncio.Future[Session]) -> None:
        if not future.done():
            self._leave_line(future)
            future.set_exception(
                PoolTimeout(alias=self.alias, timeout=self.options.timeout, stats=repr(self))
            )

    def _leave_line(self, future: asyncio.Future[Session]) -> None:
        if self._holders.pop(future, None) is None and future in self._queue:
            self._queue.remove(future)

    def withdraw(self, future: asyncio.Future[Session]) -> None:
        """Take a cancelled request out of the queue; a session it got meanwhile is passed on."""
        if future.done() and not future.cancelled() and future.exception() is None:
            session = future.result()
            if session.raw is None:
                self.discard(session)
            else:
                self.release(session)
        else:
            future.cancel()
            self._leave_line(future)

    async def acquire(self, held: int = 0) -> Session:
        """Check a session out, waiting in line where need be; see `acquire_nowait`."""
        self.requests += 1
        session = self.acquire_nowait(held)
        if session is not None:
            return session
        future = self.enqueue(held)
        try:
            return self.handed_over(await future)
        except asyncio.CancelledError:
            self.withdraw(future)
            raise

    def handed_over(self, session: Session) -> Session:
        """Return what a waiting task got, when it runs: a connection may have died since."""
        raw = session.raw
        if raw is not None and not raw.is_alive():
            session.raw, session.generation = None, self.generation
            raw.terminate()
        return session

    # Return

    def release(self, session: Session, *, reusable: bool = True) -> None:
        """Take a session back; close one that is not reusable (on the loop's thread)."""
        expired = session.expires is not None and time.monotonic() >= session.expires
        if (
            not reusable
            or expired
            or self.closed
            or session.generation != self.generation
            or not session.raw.is_alive()
        ):
            self._drop(session)
            self._serve()
        else:
            self._put(session)

    def discard(self, session: Session) -> None:
        """Give up a place: its connection could not be opened or must not be used again."""
        self._drop(session)
        self._serve()

    def _put(self, session: Session) -> None:
        if self._hand_over(session):
            return
        session.returned = time.monotonic()
        at_once = self.options.max_idle == 0 and self.size > self.options.min_size
        if at_once or self.size > self._limit():
            self._drop(session)
            return
        self._idle.append(session)
        self._schedule_reaping()

    def _serve(self) -> None:
        while self.waiting():
            # Not for requests that were cancelled in line: their tasks are still to withdraw.
            waiting = (held for future, held in self._holders.items() if not future.done())
            session = self._take(max(waiting, default=0))
            if session is None:
                return
            if not self._hand_over(session):
                self._put(session)
                return

    def _hand_over(self, session: Session) -> bool:
        if not self._queue and not self._holders:
            return False
        others = self.size - len(self._idle) - 1
        for holder, held in self._holders.items():
            if not holder.done() and others < self._limit(held):
                del self._holders[holder]
                holder.set_result(session)
                return True
        while self._queue and others < self._limit():
            future = self._queue.popleft()
            if not future.done():
                future.set_result(session)
                return True
        return False

    def _drop(self, session: Session) -> None:
        logger.debug("drop %r", session.raw)
        self.size -= 1
        raw, session.raw = session.raw, None
        if raw is not None:
            raw.terminate()

    # Reaping and closing

    def _schedule_reaping(self) -> None:
        if self._reaper is None and self._idle and self.size > self.options.min_size:
            delay = self._idle[0].returned + self.options.max_idle - time.monotonic()
            # In an empty context: the caller's (its transaction, say) would live as long.
            self._reaper = self.loop.call_later(
                max(delay, 0.0), self._reap, context=contextvars.Context()
            )

    def _reap(self) -> None:
        self._reaper = None
        deadline = time.monotonic() - self.options.max_idle
        while (
            self._idle and self.size > self.options.min_size and self._idle[0].returned <= deadline
        ):
            self._drop(self._idle.popleft())
        self._schedule_reaping()

    def lost(self, raw: Any) -> None:
        """Forget an idle connection whose server has closed it."""
        for session in self._idle:
            if session.raw is raw:
                self._idle.remove(session)
                self._drop(session)
                return

    def clear(self) -> None:
        """Close what is idle now, and the rest as it comes back."""
        self.generation += 1
        while self._idle:
            self._drop(self._idle.pop())

    def close(self) -> None:
        """Close the pool: idle connections now, others when they come back. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self.clear()
        if self._reaper is not None:
            self._reaper.cancel()
        for future in (*self._holders, *self._queue):
            if not future.done():
                future.set_exception(PoolClosed(alias=self.alias))
        loops = _pools.get(self.loop)
        if loops is not None and loops.get(self.alias) is self:
            del loops[self.alias]
        logger.debug("closed %r", self)

    def close_with_loop(self) -> None:
        """Have the loop close this pool when it shuts down (`loop.shutdown_asyncgens`)."""
        self._guard = _closing(self)
        step = self._guard.__anext__()
        with suppress(StopIteration):
            step.send(None)

    def scope_ended(self, scope: Scope) -> None:
        """Note the end of a transaction or hold."""
        self.scopes.discard(scope)
        if not self.scopes and self._no_scopes is not None:
            self._no_scopes.set()

    async def end_scopes(self) -> None:
        """End scopes that were left open when the loop shuts down, all tasks being done."""
        if not self.scopes:
            return
        # Async generators that the loop closes now may be about to roll back.
        self._no_scopes = asyncio.Event()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WAIT):
                await self._no_scopes.wait()
        for scope in list(self.scopes):
            scope.wrapper.end_forgotten("its event loop ended")

    def run_in_background(self, function: Callable[[], Any]) -> None:
        """Run a coroutine function on the pool's loop, its failure reported there."""
        spawn(self.loop, function)


async def _closing(pool: Pool) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        pool.close()
        await pool.end_scopes()
        # A session that a generator gave back just before is being reset.
        await wait_for_spawned(_LAST_WAIT)


_pools: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Pool]] = (
    weakref.WeakKeyDictionary()
)


def _fingerprint(settings_dict: dict[str, Any]) -> int:
    # Hashed, because error reports show what functions have at hand.
    return hash(tuple(map(settings_dict.get, ("NAME", "HOST", "PORT", "USER", "PASSWORD"))))


def pool_for(wrapper: LoopWrapper, loop: asyncio.AbstractEventLoop) -> Pool:
    """Return the pool of `wrapper`'s alias on `loop`; make it, anew when settings changed."""
    pools = _pools.get(loop)
    if pools is None:
        for other in [known for known in _pools if known.is_closed()]:
            for left in list(_pools[other].values()):
                left.close()
        pools = _pools[loop] = {}
    pool = pools.get(wrapper.alias)
    fingerprint = _fingerprint(wrapper.settings_dict)
    if pool is not None and pool.fingerprint == fingerprint:
        return pool
    if pool is not None:
        pool.close()
    options = wrapper.pool_options()
    pool = pools[wrapper.alias] = Pool(
        wrapper.alias, loop, options, fingerprint, single=wrapper.is_single()
    )
    pool.close_with_loop()
    return pool


def open_pools(loop: asyncio.AbstractEventLoop | None = None) -> list[Pool]:
    """Return the pools of `loop` (by default the running one)."""
    return list(_pools.get(loop or asyncio.get_running_loop(), {}).values())


def every_pool() -> list[Pool]:
    """Return the pools of every loop of the process."""
    return [pool for pools in list(_pools.values()) for pool in list(pools.values())]


def _after_fork() -> None:
    # The sockets belong to the parent; psycopg does not end a session it did not begin.
    _pools.clear()


os.register_at_fork(after_in_child=_after_fork)


def on_loop_of(pool: Pool, function: Callable[..., Any], *args: Any) -> None:
    """Call `function` on the thread of the pool's loop: now, or soon from another thread."""
    if asyncio._get_running_loop() is pool.loop or pool.loop.is_closed():
        function(*args)
    else:
        pool.loop.call_soon_threadsafe(function, *args)
