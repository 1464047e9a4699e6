"""A client that goes away stops the work done for it, on the server and in the database."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.acceptance.servers.conftest import Witness, until_nothing_is_used
from tests.acceptance.servers.exchange import Http2, exchange, reset
from tests.acceptance.servers.process import Server
from tests.acceptance.servers.variants import limit

pytestmark = pytest.mark.needs("disconnect")


def until_cancelled(witness: Witness, token: str) -> None:
    """Wait until nothing runs for the test any more; the view was cancelled and cleaned up."""
    witness.until(0, witness.running(token))
    witness.until_noted(token, "finally")
    assert witness.noted(token) == ["started", "cancelled", "finally"]


def test_a_client_drops_during_a_long_query(server: Server, witness: Witness, token: str) -> None:
    with exchange(server, f"/sleep/{token}/") as sending:
        witness.until(1, witness.running(token))
        sending.drop()
        until_cancelled(witness, token)
    with server.client() as http:
        until_nothing_is_used(http)


def test_a_connection_that_is_reset(server: Server, witness: Witness, token: str) -> None:
    with exchange(server, f"/sleep/{token}/") as sending:
        witness.until(1, witness.running(token))
        reset(sending.socket)
        until_cancelled(witness, token)


@pytest.mark.needs("stream reset")
def test_a_stream_that_is_reset(server: Server, witness: Witness, token: str) -> None:
    """HTTP/2: the connection stays, the request does not."""
    with exchange(server, f"/sleep/{token}/") as sending:
        assert isinstance(sending, Http2)
        witness.until(1, witness.running(token))
        sending.reset()
        until_cancelled(witness, token)


def test_a_client_drops_in_mid_stream(server: Server, witness: Witness, token: str) -> None:
    """The generator waits for something that never comes; it is closed, its `finally` awaited."""
    with exchange(server, f"/silent/{token}/") as sending:
        sending.read_until(b"first")
        witness.until_noted(token, "waiting")
        sending.drop()
        witness.until_noted(token, "finally")


def test_a_client_drops_while_it_is_sent_to(server: Server, witness: Witness, token: str) -> None:
    with exchange(server, f"/endless/{token}/") as sending:
        sending.read_at_least(100_000)
        sending.drop()
        witness.until_noted(token, "finally")


def test_a_client_drops_while_a_thread_sends(server: Server, witness: Witness, token: str) -> None:
    """A sync view's stream is iterated in its thread, which ends at the next chunk."""
    with exchange(server, f"/sync-endless/{token}/") as sending:
        sending.read_at_least(100_000)
        sending.drop()
        witness.until_noted(token, "finally")
    with server.client() as http:
        assert http.get("/sync-items/").status_code == 200
        if limit(server.variant, "back-pressure") is None:
            assert http.get(f"/produced/{token}/").json()["produced"] < 4096


def test_many_clients_drop(server: Server, witness: Witness, token: str) -> None:
    """More than the pool has connections: those that wait for one are stopped too."""
    query = witness.running(token)
    with ExitStack() as stack:
        clients = [stack.enter_context(exchange(server, f"/sleep/{token}/")) for _ in range(10)]
        witness.until(4, query)
        for sending in clients:
            sending.drop()
        witness.until(0, query)
    with server.client() as http:
        assert http.get("/items/2/").json()["name"] == "Nuages"
        until_nothing_is_used(http)
