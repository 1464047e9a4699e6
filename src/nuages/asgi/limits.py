"""The bound on the requests that a process works on: past it a request is refused at once."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from nuages.asgi.streaming import send_whole
from nuages.asgi.types import Send
from nuages.conf import setting
from nuages.db.pool.pool import open_pools
from nuages.handling.errors import unavailable

logger = logging.getLogger("nuages.asgi")


class InFlight:
    """The requests that are being served, by their tasks.

    `working` counts those whose response has not begun, or is no stream: only these are bounded.
    """

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[Any]] = set()
        self.working = 0
        self._refused = 0
        self._empty: asyncio.Event | None = None

    def is_full(self) -> bool:
        """Tell whether one more request would be too many; log that once in a while."""
        reason = self._reason()
        if reason is None:
            if self._refused:
                logger.warning("Requests are accepted again; %d were refused.", self._refused)
                self._refused = 0
            return False
        if not self._refused:
            logger.warning("Requests are refused with 503: %s.", reason)
        self._refused += 1
        return True

    def _reason(self) -> str | None:
        most: int = setting["MAX_REQUESTS"]
        if most and self.working >= most:
            return f'{self.working} are in flight, which is NUAGES["MAX_REQUESTS"]'
        most = setting["MAX_WAITING"]
        if most:
            for pool in open_pools():
                if pool.has_waiting(most):
                    return (
                        f"{pool.waiting()} tasks wait for a connection of database "
                        f'{pool.alias!r}, which is NUAGES["MAX_WAITING"]'
                    )
        return None

    def add(self, task: asyncio.Task[Any]) -> None:
        """Count a request in."""
        self.tasks.add(task)

    def remove(self, task: asyncio.Task[Any]) -> None:
        """Count a request out."""
        self.tasks.discard(task)
        if not self.tasks and self._empty is not None:
            self._empty.set()

    async def drain(self, timeout: float) -> None:
        """Wait until no request is left; cancel any that takes longer than `timeout` seconds."""
        if not self.tasks:
            return
        self._empty = asyncio.Event()
        try:
            async with asyncio.timeout(timeout):
                await self._empty.wait()
        except TimeoutError:
            logger.warning(
                "%d requests did not end within %g s of the shutdown and are cancelled.",
                len(self.tasks),
                timeout,
            )
            for task in tuple(self.tasks):
                task.cancel("the server shuts down")
            await asyncio.wait(self.tasks)
        finally:
            self._empty = None


async def refuse(send: Send) -> None:
    """Answer 503 with Retry-After (RFC 9110, 15.6.4 and 10.2.3)."""
    await send_whole(unavailable(), send)
