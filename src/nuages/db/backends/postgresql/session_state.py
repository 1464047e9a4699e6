"""State that a statement leaves behind in the session, so that the next user does not find it.

The command tags of the answer tell, and the statement's text where they are not enough, or where
nobody sees the answer: of a COPY, a stream, a named cursor, a pipeline, and of a statement that
failed or was cancelled, which may have had its effect all the same. Where the text misleads, it
errs on the safe side: a session is reset that need not be.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import psycopg
from psycopg.adapt import AdaptersMap

if TYPE_CHECKING:
    from nuages.db.backends.postgresql.connection import Connection

    _CursorBase = psycopg.Cursor[Any]
else:
    _CursorBase = object

Trace = Literal["", "maybe", "state", "lasting"]
"""What a statement leaves: nothing; maybe something, which nobody is warned of; state; state that
DISCARD ALL leaves, so that only the session's end ends it."""


class Adapters(AdaptersMap):
    """A connection's adapters, which count registrations."""

    def __init__(self, template: AdaptersMap) -> None:
        super().__init__(template)
        self.changes = 0

    def register_dumper(self, *args: Any) -> None:
        """Do as psycopg does."""
        self.changes += 1
        super().register_dumper(*args)

    def register_loader(self, *args: Any) -> None:
        """Do as psycopg does."""
        self.changes += 1
        super().register_loader(*args)


class Noting(_CursorBase):
    """Cursor mixin: tells the connection which statement left state in its session."""

    _conn: Connection
    _has_tags = True
    """Whether the cursor's answers carry command tags."""
    _by_tags = False
    """Whether the answer will be looked at, so that the text need not be."""

    def _start_query(self, query: Any = None) -> Any:
        if not self.closed:
            self._conn.is_noted = True
        if self._conn.recent is not None and query is not None:
            self._conn.recent.append(query)
        return super()._start_query(query)

    def _execute_send(self, query: Any, **kwargs: Any) -> None:
        if not self._by_tags:
            self._note_text(query.query)
        super()._execute_send(query, **kwargs)

    def _send_prepare(self, name: bytes, query: Any) -> None:
        # From now on the statement is executed by its name.
        self._note_text(query.query)
        super()._send_prepare(name, query)

    def _note_text(self, text: bytes) -> None:
        self._conn.note(trace_of_text(text), text)

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        """Do as psycopg does."""
        connection = self._conn
        self._by_tags = by_tags = self._has_tags and connection._pipeline is None
        try:
            result = super().execute(query, *args, **kwargs)
        except BaseException:
            if by_tags and self._query is not None:
                trace = trace_of_text(self._query.query)
                # Nobody needs a warning of what may not have happened.
                connection.maybe_state = connection.maybe_state or trace != ""
                connection.lasting_state = connection.lasting_state or trace == "lasting"
            raise
        finally:
            self._by_tags = False
        # Without `_query` the statement was prepared before, and noted then.
        if by_tags and self._query is not None:
            text = self._query.query
            for answer in self._results:
                tag = answer.command_status
                if tag:
                    if _TYPES.match(tag):
                        connection.types_changed = True
                    if trace := trace_of(tag, text):
                        connection.note(trace, text)
        return result


@functools.cache
def noting(factory: type[Any]) -> type[Any]:
    """Return a subclass of a cursor class that notes session state."""
    return type(factory.__name__, (Noting, factory), {"__module__": factory.__module__})


