"""`get_or_set` where many ask at once: one computes, the others wait and get its value.

A lock in Redis (SET NX PX, with a token so that only its owner gives it back) chooses among
processes. The others look for the value, or for the lock's end, in growing intervals up to a tenth
of a second. That is a plain command or two per process and look: a subscription would need a
connection of its own for each key, and a message that is lost would cost the whole wait. Computing
early, by chance, before the value expires ("XFetch") keeps nobody waiting, but stores the
duration beside the value, which Django's own backend could not read, and does nothing for a value
that is not there yet.

Of the tasks of one loop only one looks; the others wait for it, without commands.

A caller that waits longer than `wait` computes by itself: slow is better than never. A process
that dies leaves the lock to expire. If a computation takes longer than `lock`, another one begins
beside it.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from nuages.bridge import await_, current_bridge
from nuages.bridge.awaitables import discard
from nuages.cache.loops import client_for

if TYPE_CHECKING:
    from nuages.cache.config import Stampede
    from nuages.cache.redis import RedisCache

_FIRST_LOOK = 0.005
_LAST_LOOK = 0.1
LOCK_SUFFIX = ":nuages-lock"


def compute(default: Any) -> Any:
    """Return the value that `get_or_set` was given: a callable's result, awaited in a bridge."""
    if not callable(default):
        return default
    value = default()
    if not inspect.isawaitable(value):
        return value
    if current_bridge() is None:
        discard(value)
        raise TypeError(
            "get_or_set() got an async default, which sync code cannot await: use "
            "`await cache.aget_or_set(...)`."
        )
    return await_(value)


class Attempt:
    """One caller's attempt to get a value that is missing, in a bridge or in plain sync code."""

    def __init__(
        self,
        cache: RedisCache,
        option: Stampede,
        key: str,
        get: Callable[[], Any],
        missing: object,
    ) -> None:
        self._cache = cache
        self._option = option
        self._key = key
        self._get = get
        self._missing = missing
        self._deadline = time.monotonic() + option.wait
        self._flights = {} if current_bridge() is None else client_for(cache.config).flights

    def run(self, make: Callable[[], Any]) -> Any:
        """Return the value that somebody stored, or else that of `make()`, which stores it."""
        while (left := self._left()) > 0:
            flight = self._flights.get(self._key)
            if flight is None:
                with self._flight():
                    return self._find_or_make(make)
            await_(_ended(flight, left))
            value = self._get()
            if value is not self._missing:
                return value
        return make()

    def _find_or_make(self, make: Callable[[], Any]) -> Any:
        look, token, lock = _FIRST_LOOK, secrets.token_hex(16), self._key + LOCK_SUFFIX
        while True:
            if self._cache.take_lock(lock, token, self._option.lock):
                try:
                    # Somebody may have stored the value between the last look and the lock.
                    value = self._get()
                    return make() if value is self._missing else value
                finally:
                    self._cache.give_lock(lock, token)
            if (left := self._left()) <= 0:
                return make()
            _sleep(min(look, left))
            look = min(2 * look, _LAST_LOOK)
            value = self._get()
            if value is not self._missing:
                return value

    def _left(self) -> float:
        return self._deadline - time.monotonic()

    @contextmanager
    def _flight(self) -> Iterator[None]:
        """Have other tasks of this loop wait for this one during the block."""
        if current_bridge() is None:
            yield
            return
        ended = self._flights[self._key] = asyncio.Event()
        try:
            yield
        finally:
            del self._flights[self._key]
            ended.set()


async def _ended(flight: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await flight.wait()


def _sleep(seconds: float) -> None:
    if current_bridge() is None:
        time.sleep(seconds)
    else:
        await_(asyncio.sleep(seconds))
