"""SIGTERM: requests in flight are finished, streams end, nothing is left."""

from __future__ import annotations

import json
import random
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psycopg
import pytest

from tests.acceptance.servers.conftest import Start, Witness, entry, session_name
from tests.acceptance.servers.exchange import connected, exchange
from tests.acceptance.servers.process import Server
from tests.acceptance.servers.variants import GRACE, Variant


def until_it_stops(server: Server, idle: socket.socket) -> None:
    """Wait until the server has begun to stop: it says so, or closes an idle connection."""
    if server.variant.stopping is not None:
        server.wait_for_line(server.variant.stopping)
    else:
        assert idle.recv(65536) == b""


@pytest.mark.needs("drain")
def test_a_request_in_flight_is_finished(
    variant: Variant, start: Start, site_url: str, witness: Witness, token: str
) -> None:
    """The request waits for a lock that the test holds until the server has begun to stop."""
    name, key = session_name(variant), random.randrange(2**31)
    with (
        ExitStack() as stack,
        start(variant, SITE_DATABASE=json.dumps(entry(site_url, name))) as server,
        psycopg.connect(site_url) as holder,
        ThreadPoolExecutor(1) as thread,
        server.client() as http,
    ):
        holder.execute("SELECT pg_advisory_xact_lock(%s)", [key])
        server.wait_until_it_listens()
        idle = stack.enter_context(connected(server))
        request = thread.submit(http.get, f"/locked/{token}/{key}/")
        witness.until(1, witness.running(token), seconds=20)
        server.signal()
        until_it_stops(server, idle)
        holder.rollback()
        answer = request.result(30)
        assert (answer.status_code, answer.text) == (200, "unlocked")
        assert server.wait() in variant.stopped
        server.assert_quiet()
        assert witness.noted(token) == ["started", "finally"]
        assert witness.sessions(name) == 0


def test_an_open_stream_ends_within_the_grace(
    variant: Variant, start: Start, site_url: str, witness: Witness, token: str
) -> None:
    """A stream that never ends by itself does not keep the server from ending."""
    name = session_name(variant)
    with start(variant, SITE_DATABASE=json.dumps(entry(site_url, name))) as server:
        server.wait_until_it_listens()
        with exchange(server, f"/silent/{token}/") as sending:
            sending.read_until(b"first")
            witness.until_noted(token, "waiting")
            server.signal()
            sending.read_to_end()
            assert server.wait(GRACE + 10) in variant.stopped
        assert witness.noted(token) == ["waiting", "finally"]
        assert witness.sessions(name) == 0
