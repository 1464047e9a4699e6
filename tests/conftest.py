"""Fixtures for all tests: the servers, started only when a test asks for one.

Django's settings for the tests belong in tests/settings.py, not here.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NoReturn

import pytest

from tests import services

REQUIRE = "NUAGES_REQUIRE"
"""Names services, as in `postgresql,sqlite,mysql,redis`: a test that misses one fails."""
SERVICES = frozenset({"postgresql", "sqlite", "mysql", "redis"})


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a name in NUAGES_REQUIRE that no test could ever miss; let SIGINT through."""
    if unknown := sorted(required() - SERVICES):
        raise pytest.UsageError(
            f"{REQUIRE} names {', '.join(unknown)}; known are {', '.join(sorted(SERVICES))}"
        )
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As a shell starts a job in the background; the processes of the tests would inherit it,
        # and those that are interrupted would go on.
        signal.signal(signal.SIGINT, signal.default_int_handler)


def required() -> set[str]:
    """The services that the environment says must be there."""
    return {name.strip() for name in os.environ.get(REQUIRE, "").split(",") if name.strip()}


def missing(service: str, reason: str) -> NoReturn:
    """Skip the test for want of a service; fail it where the service is required."""
    if service in required():
        pytest.fail(f"{REQUIRE} requires {service}: {reason}", pytrace=False)
    pytest.skip(reason)


_TOGETHER = "tests/acceptance/servers/"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of a file in one process, and all that share the five servers.

    Not by marks: pytest-xdist 3.8 does not hand them on with pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _TOGETHER if nodeid.startswith(_TOGETHER) else nodeid.partition("::")[0]

    # Else those with many tests come first, instead of those that take long.
    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[services.PostgresServer]:
    """A PostgreSQL of the tests' own: `url`, and `socket_url` where it has a Unix socket."""
    with services.postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def full_postgres_server() -> Iterator[services.FullPostgresServer]:
    """A PostgreSQL with TLS and contrib; skips where Debian's binaries are not installed."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(services.full_postgres_server())
        except services.NotInstalled as reason:
            missing("postgresql", str(reason))
        yield server


@pytest.fixture(scope="session")
def postgres_url(postgres_server: services.PostgresServer) -> str:
    """The server's maintenance database, as a superuser."""
    return postgres_server.url


@pytest.fixture(scope="module")
def postgres_database(postgres_url: str) -> Iterator[str]:
    """The URL of an empty database for the tests of one module."""
    with services.fresh_database(postgres_url) as url:
        yield url


@pytest.fixture(scope="session")
def mysql_server() -> services.MySQLServer:
    """A MySQL or MariaDB that is there; skips where none answers."""
    try:
        return services.mysql_server()
    except services.NotAnswering as reason:
        missing("mysql", str(reason))


@pytest.fixture(scope="session")
def tls_mysql_server() -> Iterator[services.TLSMySQLServer]:
    """A MariaDB with TLS; skips where Debian's binaries are not installed."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(services.tls_mysql_server())
        except services.NotInstalled as reason:
            missing("mysql", str(reason))
        yield server


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """The URL of a Valkey of the tests' own."""
    with services.valkey_server() as url:
        yield url
