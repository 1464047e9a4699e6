"""The ASGI application."""

from nuages.asgi import get_asgi_application

application = get_asgi_application()
