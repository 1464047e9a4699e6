"""Request bodies arrive whole, however they are sent."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import httpx
import pytest

from tests.acceptance.servers.exchange import connected
from tests.acceptance.servers.process import Server

MEGABYTE = bytes(range(256)) * 4096


def digest(content: bytes) -> dict[str, object]:
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_a_form(http: httpx.Client) -> None:
    answer = http.post("/form/", data={"title": "Nuages & été", "tag": ["a", "b"]})
    assert answer.json() == {"fields": {"title": ["Nuages & été"], "tag": ["a", "b"]}}


def test_an_upload(http: httpx.Client) -> None:
    small, large = b"small\n", MEGABYTE * 4  # the larger one goes to a temporary file
    answer = http.post(
        "/upload/",
        data={"title": "two files"},
        files={"small": ("a.txt", small), "large": ("été.bin", large)},
    )
    assert answer.json() == {
        "fields": {"title": ["two files"]},
        "files": {
            "small": {"name": "a.txt"} | digest(small),
            "large": {"name": "été.bin"} | digest(large),
        },
    }


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_a_body_of_every_method(http: httpx.Client, method: str) -> None:
    answer = http.request(method, "/body/", content=b"hello")
    assert answer.json() == digest(b"hello")
    assert answer.headers["x-method"] == method


def test_no_body(http: httpx.Client) -> None:
    assert http.post("/body/").json() == digest(b"")
    assert http.get("/body/").json() == digest(b"")


def test_two_megabytes_in_pieces(http: httpx.Client) -> None:
    """With a length unknown: chunked in HTTP/1.1, frames in HTTP/2."""

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(MEGABYTE), 10_007):
            yield MEGABYTE[start : start + 10_007]
        yield MEGABYTE

    answer = http.post("/body/", content=pieces())
    assert answer.json() == digest(MEGABYTE * 2)


def test_a_body_above_the_limit(http: httpx.Client) -> None:
    """DATA_UPLOAD_MAX_MEMORY_SIZE, 2.5 MB, holds for what is read through request.body."""
    assert http.post("/body/", content=MEGABYTE * 3).status_code in (400, 413)
    assert http.get("/hello/").status_code == 200


def test_a_body_that_nobody_reads(server: Server) -> None:
    with server.client() as http:
        assert http.post("/unread/", content=MEGABYTE).text == "not read"
    with server.client() as http:
        assert http.get("/hello/").status_code == 200


@pytest.mark.needs("http/1.1")
def test_expect_100_continue(server: Server) -> None:
    with connected(server) as connection:
        head = (
            f"POST /body/ HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
            "Content-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
        )
        connection.sendall(head.encode())
        interim = b""
        while b"\r\n\r\n" not in interim:
            interim += connection.recv(1)
        assert interim.startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"hello")
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert str(digest(b"hello")["sha256"]).encode() in answer


@pytest.mark.needs("http/1.1")
def test_a_chunked_body_byte_by_byte(server: Server) -> None:
    with connected(server) as connection:
        head = (
            f"POST /body/ HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
            "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        )
        for byte in head.encode() + b"3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\n\r\n":
            connection.sendall(bytes([byte]))
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert str(digest(b"abcde")["sha256"]).encode() in answer
