"""Sending responses (ASGI HTTP specification, "Response Start" and "Response Body").

A stream is iterated in the request's own task and holds no connection between its chunks. Each
`send` is awaited, so a slow client slows its stream down. Where neither the stream nor `send` ever
waits, the loop still gets a turn now and then: other tasks go on, and a disconnect is noticed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from typing import Any

from asgiref.sync import async_to_sync
from django.core.exceptions import RequestAborted
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpResponseBase, StreamingHttpResponse

from nuages.asgi.types import Scope, Send
from nuages.bridge import await_, on_loop
from nuages.handling import placement

chunks = ASGIHandler.chunk_bytes
"""Split content into messages of 64 KiB, as Django does."""
TURN = 0.01
"""Seconds for which a stream may keep the loop to itself."""
_PATHSEND = "http.response.pathsend"


def start_message(response: Any) -> dict[str, Any]:
    """Return the message that begins `response`; header names are as Django has them."""
    # The same as items(), without a look-up by lower case for each of them.
    pairs = response.headers._store.values()
    headers = [(name.encode("ascii"), value.encode("latin1")) for name, value in pairs]
    for cookie in response.cookies.values():
        headers.append((b"Set-Cookie", cookie.output(header="").encode("ascii").strip()))
    return {
        "type": "http.response.start",
        "status": response.status_code,
        "headers": headers,
    }


async def send_whole(response: Any, send: Send) -> None:
    """Send a response whose whole content is there."""
    await send(start_message(response))
    for chunk, last in chunks(response.content):
        await send({"type": "http.response.body", "body": chunk, "more_body": not last})


async def send_head(response: Any, send: Send) -> None:
    """Answer HEAD: without content (RFC 9110, 9.3.2), which not every server leaves out."""
    await send(start_message(response))
    await send({"type": "http.response.body"})


async def send_stream(response: Any, scope: Scope, send: Send) -> None:
    """Send a response that is iterated, and close what it is made from, whatever happens."""
    if scope["method"] == "HEAD":
        async with _sources_closed(response):
            await send_head(response, send)
        return
    path = getattr(response, "pathsend", None)
    if path is not None and _PATHSEND in (scope.get("extensions") or {}):
        async with _sources_closed(response):
            await send(start_message(response))
            await send({"type": _PATHSEND, "path": path})
        return
    async with _sources_closed(response):
        await send(start_message(response))
        if _is_async(response):
            await _send_async(response, send)
        elif _may_block(response):
            sender = _SenderFromThread(send)
            try:
                await on_loop(placement.in_request_thread(_send_from_thread))(response, sender)
            except asyncio.CancelledError:
                sender.stop()
                raise
        else:
            await on_loop(_send_sync)(response, send)
        await send({"type": "http.response.body"})


@contextlib.asynccontextmanager
async def _sources_closed(response: Any) -> AsyncIterator[None]:
    """Close every async source that the response ever had, the outermost first."""
    async with contextlib.AsyncExitStack() as stack:
        for source in getattr(response, "_nuages_sources", ()):
            stack.push_async_callback(source.aclose)
        yield


@contextlib.contextmanager
def _iterators_closed(response: Any) -> Iterator[None]:
    """Close every sync source where it is iterated, because its transaction or cursor is there."""
    with contextlib.ExitStack() as stack:
        for source in getattr(response, "_nuages_iterators", ()):
            stack.callback(source.close)
        yield


def _may_block(response: Any) -> bool:
    """Tell whether a sync source is iterated in a thread: its view ran there, or it is a file."""
    file = getattr(response, "file_to_stream", None)
    in_memory = file is None or isinstance(file, BytesIO)
    return getattr(response, "_nuages_threaded", False) or not in_memory


def _is_async(response: Any) -> bool:
    return bool(getattr(response, "is_async", False)) or _iterates_by_itself(response)


def _iterates_by_itself(response: HttpResponseBase) -> bool:
    method = getattr(type(response), "__aiter__", None)
    return method is not None and method is not StreamingHttpResponse.__aiter__


class _Turns:
    """Tell when the loop is due a turn."""

    __slots__ = ("_loop", "_next")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._next = self._loop.time() + TURN

    def due(self) -> bool:
        now = self._loop.time()
        if now < self._next:
            return False
        self._next = now + TURN
        return True


async def _send_async(response: Any, send: Send) -> None:
    content = aiter(response) if _iterates_by_itself(response) else response.streaming_content
    turns = _Turns()
    async with contextlib.aclosing(content):
        async for part in content:
            for chunk, _ in chunks(part):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            if turns.due():
                await asyncio.sleep(0)


def _send_sync(response: Any, send: Send) -> None:
    """Iterate on the loop, in a bridge: one for the whole stream, so a cursor may stay open."""
    turns = _Turns()
    with _iterators_closed(response):
        for part in response:
            for chunk, _ in chunks(part):
                await_(send({"type": "http.response.body", "body": chunk, "more_body": True}))
            if turns.due():
                await_(asyncio.sleep(0))


class _SenderFromThread:
    """`send` for a thread: once the request is cancelled, it ends the thread's work."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._task: asyncio.Task[Any] | None = None
        self._stopped = False

    async def __call__(self, message: dict[str, Any]) -> None:
        if self._stopped:
            raise RequestAborted()
        self._task = asyncio.current_task()
        try:
            await self._send(message)
        finally:
            self._task = None

    def stop(self) -> None:
        """Make the chunk that is being sent the last one."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()


def _send_from_thread(response: Any, sender: _SenderFromThread) -> None:
    """Iterate in the request's thread, where the view ran or a file may block; the loop sends."""
    send_from_here: Any = async_to_sync(sender.__call__)
    with _iterators_closed(response):
        for part in response:
            for chunk, _ in chunks(part):
                send_from_here({"type": "http.response.body", "body": chunk, "more_body": True})
