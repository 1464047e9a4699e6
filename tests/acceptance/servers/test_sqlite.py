"""The same site on SQLite, served by a few: with lifespan and without."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from tests.acceptance.servers.conftest import prepare
from tests.acceptance.servers.process import Server, started
from tests.acceptance.servers.test_answers import ITEMS, log_in
from tests.acceptance.servers.variants import VARIANTS

CHOSEN = [variant for variant in VARIANTS if variant.name in ("uvicorn-auto-uvloop", "daphne")]


@pytest.fixture(scope="module", params=CHOSEN, ids=str)
def sqlite_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server whose database is a new file."""
    home = tmp_path_factory.mktemp("sqlite")
    database = {"ENGINE": "nuages.db.backends.sqlite3", "NAME": str(home / "site.sqlite3")}
    prepare(database)
    with started(request.param, {"SITE_DATABASE": json.dumps(database)}, home) as server:
        yield server
        server.signal()
        assert server.wait() in server.variant.stopped, server.text
        server.assert_quiet()


@pytest.fixture
def sqlite_http(sqlite_server: Server) -> Iterator[httpx.Client]:
    with sqlite_server.client() as client:
        yield client


def test_sessions_and_login(sqlite_http: httpx.Client) -> None:
    http = sqlite_http
    assert http.get("/session/").json() == {"visits": 1, "user": ""}
    log_in(http)
    assert http.get("/session/").json() == {"visits": 2, "user": "django"}
    assert http.get("/admin/site/item/").status_code == 200


def test_views_and_streams(sqlite_http: httpx.Client) -> None:
    http = sqlite_http
    assert http.get("/loop-items/").json()["items"] == ITEMS
    assert http.get("/sync-items/").json()["items"] == ITEMS
    assert http.get("/gathered/").json() == {"counts": [3, 3, 3]}
    assert http.get("/sync-stream/").text == "".join(f"{item}\n" for item in ITEMS)
    assert http.get("/stream/sqlite/").text.startswith(ITEMS[0])
    assert http.get("/info/").json()["pools"]["default"]["used"] == 0
