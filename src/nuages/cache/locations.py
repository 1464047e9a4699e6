"""LOCATION of a Redis cache: one server, several, a sentinel's service, or a cluster.

| form | meaning |
|---|---|
| `redis://user:password@host:port/db?option=value` | a server; `rediss` over TLS |
| `unix://user:password@/path?db=0` | a server's socket |
| `redis+sentinel://user:password@host,host:port/service/db` | the service's master; `rediss` |
| `redis+cluster://user:password@host:port,host:port` | a cluster; `rediss` over TLS |

`valkey` and `valkeys` mean `redis` and `rediss`. The form for sentinels is that of redis-py's
neighbours (redis-sentinel-url, Celery's older transports, Kombu's list of hosts).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured
from redis import connection as _redis

FORMS = (
    "redis://host:6379/0, rediss://host:6379/0 (TLS), unix:///path/to/socket?db=0, "
    "redis+sentinel://host:26379,host:26379/service/0, redis+cluster://host:7000,host:7001"
)
_parse_url: Any = _redis.parse_url
_SCHEMES = {"valkey": "redis", "valkeys": "rediss"}
_PORTS = {"sentinel": 26379, "cluster": 6379}


@dataclass(frozen=True)
class Location:
    """The place of a cache; `servers` has URLs, the other kinds have hosts and options."""

    kind: Literal["servers", "sentinel", "cluster"]
    servers: tuple[str, ...] = field(repr=False)
    hosts: tuple[tuple[str, int], ...] = ()
    service: str = ""
    tls: bool = False
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    """What the URL says about connections: db, username, password, and its query."""


def parse(location: str | Sequence[str]) -> Location:
    """Return what LOCATION means; ImproperlyConfigured says what to write instead."""
    if isinstance(location, str):
        # The hosts of a sentinel's or cluster's URL are separated by commas themselves.
        grouped = "+" in location.partition("://")[0]
        urls = [location] if grouped else re.split("[;,]", location)
    else:
        urls = list(location)
    urls = [url.strip() if isinstance(url, str) else url for url in urls]
    if not urls or not all(isinstance(url, str) and url for url in urls):
        raise _wrong(location, "it names no server, or an empty one")
    urls = [_canonical(url) for url in urls]
    kinds = {url.partition("://")[0].partition("+")[2] for url in urls}
    if kinds == {""}:
        for url in urls:
            _check_server(url)
        return Location("servers", tuple(urls))
    if len(urls) > 1:
        raise _wrong(urls[0], "a sentinel's or cluster's URL stands alone, with all its hosts")
    return _group(urls[0])


def _canonical(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise _wrong(url, "it is no URL")
    base, plus, kind = scheme.lower().partition("+")
    base = _SCHEMES.get(base, base)
    if (
        base not in {"redis", "rediss", "unix"}
        or kind not in {"", *_PORTS}
        or (base == "unix" and kind)
    ):
        raise _wrong(url, f"{scheme!r} is none of its schemes")
    return f"{base}{plus}{kind}://{rest}"


def _check_server(url: str) -> None:
    try:
        parts = urlsplit(url)
        _ = parts.port
        options = _parse_url(url)
    except ValueError as error:
        raise _wrong(url, _reason(error)) from None
    path = parts.path.strip("/")
    if parts.scheme == "unix":
        if not options.get("path"):
            raise _wrong(url, "it names no socket")
    elif path and not path.isdigit():
        shown = "" if "@" in path else f", not {path!r}"
        raise _wrong(url, f"the database is a number{shown}")


def _group(url: str) -> Location:
    """Read the URL of a sentinel or cluster, whose hosts `urlsplit` does not understand."""
    scheme, _, rest = url.partition("://")
    base, _, kind = scheme.partition("+")
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    userinfo, _, names = authority.rpartition("@")
    hosts = tuple(_host(url, name, _PORTS[kind]) for name in names.split(","))
    try:
        options: dict[str, Any] = dict(_parse_url(f"redis://?{query}"))
    except ValueError as error:
        raise _wrong(url, _reason(error)) from None
    user, _, password = userinfo.partition(":")
    options |= {"username": unquote(user)} if user else {}
    options |= {"password": unquote(password)} if password else {}
    service, _, db = path.strip("/").partition("/")
    if kind == "sentinel":
        if not service:
            raise _wrong(url, "the service is missing, as in redis+sentinel://host/mymaster/0")
    else:
        service, db = "", service
    if db:
        if not db.isdigit():
            shown = "" if "@" in db else f", not {db!r}"
            raise _wrong(url, f"the database is a number{shown}")
        options["db"] = int(db)
    if kind == "cluster" and options.pop("db", 0):
        raise _wrong(url, "a cluster has database 0 only")
    return Location(
        "sentinel" if kind == "sentinel" else "cluster",
        (url,),
        hosts,
        unquote(service),
        base == "rediss",
        options,
    )


def _host(url: str, name: str, port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{name}")
        host, given = parts.hostname, parts.port
    except ValueError as error:
        raise _wrong(url, _reason(error)) from None
    if not host or parts.path:
        raise _wrong(url, "a host is missing")
    return host, given or port


def _reason(error: ValueError) -> str:
    """Say what is wrong with a URL, without the part of it that the error names."""
    if str(error).startswith("Port"):
        return (
            "the port is no number from 0 to 65535 (in a user's name or password / : ? # and @ "
            "are written %2F %3A %3F %23 %40)"
        )
    return re.sub(r"(?<==)'.*'|'[^']*@.*'", "'...'", str(error))


def without_password(url: str) -> str:
    """Return `url` as it may be shown."""
    url = re.sub(r"(password=)[^&]*", r"\1***", url)
    # To the last @: in a password that was not escaped there may be others.
    return re.sub(r"(://[^:@/?]*):.*@", r"\1:***@", url)


def _wrong(location: Any, problem: str) -> ImproperlyConfigured:
    shown = without_password(location) if isinstance(location, str) else type(location).__name__
    if isinstance(location, (list, tuple)):
        shown = repr([without_password(str(url)) for url in location])
    return ImproperlyConfigured(
        f"LOCATION of a Redis cache, {shown}: {problem}. Write one of: {FORMS}."
    )
