"""A start-up that fails stops the server, and the log says why."""

from __future__ import annotations

import json
import socket

import pytest

from tests.acceptance.servers.conftest import Start, entry, session_name
from tests.acceptance.servers.variants import Variant

pytestmark = pytest.mark.needs("lifespan")


def test_a_database_out_of_reach(variant: Variant, start: Start, site_url: str) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # not listening: connections are refused
        database = entry(site_url, session_name(variant), min_size=1)
        database["PORT"] = str(nobody.getsockname()[1])
        with start(variant, SITE_DATABASE=json.dumps(database)) as server:
            assert server.wait() == variant.failed_start, server.text
    assert "Traceback (most recent call last)" in server.text
    assert "OperationalError" in server.text
    assert "refused" in server.text


def test_a_hook_that_fails(variant: Variant, start: Start, site_url: str) -> None:
    database = json.dumps(entry(site_url, session_name(variant)))
    with start(variant, SITE_DATABASE=database, SITE_BROKEN_START="1") as server:
        assert server.wait() == variant.failed_start, server.text
    assert "Traceback (most recent call last)" in server.text
    assert "LookupError: the start-up hook is broken" in server.text
    assert "site: started" not in server.text
