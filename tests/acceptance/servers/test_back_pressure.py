"""A generator does not run ahead of a client that does not read."""

from __future__ import annotations

import httpx
import pytest

from tests.acceptance.servers.conftest import Witness
from tests.acceptance.servers.exchange import exchange
from tests.acceptance.servers.process import Server

CHUNKS = 4096
CHUNK_SIZE = 65536
AHEAD = 16 * 2**20
"""Bytes: more than Linux's socket buffers take on loopback, with those of the server."""


def until_it_stands_still(http: httpx.Client, token: str) -> int:
    """Return how many chunks were made when no more are.

    Each question gives the server's loop turns, in which the generator would go on if it could.
    """
    last, same = -1, 0
    while same < 50:
        found = http.get(f"/produced/{token}/").json()["produced"]
        same = same + 1 if found == last else 0
        last = found
    return last


@pytest.mark.needs("back-pressure")
def test_a_slow_reader(server: Server, http: httpx.Client, witness: Witness, token: str) -> None:
    with exchange(server, f"/endless/{token}/", receive_buffer=65536) as sending:
        sending.read_at_least(1)
        made = until_it_stands_still(http, token)
        assert 0 < made < CHUNKS
        assert made * CHUNK_SIZE < AHEAD
        assert witness.noted(token) == []  # it waits, it was not ended
        # It goes on when the client does.
        sending.read_at_least((made + 1) * CHUNK_SIZE)
        assert http.get(f"/produced/{token}/").json()["produced"] > made
    witness.until_noted(token, "finally")
