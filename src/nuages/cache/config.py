"""One entry of CACHES, checked: the location, our options, and those of connections."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from nuages.cache import serializing
from nuages.cache.locations import Location, parse

MAX_CONNECTIONS = 50
"""redis-py's own limit for a pool that waits."""
_KNOWN = ("compress", "pool_timeout", "read_from_replicas", "sentinel", "stampede")
_NOT_FOR_CONNECTIONS = (
    "serializer",
    "pool_class",
    "parser_class",
    "MAX_ENTRIES",
    "CULL_FREQUENCY",
)


@dataclass(frozen=True)
class Stampede:
    """OPTIONS["stampede"]: for how long a computation is protected, and waited for."""

    lock: float = 30.0
    """Seconds after which the lock of a process that died is free again."""
    wait: float = 30.0
    """Seconds after which a waiting caller computes the value itself."""


@dataclass(frozen=True, eq=False)
class Config:
    """One cache's configuration; equal configurations have equal `key`s and share clients."""

    location: Location
    connection: dict[str, Any] = field(repr=False)
    """Options for connections and their pool, without those of a URL."""
    sync_only: dict[str, Any] = field(repr=False)
    """`pool_class` and `parser_class`, which are about redis-py's sync client."""
    serializer: serializing.Serializer
    max_connections: int
    pool_timeout: float
    read_from_replicas: bool
    sentinel: dict[str, Any] = field(repr=False)
    stampede: Stampede | None
    key: Any = field(repr=False)


def read(location: Any, options: dict[str, Any]) -> Config:
    """Return the configuration; ImproperlyConfigured says what is wrong with it."""
    place = parse(location)
    ours = {name: options[name] for name in _KNOWN if name in options}
    rest = {
        name: value
        for name, value in options.items()
        if name not in ours and name not in _NOT_FOR_CONNECTIONS
    }
    replicas = _bool(ours, "read_from_replicas")
    if replicas and place.kind == "servers":
        raise ImproperlyConfigured(
            "OPTIONS['read_from_replicas'] is for sentinels and clusters. Of several servers in "
            "LOCATION the first is written to and the others are read from anyway."
        )
    sentinel = ours.get("sentinel", {})
    if not isinstance(sentinel, dict) or (sentinel and place.kind != "sentinel"):
        raise ImproperlyConfigured(
            "OPTIONS['sentinel'] is a dict of options for connections to sentinels "
            "(redis+sentinel://...), such as 'password'."
        )
    maximum = rest.pop("max_connections", place.options.get("max_connections", MAX_CONNECTIONS))
    if type(maximum) is not int or maximum < 1:
        raise ImproperlyConfigured(f"OPTIONS['max_connections'] is 1 or more, not {maximum!r}.")
    return Config(
        location=place,
        connection=rest,
        sync_only={n: options[n] for n in ("pool_class", "parser_class") if n in options},
        serializer=serializing.Serializer(
            serializing.serializer(options.get("serializer")),
            serializing.compression(options.get("compress")),
        ),
        max_connections=maximum,
        pool_timeout=_seconds(ours.get("pool_timeout", 20.0), "pool_timeout"),
        read_from_replicas=replicas,
        sentinel=sentinel,
        stampede=_stampede(ours.get("stampede")),
        key=(place.servers, _frozen(options)),
    )


def _stampede(option: Any) -> Stampede | None:
    if option is None or option is False:
        return None
    given = {} if option is True else option
    if not isinstance(given, dict) or set(given) - {"lock", "wait"}:
        raise ImproperlyConfigured(
            "OPTIONS['stampede'] is True, or a dict of 'lock' and 'wait' (seconds), "
            f"not {option!r}."
        )
    lock = _seconds(given.get("lock", 30.0), "stampede']['lock")
    return Stampede(lock, _seconds(given.get("wait", lock), "stampede']['wait"))


def _seconds(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise ImproperlyConfigured(f"OPTIONS['{name}'] is a number of seconds, not {value!r}.")
    return float(value)


def _bool(options: dict[str, Any], name: str) -> bool:
    value = options.get(name, False)
    if not isinstance(value, bool):
        raise ImproperlyConfigured(f"OPTIONS[{name!r}] is True or False, not {value!r}.")
    return value


def _frozen(value: Any) -> Any:
    """Return something hashable that is equal for equal options."""
    if isinstance(value, dict):
        return tuple(sorted((str(name), _frozen(each)) for name, each in value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(each) for each in value)
    try:
        hash(value)
    except TypeError:
        return "object", id(value)  # kept alive by the configuration that has it
    return type(value).__name__, value
