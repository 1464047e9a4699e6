"""SIGTERM: requests in flight are finished, streams end, nothing is left."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest

from tests.acceptance.servers.conftest import Start, Witness, entry, session_name
from tests.acceptance.servers.exchange import connected, exchange
from tests.acceptance.servers.process import Server
from tests.acceptance.servers.variants import Variant


@contextmanager
def stop_watched(server: Server) -> Iterator[Callable[[], None]]:
    """Gives what waits until the server has begun to stop.

    It says so in its log; or, where it does not, closes a connection that has nothing to do.
    """
    if (line := server.variant.stopping) is not None:
        yield lambda: (server.wait_for_line(line), None)[1]
        return
    with connected(server) as idle:

        def until_closed() -> None:
            assert idle.recv(65536) == b""

        yield until_closed


@pytest.mark.needs("drain")
def test_a_request_in_flight_is_finished(
    variant: Variant, start: Start, site_url: str, witness: Witness, token: str
) -> None:
    """The request waits for a lock that the test holds until the server has begun to stop."""
    name, key = session_name(variant), random.randrange(2**31)
    with (
        start(variant, SITE_DATABASE=json.dumps(entry(site_url, name))) as server,
        psycopg.connect(site_url) as holder,
        ThreadPoolExecutor(1) as thread,
        server.client() as http,
    ):
        holder.execute("SELECT pg_advisory_xact_lock(%s)", [key])
        server.wait_until_it_listens()
        request = thread.submit(http.get, f"/locked/{token}/{key}/")
        with stop_watched(server) as until_it_stops:
            witness.until(1, witness.running(token))
            server.signal()
            until_it_stops()
        holder.rollback()
        answer = request.result(30)
        assert (answer.status_code, answer.text) == (200, "unlocked")
        assert server.wait() in variant.stopped
        server.assert_quiet()
        assert witness.noted(token) == ["started", "finally"]
        witness.until_disconnected(name)


@pytest.mark.needs("stop notice")
def test_an_open_event_stream_ends(
    variant: Variant, start: Start, site_url: str, witness: Witness, token: str
) -> None:
    """The stream ends by itself as soon as the server begins to stop: nothing is forced."""
    name = session_name(variant)
    with start(variant, SITE_DATABASE=json.dumps(entry(site_url, name))) as server:
        server.wait_until_it_listens()
        with exchange(server, f"/events/{token}/") as sending:
            sending.read_until(b"data: 0")
            witness.until_noted(token, "waiting")
            server.signal()
            sending.read_to_end()
            assert server.wait() in variant.stopped, server.text
        server.assert_quiet()
        assert witness.noted(token) == ["waiting", "finally"]
        witness.until_disconnected(name)


@pytest.mark.needs("forced end")
def test_an_endless_stream_is_ended_after_the_grace(
    variant: Variant, start: Start, site_url: str, witness: Witness, token: str
) -> None:
    """An ordinary stream knows nothing of the stop; the server cancels it, which it may log."""
    name = session_name(variant)
    with start(variant, SITE_DATABASE=json.dumps(entry(site_url, name))) as server:
        server.wait_until_it_listens()
        with exchange(server, f"/silent/{token}/") as sending:
            sending.read_until(b"first")
            witness.until_noted(token, "waiting")
            server.signal()
            sending.read_to_end()
            assert server.wait() in variant.stopped, server.text
        assert witness.noted(token) == ["waiting", "finally"]
        witness.until_disconnected(name)
