"""State that a statement or call leaves in a SQLite connection, so that the next user is spared.

SQLite has no stored functions, so the text of a statement tells all that it can set. What sqlite3
itself offers (functions, collations, hooks, limits, row factories) is noted call by call.
"""

from __future__ import annotations

import re
import sqlite3
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

_GAP = r"(?:\s|--[^\n]*(?:\n|\Z)|/\*.*?(?:\*/|\Z))*"
_FLAGS = re.IGNORECASE | re.DOTALL
_STATE = re.compile(
    rf"{_GAP}(?:(?:ATTACH|DETACH)\b"
    rf"|CREATE\b{_GAP}(?:TEMP|TEMPORARY)\b"
    rf"|CREATE\b{_GAP}(?:(?:UNIQUE|VIRTUAL)\b{_GAP})?(?:TABLE|VIEW|INDEX|TRIGGER)\b{_GAP}"
    rf"(?:IF\b{_GAP}NOT\b{_GAP}EXISTS\b{_GAP})?[\"'`\[]?temp[\"'`\]]?{_GAP}\.)",
    _FLAGS,
)
_PRAGMA = re.compile(
    rf"{_GAP}PRAGMA\b{_GAP}(?:[\w\"'`\[\]]+{_GAP}\.{_GAP})?(\w+){_GAP}[=(]", _FLAGS
)
_VALUE = re.compile(rf"{_GAP}['\"]?(\w+)", _FLAGS)
_ANYWHERE = re.compile(r"\b(?:ATTACH|DETACH|PRAGMA|TEMP|TEMPORARY)\b", re.IGNORECASE)
_QUESTIONS = frozenset(
    {
        "foreign_key_check",
        "foreign_key_list",
        "incremental_vacuum",
        "index_info",
        "index_list",
        "index_xinfo",
        "integrity_check",
        "optimize",
        "quick_check",
        "table_info",
        "table_list",
        "table_xinfo",
        "wal_checkpoint",
    }
)
"""Pragmas that take an argument and leave nothing."""
_SWITCHES = {"foreign_keys": True, "legacy_alter_table": False}
"""What Django sets when it connects; its schema editor switches both, and switches them back."""
_ON = frozenset({"1", "on", "yes", "true"})


class NotesState(sqlite3.Connection):
    """Connection mixin: notes what is left in the session."""

    state_is_meant = False
    session_state: str = ""
    """The first statement that left state behind in the session; empty for none."""

    recent: deque[Any] | None = None

    def note_baseline(self) -> None:
        """Remember the settings of a fresh connection, to see later whether they changed."""
        self._baseline = self._settings()
        self.forget_state()

    def forget_state(self) -> None:
        """Note that the session is like a fresh one."""
        self.session_state = ""
        self.state_is_meant = False
        self._switched: dict[str, str] = {}

    def _settings(self) -> tuple[Any, ...]:
        return (self.row_factory, self.text_factory, getattr(self, "autocommit", None))

    def has_settings_of_its_own(self) -> bool:
        """Tell whether attributes were set that the next user would find."""
        return self._settings() != getattr(self, "_baseline", self._settings())

    def what_was_left(self) -> str:
        """Return the statement or call that left state behind; empty for none."""
        return self.session_state or next(iter(self._switched.values()), "")

    def note(self, query: str) -> None:
        """Note what a statement leaves in the session."""
        if self.recent is not None:
            self.recent.append(query[:1000])
        if _STATE.match(query):
            self._note_state(query)
        elif pragma := _PRAGMA.match(query):
            name = pragma[1].lower()
            usual = _SWITCHES.get(name)
            if usual is None:
                if name not in _QUESTIONS:
                    self._note_state(query)
            elif name != "foreign_keys" or not self.in_transaction:
                # In a transaction SQLite ignores foreign_keys.
                value = _VALUE.match(query, pragma.end())
                if value is not None and (value[1].lower() in _ON) is usual:
                    self._switched.pop(name, None)
                else:
                    self._switched[name] = query[:200]

    def note_script(self, script: str) -> None:
        """Note what several statements leave in the session."""
        if _ANYWHERE.search(script):
            self._note_state(script)

    def _note_state(self, what: str) -> None:
        if not self.session_state:
            self.session_state = what[:200]

    def _call(self, function: Callable[[], Any]) -> Any:
        """Call `function` where the connection may be touched."""
        raise NotImplementedError


def _noted(name: str) -> Any:
    original = getattr(sqlite3.Connection, name)

    def method(self: NotesState, *args: Any, **kwargs: Any) -> Any:
        self._note_state(f"{name}()")
        return self._call(lambda: original(self, *args, **kwargs))

    method.__name__ = name
    method.__doc__ = "As sqlite3's; the connection is closed before its next user."
    return method


if not TYPE_CHECKING:
    for _name in (
        "create_aggregate",
        "create_collation",
        "create_function",
        "create_window_function",
        "deserialize",
        "enable_load_extension",
        "load_extension",
        "set_authorizer",
        "set_progress_handler",
        "set_trace_callback",
        "setconfig",
        "setlimit",
    ):
        # Not every build of Python and SQLite has all of them.
        if hasattr(sqlite3.Connection, _name):
            setattr(NotesState, _name, _noted(_name))
