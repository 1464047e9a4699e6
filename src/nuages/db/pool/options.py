"""`OPTIONS["pool"]` of a DATABASES entry: one typed place, every option with its default."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from django.core.exceptions import ImproperlyConfigured


@dataclass(frozen=True)
class PoolOptions:
    """`OPTIONS["pool"]`, with the names and meanings of psycopg_pool; times in seconds.

    `True`, or no entry, stands for the defaults; `False` means that a connection is closed as soon
    as nobody uses it, with at most `max_size` at a time.
    """

    min_size: int = 0
    """Connections that lifespan start-up opens and idle reaping leaves open."""
    max_size: int = 10
    """Connections that may be open at a time, of code that holds no other. Code that holds k (it
    is in k transactions or holds: `detached()` in one, a task that an open iterator's body has
    started) may take one more while fewer than `max_size * (k + 1)` are in use: it waits for no
    connection that others like it have. On SQLite connections that wait for the write lock, up to
    as many again, do not count."""
    timeout: float = 30.0
    """How long a task waits for a connection before PoolTimeout."""
    max_waiting: int = 0
    """How many may wait; one more gets TooManyWaiting at once. 0: no limit."""
    max_lifetime: float | None = 3600.0
    """Age at which a connection is closed when it comes back; None: never. CONN_MAX_AGE, where
    it is not 0, sets it too."""
    max_idle: float = 600.0
    """How long an unused connection above min_size stays open."""
    reconnect_timeout: float = 0.0
    """How long opening is tried again, with growing pauses, while the server is unreachable,
    starts up or has no room for one more. 0: the first failure is raised."""

    @classmethod
    def parse(cls, alias: str, settings_dict: dict[str, Any]) -> PoolOptions:
        """Read the options of a DATABASES entry; raises ImproperlyConfigured."""
        given = settings_dict.get("OPTIONS", {}).get("pool", True)
        where = f'DATABASES[{alias!r}]["OPTIONS"]["pool"]'
        if given is False or given is None:
            given = {"max_idle": 0.0}
        elif given is True:
            given = {}
        elif not isinstance(given, dict):
            raise ImproperlyConfigured(f"{where} must be a dict, True or False, not {given!r}.")
        known = [field.name for field in fields(cls)]
        if unknown := sorted(map(str, set(given) - set(known))):
            raise ImproperlyConfigured(
                f"{where} has unknown options: {', '.join(unknown)}. "
                f"Known are: {', '.join(sorted(known))}."
            )
        for name, value in given.items():
            if name in ("min_size", "max_size", "max_waiting"):
                if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                    raise ImproperlyConfigured(
                        f"{where}[{name!r}] must be a whole number, 0 or more, not {value!r}."
                    )
            elif not (value is None and name == "max_lifetime"):
                check_seconds(f"{where}[{name!r}]", value)
        given = dict(given)
        max_age = settings_dict.get("CONN_MAX_AGE", 0)
        if max_age is not None:
            check_seconds(f'DATABASES[{alias!r}]["CONN_MAX_AGE"]', max_age, "or None, ")
        if max_age != 0:
            # 0, Django's default, means "close after each request", which a pool is there to
            # avoid; any other value is a connection's greatest age.
            given.setdefault("max_lifetime", max_age)
        if "max_size" not in given and given.get("min_size", 0) > cls.max_size:
            given["max_size"] = given["min_size"]
        options = cls(**given)
        if options.max_size < 1:
            raise ImproperlyConfigured(f'{where}["max_size"] must be at least 1.')
        if options.min_size > options.max_size:
            raise ImproperlyConfigured(f'{where}["min_size"] is greater than "max_size".')
        return options


def check_seconds(where: str, value: Any, otherwise: str = "") -> float:
    """Return `value`; raise ImproperlyConfigured where it is no duration."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or value < 0
    ):
        raise ImproperlyConfigured(
            f"{where} must be seconds, 0 or more, {otherwise}not {value!r}."
        )
    return value
