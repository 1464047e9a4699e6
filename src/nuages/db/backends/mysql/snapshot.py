"""The state that is set in a MySQL session, for the check in development.

Temporary tables are listed in no readable table: MariaDB counts them, MySQL does not tell.
"""

from __future__ import annotations

from typing import Any

from pymysql.cursors import Cursor  # type: ignore[import-untyped]

from nuages.db.backends.base.session_check import Snapshot

_VOLATILE = """(
    'error_count', 'gtid_binlog_pos', 'gtid_current_pos', 'gtid_seq_no', 'identity',
    'in_transaction', 'insert_id', 'last_gtid', 'last_insert_id', 'original_commit_timestamp',
    'pseudo_thread_id', 'rand_seed1', 'rand_seed2', 'statement_id', 'timestamp', 'warning_count'
)"""
"""Variables that every statement changes."""

_COMMON = """
    SELECT 'role', '', coalesce(CURRENT_ROLE(), '')
    UNION ALL SELECT 'database', '', coalesce(DATABASE(), '')
    UNION ALL SELECT 'locks', '', concat(RELEASE_ALL_LOCKS(), '')
"""
_MARIADB = f"""
    {_COMMON}
    UNION ALL SELECT 'variable', lower(variable_name), session_value
        FROM information_schema.system_variables
        WHERE session_value IS NOT NULL AND variable_scope <> 'GLOBAL'
        AND (global_value IS NULL OR session_value <> global_value)
        AND variable_name NOT IN {_VOLATILE}
    UNION ALL SELECT 'variable', concat('@', variable_name), coalesce(variable_value, '')
        FROM information_schema.user_variables
    UNION ALL SELECT 'temporary tables', '', sum(if(variable_name LIKE '%CREATE%', 1, -1)
        * variable_value)
        FROM information_schema.session_status
        WHERE variable_name IN ('COM_CREATE_TEMPORARY_TABLE', 'COM_DROP_TEMPORARY_TABLE')
"""  # noqa: S608 - a list of names that stands above
_MYSQL = f"""
    {_COMMON}
    UNION ALL SELECT 'variable', ours.variable_name, coalesce(ours.variable_value, '')
        FROM performance_schema.session_variables AS ours
        LEFT JOIN performance_schema.global_variables AS theirs USING (variable_name)
        WHERE NOT (ours.variable_value <=> theirs.variable_value)
        AND ours.variable_name NOT IN {_VOLATILE}
    UNION ALL SELECT 'variable', concat('@', variable_name), coalesce(variable_value, '')
        FROM performance_schema.user_variables_by_thread
        JOIN performance_schema.threads USING (thread_id) WHERE processlist_id = CONNECTION_ID()
"""  # noqa: S608 - a list of names that stands above


def snapshot(connection: Any, *, mariadb: bool) -> Snapshot:
    """Ask the server what is set in the session of `connection`. Raises PyMySQL's errors.

    Locks that were left by GET_LOCK() are released by being counted.
    """
    with connection.cursor(Cursor) as cursor:
        cursor.execute(_MARIADB if mariadb else _MYSQL)
        return frozenset(
            (_text(kind), _text(name), _text(value)) for kind, name, value in cursor.fetchall()
        )


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
