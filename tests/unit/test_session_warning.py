"""The warning about session state: statements without values, once for each kind."""

from __future__ import annotations

import logging

import pytest

from nuages.db.backends.base import session_warning as session_state


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("SET search_path = public", "SET search_path = public"),
        ("SET a.b = 'secret'", "SET a.b = '...'"),
        ("SELECT f('a.b', 'it''s secret', false)", "SELECT f('...', '...', false)"),
        (r"SET @x = 'it\'s secret'", "SET @x = '...'"),
        ('SET @x = "secret"', 'SET @x = "..."'),
        ("SET a.b = 'secret that was cut o", "SET a.b = '...'"),
        ("DO $$ secret $$", "DO $$...$$"),
        ("DO $a$ secret $b$ secret $a$", "DO $a$...$a$"),
        ("DO $$ secret that was cut o", "DO $$...$$"),
        ("SELECT $1, $2", "SELECT $1, $2"),
    ],
)  # fmt: skip
def test_without_values(statement: str, shown: str) -> None:
    assert session_state.without_values(statement) == shown


def test_values_make_no_new_kinds(caplog: pytest.LogCaptureFixture) -> None:
    session_state.warned.clear()
    with caplog.at_level(logging.WARNING, "nuages.pool"):
        for number in range(50):
            session_state.warn("default", f"SELECT set_config('a.b', 'secret {number}', false)")
            session_state.warn("default", f"SELECT pg_advisory_lock({number})")
            session_state.warn("default", f"SELECT set_config('name {number}', '1', false)")
    assert len(caplog.records) == 2
    assert len(session_state.warned) == 2
    assert "secret" not in caplog.text
