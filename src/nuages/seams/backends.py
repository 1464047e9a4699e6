"""Django's `@async_unsafe` guard on database wrappers: inside a bridge ours may pass."""

from __future__ import annotations

import asyncio
import functools
from importlib.util import find_spec
from typing import Any

from django.db import connections
from django.db.backends.dummy.base import DatabaseWrapper as DummyWrapper

from nuages.bridge import current_bridge
from nuages.db.backends.base.base import LoopWrapper
from nuages.db.backends.base.driver import may_do_io
from nuages.exceptions import SyncInCoroutine
from nuages.seams.table import Seam

_MYSQL = "nuages.db.backends.mysql"
_BASE = {
    "connect": "(self)",
    "ensure_connection": "(self)",
    "cursor": "(self)",
    "commit": "(self)",
    "rollback": "(self)",
    "close": "(self)",
    "savepoint": "(self)",
    "savepoint_rollback": "(self, sid)",
    "savepoint_commit": "(self, sid)",
    "clean_savepoints": "(self)",
}
_POSTGRESQL = {
    "get_new_connection": "(self, conn_params)",
    "create_cursor": "(self, name=None)",
    "chunked_cursor": "(self)",
}
_SQLITE = {"get_new_connection": "(self, conn_params)", "close": "(self)"}


def _guard(original: Any) -> Any:
    inner = original.__wrapped__
    ensures = inner.__name__ == "ensure_connection"

    @functools.wraps(inner)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if asyncio._get_running_loop() is None:
            return inner(self, *args, **kwargs)
        if isinstance(self, DummyWrapper):
            # No database is configured: the method does nothing but say so.
            return inner(self, *args, **kwargs)
        if not isinstance(self, LoopWrapper):
            return original(self, *args, **kwargs)
        if current_bridge() is None and not may_do_io():
            if ensures and (self.role == "facade" or self.connection is not None):
                # Nothing to do: query capture calls this before it begins, for instance.
                return None
            raise SyncInCoroutine()
        return inner(self, *args, **kwargs)

    return method


class MySQLdbImport(Seam):
    """The name `MySQLdb`, lent to PyMySQL while our MySQL engine imports Django's backend.

    The engine does so itself (`seams/mysqldb.py`), when Django loads it, before any app is ready.
    """

    def applies(self) -> bool:
        """Tell whether a database uses the engine."""
        engines = (entry["ENGINE"] for entry in connections.settings.values())
        return any(engine.startswith(_MYSQL) for engine in engines)

    def problem(self) -> str | None:
        """Return None: where the engine could not be loaded, Django has said so."""
        return None

    def install(self) -> None:
        """Do nothing: the name has been in place, and is gone."""


def seams() -> list[Seam]:
    """Return this area's seams; a vendor's only where its driver is installed."""
    vendors = [("base", "BaseDatabaseWrapper", _BASE), ("sqlite3", "DatabaseWrapper", _SQLITE)]
    if find_spec("psycopg") is not None:
        vendors.append(("postgresql", "DatabaseWrapper", _POSTGRESQL))
    lent = MySQLdbImport(
        "sys:modules",
        "Django's MySQL backend imports MySQLdb, which is mysqlclient. Where that is missing "
        "PyMySQL has the name for that import, and gives it back.",
        lambda original: original,
        new=True,
    )
    guards = [
        Seam(
            f"django.db.backends.{vendor}.base:{owner}.{name}",
            "The guard refuses every use where a loop runs. With one of our backends, in a "
            "bridge, the method awaits; in bare coroutine code the error names the ways out.",
            _guard,
            signature,
        )
        for vendor, owner, methods in vendors
        for name, signature in methods.items()
    ]
    return [lent, *guards]
