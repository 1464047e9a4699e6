"""LOCATION of a Redis cache: what each form means, and what a wrong one is told."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from nuages.cache.locations import parse


@pytest.mark.parametrize(
    ("location", "servers"),
    [
        ("redis://host", ["redis://host"]),
        ("redis://a,redis://b;redis://c/1", ["redis://a", "redis://b", "redis://c/1"]),
        (["redis://a", " rediss://user:p@b:6380/2 "], ["redis://a", "rediss://user:p@b:6380/2"]),
        (("unix:///run/redis.sock?db=1",), ["unix:///run/redis.sock?db=1"]),
        ("valkey://a, valkeys://b", ["redis://a", "rediss://b"]),
        ("REDIS://a", ["redis://a"]),
    ],
)
def test_servers(location: Any, servers: list[str]) -> None:
    found = parse(location)
    assert (found.kind, list(found.servers)) == ("servers", servers)


def test_sentinels() -> None:
    found = parse("rediss+sentinel://me:p%40ss@a,b:1,[::1]:2/my-master/3?socket_timeout=0.5")
    assert found.kind == "sentinel"
    assert found.hosts == (("a", 26379), ("b", 1), ("::1", 2))
    assert (found.service, found.tls) == ("my-master", True)
    assert found.options == {"username": "me", "password": "p@ss", "db": 3, "socket_timeout": 0.5}
    assert parse("valkey+sentinel://:x@a/s").options == {"password": "x"}
    assert parse(["redis+sentinel://a/s"]).service == "s"


def test_a_cluster() -> None:
    found = parse("redis+cluster://a:7000,b?socket_timeout=1")
    assert (found.kind, found.tls, found.service) == ("cluster", False, "")
    assert found.hosts == (("a", 7000), ("b", 6379))
    assert found.options == {"socket_timeout": 1.0}
    assert parse("valkeys+cluster://a/0").tls


@pytest.mark.parametrize(
    ("location", "problem"),
    [
        ("", "names no server"),
        ([], "names no server"),
        ([None], "names no server"),
        ("redis://a,,redis://b", "names no server"),
        ("localhost:6379", "no URL"),
        ("http://host", "'http' is none"),
        ("redis+ring://host", "'redis\\+ring' is none"),
        ("unix+cluster://host", "'unix\\+cluster' is none"),
        ("redis://host:port", "[Pp]ort"),
        ("redis://host/zero", "number, not 'zero'"),
        ("redis://host?socket_timeout=soon", "socket_timeout"),
        ("unix://", "names no socket"),
        ("redis+sentinel://a,b", "service is missing"),
        ("redis+sentinel://a,/s", "host is missing"),
        ("redis+sentinel://a/s/one", "number, not 'one'"),
        ("redis+cluster://a/1", "database 0 only"),
        ("redis+cluster://a?db=1", "database 0 only"),
        (["redis+cluster://a", "redis+cluster://b"], "stands alone"),
        (["redis://a", "redis+cluster://b"], "stands alone"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_write(location: Any, problem: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=problem) as caught:
        parse(location)
    assert "redis+sentinel://host:26379,host:26379/service/0" in str(caught.value)


@pytest.mark.parametrize("url", ["http://me:secret@host", "redis+sentinel://:secret@host"])
def test_an_error_shows_no_password(url: str) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        parse(url)
    assert "secret" not in str(caught.value)
    assert "***" in str(caught.value)
