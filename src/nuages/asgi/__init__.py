"""The ASGI application: Django's handler with lifespan and Nuages' connections."""

from __future__ import annotations

from typing import Any

__all__ = ["get_asgi_application"]


def get_asgi_application() -> Any:
    """Set Django up and return the ASGI application: http and lifespan.

    Point the server at it as at Django's own (`application = get_asgi_application()` in
    asgi.py). Raises ImproperlyConfigured where the project cannot run on the loop.
    """
    import django

    django.setup(set_prefix=False)
    from nuages.asgi.handler import ASGIHandler

    return ASGIHandler()
