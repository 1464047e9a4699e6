"""HTTP/1.1 for the load: one kept connection for each client, which may leave at any moment."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

PATIENCE = 60.0
"""Seconds after which a request that was not answered is an error."""


class Left(Exception):
    """The client went away on purpose before it had the answer."""


@dataclass
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes
    cut: bool = False
    """Whether the connection ended before the body did."""

    def cookies(self) -> dict[str, str]:
        """The cookies that are set."""
        lines = [value for name, value in self.headers if name == "set-cookie"]
        return dict(line.split(";")[0].split("=", 1) for line in lines)


@dataclass
class Leaving:
    """When to leave: so many seconds after the request was sent, or in the middle of sending."""

    after: float
    sent: float = 1.0
    """The part of the request that is sent."""


@dataclass
class Client:
    port: int
    cookies: dict[str, str] = field(default_factory=dict)
    asked: deque[str] = field(default_factory=lambda: deque(maxlen=4))
    """The last requests on this connection, with what became of them."""
    _reader: asyncio.StreamReader | None = None
    _writer: asyncio.StreamWriter | None = None

    async def ask(
        self,
        path: str,
        *,
        body: bytes | None = None,
        content_type: str = "",
        leaving: Leaving | None = None,
    ) -> Answer:
        """Send a request and return its answer; `Left` where the client went away first."""
        if self._writer is None or self._writer.is_closing():
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.port)
        request = self._request(path, body, content_type)
        if leaving is None:
            async with asyncio.timeout(PATIENCE):
                return await self._exchange(request)
        if leaving.sent < 1.0:
            self._writer.write(request[: int(len(request) * leaving.sent)])
            self.leave()
            raise Left
        task = asyncio.create_task(self._exchange(request))
        done, _ = await asyncio.wait([task], timeout=leaving.after)
        if done:
            return task.result()
        task.cancel()
        await asyncio.wait([task])
        self.leave()
        raise Left

    def leave(self) -> None:
        """Drop the connection, without a word."""
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None
        self.asked.clear()

    def _request(self, path: str, body: bytes | None, content_type: str) -> bytes:
        lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", "Host: soak.test"]
        if self.cookies:
            pairs = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
            lines.append(f"Cookie: {pairs}")
        if body is not None:
            lines += [f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + (body or b"")

    async def _exchange(self, request: bytes) -> Answer:
        reader, writer = self._reader, self._writer
        assert reader is not None
        assert writer is not None
        writer.write(request)
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *rest = head.split("\r\n")[:-2]
        headers = [(name.lower(), value) for name, value in (line.split(": ", 1) for line in rest)]
        fields = dict(headers)
        answer = Answer(int(first.split()[1]), headers, b"")
        self.asked.append(f"{request.split(b' HTTP')[0].decode()}: {first}")
        try:
            if fields.get("transfer-encoding") == "chunked":
                answer.body = await self._chunks(reader)
            else:
                answer.body = await reader.readexactly(int(fields.get("content-length", 0)))
        except asyncio.IncompleteReadError:
            answer.cut = True
        if answer.cut or fields.get("connection") == "close":
            self.leave()
        return answer

    @staticmethod
    async def _chunks(reader: asyncio.StreamReader) -> bytes:
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
        return body
