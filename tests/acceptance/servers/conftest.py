"""Fixtures: the site's database, and each server once for all tests that do not stop it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest

from tests import services
from tests.acceptance.servers.process import ROOT, Server, started
from tests.acceptance.servers.variants import VARIANTS, Variant, limit

Start = Callable[..., AbstractContextManager[Server]]


def entry(url: str, name: str, **pool: Any) -> dict[str, Any]:
    """The site's DATABASES entry for this server; its sessions there are called `name`."""
    parts = urlsplit(url)
    return {
        "ENGINE": "nuages.db.backends.postgresql",
        "NAME": parts.path[1:],
        "HOST": parts.hostname,
        "PORT": str(parts.port or ""),
        "USER": parts.username,
        "PASSWORD": parts.password or "",
        "OPTIONS": {"application_name": name, "pool": {"max_size": 4} | pool},
    }


def prepare(database: dict[str, Any]) -> None:
    """Make the site's tables and rows."""
    subprocess.run(
        [sys.executable, "-m", "tests.acceptance.servers.site.prepare"],
        cwd=ROOT,
        env=os.environ
        | {
            "DJANGO_SETTINGS_MODULE": "tests.acceptance.servers.site.settings",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
            "SITE_DATABASE": json.dumps(database),
        },
        check=True,
        timeout=50,
    )


@pytest.fixture(scope="session")
def site_url(postgres_url: str) -> Iterator[str]:
    """The URL of the site's database, with its tables and first rows."""
    with services.fresh_database(postgres_url) as url:
        prepare(entry(url, "prepare"))
        yield url


class Witness:
    """Looks at the database server from outside."""

    def __init__(self, url: str) -> None:
        self.connection = psycopg.connect(url, autocommit=True)

    def value(self, query: str, *args: Any) -> Any:
        row = self.connection.execute(query, args).fetchone()  # type: ignore[call-overload]
        return row[0] if row else None

    def until(self, wanted: Any, query: str, *args: Any) -> None:
        """Ask for 30 s until the answer is `wanted`; between two the server waits, 10 ms."""
        found = None
        for _ in range(3000):
            found = self.value(query, *args)
            if found == wanted:
                return
            self.value("SELECT pg_sleep(0.01)")
        raise AssertionError(f"{query} {args} is still {found!r}, not {wanted!r}")

    def running(self, token: str) -> str:
        """A query that counts the statements that run for this test."""
        return (
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' "
            f"AND query LIKE '%%/* {token} */' AND pid <> pg_backend_pid()"
        )

    def noted(self, token: str) -> list[str]:
        rows = self.connection.execute(
            "SELECT what FROM site_entry WHERE token = %s ORDER BY id", [token]
        ).fetchall()
        return [row[0] for row in rows]

    def until_noted(self, token: str, what: str) -> None:
        """Wait until the site has noted that for this test."""
        query = "SELECT count(*) > 0 FROM site_entry WHERE token = %s AND what = %s"
        self.until(True, query, token, what)

    def until_disconnected(self, name: str) -> None:
        """Wait until the server has noticed that the sessions of this name have gone."""
        self.until(0, "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", name)


@pytest.fixture(scope="session")
def witness(site_url: str) -> Iterator[Witness]:
    """Another session of the site's database."""
    watching = Witness(site_url)
    with watching.connection:
        yield watching


def until_nothing_is_used(http: httpx.Client) -> dict[str, Any]:
    """Ask until no connection of the pool is checked out; return the pool's statistics.

    What was cancelled may still be giving its connection back: each question gives it turns.
    """
    pool: dict[str, Any] = {}
    for _ in range(500):
        pool = http.get("/info/").json()["pools"]["default"]
        if pool["used"] == 0:
            return pool
    raise AssertionError(f"connections stay checked out: {pool}")


def session_name(variant: Variant) -> str:
    """What a server's sessions are called in pg_stat_activity; new for each server started."""
    return f"{variant}-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="session", params=VARIANTS, ids=str)
def variant(request: pytest.FixtureRequest) -> Variant:
    """Every server in turn."""
    chosen: Variant = request.param
    return chosen


@contextmanager
def _stopped_at_the_end(server: Server, witness: Witness, name: str) -> Iterator[Server]:
    """Stop the server in order, and look at what it leaves: code, log, database sessions."""
    yield server
    server.signal()
    code = server.wait()
    assert "site: started" in server.log, server.text
    assert server.log.index("site: stopped") < server.log.index("site: left"), server.text
    assert code in server.variant.stopped, f"exit code {code}:\n{server.text}"
    server.assert_quiet()
    witness.until_disconnected(name)


@pytest.fixture(scope="session")
def site_file() -> bytes:
    """What the site's `file` view serves."""
    return bytes(range(251)) * 4001  # nearly a megabyte, and no two blocks are alike


@pytest.fixture(scope="session")
def running(
    variant: Variant,
    site_url: str,
    site_file: bytes,
    witness: Witness,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """The variant's server, one for all tests; use `server`."""
    name = session_name(variant)
    home = tmp_path_factory.mktemp(variant.name)
    (home / "served.bin").write_bytes(site_file)
    environment = {
        "SITE_DATABASE": json.dumps(entry(site_url, name)),
        "SITE_FILE": str(home / "served.bin"),
    }
    with (
        started(variant, environment, home) as server,
        _stopped_at_the_end(server, witness, name),
    ):
        server.wait_until_it_listens()
        yield server


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    """The variant's server; it logs no trouble while the test runs."""
    before = len(running.log)
    yield running
    assert running.process.poll() is None, f"the server ended:\n{running.text}"
    running.assert_quiet(before)


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    """A client of the server's own version of HTTP."""
    with server.client() as client:
        yield client


@pytest.fixture
def token() -> str:
    """A name for what this test does on the server."""
    return uuid.uuid4().hex


@pytest.fixture(autouse=True)
def _limits(request: pytest.FixtureRequest) -> None:
    """`@pytest.mark.needs("ability")` leaves a test out where a server cannot do that."""
    for marker in request.node.iter_markers("needs"):
        for ability in marker.args:
            if reason := limit(request.getfixturevalue("variant"), ability):
                pytest.skip(reason)


@pytest.fixture
def start(site_url: str, tmp_path: Path) -> Start:
    """Start a server of one's own: `start(variant, **environment)`; the test stops it."""

    @contextmanager
    def start(variant: Variant, **environment: str) -> Iterator[Server]:
        with started(variant, environment, tmp_path) as server:
            yield server

    return start
