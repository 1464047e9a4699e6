"""Every kind of view answers through every server."""

from __future__ import annotations

import asyncio
import hashlib
import re

import httpx
import pytest

from tests.acceptance.servers.conftest import Witness, until_nothing_is_used
from tests.acceptance.servers.process import Server

ITEMS = ["Minor Swing", "Nuages", "Tears"]


def log_in(http: httpx.Client) -> httpx.Response:
    """Log in through the form, as a browser does."""
    page = http.get("/login/")
    assert page.status_code == 200
    found = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
    assert found is not None
    return http.post(
        "/login/",
        data={"username": "django", "password": "reinhardt", "csrfmiddlewaretoken": found[1]},
    )


def test_views(http: httpx.Client) -> None:
    assert http.get("/hello/").json() == {"hello": "world", "thread": "main"}
    assert http.get("/items/2/").json() == {"name": "Nuages", "thread": "main"}
    assert http.get("/loop-items/").json() == {"items": ITEMS, "thread": "main"}
    assert http.get("/sync-items/").json() == {"items": ITEMS, "thread": "other"}
    assert http.get("/gathered/").json() == {"counts": [3, 3, 3]}
    page = http.get("/items/")
    assert "<li>Nuages</li>" in page.text
    assert "nobody" in page.text


def test_the_http_version(http: httpx.Client, server: Server) -> None:
    assert http.get("/hello/").http_version == f"HTTP/{[None, '1.1', '2'][server.variant.http]}"


def test_the_loop(http: httpx.Client, server: Server) -> None:
    assert http.get("/info/").json()["loop"] == server.variant.loop


def test_status_codes(http: httpx.Client) -> None:
    redirect = http.get("/redirect/")
    assert (redirect.status_code, redirect.headers["location"]) == (302, "/hello/")
    assert http.get("/missing/").status_code == 404
    assert http.get("/nowhere/").status_code == 404
    slash = http.get("/hello")
    assert (slash.status_code, slash.headers["location"]) == (301, "/hello/")
    broken = http.get("/broken/")
    assert broken.status_code == 500
    assert "Server Error" in broken.text
    empty = http.get("/nothing/")
    assert (empty.status_code, empty.content) == (204, b"")
    assert http.get("/hello/").status_code == 200


def test_session_and_login(http: httpx.Client) -> None:
    assert http.get("/session/").json() == {"visits": 1, "user": ""}
    assert http.get("/session/").json() == {"visits": 2, "user": ""}
    done = log_in(http)
    assert (done.status_code, done.headers["location"]) == (302, "/session/")
    assert http.get("/session/").json() == {"visits": 3, "user": "django"}
    assert "django" in http.get("/items/").text


def test_csrf_protects(http: httpx.Client) -> None:
    assert http.post("/login/", data={"username": "django"}).status_code == 403


def test_the_admin(http: httpx.Client) -> None:
    assert http.get("/admin/").status_code == 302
    log_in(http)
    assert "Items" in http.get("/admin/").text
    changelist = http.get("/admin/site/item/")
    assert changelist.status_code == 200
    assert "Minor Swing" in changelist.text
    assert http.get("/admin/site/item/2/change/").status_code == 200


def test_headers_are_kept(http: httpx.Client) -> None:
    answer = http.get("/headers/", headers={"X-Guitar": "Selmer", "Cookie": "a=1; b=2"})
    assert answer.headers["x-swing"] == "jazz manouche"
    assert answer.headers["x-frame-options"] == "DENY"
    cookies = answer.headers.get_list("set-cookie")
    assert cookies == ["first=1; Path=/", "second=2; HttpOnly; Path=/"]
    assert answer.json()["headers"]["X-Guitar"] == "Selmer"
    assert answer.json()["cookies"] == {"a": "1", "b": "2"}


@pytest.mark.parametrize("path", ["/hello/", "/headers/", "/sync-stream/", "/items/"])
def test_head_has_the_headers_and_no_body(http: httpx.Client, path: str) -> None:
    answer = http.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    if path == "/hello/":
        assert answer.headers["content-length"] == str(len(http.get(path).content))
    # The connection can be used on: nothing was left in it.
    assert http.get("/hello/").status_code == 200


@pytest.mark.parametrize(
    ("sent", "path"),
    [
        ("/path/a%20b", "/path/a b"),
        ("/path/%C3%A9t%C3%A9", "/path/été"),
        ("/path/a%2Fb", "/path/a/b"),
        ("/path//double//", "/path//double//"),
        ("/path/a;b=c,d", "/path/a;b=c,d"),
        ("/path/100%25", "/path/100%"),
        ("/path/%E2%98%81?q=%C3%A9&q=2&empty=", "/path/☁"),
        ("/path/a+b?a+b", "/path/a+b"),
        ("/path/./x/../y", "/path/./x/../y"),
    ],
)
def test_odd_paths(server: Server, sent: str, path: str) -> None:
    from tests.acceptance.servers.exchange import exchange

    with exchange(server, sent, headers=[("accept", "*/*")]) as sending:
        received = sending.read_until(b"}")
    answer = httpx.Response(
        200, content=received[received.index(b"{") : received.rindex(b"}") + 1]
    )
    assert answer.json()["path"] == path
    assert answer.json()["rest"] == path.removeprefix("/path/")
    assert answer.json()["query"] == sent.partition("?")[2]
    assert answer.json()["host"] == f"127.0.0.1:{server.port}"


def test_streams(http: httpx.Client, witness: Witness, token: str) -> None:
    answer = http.get(f"/stream/{token}/")
    assert answer.text == "".join(f"{line}\n" for line in [*ITEMS, "0 é", "1 é", "2 é"])
    assert "content-length" not in answer.headers
    assert http.get("/sync-stream/").text == "".join(f"{item}\n" for item in ITEMS)
    witness.until_noted(token, "finally")
    until_nothing_is_used(http)


def test_twenty_requests_at_the_same_time(server: Server, http: httpx.Client) -> None:
    paths = ["/hello/", "/items/2/", "/loop-items/", "/gathered/", "/session/"] * 4

    async def visit() -> list[int]:
        async with server.async_client() as client:
            answers = await asyncio.gather(*(client.get(path) for path in paths))
        return [answer.status_code for answer in answers]

    assert asyncio.run(visit()) == [200] * len(paths)
    assert until_nothing_is_used(http)["size"] <= 4


def test_keep_alive(http: httpx.Client) -> None:
    for number in range(5):
        content = hashlib.sha256(str(number).encode()).digest() * number
        assert http.post("/body/", content=content).json()["size"] == len(content)
