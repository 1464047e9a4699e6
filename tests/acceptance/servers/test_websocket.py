"""A WebSocket handshake without Channels is refused as a handshake, not with an error."""

from __future__ import annotations

import pytest

from tests.acceptance.servers.exchange import exchange
from tests.acceptance.servers.process import Server

HANDSHAKE = [
    ("Upgrade", "websocket"),
    ("Connection", "Upgrade"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ("Sec-WebSocket-Version", "13"),
]


@pytest.mark.needs("http/1.1", "websocket")
def test_it_is_refused(server: Server) -> None:
    with exchange(server, "/ws/", headers=HANDSHAKE) as sending:
        answer = sending.read_until(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 403"), answer
    with server.client() as http:
        assert http.get("/hello/").status_code == 200
