"""What a statement leaves behind in the session, so that the next user does not find it.

MySQL's answers do not say it (session tracking would for variables, but not for locks and not
after a SELECT), so the statement's text does. Where that is wrong it is wrong to the safe side: a
session is reset that need not be.
"""

from __future__ import annotations

import re
from typing import Literal

Trace = Literal["", "maybe", "state", "use", "checks off", "checks on"]
"""What a statement leaves: nothing; maybe something, which nobody is warned of; state; the session
in another database; or it switches the checks of foreign keys, as Django does itself."""

_COMMENTS = re.compile(
    rb"(?:\s+|--\s[^\n]*\n?|#[^\n]*\n?|/\*(?![!M]).*?\*/|\(|/\*M?!\d*)*", re.DOTALL
)
_WORD = re.compile(rb"[A-Za-z]+")
_QUOTED = re.compile(rb"'(?:[^'\\]|\\.|'')*'|\"(?:[^\"\\]|\\.|\"\")*\"", re.DOTALL)
_ASSIGNS = re.compile(rb"@(?:[\w$.]+|`[^`]*`|'[^']*'|\"[^\"]*\")\s*:=|\binto\s+@", re.IGNORECASE)
_LOCKS = re.compile(rb"\bget_lock\s*\(", re.IGNORECASE)
_CHECKS = re.compile(rb"SET\s+(?:SESSION\s+|@@)?foreign_key_checks\s*=\s*([01])\s*;?\s*$", re.I)
_SET_ELSEWHERE = re.compile(
    rb"SET\s+(?:GLOBAL\b|PERSIST\b|PERSIST_ONLY\b|PASSWORD\b|DEFAULT\s+ROLE\b|STATEMENT\b"
    rb"|@@GLOBAL\.|@@PERSIST)[^,]*$",
    re.IGNORECASE,
)
_TEMPORARY = re.compile(rb"CREATE\s+(?:OR\s+REPLACE\s+)?TEMPORARY\b", re.IGNORECASE)
_READ_LOCK = re.compile(rb"\bWITH\s+READ\s+LOCK\b|\bFOR\s+EXPORT\b", re.IGNORECASE)
_STATE = frozenset(b"LOCK HANDLER PREPARE".split())
_MAYBE = frozenset(b"CALL EXECUTE BEGIN XA BACKUP LOAD".split())
_PLAIN_BEGIN = re.compile(rb"BEGIN(?:\s+WORK)?\s*;?\s*$", re.IGNORECASE)


def trace_of(sql: bytes) -> Trace:
    """Tell what `sql` leaves in its session; several statements in one text are "maybe"."""
    start = _COMMENTS.match(sql)
    begin = start.end() if start is not None else 0
    match = _WORD.match(sql, begin)
    word = match[0].upper() if match is not None else b""
    if word == b"SET":
        return _of_set(sql[begin:])
    if word == b"USE":
        return "use"
    if word in _STATE:
        return "state"
    if word == b"CREATE" and _TEMPORARY.match(sql, begin):
        return "state"
    if word == b"FLUSH" and _READ_LOCK.search(sql):
        return "state"
    # Quick looks first: texts may be long, and this is done for every statement.
    if (b"@" in sql and _ASSIGNS.search(sql)) or (b"get_lock" in sql.lower()):
        bare = _QUOTED.sub(b"''", sql)
        if _ASSIGNS.search(bare) or _LOCKS.search(bare):
            return "state"
    if word in _MAYBE and not _PLAIN_BEGIN.match(sql, begin):
        return "maybe"
    return ""


def _of_set(sql: bytes) -> Trace:
    checks = _CHECKS.match(sql)
    if checks is not None:
        return "checks on" if checks[1] == b"1" else "checks off"
    return "" if _SET_ELSEWHERE.match(sql) else "state"
