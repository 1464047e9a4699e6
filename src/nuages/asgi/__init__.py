"""The ASGI application: http and lifespan on the loop, with the project's start-up hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nuages.asgi.hooks import on_shutdown, on_startup

if TYPE_CHECKING:
    from nuages.asgi.handler import ASGIHandler
    from nuages.asgi.types import Application

__all__ = ["get_asgi_application", "on_shutdown", "on_startup"]


def get_asgi_application(websocket: Application | None = None) -> ASGIHandler:
    """Set Django up and return the ASGI application: http and lifespan.

    Point the server at it as at Django's own (`application = get_asgi_application()` in
    asgi.py). `websocket` is an ASGI application for websocket scopes, such as Channels'
    `URLRouter`; without one a websocket is refused. Raises ImproperlyConfigured where the
    project cannot run on the loop.
    """
    import django

    django.setup(set_prefix=False)
    from nuages.asgi.handler import ASGIHandler

    return ASGIHandler(websocket)
