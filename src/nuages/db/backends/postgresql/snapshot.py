"""The state that is set in a PostgreSQL session, for the check in development."""

from __future__ import annotations

from typing import Any

from psycopg import ClientCursor
from psycopg.rows import tuple_row

from nuages.db.backends.base.session_check import Snapshot

_NAMES = r"""
    SELECT DISTINCT coalesce(found[1], found[2])
    FROM (
        SELECT prosrc AS text
        FROM pg_proc JOIN pg_namespace ON pg_namespace.oid = pronamespace
        WHERE nspname NOT IN ('pg_catalog', 'information_schema')
        UNION ALL SELECT concat(qual, ' ', with_check) FROM pg_policies
    ) AS texts,
    regexp_matches(
        text,
        '(?:set_config|current_setting)\s*\(\s*''(\w+\.[\w.]+)''|\mset\s+(?:session\s+)?(\w+\.\w+)',
        'gi'
    ) AS found
"""
"""The project's own settings are in no catalogue: their names are found where they are used."""

_STATE = r"""
    SELECT 'setting', name, setting FROM pg_settings WHERE source = 'session'
    UNION ALL SELECT 'setting', name, coalesce(current_setting(name, true), '')
        FROM unnest(%s::text[]) AS name
    UNION ALL SELECT 'current user', '', current_user::text
    UNION ALL SELECT 'session user', '', session_user::text
    UNION ALL SELECT 'channel', channel, '' FROM pg_listening_channels() AS channel
    UNION ALL SELECT 'advisory lock', concat(classid, ' ', objid), mode
        FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()
    UNION ALL SELECT 'temporary', relname, relkind::text
        FROM pg_class WHERE relnamespace = pg_my_temp_schema() AND relkind IN ('r', 'v', 'S', 'f')
    UNION ALL SELECT 'temporary', proname, 'function'
        FROM pg_proc WHERE pronamespace = pg_my_temp_schema()
    UNION ALL SELECT 'prepared', name, ''
        FROM pg_prepared_statements WHERE name NOT LIKE '\_pg3\_%%'
    UNION ALL SELECT 'cursor', name, '' FROM pg_cursors WHERE is_holdable
"""


def snapshot(connection: Any) -> Snapshot:
    """Ask the server what is set in the session of `connection`. Raises psycopg's errors."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        if connection.own_settings is None:
            cursor.execute(_NAMES, prepare=False)
            connection.own_settings = [name for (name,) in cursor.fetchall()]
        text = ClientCursor(connection).mogrify(_STATE, [connection.own_settings])
        cursor.execute(text, prepare=False)
        return frozenset(cursor.fetchall())
