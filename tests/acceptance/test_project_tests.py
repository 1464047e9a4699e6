"""A project's own async tests leave its database as it was, under every runner.

The same tests on Django's own engines leave rows, so the comparison is a true one.
"""

from __future__ import annotations

from tests.acceptance.testing_tools import Site, site

__all__ = ["site"]


def test_pytest(site: Site) -> None:
    done = site.pytest("ten_asyncio.py", "ten_anyio.py")
    done.assert_passed("20 passed")
    assert done.left == [0, 0, 0]
    assert site.rows() == [0, 0, 0]


def test_the_same_on_stock_leaves_rows(site: Site) -> None:
    done = site.pytest("ten_asyncio.py", "-k", "test_create or test_gather", stock=True)
    assert done.left is not None
    assert done.left[0] == site.rows()[0] >= 1, done.output


def test_djangos_runner(site: Site) -> None:
    done = site.test("ten_django")
    done.assert_passed("Ran 11 tests", "OK")
    assert done.left == [0, 0, 0]
    assert site.rows() == [0, 0, 0]
    if site.vendor == "postgresql":
        # Stock takes async tests' queries to the test's own thread, but not all threads' there.
        site.test("ten_django.Ten.test_sync_to_async", stock=True)
        assert site.rows()[0] == 1
