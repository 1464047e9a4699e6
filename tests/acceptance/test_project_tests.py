"""A project's own async tests leave its database as it was, under every runner.

The same tests on Django's own engines leave rows, so the comparison is a true one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.testing_tools import Site, make_site, site

__all__ = ["site"]

NOTHING = [0, 0, 0]


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Site]:
    yield from make_site("sqlite3", tmp_path, None)


def test_pytest(site: Site) -> None:
    done = site.pytest("ten_asyncio.py", "ten_anyio.py", "plugin_tests.py")
    done.assert_passed("30 passed, 2 xfailed")
    assert done.left == site.rows() == NOTHING


def test_the_same_on_stock_leaves_rows(site: Site) -> None:
    done = site.pytest("ten_asyncio.py", "-k", "test_create or test_gather", stock=True)
    assert done.left is not None
    assert done.left[0] == site.rows()[0] >= 1, done.output


def test_djangos_runner(site: Site) -> None:
    done = site.test("ten_django", "case_tests", "live_tests")
    done.assert_passed("Ran 41 tests", "OK")
    assert done.left == site.rows() == NOTHING
    if site.vendor == "postgresql":
        # Stock takes async tests' queries to the test's own thread, but not all threads' there.
        site.test("ten_django.Ten.test_sync_to_async", stock=True)
        assert site.rows()[0] == 1


def test_a_database_in_memory(in_memory: Site) -> None:
    done = in_memory.test("ten_django", "case_tests", "live_tests", test=None)
    done.assert_passed("Ran 41 tests", "OK")
    assert done.left == NOTHING
    done = in_memory.pytest("ten_asyncio.py", "plugin_tests.py", test=None)
    done.assert_passed("20 passed, 2 xfailed")
    assert done.left == NOTHING


def test_processes(site: Site) -> None:
    """Forked, each with a copy of the database; none of the parent's loops or pools."""
    name = f"{site.entry['TEST']['NAME']}_parallel"
    done = site.test("--parallel", "2", "ten_django", "case_tests", "live_tests", test=name)
    done.assert_passed("Ran 41 tests", "OK", "Cloning test database")
    assert done.left == NOTHING


def test_spawned_processes(in_memory: Site) -> None:
    code = (
        "import multiprocessing, sys\n"
        "multiprocessing.set_start_method('spawn')\n"
        "from django.core.management import execute_from_command_line\n"
        "execute_from_command_line(['django', *sys.argv[1:]])\n"
    )
    labels = ("ten_django", "case_tests")
    done = in_memory.run("-c", code, "test", "--noinput", "--parallel", "2", *labels, test=None)
    done.assert_passed("Ran 36 tests", "OK", "Cloning test database")
    assert done.left == NOTHING


def test_xdist(in_memory: Site) -> None:
    path = str(in_memory.folder / "xdist.sqlite3")
    done = in_memory.pytest("-n", "2", "ten_asyncio.py", "ten_anyio.py", test=path)
    done.assert_passed("20 passed")
    assert done.left == NOTHING


def test_what_goes_wrong_is_told_and_the_next_test_is_clean(site: Site) -> None:
    done = site.test("-v2", "broken_tests")
    assert done.status == 1
    outcomes = dict(
        line.split(" ... ")
        for line in done.output.splitlines()
        if line.startswith("test_z_next") and " ... " in line
    )
    assert len(outcomes) == 12, done.output
    lost = "test_z_next (broken_tests.BreaksConnection.test_z_next)"
    assert outcomes.pop(lost) == "ERROR"
    assert set(outcomes.values()) == {"ok"}, done.output
    for words in (
        "AssertionError: it fails",
        "LeavesBlock.test_a ended and left behind: the atomic block of task",
        "LeavesSyncBlock.test_a ended and left behind: an atomic block on 'default'",
        "SyncLeaves.test_a ended and left behind: the atomic block of task",
        "LeavesTransaction.test_a ended and left behind: the transaction of task",
        "BreaksConnection.test_a ended and left behind: a broken connection to 'default'",
        "transaction to 'default' was lost in broken_tests.BreaksConnection.test_a",
        "LeavesTask.test_a ended and left behind: the work of task 'the forgotten task'",
        "LeavesStatement.test_a ended and left behind: the work of task 'the long statement'",
        "LeavesBlockInTask.test_a ended and left behind: the atomic block of task 'the task in",
    ):
        assert words in done.output, done.output
    assert done.left == site.rows() == NOTHING


def test_the_same_under_pytest(site: Site) -> None:
    done = site.pytest("broken_asyncio.py")
    assert "3 failed, 6 passed, 2 errors" in done.output, done.output
    ended = "broken_asyncio.py::{} ended and left behind: {}"
    for test, what in (
        ("test_leaves_block", "the atomic block of task"),
        ("test_breaks_connection", "a broken connection to 'default'"),
    ):
        assert ended.format(test, what) in done.output, done.output
    assert done.left == site.rows() == NOTHING


def test_pytest_without_pytest_django(in_memory: Site) -> None:
    """The plugin needs neither it nor a project."""
    path = in_memory.folder / "bare_tests.py"
    path.write_text(
        "import threading, pytest\n"
        "from nuages.exceptions import ThreadForbidden\n"
        "def test_guard(forbid_threads):\n"
        "    with pytest.raises(ThreadForbidden), forbid_threads():\n"
        "        threading.Thread(target=print).start()\n"
    )
    options = ("-p", "no:django", "-c", "/dev/null", "--rootdir", str(in_memory.folder))
    plugins = ("-p", "no:asyncio", "-p", "no:cacheprovider")
    done = in_memory.run("-m", "pytest", "-q", *options, *plugins, str(path))
    done.assert_passed("1 passed")
