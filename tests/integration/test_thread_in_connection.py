"""A connection is ended while a thread is inside its driver: an error there, no crash, no hang.

Each story is a process of its own (`thread_program.py`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.db import connections

pytestmark = [pytest.mark.every_database, pytest.mark.every_loop]

ROOT = Path(__file__).parents[2]

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT / "src"),
    "DJANGO_SETTINGS_MODULE": "tests.settings",
    # The C library overwrites what is freed, so that a use of it shows.
    "MALLOC_PERTURB_": "165",
}
ENDS = {
    "cancelled_repeatedly": "cancelled",
    "cancelled_between_statements": "cancelled",
    "cancelled_amid_answers": "cancelled",
    "closed_by_its_task": "database error",
    "left_by_its_loop": "running",
    "collected": "ended",
}
"""What the task of a story ends with."""


def tell(story: str, loop: str) -> dict[str, Any]:
    """Run a story on the default database, in a new process; return its answer."""
    entry = {
        key: connections.settings["default"][key]
        for key in ("ENGINE", "NAME", "HOST", "PORT", "USER", "PASSWORD")
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.thread_program", json.dumps(entry), loop, story],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=55,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("story", ENDS)
def test_a_thread_inside_the_driver_gets_an_error(database: str, loop: str, story: str) -> None:
    if (database, story) == ("sqlite", "closed_by_its_task"):
        pytest.skip("sqlite3's close() waits for the statement in flight, here for ever")
    assert tell(story, loop) == {"thread": "database error", "task": ENDS[story], "committed": []}


def test_a_block_commits_while_a_thread_is_at_work_in_it(database: str, loop: str) -> None:
    assert tell("committed_at_work", loop) == {
        "thread": "database error",
        "task": "ended",
        "committed": [],
    }


def test_threads_of_one_block_get_their_own_answers(database: str, loop: str) -> None:
    told = tell("asked_side_by_side", loop)
    assert told == {
        "thread": "ended",
        "task": "ended",
        "committed": [],
    }
