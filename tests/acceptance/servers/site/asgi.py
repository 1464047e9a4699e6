"""The site's asgi.py; it counts what is handed to thread pools."""

from tests.acceptance.servers.site import counting

counting.install()

from nuages.asgi import get_asgi_application  # noqa: E402

application = get_asgi_application()
