"""A strict ASGI server of one exchange: it plays the client and checks every message.

Follows the ASGI HTTP specification 2.5 ("Request", "Response Start", "Response Body",
"Disconnect") and RFC 9110 for what a header may hold.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

Headers = Sequence[tuple[bytes, bytes]]

TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
PATIENCE = 20.0
"""Seconds after which an exchange counts as hanging. No test waits for it to pass."""


class Disconnected(OSError):
    """What a server raises in `send()` when the client is gone (specification 2.4)."""


class Exchange:
    """One request to `application`.

    `body` is sent in the pieces given. `disconnect()` makes the client go away: what the
    application awaits then gets `http.disconnect`. `on_receive(number)` and `on_send(number,
    message)` are called before a message is given or taken, counted from 0; either may call
    `disconnect()`, or return something to await. With `raises` a send after the disconnect
    raises, as some servers do; without it is dropped, as others do.
    """

    def __init__(
        self,
        application: Any,
        path: str = "/",
        *,
        method: str = "GET",
        query: bytes = b"",
        headers: Headers = (),
        body: Sequence[bytes] = (b"",),
        extensions: dict[str, Any] | None = None,
        on_receive: Callable[[int], Any] | None = None,
        on_send: Callable[[int, Any], Any] | None = None,
        raises: bool = False,
        host: bytes | None = b"site.test",
        scope: dict[str, Any] | None = None,
    ) -> None:
        given = [(name.lower(), value) for name, value in headers]
        if host is not None and not any(name == b"host" for name, _ in given):
            given.insert(0, (b"host", host))
        self.application = application
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode("utf-8", "surrogatepass"),
            "query_string": query,
            "root_path": "",
            "headers": given,
            "client": ("127.0.0.1", 50000),
            "server": ("site.test", 80),
        } | (scope or {})
        if extensions is not None:
            self.scope["extensions"] = extensions
        self._pieces = list(body) or [b""]
        self._on_receive, self._on_send = on_receive, on_send
        self._raises = raises
        self._gone = asyncio.Event()
        self._received = self._sends = 0
        self.sent: list[Any] = []
        """What the application sent, disconnected or not."""
        self.told = False
        """Whether the application was given `http.disconnect`."""
        self.ended = False
        """Whether the application has returned."""
        self.complete = False
        """Whether the final body message was sent."""
        self.started = asyncio.Event()
        """Set when the response has begun."""
        self.error: Disconnected | None = None

    def disconnect(self) -> None:
        self._gone.set()

    @property
    def disconnected(self) -> bool:
        return self._gone.is_set()

    async def __call__(self) -> Exchange:
        """Play it to its end; fails where the application hangs, raises or breaks the protocol."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self.application(self.scope, self._receive, self._send)
        except TimeoutError:
            raise AssertionError(f"the application hangs in {self}") from None
        except Disconnected as error:
            # Allowed: "return with no exception" or re-raise the server's own.
            if error is not self.error:
                raise
        finally:
            self.ended = True
        if not self.disconnected:
            assert self.complete, f"the response is not complete: {self}"
        self._check_length()
        return self

    def __str__(self) -> str:
        scope = self.scope
        return (
            f"{scope['method']} {scope['path']!r} ?{scope['query_string']!r} {scope['headers']} "
            f"{self._received} received, sent {self.sent!r:.300}"
        )

    async def _receive(self) -> Any:
        assert not self.ended, "receive() after the application has returned"
        number, self._received = self._received, self._received + 1
        await _called(self._on_receive, number)
        if self._gone.is_set() or not self._pieces:
            await self._gone.wait()
            self.told = True
            return {"type": "http.disconnect"}
        body = self._pieces.pop(0)
        message: dict[str, Any] = {"type": "http.request"}
        if body or self._pieces or number:
            # Both keys are optional.
            message["body"] = body
        if self._pieces:
            message["more_body"] = True
        return message

    async def _send(self, message: Any) -> None:
        assert not self.ended, f"{message} after the application has returned"
        assert not self.told, f"{message!r:.200} after it was told of the disconnect"
        first = self.sent[0] if self.sent else message
        if first.get("status") != 503:  # a server that is full reads no body
            assert not self._pieces or self.disconnected, "a response before the body was read"
        self._check(message)
        number, self._sends = self._sends, self._sends + 1
        self.sent.append(message)
        await _called(self._on_send, number, message)
        if self._gone.is_set() and self._raises:
            self.error = Disconnected("the client is gone")
            raise self.error

    def _check(self, message: Any) -> None:
        kind = message["type"]
        assert not self.complete, f"{message!r:.200} after the final body"
        if not self.sent:
            assert kind == "http.response.start", message
            assert set(message) <= {"type", "status", "headers", "trailers"}
            status = message["status"]
            assert type(status) is int and 100 <= status <= 599, status  # noqa: PT018
            for name, value in message["headers"]:
                assert type(name) is bytes, name
                assert type(value) is bytes, value
                assert TOKEN.fullmatch(name), name
                assert not re.search(rb"[\r\n\0]", value), (name, value)
            self.started.set()
        elif kind == "http.response.pathsend":
            assert "http.response.pathsend" in self.scope.get("extensions", {})
            assert type(message["path"]) is str
            self.complete = True
        else:
            assert kind == "http.response.body", message
            assert set(message) <= {"type", "body", "more_body"}
            assert type(message.get("body", b"")) is bytes
            assert type(message.get("more_body", False)) is bool
            self.complete = not message.get("more_body", False)

    def _check_length(self) -> None:
        if not self.complete or self.sent[-1]["type"] == "http.response.pathsend":
            return
        if self.scope["method"] == "HEAD" and not self.content:
            return  # the length is that of a GET (RFC 9110, 8.6)
        if self.scope["method"].upper() == "HEAD":
            assert not self.content, "content in the answer to HEAD"
            return
        said = self.header(b"content-length")
        if said is not None:
            assert int(said) == len(self.content), f"{said} bytes announced: {self}"
        if self.status in (204, 304):
            assert not self.content, self.content

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def parts(self) -> list[bytes]:
        """The body's messages that hold something."""
        return [m["body"] for m in self.sent[1:] if m.get("body")]

    @property
    def content(self) -> bytes:
        return b"".join(self.parts)

    @property
    def text(self) -> str:
        return self.content.decode()

    def header(self, name: bytes) -> bytes | None:
        values = [v for n, v in self.sent[0]["headers"] if n.lower() == name]
        return values[0] if values else None


async def _called(function: Callable[..., Any] | None, *args: Any) -> None:
    if function is None:
        return
    result = function(*args)
    if isinstance(result, Awaitable):
        await result


def cookie(**values: str) -> tuple[bytes, bytes]:
    return b"cookie", "; ".join(f"{k}={v}" for k, v in values.items()).encode()


async def exchange(application: Any, path: str = "/", **options: Any) -> Exchange:
    """Play one exchange to its end and return it."""
    return await Exchange(application, path, **options)()


def urlencoded(**fields: str) -> dict[str, Any]:
    """The headers and the body of a form, for `Exchange`."""
    from urllib.parse import urlencode

    body = urlencode(fields).encode()
    headers = [
        (b"content-type", b"application/x-www-form-urlencoded"),
        (b"content-length", str(len(body)).encode()),
    ]
    return {"method": "POST", "headers": headers, "body": [body]}


def pieces(body: bytes, cuts: Iterable[int]) -> list[bytes]:
    """`body` cut at the given places."""
    places = sorted({min(cut, len(body)) for cut in cuts})
    return [body[a:b] for a, b in zip([0, *places], [*places, len(body)], strict=True)]
