"""The site's asgi.py: start-up hooks, and a count of what is handed to thread pools."""

import os

from tests.acceptance.servers.site import counting

counting.install()

from nuages.asgi import get_asgi_application, on_shutdown, on_startup  # noqa: E402

application = get_asgi_application()


@on_startup
async def band():
    """What requests find in their `state`, for as long as the server runs."""
    if os.environ.get("SITE_BROKEN_START"):
        raise LookupError("the start-up hook is broken")
    print("site: started", flush=True)
    yield {"band": "Quintette du Hot Club de France"}
    print("site: left", flush=True)


@on_shutdown
def say_so():
    print("site: stopped", flush=True)
