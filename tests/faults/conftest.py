"""Servers for the faults, started when a test asks for them, and the table at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import pytest_django

from tests.conftest import missing
from tests.faults import servers
from tests.faults.databases import Cache, Database, MariaDB, Postgres, SQLite
from tests.faults.matrix import DOCS, Matrix
from tests.faults.world import LOOPS, prepare
from tests.services import NotInstalled

ORDER = [
    *("killed", "network", "sessions", "conflicts", "disk"),
    *("connecting", "resolving", "sqlite", "cache"),
]
MATRIX = pytest.StashKey[Matrix]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--write-docs", action="store_true", help=f"put the table into {DOCS.name}")
    group.addoption("--loops", default="uvloop", help="asyncio, uvloop or both (default: uvloop)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[MATRIX] = Matrix()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "loop" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--loops")
        metafunc.parametrize("loop", list(LOOPS) if chosen == "both" else [chosen])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In the order of the docs."""
    items.sort(key=lambda item: ORDER.index(item.path.stem.removeprefix("test_")))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    matrix = config.stash[MATRIX]
    terminalreporter.section("faults")
    for line in matrix.table():
        terminalreporter.write_line(line)
    if config.getoption("--write-docs"):
        if terminalreporter.stats.keys() & {"failed", "error", "skipped", "deselected"}:
            raise pytest.UsageError("--write-docs: the docs show a whole run, and this was none")
        matrix.write_docs()
        terminalreporter.write_line(f"written into {DOCS.name}")


@pytest.fixture(scope="session")
def matrix(pytestconfig: pytest.Config) -> Matrix:
    return pytestconfig.stash[MATRIX]


@pytest.fixture(scope="session", autouse=True)
def _database_access(django_db_blocker: pytest_django.DjangoDbBlocker) -> Iterator[None]:
    """The tests here bring databases of their own; pytest-django need not keep them away."""
    with django_db_blocker.unblock():
        yield


def _prepared(database: Database) -> Database:
    prepare(database)
    return database


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Database]:
    with servers.postgres() as server:
        yield _prepared(Postgres(server))


@pytest.fixture(scope="session")
def mysql() -> Iterator[Database]:
    with ExitStack() as stack:
        try:
            server = stack.enter_context(servers.mariadb())
        except NotInstalled as reason:
            missing("mysql", str(reason))
        yield _prepared(MariaDB(server))


@pytest.fixture(scope="session")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Database:
    path: Path = tmp_path_factory.mktemp("sqlite") / "faults.sqlite3"
    return _prepared(SQLite(path))


@pytest.fixture(scope="session")
def redis(sqlite: SQLite) -> Iterator[Database]:
    with servers.valkey() as server:
        yield Cache(sqlite.path, server)


@pytest.fixture
def database(request: pytest.FixtureRequest) -> Database:
    """The one that a test names."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Database)
    return found
