"""The ASGI application: one request, from its scope to the end of its response.

The request runs in the task that the server made for it. Until the response is there all its work
is one bridge; a stream is sent outside of it. Follows `django.core.handlers.asgi.ASGIHandler`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from asgiref.sync import ThreadSensitiveContext
from django.core.exceptions import ImproperlyConfigured, RequestAborted
from django.core.handlers.asgi import ASGIHandler as DjangoASGIHandler
from django.core.handlers.asgi import get_script_prefix
from django.core.signals import request_started
from django.http import FileResponse
from django.urls import set_script_prefix

from nuages import seams
from nuages.asgi.body import close_body, read_body
from nuages.asgi.disconnect import DisconnectWatch
from nuages.asgi.lifespan import Lifespan
from nuages.asgi.limits import InFlight, refuse
from nuages.asgi.request import ASGIRequest
from nuages.asgi.streaming import send_head, send_stream, send_whole
from nuages.asgi.types import Application, Receive, Scope, Send
from nuages.bridge import await_, on_loop
from nuages.bridge.tasks import ended
from nuages.bridge.threads import calls_ended, sensitive_calls
from nuages.conf import setting
from nuages.db.scopes.family import OwnFamilies
from nuages.db.transaction import request_connections
from nuages.handling import placement
from nuages.handling import request_signals as signals
from nuages.handling.response import get_response

FILE_BLOCK = 2**18
"""Bytes that Django's FileResponse reads at a time."""


class ASGIHandler(DjangoASGIHandler):
    """The application for http and lifespan scopes (ASGI specification 3.0); refuses websockets.

    `websocket` is an application for websocket scopes, such as Channels' routing.
    """

    request_class = ASGIRequest

    def __init__(self, websocket: Application | None = None) -> None:
        if not seams.installed():
            raise ImproperlyConfigured(
                "Nuages' seams are not installed: "
                + ("; ".join(seams.problems()) or 'add "nuages" to INSTALLED_APPS')
                + ". Run `manage.py check`."
            )
        super().__init__()
        self.in_flight = InFlight()
        self.lifespan = Lifespan(self.in_flight)
        self.websocket = websocket
        self._get_response_on_loop: Any = on_loop(self._respond)
        self._close_on_loop: Any = on_loop(self._close)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        kind = scope["type"]
        if kind == "http":
            await self._serve_http(scope, receive, send)
        elif kind == "lifespan":
            await self.lifespan(scope, receive, send)
        elif kind == "websocket":
            with OwnFamilies():
                await (self.websocket or refuse_websocket)(scope, receive, send)
        else:
            raise ValueError(f"Django can only handle ASGI/HTTP connections, not {kind}.")

    async def _serve_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request within the limits, counted for the shutdown."""
        if not self.lifespan.begun:
            await self.lifespan.begin_late()
        if self.lifespan.state and not scope.get("state"):
            # A server without the lifespan protocol gives no state; uvicorn gives an empty one.
            scope["state"] = self.lifespan.state.copy()
        in_flight = self.in_flight
        if in_flight.is_full():
            await refuse(send)
            return
        task = asyncio.current_task()
        assert task is not None
        in_flight.add(task)
        try:
            # For the project's sync code: one thread a request, as in stock Django.
            # And each request has wrappers of its own, with what is set on them.
            with OwnFamilies():
                async with ThreadSensitiveContext():
                    await self._handle_connected(scope, receive, send)
        finally:
            in_flight.remove(task)

    async def _handle_connected(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle the request; with CONNECTION_PER = "request" it has connections of its own."""
        if setting["CONNECTION_PER"] == "request":
            async with request_connections():
                await self.handle(scope, receive, send)
        else:
            await self.handle(scope, receive, send)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, make the response, send it; all of it ends if the client goes away."""
        in_flight = self.in_flight
        in_flight.working += 1
        working = True
        body = watch = None
        left: list[asyncio.Future[None]] = []
        placement.left_threads.set(left)
        sensitive_calls.set(set())
        try:
            body = await read_body(receive)
            loop = asyncio.get_running_loop()
            watch = DisconnectWatch(receive, asyncio.current_task(loop), loop)  # type: ignore[arg-type]
            if watch.failure is not None:
                raise watch.failure
            if watch.disconnected:
                return
            response = await self._get_response_on_loop(scope, body, send, watch, left)
            if response is not None:
                in_flight.working -= 1
                working = False
                try:
                    await send_stream(response, scope, watch.guard(send))
                finally:
                    _end(watch, left)
                    await self._close_on_loop(response, left)
        except RequestAborted:
            pass
        except asyncio.CancelledError:
            if watch is None or not watch.cancelled():
                raise
        finally:
            if working:
                in_flight.working -= 1
            if watch is not None:
                _end(watch, left)
            await _threads_ended(left)
            if body is not None:
                await close_body(body)

    def _respond(
        self,
        scope: Scope,
        body: Any,
        send: Send,
        watch: DisconnectWatch,
        left: list[asyncio.Future[None]],
    ) -> Any:
        """Make the response and send it; return it unsent where it is a stream (in a bridge)."""
        set_script_prefix(get_script_prefix(scope))
        request: Any = None
        response: Any
        try:
            signals.send(request_started, type(self), scope=scope)
            request, response = self.create_request(scope, body)
            if request is not None:
                response = get_response(self, request, watch.is_over)
        except asyncio.CancelledError:
            if request is not None:
                await_(_threads_ended(left))
                request.close()
            signals.finished(type(self))
            raise
        response._handler_class = type(self)
        if request is not None:
            if request.has_temporary_files():
                response._nuages_closed_in_thread = True
            if isinstance(response, FileResponse):
                response.block_size = FILE_BLOCK
            if response.streaming:
                return response
        try:
            send_it = send_head if scope["method"] == "HEAD" else send_whole
            await_(send_it(response, send))
        finally:
            # A server reports a disconnect also once the response is complete.
            _end(watch, left)
            self._close(response, left)
        return None

    def _close(self, response: Any, left: list[asyncio.Future[None]]) -> None:
        """Close the response once no thread of the request works any more (in a bridge)."""
        if left or sensitive_calls.get():
            await_(_threads_ended(left))
        threaded = getattr(response, "_nuages_threaded", False)
        in_thread = threaded or getattr(response, "_nuages_closed_in_thread", False)
        signals.close(response, in_thread)


async def _threads_ended(left: list[asyncio.Future[None]]) -> None:
    """Wait until nothing of the request runs in its thread, despite cancellations.

    Code in the thread may still read the body. And asgiref, which ends the thread with the
    request, waits for it on the loop.
    """
    while left:
        await ended(left.pop())
    await calls_ended()


def _end(watch: DisconnectWatch, left: list[asyncio.Future[None]]) -> None:
    """Stop listening; a task that still listens is waited for with the request's threads."""
    listener = watch.stop()
    if listener is not None:
        left.append(listener)


async def refuse_websocket(scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a handshake: a close before the accept, which servers answer with 403."""
    await receive()
    await send({"type": "websocket.close"})
