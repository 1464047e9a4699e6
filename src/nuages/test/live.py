"""A real server over a socket, in a thread of the test's process, in the test's transaction.

It is uvicorn with the project's ASGI application, its lifespan included, on a loop of its own.
In a test with a transaction (a TestCase, `db`) requests work in that transaction, because
everything in the process does; the test must be outside of its own `atomic` blocks meanwhile,
because requests would wait for these. In a TransactionTestCase requests use the pool.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from types import TracebackType

import uvicorn
from django.apps import apps
from django.test import modify_settings

from nuages.asgi.types import Application
from nuages.management.application import load_application
from nuages.management.staticfiles import StaticFiles
from nuages.stopping import announce_stop
from nuages.test.cases import AsyncTestCase, AsyncTransactionTestCase

_GRACE = 5
"""Seconds that requests get to end when a server stops, or a test has ended."""


class _Server(uvicorn.Server):
    """uvicorn's server, which tells when it is ready and on which loop."""

    def __init__(self, config: uvicorn.Config, told: Callable[[], None]) -> None:
        super().__init__(config)
        self._told = told
        self.loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._told()


class LiveServer:
    """The project's ASGI application, served while a `with` block lasts.

    `url` is its address without a slash at the end. Raises RuntimeError where the application
    does not start; the error of its lifespan is in the log of uvicorn.error.
    """

    def __init__(self, application: Application | None = None, host: str = "127.0.0.1") -> None:
        if application is None:
            application = load_application()
            if apps.is_installed("django.contrib.staticfiles"):
                application = StaticFiles(application)
        self.host = host
        self._listener = socket.create_server((host, 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://{host}:{self.port}"
        self._told = threading.Event()
        config = uvicorn.Config(
            application,
            interface="asgi3",
            lifespan="on",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=_GRACE,
        )
        self._server = _Server(config, self._told.set)
        self._thread = threading.Thread(target=self._serve, name=f"server {self.url}", daemon=True)
        self._hosts = modify_settings(ALLOWED_HOSTS={"append": host})

    def __str__(self) -> str:
        return self.url

    def _serve(self) -> None:
        try:
            self._server.run(sockets=[self._listener])
        except SystemExit:
            pass  # uvicorn's way to say that the application did not start
        finally:
            self._told.set()

    def start(self) -> None:
        """Start to serve, and wait until the server listens."""
        self._hosts.enable()
        self._thread.start()
        self._told.wait()
        if not self._server.started:
            self.stop()
            raise RuntimeError("The ASGI application did not start: see the log of uvicorn.error.")

    def drain(self) -> None:
        """Wait for the requests in flight; cancel any that do not end."""
        loop = self._server.loop
        if loop is not None and loop.is_running():
            asyncio.run_coroutine_threadsafe(self._drain(), loop).result()

    async def _drain(self) -> None:
        tasks = set(self._server.server_state.tasks)
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=_GRACE)
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left)

    def stop(self) -> None:
        """Stop, streams first, and wait for the end. Idempotent."""
        loop = self._server.loop
        if self._thread.is_alive() and loop is not None and loop.is_running():
            self._server.should_exit = True
            loop.call_soon_threadsafe(announce_stop, loop)
        if self._thread.ident is not None:
            self._thread.join()
            self._hosts.disable()
            self._thread = threading.Thread()
        self._listener.close()

    def __enter__(self) -> LiveServer:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


class _Live:
    """Mixin: a server for the class."""

    live_server: LiveServer

    @classmethod
    def setUpClass(cls) -> None:
        """Start the server, in the class's transaction."""
        super().setUpClass()  # type: ignore[misc]
        cls.live_server = LiveServer()
        cls.addClassCleanup(cls.live_server.stop)  # type: ignore[attr-defined]
        cls.live_server.start()

    @classmethod
    def tearDownClass(cls) -> None:
        """Stop the server before the class's transaction ends."""
        cls.live_server.stop()
        super().tearDownClass()  # type: ignore[misc]

    def _post_teardown(self) -> None:
        self.live_server.drain()
        super()._post_teardown()  # type: ignore[misc]

    @property
    def live_server_url(self) -> str:
        """The server's address, without a slash at the end."""
        return self.live_server.url


class AsyncLiveServerTestCase(_Live, AsyncTestCase):
    """An AsyncTestCase with a server: `self.live_server_url`.

    Its requests share the test's transaction, so tests are as quick as other TestCases. The
    server serves for the length of the class.
    """


class AsyncLiveServerTransactionTestCase(_Live, AsyncTransactionTestCase):
    """An AsyncTransactionTestCase with a server: commits and the pool are as in production."""
