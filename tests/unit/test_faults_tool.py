"""The tool of `make faults`: deadlines, the table, the docs, the time limit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.__main__ import PAST_LIMIT
from tests.faults.matrix import BEGIN, DOCS, END, Matrix


def filled() -> Matrix:
    matrix = Matrix()
    for database, seconds in (("postgresql", 0.5), ("mysql", 0.25)):
        row = matrix.row("server killed", database, 2.0)
        row.took(seconds)
        row.note("`OperationalError`")
    return matrix


def test_past_its_deadline_a_fault_fails() -> None:
    row = Matrix().row("server killed", "mysql", 2.0)
    row.took(1.0)
    with pytest.raises(AssertionError, match=r"took 2\.50 s, and its deadline is 2 s"):
        row.took(2.5)
    assert row.seconds == 2.5


def test_the_table() -> None:
    assert filled().table() == [
        "fault          database    outcome             seconds  deadline",
        "server killed  PostgreSQL  `OperationalError`     0.50         2",
        "server killed  MariaDB     `OperationalError`     0.25         2",
    ]


def test_a_fault_of_two_loops_is_one_row() -> None:
    matrix = filled()
    row = matrix.row("server killed", "mysql", 2.0)
    row.took(0.75)
    row.note("`OperationalError`")
    assert row.cells()[2:4] == ("`OperationalError`", "0.75")
    assert len(matrix.rows()) == 2


def test_what_failed_or_was_skipped_is_told() -> None:
    matrix = filled()
    matrix.rows()[0].failed = True
    matrix.skip(matrix.rows()[1], "no server")
    table = matrix.table()
    assert "FAILED" in table[1]
    assert table[2] == "skipped: server killed, MariaDB: no server"


def test_the_docs_get_a_whole_run_only(tmp_path: Path) -> None:
    docs = tmp_path / "faults.md"
    docs.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    filled().write_docs(docs)
    assert docs.read_text() == (
        f"before\n{BEGIN}\n"
        "| fault | database | outcome | seconds | deadline |\n"
        "| --- | --- | --- | ---: | ---: |\n"
        "| server killed | PostgreSQL, MariaDB | `OperationalError` | 0.50, 0.25 | 2 |\n"
        f"{END}\nafter\n"
    )
    matrix = filled()
    matrix.rows()[0].failed = True
    with pytest.raises(ValueError, match="whole run"):
        matrix.write_docs(docs)
    docs.write_text("no markers")
    with pytest.raises(ValueError, match="markers"):
        filled().write_docs(docs)


def test_the_docs_have_the_markers() -> None:
    text = DOCS.read_text()
    assert text.index(BEGIN) < text.index(END)


def test_past_its_time_limit_a_run_fails() -> None:
    """It takes longer than that to import Django."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--limit", "0.01"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ,
    )
    assert done.returncode == PAST_LIMIT
    lines = done.stdout.splitlines()
    assert lines[0] == "faults: time limit 0.01 s"
    assert lines[-1] == "faults: FAILED, not done after 0.01 s"
