"""The ASGI application that the commands serve, and what serves its lifespan.

`ASGI_APPLICATION` is the setting of Channels and daphne (`"mysite.asgi.application"`); a project
can do without, because Nuages' own application is what its asgi.py would return.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from nuages.asgi.types import Message, Receive, Scope, Send
from nuages.stopping import announce_stop

logger = logging.getLogger("nuages.server")

_OURS = "nuages.asgi.get_asgi_application"


def application_name() -> str:
    """Return the dotted path of the application that is served."""
    return getattr(settings, "ASGI_APPLICATION", None) or f"{_OURS}()"


def load_application() -> Any:
    """Return the project's ASGI application, with a lifespan in every case.

    Raises ImproperlyConfigured where `ASGI_APPLICATION` cannot be imported. Servers' worker
    processes call this function by its import string.
    """
    path = getattr(settings, "ASGI_APPLICATION", None)
    if not path:
        from nuages.asgi import get_asgi_application

        return WithLifespan(get_asgi_application())
    try:
        return WithLifespan(import_string(path))
    except ImportError as error:
        raise ImproperlyConfigured(
            f"ASGI_APPLICATION = {path!r} could not be loaded: {error}. It is the dotted path of "
            'an ASGI application, as in "mysite.asgi.application"; without the setting Nuages\' '
            "own is served."
        ) from error


class WithLifespan:
    """An application, with a lifespan where it has none of its own.

    An application that raises (or returns) before it has received `lifespan.startup` does not know
    the protocol, as the ASGI specification allows. Channels' ProtocolTypeRouter is one of these:
    then the lifespan of its http application is served, where that is Nuages'. An application that
    raises later has failed, and its error goes to the server. A server's own "auto" mode does not
    tell the two cases apart, and hides failures.
    """

    def __init__(self, application: Any) -> None:
        self.application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] != "lifespan":
            await self.application(scope, receive, send)
            return
        asked = False

        async def receive_and_note() -> Message:
            nonlocal asked
            asked = True
            return await receive()

        try:
            await self.application(scope, receive_and_note, send)
        except Exception as error:
            if asked:
                raise
            logger.debug("The application knows no lifespan: %r", error)
        if not asked:
            await self.serve_lifespan(scope, receive, send)

    async def serve_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the lifespan that the application lacks."""
        from nuages.asgi.handler import ASGIHandler

        routed = getattr(self.application, "application_mapping", {}).get("http")
        if isinstance(routed, ASGIHandler):
            await routed(scope, receive, send)
            return
        # A handler somewhere inside starts with its first request, and ends when told to.
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        announce_stop(asyncio.get_running_loop())
        await send({"type": "lifespan.shutdown.complete"})
