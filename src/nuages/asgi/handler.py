"""The handler of http scopes, which hands lifespan scopes on.

A first version: requests run as in Django's handler, on connections of the loop's pools.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIHandler as DjangoASGIHandler

from nuages import seams
from nuages.asgi.lifespan import Lifespan
from nuages.conf import setting
from nuages.db.transaction import request_connections

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]


class ASGIHandler(DjangoASGIHandler):
    """Serves http and lifespan (ASGI specification 3.0)."""

    def __init__(self) -> None:
        if not seams.installed():
            raise ImproperlyConfigured(
                "Nuages' seams are not installed: "
                + ("; ".join(seams.problems()) or 'add "nuages" to INSTALLED_APPS')
                + ". Run `manage.py check`."
            )
        super().__init__()
        self.lifespan = Lifespan()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "lifespan":
            await self.lifespan(scope, receive, send)
        elif setting("CONNECTION_PER") == "request":
            async with request_connections():
                await super().__call__(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)
