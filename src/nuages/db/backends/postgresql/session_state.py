"""What a statement leaves behind in the session, so that the next user does not find it."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.adapt import AdaptersMap

if TYPE_CHECKING:
    from nuages.db.backends.postgresql.connection import Connection

    _CursorBase = psycopg.Cursor[Any]
else:
    _CursorBase = object


class Adapters(AdaptersMap):
    """A connection's adapters, which count what is registered."""

    def __init__(self, template: AdaptersMap) -> None:
        super().__init__(template)
        self.changes = 0

    def register_dumper(self, *args: Any) -> None:
        """As psycopg's."""
        self.changes += 1
        super().register_dumper(*args)

    def register_loader(self, *args: Any) -> None:
        """As psycopg's."""
        self.changes += 1
        super().register_loader(*args)


class _NotesState(_CursorBase):
    """Cursor mixin: tells the connection which statement left state in its session."""

    _conn: Connection

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        result = super().execute(query, *args, **kwargs)
        connection = self._conn
        # Without `_query` the statement was prepared before, and so noted then.
        if self._query is not None:
            text = self._query.query
            if connection._pipeline is not None:
                # The answers are still to come; tags begin as their statements do.
                tags = [text.lstrip()[:20].upper() or None]
            else:
                tags = [answer.command_status for answer in self._results]
            if any(tag and _TYPES.match(tag) for tag in tags):
                connection.types_changed = True
            if not connection.session_state and any(
                tag and leaves_state(tag, text) for tag in tags
            ):
                connection.session_state = text[:200].decode("utf-8", "replace")
        return result


@functools.cache
def noting(factory: type[Any]) -> type[Any]:
    """Return a subclass of a cursor class that notes session state."""
    return type(factory.__name__, (_NotesState, factory), {"__module__": factory.__module__})


_TYPES = re.compile(rb"(CREATE|ALTER|DROP) (EXTENSION|TYPE|DOMAIN)\b")
_LASTING_SET = re.compile(rb"\bSET\b(?!\s+(LOCAL|TRANSACTION|CONSTRAINTS)\b)", re.IGNORECASE)
_TEMPORARY = re.compile(rb"\b(TEMP|TEMPORARY)\b|\bpg_temp\b", re.IGNORECASE)
_INTO_TEMPORARY = re.compile(rb"\binto\s+(temp|temporary|pg_temp)\b", re.IGNORECASE)
_LASTING_CURSOR = re.compile(rb"\bWITH\s+HOLD\b", re.IGNORECASE)
_LASTING_CALL = re.compile(
    rb"\b(set_config\s*\((?![^;]*,\s*true\s*\))|pg_(try_)?advisory_lock(_shared)?\s*\()"
)
_CLEAN = frozenset(
    b"INSERT UPDATE DELETE MERGE BEGIN COMMIT ROLLBACK SAVEPOINT RELEASE FETCH CLOSE ALTER "
    b"DROP TRUNCATE COPY EXPLAIN SHOW ANALYZE VACUUM NOTIFY LOCK COMMENT GRANT REVOKE MOVE "
    b"UNLISTEN DEALLOCATE CALL REINDEX CLUSTER REFRESH".split()
)


def leaves_state(tag: bytes, query: bytes) -> bool:
    """Tell whether a statement leaves state behind in the session.

    The command tag answers for most; where it is not enough, the statement's text does.
    """
    word = tag.split(b" ", 1)[0]
    if word in _CLEAN:
        return False
    if word == b"SELECT":
        # CREATE TABLE AS and SELECT INTO answer with a SELECT tag.
        text = query.lower()
        if (
            b"temp" in text
            and (b"create" in text or b"into" in text)
            and _TEMPORARY.search(text)
            and (text.lstrip()[:1] != b"s" or _INTO_TEMPORARY.search(text))
        ):
            return True
        return (b"set_config" in text or b"advisory_lock" in text) and bool(
            _LASTING_CALL.search(text)
        )
    if word == b"SET":
        return bool(_LASTING_SET.search(query))
    if word == b"DECLARE":
        return bool(_LASTING_CURSOR.search(query))
    if word == b"CREATE":
        return bool(_TEMPORARY.search(query))
    return word in (b"LISTEN", b"PREPARE", b"LOAD", b"RESET", b"DISCARD", b"DO")
