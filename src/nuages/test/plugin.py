"""The pytest plugin, beside pytest-django's: what async tests need in addition.

Transactions need no fixture of ours: `db`, `django_db` and the rest are pytest-django's, and their
transactions are opened by Django's TestCase. pytest-asyncio and anyio run the tests.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from nuages.test.live import LiveServer

_GUARDS = ("forbid_threads", "forbid_blocking")


def pytest_configure(config: pytest.Config) -> None:
    """Describe the markers."""
    for name, what in zip(_GUARDS, ("uses a thread", "blocks an event loop"), strict=True):
        config.addinivalue_line(
            "markers", f"{name}(allow=[]): the test fails where it {what} (nuages.test.{name})"
        )


def pytest_collection_finish(session: pytest.Session) -> None:
    """Put the seams of tests in place, where the project uses Nuages.

    An engine of ours does so, too, when it makes the test database; a project may bring its own.
    """
    registry: Any = sys.modules.get("django.apps")
    if registry is not None and registry.apps.ready and registry.apps.is_installed("nuages"):
        from nuages import seams

        seams.install_for_tests()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Run a marked test in its guards."""
    with ExitStack() as stack:
        for name in _GUARDS:
            if (marker := item.get_closest_marker(name)) is not None:
                stack.enter_context(_guard(name)(*marker.args, **marker.kwargs))
        return (yield)


def _guard(name: str) -> Callable[..., Any]:
    import nuages.test

    guard: Callable[..., Any] = getattr(nuages.test, name)
    return guard


@pytest.fixture
def forbid_threads() -> Callable[..., Any]:
    """The guard of `nuages.test`, for a block of a test that must use no thread."""
    return _guard("forbid_threads")


@pytest.fixture
def forbid_blocking() -> Callable[..., Any]:
    """The guard of `nuages.test`, for a block of a test that must not block a loop."""
    return _guard("forbid_blocking")


@pytest.fixture
def live_asgi_server(request: pytest.FixtureRequest) -> Iterator[LiveServer]:
    """A real server of the project for one test; `url` is its address.

    Its requests work in the test's transaction; with `transactional_db` or
    `django_db(transaction=True)` they use the pool.
    """
    request.getfixturevalue(
        "transactional_db" if "transactional_db" in request.fixturenames else "db"
    )
    from nuages.test.live import LiveServer

    with LiveServer() as server:
        yield server
