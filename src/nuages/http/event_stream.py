"""Server-sent events as a response (WHATWG HTML, "Server-sent events")."""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator
from functools import partial
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder
from django.http import HttpRequest

from nuages.bridge.awaitables import discard
from nuages.exceptions import EventStreamNeedsASGI
from nuages.http.event import HEARTBEAT, encode, require_retry
from nuages.http.relay import Relay
from nuages.http.streams import DirectStreamingResponse, aclose

Events = AsyncIterable[object]
Source = Events | Callable[[str | None], Events | Awaitable[Events]]

_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    # no-transform: nothing on the way may compress, and so hold back, small events.
    "Cache-Control": "no-cache, no-store, no-transform",
    "X-Accel-Buffering": "no",
}


def last_event_id(request: HttpRequest) -> str | None:
    """Return the id of the last event a reconnecting browser received; None if it has none.

    Browsers send the id in UTF-8 (WHATWG HTML, 9.2.3), but servers hand on headers in latin-1.
    """
    header: str | None = request.META.get("HTTP_LAST_EVENT_ID")
    return header.encode("latin-1", "replace").decode("utf-8", "replace") if header else None


class EventStream(DirectStreamingResponse):
    """A response that sends events for as long as the client listens.

    Args:
        source: An async generator or another async iterable; or a function, called when the
            client begins to listen with the id of the last event it received (None at its first
            visit), that returns one. An async generator function is such a function, a
            coroutine function may be. What the source yields is an `Event`, or the data of one:
            text, or anything for JSON.
        request: The request, from which the last event's id is read. A function needs it; and
            with it, HEAD is answered without asking the source.
        heartbeat: After so many seconds of silence a comment is sent, so that proxies and
            clients keep the connection, and a client that is gone is found out. None: never.
        retry: How long the browser waits before it connects again, in milliseconds.
        encoder: Makes JSON of data that is neither text nor bytes.
        headers: More headers.

    The source runs in a task of its own and goes on when its event has been sent. It is closed,
    and its `finally` awaited, when the client goes away or the server stops; the browser connects
    again. An error in it cuts the connection. Sync code cannot iterate the response: WSGI gets
    `EventStreamNeedsASGI`.
    """

    def __init__(
        self,
        source: Source,
        request: HttpRequest | None = None,
        *,
        heartbeat: float | None = 15.0,
        retry: int | None = None,
        encoder: type[json.JSONEncoder] = DjangoJSONEncoder,
        headers: dict[str, str] | None = None,
    ) -> None:
        if heartbeat is not None and not heartbeat > 0:
            raise ValueError(f"heartbeat is a number of seconds above 0, or None: {heartbeat!r}.")
        opening = HEARTBEAT
        if retry is not None:
            require_retry(retry)
            opening = f"retry: {retry}\n\n".encode()
        _require_source(source, request)
        self.last_event_id = None if request is None else last_event_id(request)
        relay = Relay(
            partial(_open, source, self.last_event_id),
            partial(aclose, source if hasattr(source, "__anext__") else None),
            partial(encode, encoder=encoder),
            opening,
            heartbeat,
        )
        head = request is not None and request.method == "HEAD"
        super().__init__(_Reader(relay, head), headers=_HEADERS | (headers or {}))

    def __iter__(self) -> Iterator[bytes]:
        raise EventStreamNeedsASGI()


class _Reader:
    """The relay as the response's iterator; one dropped without being closed closes the relay."""

    __slots__ = ("_head", "_relay")

    def __init__(self, relay: Relay, head: bool) -> None:
        self._relay, self._head = relay, head

    def __aiter__(self) -> _Reader:
        return self

    async def __anext__(self) -> bytes:
        if self._head:
            await self._relay.aclose()
            raise StopAsyncIteration
        return await self._relay.next()

    async def aclose(self) -> None:
        await self._relay.aclose()

    def __del__(self) -> None:
        self._relay.abandon()


def _require_source(source: Any, request: Any) -> None:
    """Raise now, in the view, for what would otherwise break the stream once headers are sent."""
    if hasattr(source, "__aiter__"):
        return
    if callable(source):
        if request is None:
            raise TypeError(
                "A source that is a function is called with the last event's id, which is in "
                "the request: EventStream(source, request)."
            )
        try:
            signature = inspect.signature(source)
        except ValueError:  # a callable written in C
            return
        try:
            signature.bind(None)
        except TypeError as error:
            raise TypeError(
                "The source of an event stream is called with one argument, the last event's id "
                f"or None: async def {getattr(source, '__name__', 'source')}(last_event_id). "
                f"Here: {error}."
            ) from None
        return
    if inspect.isawaitable(source):
        discard(source)
        hint = "Pass the function itself, without calling it."
    else:
        hint = "Make it an async generator: async def with yield."
    raise TypeError(f"The source of an event stream is async; this is {source!r}. {hint}")


async def _open(source: Any, last: str | None) -> AsyncIterable[Any]:
    if not hasattr(source, "__aiter__"):
        source = source(last)
        if inspect.isawaitable(source):
            source = await source
        if not hasattr(source, "__aiter__"):
            raise TypeError(
                "The source of an event stream returned something that `async for` cannot "
                f"iterate: {source!r}."
            )
    return source  # type: ignore[no-any-return]
