"""The lifespan protocol (ASGI specification, "Lifespan Protocol" 2.0): open and close pools."""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from nuages.db.pool import open_pools
from nuages.db.warm import warm_pools

Message = Mapping[str, Any]


class Lifespan:
    """Serves a lifespan scope: pools are warmed at start-up and closed at shutdown."""

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Serve the scope until the server shuts down; a failing start-up is told to it."""
        await receive()
        try:
            await warm_pools()
        except Exception:
            await send({"type": "lifespan.startup.failed", "message": traceback.format_exc()})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        for pool in open_pools():
            pool.close()
        await send({"type": "lifespan.shutdown.complete"})