_TYPES = re.compile(rb"(CREATE|ALTER|DROP) (EXTENSION|TYPE|DOMAIN)\b")
_LASTING_SET = re.compile(rb"\bSET\b(?!\s+(LOCAL|TRANSACTION|CONSTRAINTS)\b)", re.IGNORECASE)
_SEED = re.compile(rb"\bSET\s+(SESSION\s+)?\"?seed\b", re.IGNORECASE)
_TEMPORARY = re.compile(rb"\b(temp|temporary|pg_temp(_\d+)?)\b")
_MAKES_TEMPORARY = re.compile(
    rb"\b(create|into)\s+((local|global)\s+)?(temp|temporary)\b"
    rb"|\bcreate\b.*\bpg_temp(_\d+)?\b|\binto\s+\"?pg_temp(_\d+)?\b",
    re.DOTALL,
)
_LASTING_CURSOR = re.compile(rb"\bWITH\s+HOLD\b", re.IGNORECASE)
# Names, whatever follows them: a parenthesis may come after quotes and comments.
_CALLS = re.compile(rb"set_config|pg_(?:try_)?advisory_lock")
_LASTING_CALLS = re.compile(rb"setseed|dblink_connect|dblink_open")
_EXECUTES_TEXT = re.compile(rb"query_to_xml|cursor_to_xml|ts_stat|crosstab|dblink")
_ARGUMENT = rb"\s*(?:''|\$\d+|[\w.]+)(?:::\w+)?\s*,"
_LOCAL_SETTING = re.compile(rb"\bset_config\s*\(" + _ARGUMENT * 2 + rb"\s*true\s*\)")
_NESTED_COMMENT = re.compile(rb"/\*(?:(?!\*/).)*/\*", re.DOTALL)
_SKIPPED = re.compile(
    rb"""
      (?P<text>[eE]'[^'\\]*(?:(?:\\.|'')[^'\\]*)*' | '[^']*(?:''[^']*)*'
      | (?P<tag>\$(?:[A-Za-z_]\w*)?\$).*?(?P=tag))
    | (?P<comment>--[^\n]*|/\*.*?\*/)
    | (?P<name>"(?:[^"]|"")*")
    """,
    re.VERBOSE | re.DOTALL,
)
_FIRST_WORD = re.compile(rb"[\s(]*(\w*)")
_CLEAN = frozenset(
    b"BEGIN START COMMIT END ROLLBACK ABORT SAVEPOINT RELEASE FETCH CLOSE DROP TRUNCATE SHOW "
    b"ANALYZE VACUUM NOTIFY LOCK COMMENT GRANT REVOKE MOVE UNLISTEN DEALLOCATE REINDEX CLUSTER "
    b"REFRESH CHECKPOINT".split()
)
"""Statements without an expression that could call something."""


def trace_of(tag: bytes, query: bytes) -> Trace:
    """Tell what a statement that was answered with `tag` left in its session.

    `query` may be several statements; each has a tag of its own.
    """
    word = tag.split(b" ", 1)[0]
    if word in _CLEAN:
        return ""
    if word == b"SET":
        if not _LASTING_SET.search(query):
            return ""
        return "lasting" if _SEED.search(query) else "state"
    if word in (b"LISTEN", b"PREPARE", b"RESET", b"DISCARD", b"DO"):
        return "state"
    if word == b"LOAD":
        return "lasting"
    text = query.lower()
    if word == b"DECLARE" and _LASTING_CURSOR.search(text):
        return "state"
    if b"temp" in text:
        # CREATE TABLE AS and SELECT INTO answer with a SELECT tag.
        made = _TEMPORARY if word == b"CREATE" else _MAKES_TEMPORARY
        if made.search(_bare(text)):
            return "state"
    if (
        b"set_config" in text
        or b"advisory_lock" in text
        or b"setseed" in text
        or b"dblink_" in text
    ) and (trace := _trace_of_calls(text)):
        return trace
    # A name may be written with escapes, and a procedure may do anything.
    return "maybe" if word == b"CALL" or b'u&"' in text else ""


def _trace_of_calls(text: bytes) -> Trace:
    bare = _bare(text)
    if _EXECUTES_TEXT.search(bare):
        bare = text
    calls = _LOCAL_SETTING.sub(b"", bare)
    if _LASTING_CALLS.search(calls):
        return "lasting"
    return "state" if _CALLS.search(calls) else ""


def _bare(query: bytes) -> bytes:
    """Return the statement with its strings emptied and without its comments."""
    return query if _NESTED_COMMENT.search(query) else _SKIPPED.sub(_reduced, query)


def _reduced(match: re.Match[bytes]) -> bytes:
    if match["text"] is not None:
        return b"''"
    return b" " if match["comment"] is not None else match[0]


def _tags(query: bytes) -> Iterator[bytes]:
    """Yield the first word of each statement, in place of its command tag."""
    for statement in _bare(query).split(b";"):
        match = _FIRST_WORD.match(statement)
        if match is not None and match[1]:
            yield match[1].upper()


_ORDER: tuple[Trace, ...] = ("", "maybe", "state", "lasting")


def trace_of_text(query: bytes) -> Trace:
    """Tell what `query` may leave in its session, whatever becomes of it."""
    return max((trace_of(tag, query) for tag in _tags(query)), key=_ORDER.index, default="")
