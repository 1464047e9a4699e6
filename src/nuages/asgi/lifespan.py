"""The lifespan protocol (ASGI specification, "Lifespan Protocol" 2.0).

Start-up warms the pools and runs the project's hooks; shutdown lets the requests in flight end,
leaves the hooks and closes the pools. On a server without the protocol the same happens with the
first request, and at the signal that stops the server.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import traceback
from typing import Any

from nuages.asgi import hooks
from nuages.asgi.limits import InFlight
from nuages.asgi.types import Receive, Scope, Send
from nuages.bridge.tasks import spawn
from nuages.conf import setting
from nuages.db.pool.pool import open_pools
from nuages.db.prefill import warm_pools
from nuages.stopping import announce_stop, expect_signals, wait_for_stop

logger = logging.getLogger("nuages.asgi")


_frozen = False


def freeze() -> None:
    """Take the objects there are now out of the garbage collector's way, once a process.

    The modules, models and settings of a project are some 100,000 objects that stay, and the
    collector looks at each of them in every full collection (`gc.freeze`).
    """
    global _frozen
    if not _frozen:
        _frozen = True
        gc.collect()
        gc.freeze()


class Lifespan:
    """The life of one application on one server."""

    def __init__(self, in_flight: InFlight) -> None:
        self._in_flight = in_flight
        self.begun = False
        """Whether a start-up was made or is under way."""
        self.state: dict[str, Any] = {}
        self._late: asyncio.Future[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the scope until the server shuts down; report a failing start-up to the server."""
        self.begun = True
        self.state = scope.get("state", self.state)
        await receive()
        entered = hooks.Entered()
        try:
            await self._start(entered)
        except Exception as error:
            await entered.leave()
            logger.error("The start-up failed.", exc_info=error)
            message = "".join(traceback.format_exception(error))
            await send({"type": "lifespan.startup.failed", "message": message})
            return
        await send({"type": "lifespan.startup.complete"})
        try:
            await receive()
        finally:
            failures = await self._stop(entered)
        if not failures:
            await send({"type": "lifespan.shutdown.complete"})
        else:
            message = "\n".join("".join(traceback.format_exception(f)) for f in failures)
            await send({"type": "lifespan.shutdown.failed", "message": message})

    async def _start(self, entered: hooks.Entered) -> None:
        expect_signals(asyncio.get_running_loop())
        await warm_pools()
        await entered.enter(self.state)
        if setting["FREEZE_GC"]:
            freeze()

    async def _stop(self, entered: hooks.Entered) -> list[Exception]:
        announce_stop(asyncio.get_running_loop())
        await self._in_flight.drain(setting["SHUTDOWN_TIMEOUT"])
        failures = await entered.leave()
        for pool in open_pools():
            pool.close()
        return failures

    async def begin_late(self) -> None:
        """Start up for a server that does not speak the protocol: before its first request.

        Every request that comes meanwhile waits for the start-up, and all get its exception.
        """
        if self._late is None:
            loop = asyncio.get_running_loop()
            self._late = loop.create_future()
            spawn(loop, self._live)
        await asyncio.shield(self._late)

    async def _live(self) -> None:
        late = self._late
        assert late is not None
        entered = hooks.Entered()
        try:
            await self._start(entered)
        except Exception as error:
            await entered.leave()
            logger.error("The start-up failed.", exc_info=error)
            self._late = None
            late.set_exception(error)
            return
        self.begun = True
        late.set_result(None)
        if not hooks.shutdown and not hooks.startup:
            # There is nothing to leave; the pools end with their loop.
            return
        try:
            await wait_for_stop()
        finally:
            await self._stop(entered)
