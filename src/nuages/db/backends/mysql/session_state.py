"""State that a statement leaves behind in the session, so that the next user does not find it.

MySQL's answers do not tell (session tracking would for variables, but not for locks and not after
a SELECT), so the statement's text must. Where the text misleads, it errs on the safe side: a
session is reset that need not be.
"""

from __future__ import annotations

import re
from typing import Literal

Trace = Literal["", "maybe", "state", "use", "checks off", "checks on"]
"""What a statement leaves: nothing; maybe something, which nobody is warned of; state; the session
in another database; or it switches the checks of foreign keys, as Django does itself."""

_COMMENT = rb"--\s[^\n]*|#[^\n]*|/\*(?!M?!).*?\*/|/\*M?!\d*"
"""A comment, or the beginning of one that is executed."""
_GAP = rb"(?:\s|" + _COMMENT + rb")*"
_START = re.compile(rb"(?:[\s(]|" + _COMMENT + rb")*", re.DOTALL)
_WORD = re.compile(rb"[A-Za-z]+")
_LABEL = re.compile(rb"(?:[\w$]+|`[^`]*`)\s*:(?!=)")
_SKIPPED = re.compile(
    rb"(?P<text>'[^'\\]*(?:(?:\\.|'')[^'\\]*)*'|\"[^\"\\]*(?:(?:\\.|\"\")[^\"\\]*)*\")"
    rb"|`[^`]*`|(?P<comment>" + _COMMENT + rb")",
    re.DOTALL,
)
_SKIPPED_WITHOUT_ESCAPES = re.compile(
    rb"(?P<text>'[^']*'|\"[^\"]*\")|`[^`]*`|(?P<comment>" + _COMMENT + rb")", re.DOTALL
)
"""The same pattern for the mode NO_BACKSLASH_ESCAPES."""
_ASSIGNS = re.compile(rb"@(?:[\w$.]+|`[^`]*`|'')\s*:=|\binto\s+@", re.IGNORECASE)
_INTO_VARIABLE = re.compile(rb"\binto" + _GAP + rb"@", re.IGNORECASE | re.DOTALL)
_LOCKS = re.compile(rb"\bget_lock`?\s*\(", re.IGNORECASE)
_CHECKS = re.compile(rb"SET\s+(?:SESSION\s+|@@)?foreign_key_checks\s*=\s*([01])\s*;?\s*$", re.I)
_SET_ELSEWHERE = re.compile(
    rb"SET\s+(?:GLOBAL\b|PERSIST\b|PERSIST_ONLY\b|PASSWORD\b|DEFAULT\s+ROLE\b"
    rb"|@@GLOBAL\.|@@PERSIST)[^,]*$",
    re.IGNORECASE,
)
_SET_STATEMENT = re.compile(rb"SET\s+STATEMENT\b.*?\bFOR\b", re.IGNORECASE | re.DOTALL)
_TEMPORARY = re.compile(
    rb"CREATE\b" + _GAP + rb"(?:OR\b" + _GAP + rb"REPLACE\b" + _GAP + rb")?TEMPORARY\b",
    re.IGNORECASE | re.DOTALL,
)
_READ_LOCK = re.compile(rb"\bWITH\s+READ\s+LOCK\b|\bFOR\s+EXPORT\b", re.IGNORECASE)
_STATE = frozenset(b"LOCK HANDLER PREPARE GET".split())
_MAYBE = frozenset(
    b"CALL EXECUTE BEGIN XA BACKUP LOAD IF CASE LOOP WHILE REPEAT FOR DECLARE".split()
)
_PLAIN_BEGIN = re.compile(rb"BEGIN(?:\s+WORK)?\s*;?\s*$", re.IGNORECASE)


def trace_of(sql: bytes, *, several: bool = False, escapes: bool = True) -> Trace:
    """Tell what `sql` leaves in its session.

    Several statements in one text are "maybe", where the server takes more than one (`several`).
    `escapes` tells whether a backslash escapes (not so in the mode NO_BACKSLASH_ESCAPES).
    """
    skipped = _SKIPPED if escapes else _SKIPPED_WITHOUT_ESCAPES
    start = _START.match(sql)
    begin = start.end() if start is not None else 0
    match = _WORD.match(sql, begin)
    word = match[0].upper() if match is not None else b""
    if word == b"SET":
        inner = _SET_STATEMENT.match(sql, begin)
        if (
            trace := trace_of(sql[inner.end() :], escapes=escapes)
            if inner
            else _of_set(sql[begin:])
        ):
            return trace
    if word == b"USE":
        return "use"
    if word in _STATE:
        return "state"
    if word == b"CREATE" and _TEMPORARY.match(sql, begin):
        return "state"
    if word == b"FLUSH" and _READ_LOCK.search(skipped.sub(_reduced, sql)):
        return "state"
    # Quick looks first: texts may be long, and this is done for every statement.
    suspect = b"@" in sql and (b":=" in sql or _INTO_VARIABLE.search(sql))
    if suspect or b"get_lock" in sql.lower():
        bare = skipped.sub(_reduced, sql)
        if _ASSIGNS.search(bare) or _LOCKS.search(bare):
            return "state"
    if several and b";" in sql and b";" in skipped.sub(_reduced, sql).rstrip(b"; \n"):
        return "maybe"
    if word in _MAYBE and not _PLAIN_BEGIN.match(sql, begin):
        return "maybe"
    return "maybe" if b":" in sql and _LABEL.match(sql, begin) else ""


def _reduced(match: re.Match[bytes]) -> bytes:
    if match["text"] is not None:
        return b"''"
    return b" " if match["comment"] is not None else match[0]


def _of_set(sql: bytes) -> Trace:
    checks = _CHECKS.match(sql)
    if checks is not None:
        return "checks on" if checks[1] == b"1" else "checks off"
    return "" if _SET_ELSEWHERE.match(sql) else "state"
