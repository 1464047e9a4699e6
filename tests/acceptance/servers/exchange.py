"""One request over a socket of its own, for clients that drop, wait or do not read.

httpx reads eagerly and closes politely; these do what they are told and nothing else.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import h2.config
import h2.connection
import h2.errors
import h2.events

from tests.acceptance.servers.process import Server

Headers = Iterable[tuple[str, str]]

KEPT = 2**20
"""Bytes of a response that are kept to be looked at; what follows is only counted."""


class Http1:
    """HTTP/1.1 with `Connection: close`, as raw bytes."""

    def __init__(
        self, connection: socket.socket, port: int, method: str, path: str, headers: Headers
    ) -> None:
        self.socket = connection
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}"]
        lines += [f"{name}: {value}" for name, value in headers]
        self.send("\r\n".join([*lines, "", ""]).encode())
        self.received = b""
        self.size = 0

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def _more(self) -> bytes:
        data = self.socket.recv(65536)
        self.size += len(data)
        if self.size < KEPT:
            self.received += data
        return data

    def read_until(self, wanted: bytes) -> bytes:
        while wanted not in self.received:
            assert self._more(), f"the connection ended after {self.received!r}"
        return self.received

    def read_at_least(self, size: int) -> None:
        """Read until that many bytes have come."""
        while self.size < size:
            assert self._more(), f"the connection ended after {self.size} bytes"

    def read_to_end(self) -> bytes:
        while self._more():
            pass
        return self.received

    def drop(self) -> None:
        self.socket.close()


class Http2:
    """HTTP/2 by prior knowledge (RFC 9113, section 3.3), one stream."""

    def __init__(
        self, connection: socket.socket, port: int, method: str, path: str, headers: Headers
    ) -> None:
        self.socket = connection
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.stream = self.h2.get_next_available_stream_id()
        pseudo = [
            *((":method", method), (":scheme", "http"), (":path", path)),
            (":authority", f"127.0.0.1:{port}"),
        ]
        self.h2.send_headers(self.stream, [*pseudo, *headers], end_stream=True)
        self.received = b""
        self.size = 0
        self.ended = False
        self._flush()

    def _flush(self) -> None:
        if data := self.h2.data_to_send():
            self.socket.sendall(data)

    def _more(self) -> bool:
        if self.ended:
            return False
        data = self.socket.recv(65536)
        if not data:
            return False
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.DataReceived):
                self.size += len(event.data)
                if self.size < KEPT:
                    self.received += event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, self.stream)
            elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                self.ended = True
        self._flush()
        return True

    def read_until(self, wanted: bytes) -> bytes:
        while wanted not in self.received:
            assert self._more(), f"the stream ended after {self.received!r}"
        return self.received

    def read_at_least(self, size: int) -> None:
        """Read until that many bytes have come."""
        while self.size < size:
            assert self._more(), f"the stream ended after {self.size} bytes"

    def read_to_end(self) -> bytes:
        while self._more():
            pass
        return self.received

    def reset(self) -> None:
        """Give up the stream and keep the connection, as a browser does that leaves a page."""
        self.h2.reset_stream(self.stream, h2.errors.ErrorCodes.CANCEL)
        self._flush()

    def drop(self) -> None:
        self.socket.close()


@contextmanager
def connected(server: Server, *, receive_buffer: int | None = None) -> Iterator[socket.socket]:
    """A connection to the server; closed at the end, if it was not before."""
    connection = socket.socket()
    if receive_buffer is not None:
        # Before connect: it decides the window that TCP offers.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(30)
    connection.connect(("127.0.0.1", server.port))
    with connection:
        yield connection


@contextmanager
def exchange(
    server: Server,
    path: str,
    *,
    method: str = "GET",
    headers: Headers = (),
    receive_buffer: int | None = None,
) -> Iterator[Http1 | Http2]:
    """Send a request in the server's version of HTTP; the caller reads, or does not."""
    kind = Http2 if server.variant.http == 2 else Http1
    with connected(server, receive_buffer=receive_buffer) as connection:
        yield kind(connection, server.port, method, path, headers)


def reset(connection: socket.socket) -> None:
    """Close with RST instead of FIN, as when a client's machine forgets the connection."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
