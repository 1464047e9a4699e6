"""The state that is set in a SQLite connection, for the check in development."""

from __future__ import annotations

from typing import Any

from nuages.db.backends.base.session_check import Snapshot

_PRAGMAS = (
    "automatic_index", "cache_size", "cell_size_check", "foreign_keys",
    "ignore_check_constraints", "legacy_alter_table", "query_only", "read_uncommitted",
    "recursive_triggers", "secure_delete", "synchronous", "temp_store", "trusted_schema",
    "writable_schema",
)  # fmt: skip
_STATE = "\nUNION ALL ".join(
    [
        "SELECT 'attached' AS kind, name, '' FROM pragma_database_list WHERE name <> 'temp'",
        "SELECT 'temporary', name, type FROM temp.sqlite_master",
        *(f"SELECT 'pragma', '{name}', {name} FROM pragma_{name}" for name in _PRAGMAS),  # noqa: S608 - names that stand above
    ]
)


def snapshot(connection: Any) -> Snapshot:
    """Ask what is set in `connection`. Raises sqlite3's errors."""
    rows = connection.cursor().execute(_STATE).fetchall()
    return frozenset((str(kind), str(name), str(value)) for kind, name, value in rows)
