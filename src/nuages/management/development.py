"""The server behind `runserver`: uvicorn, in the place where Django's command wants a WSGI server.

It runs on the same kind of loop as `serve`, uvloop where that is installed, so that differences
between loops are met in development and not on the day of the release. asyncio's debug mode is one
environment variable away on both (`PYTHONASYNCIODEBUG=1`).

Under the autoreloader the server is not in the main thread and gets no signals: the main thread
calls `stop()`. Without it uvicorn takes the signals itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from typing import Any

import uvicorn

from nuages.management.listening import listen_tcp
from nuages.stopping import announce_stop

STREAMS_TIMEOUT = 1
"""Seconds that requests in flight get when the server stops; then they are cancelled. Event
streams end by themselves."""


def not_cancelled(record: logging.LogRecord) -> bool:
    """Leave out the tracebacks of requests cancelled at the end; one line gave their number."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


class DevelopmentServer:
    """A server class for `django.core.servers.basehttp.run()`.

    Making one listens on the address; raises OSError, which Django's command explains.
    """

    def __init__(
        self, server_address: tuple[str, int], handler_class: Any, ipv6: bool = False
    ) -> None:
        self.listener = listen_tcp(*server_address, ipv6=ipv6)
        self.server_port: int = self.listener.getsockname()[1]
        self.ended = threading.Event()
        self.server: uvicorn.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def set_app(self, application: Any) -> None:
        """Say which ASGI application to serve."""
        config = uvicorn.Config(
            application,
            interface="asgi3",
            lifespan="on",
            # Warnings and errors go where LOGGING sends them, else to stderr; the request lines
            # are ours.
            log_config=None,
            access_log=False,
            proxy_headers=False,
            timeout_graceful_shutdown=STREAMS_TIMEOUT,
        )
        self.server = uvicorn.Server(config)
        logging.getLogger("uvicorn.error").addFilter(not_cancelled)

    def serve_forever(self) -> None:
        """Serve until `stop()` or a signal; raises SystemExit(1) where start-up failed."""
        assert self.server is not None, "set_app() comes first"
        try:
            with asyncio.Runner(loop_factory=self.server.config.get_loop_factory()) as runner:
                self._loop = runner.get_loop()
                runner.run(self.server.serve(sockets=[self.listener]))
        except SystemExit:
            # uvicorn's exit; it has logged why. Its code 3 is Django's for "reload".
            raise SystemExit(1) from None
        finally:
            self.listener.close()
            self.ended.set()

    def stop(self, timeout: float) -> bool:
        """Stop the server from another thread; return whether it ended within `timeout` seconds.

        Lifespan shutdown is part of it, so the project's own clean-up runs.
        """
        if self.server is None:
            return True
        self.server.should_exit = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has just ended
                self._loop.call_soon_threadsafe(announce_stop, self._loop)
        return self.ended.wait(timeout)
