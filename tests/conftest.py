"""Fixtures for all tests: the servers, started only when a test asks for one.

Django's settings for the tests belong in tests/settings.py, not here.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import pytest

from tests import services

REQUIRE = "NUAGES_REQUIRE"
"""Names services, as in `postgresql,sqlite,mysql,redis`: a test that misses one fails."""
SERVICES = frozenset({"postgresql", "sqlite", "mysql", "redis"})


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a name in NUAGES_REQUIRE that no test could ever miss."""
    if unknown := sorted(required() - SERVICES):
        raise pytest.UsageError(
            f"{REQUIRE} names {', '.join(unknown)}; known are {', '.join(sorted(SERVICES))}"
        )


def required() -> set[str]:
    """The services that the environment says must be there."""
    return {name.strip() for name in os.environ.get(REQUIRE, "").split(",") if name.strip()}


def missing(service: str, reason: str) -> NoReturn:
    """Skip the test for want of a service; fail it where the service is required."""
    if service in required():
        pytest.fail(f"{REQUIRE} requires {service}: {reason}", pytrace=False)
    pytest.skip(reason)


_TOGETHER = Path(__file__).parent / "acceptance" / "servers"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file in one process, and all that share the five servers."""
    for item in items:
        together = _TOGETHER if _TOGETHER in item.path.parents else item.path
        item.add_marker(pytest.mark.xdist_group(str(together)))


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
