"""The debug toolbar, the real package: its SQL panel counts the queries of its own request."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from tests import services

ROOT = Path(__file__).parents[2]
MODES: dict[str, Any] = {
    "thread": {},
    "loop": {"SYNC_VIEWS": "loop"},
    "request": {"CONNECTION_PER": "request"},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("engine", ["postgresql", "sqlite3"])
def test_the_sql_panel_lists_every_query_of_its_request(
    request: pytest.FixtureRequest, tmp_path: Path, engine: str, mode: str
) -> None:
    if engine == "sqlite3":
        count(tmp_path, {"ENGINE": "", "NAME": str(tmp_path / "db.sqlite3")}, engine, mode)
        return
    with services.fresh_database(request.getfixturevalue("postgres_url")) as url:
        parts = conninfo_to_dict(url)
        names = {"NAME": "dbname", "HOST": "host", "PORT": "port", "USER": "user"}
        entry = {name: parts.get(part, "") for name, part in names.items()}
        count(tmp_path, entry | {"PASSWORD": parts.get("password", "")}, engine, mode)


def count(folder: Path, entry: dict[str, Any], engine: str, mode: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.toolbar"],
        cwd=ROOT,
        env=os.environ
        | {
            "TOOLBAR_DATABASE": json.dumps(entry | {"ENGINE": f"nuages.db.backends.{engine}"}),
            "TOOLBAR_NUAGES": json.dumps(MODES[mode]),
        },
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip().endswith("counted")
