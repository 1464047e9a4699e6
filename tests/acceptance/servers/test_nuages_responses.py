"""Nuages' own responses: event streams and files, and the lifespan's state."""

from __future__ import annotations

import httpx

from tests.acceptance.servers.conftest import Witness
from tests.acceptance.servers.exchange import exchange
from tests.acceptance.servers.process import Server


def test_an_event_stream(server: Server, witness: Witness, token: str) -> None:
    with exchange(server, f"/events/{token}/") as sending:
        received = sending.read_until(b'data: {"number": 1}')
        assert b"id: 0" in received
        witness.until_noted(token, "waiting")
        sending.drop()
        witness.until_noted(token, "finally")


def test_an_event_stream_goes_on_where_it_was(server: Server, token: str) -> None:
    with exchange(server, f"/events/{token}/", headers=[("last-event-id", "41")]) as sending:
        received = sending.read_until(b'data: {"number": 43}')
        assert b'data: {"number": 42}' in received


def test_the_headers_of_an_event_stream(server: Server, token: str) -> None:
    with server.client() as http, http.stream("GET", f"/events/{token}/") as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["x-accel-buffering"] == "no"
        assert "content-length" not in answer.headers
        assert "content-encoding" not in answer.headers


def test_a_file(http: httpx.Client, server: Server, site_file: bytes) -> None:
    """Whole, sent by the server itself where it can do that."""
    answer = http.get("/file/")
    assert answer.status_code == 200
    assert answer.headers["content-length"] == str(len(site_file))
    assert answer.content == site_file
    assert answer.headers["x-pathsend"] == str(server.variant.pathsend)
    head = http.head("/file/")
    assert (head.headers["content-length"], head.content) == (str(len(site_file)), b"")


def test_a_part_of_a_file(http: httpx.Client, site_file: bytes) -> None:
    answer = http.get("/file/", headers={"Range": "bytes=1000-1999"})
    assert (answer.status_code, answer.content) == (206, site_file[1000:2000])
    assert answer.headers["content-range"] == f"bytes 1000-1999/{len(site_file)}"
    assert http.get("/file/", headers={"Range": "bytes=99999999-"}).status_code == 416


def test_a_file_that_has_not_changed(http: httpx.Client) -> None:
    etag = http.get("/file/").headers["etag"]
    answer = http.get("/file/", headers={"If-None-Match": etag})
    assert (answer.status_code, answer.content) == (304, b"")
    assert http.get("/hello/").status_code == 200


def test_the_state_that_the_start_up_left(http: httpx.Client) -> None:
    """With the lifespan protocol and without: there the first request has it too."""
    assert http.get("/state/").json() == {"band": "Quintette du Hot Club de France"}


def test_no_threads(server: Server) -> None:
    """A logged-in user's requests through the seven middlewares hand nothing to a thread."""
    from tests.acceptance.servers.test_answers import log_in

    with server.client() as http:
        log_in(http)
        paths = ["/session/", "/hello/", "/items/2/", "/loop-items/", "/items/", "/gathered/"]
        for path in paths:  # what is loaded at first use is loaded
            assert http.get(path).status_code == 200
        before = http.get("/info/").json()
        for path in paths * 3:
            assert http.get(path).status_code == 200
        after = http.get("/info/").json()
        assert after["submitted"] == before["submitted"]
        assert after["started"] == before["started"]
