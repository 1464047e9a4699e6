"""Databases and event loops for the integration tests: variants are fixture parameters.

`database` runs a test once on PostgreSQL and once on a SQLite file; with the mark
`every_database`, which tests of connections and of what is done on them have, also on MySQL or
MariaDB. `postgresql`, `sqlite` and `mysql` run it on one.

`run` runs an async function on a fresh event loop, uvloop's, and checks afterwards that it left no
task, no greenlet's bridge and no pool behind. With the mark `both_loops`, which tests of waiting
itself have (sockets, cancellation, tasks, turns), a test runs on asyncio's in debug mode too; with
`every_loop` also with eager tasks (Python 3.12). What runs on every database does so on one only;
with NUAGES_EVERY_LOOP=1 all of it runs on all.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_django
import uvloop
from django.apps import apps
from django.db import connection, connections, transaction
from psycopg.conninfo import conninfo_to_dict

from nuages.asgi import lifespan
from nuages.bridge import core as bridge
from nuages.bridge import tasks
from nuages.cache import loops
from nuages.db.backends.base.statistics import statistics
from nuages.db.pool import pool as pools
from nuages.test.threads import Threads as Counts
from nuages.test.threads import watch_threads
from tests import services


@pytest.fixture(scope="session", autouse=True)
def _database_access(django_db_blocker: pytest_django.DjangoDbBlocker) -> Iterator[None]:
    """The tests here bring databases of their own; pytest-django need not keep them away."""
    with django_db_blocker.unblock():
        yield


@pytest.fixture(scope="session", autouse=True)
def _frozen() -> None:
    """As at a server's start, which does nothing more then: `run` collects after every test."""
    lifespan.freeze()


CACHE_TABLE = "nuages_tests_cache"
"""A table for a cache in the database."""


_ALL_LOOPS = bool(os.environ.get("NUAGES_EVERY_LOOP"))


def use(entry: dict[str, Any]) -> None:
    """Make `entry` the default database of the whole process."""
    close_thread_connection()
    settings = connections.settings["default"]
    settings.clear()
    settings.update({"ENGINE": "", "NAME": "", "OPTIONS": {}} | entry)
    connections.configure_settings({"default": settings})


def close_thread_connection() -> None:
    """Close this thread's own connection, so that the next use opens it by the settings."""
    for alias in connections:
        connections[alias].close()
        del connections[alias]


def create_tables() -> None:
    """Create every table of the installed apps."""
    from django.core.management import call_command

    call_command("migrate", run_syncdb=True, verbosity=0)
    call_command("createcachetable", CACHE_TABLE, verbosity=0)


def empty_tables() -> None:
    """Delete what a test wrote."""
    with (
        transaction.atomic(),
        connection.constraint_checks_disabled(),
        connection.cursor() as cursor,
    ):
        for table in _tables():
            cursor.execute(f"DELETE FROM {connection.ops.quote_name(table)}")


@functools.cache
def _tables() -> list[str]:
    """The tables that tests write to; what `migrate` has written stays."""
    written = list(apps.get_app_config("library").get_models(include_auto_created=True))
    for label in ("admin.LogEntry", "sessions.Session", "auth.User"):
        model = apps.get_model(label)
        written += [field.remote_field.through for field in model._meta.local_many_to_many]
        written.append(model)
    return [model._meta.db_table for model in written if model._meta.managed]


@pytest.fixture(scope="session")
def _postgresql_entry(postgres_url: str) -> Iterator[dict[str, Any]]:
    with services.fresh_database(postgres_url) as url:
        parts = conninfo_to_dict(url)
        entry = {
            "ENGINE": "nuages.db.backends.postgresql",
            "NAME": parts["dbname"],
            "HOST": parts["host"],
            "PORT": parts.get("port", ""),
            "USER": parts["user"],
            "PASSWORD": parts.get("password", ""),
        }
        use(entry)
        create_tables()
        yield entry
        close_thread_connection()


@pytest.fixture(scope="session")
def _sqlite_entry(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path: Path = tmp_path_factory.mktemp("sqlite") / "db.sqlite3"
    entry = {"ENGINE": "nuages.db.backends.sqlite3", "NAME": str(path)}
    use(entry)
    create_tables()
    return entry


@pytest.fixture(scope="session")
def _mysql_entry(mysql_server: services.MySQLServer) -> Iterator[dict[str, Any]]:
    with services.fresh_mysql_database(mysql_server) as name:
        entry = {"ENGINE": "nuages.db.backends.mysql", "NAME": name} | mysql_server.settings()
        use(entry)
        create_tables()
        yield entry
        close_thread_connection()


@pytest.fixture
def mysql(_mysql_entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """MySQL as the default database, with empty tables; gives its DATABASES entry."""
    use(_mysql_entry)
    yield connections.settings["default"]
    use(_mysql_entry)
    empty_tables()
    close_thread_connection()


@pytest.fixture
def postgresql(_postgresql_entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """PostgreSQL as the default database, with empty tables; gives its DATABASES entry."""
    use(_postgresql_entry)
    yield connections.settings["default"]
    use(_postgresql_entry)
    empty_tables()
    close_thread_connection()


@pytest.fixture
def sqlite(_sqlite_entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A SQLite file as the default database, with empty tables; gives its DATABASES entry."""
    use(_sqlite_entry)
    yield connections.settings["default"]
    use(_sqlite_entry)
    empty_tables()
    close_thread_connection()


LOOPS = ["asyncio", "uvloop"]
"""asyncio's in debug mode."""
EVERY_LOOP = LOOPS if sys.version_info < (3, 12) else [*LOOPS, "eager"]
"""With asyncio's loop and eager tasks too, which Python has from 3.12 on."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the databases of a test that asks for `database`, and the loops of `run`."""
    chosen: set[str] = set()
    for mark in metafunc.definition.iter_markers("parametrize"):
        names = mark.args[0]
        chosen.update(names.replace(" ", "").split(",") if isinstance(names, str) else names)
    databases: list[str] = []
    if "database" in metafunc.fixturenames and "database" not in chosen:
        databases = ["postgresql", "sqlite"]
        if metafunc.definition.get_closest_marker("every_database"):
            databases.append("mysql")
    loops: list[str] = []
    # What runs a loop in another process asks for its name: `loop`.
    on_loop = "loop" if "loop" in metafunc.fixturenames else "run"
    if on_loop in metafunc.fixturenames and on_loop not in chosen:
        # asyncio's takes half as long again: its debug mode notes the stack of every future.
        loops = ["uvloop"]
        if metafunc.definition.get_closest_marker("every_loop"):
            loops = EVERY_LOOP
        elif metafunc.definition.get_closest_marker("both_loops") or _ALL_LOOPS:
            loops = LOOPS
    if databases and loops:
        # The other databases on uvloop: NUAGES_EVERY_LOOP=1 tries all of both, and takes its time.
        pairs = [
            (database, loop)
            for loop in loops
            for database in databases
            if _ALL_LOOPS or loop == "uvloop" or database == databases[0]
        ]
        metafunc.parametrize(("database", on_loop), pairs, indirect=True)
    elif databases:
        metafunc.parametrize("database", databases, indirect=True)
    elif loops:
        metafunc.parametrize(on_loop, loops, indirect=True)


@pytest.fixture
def loop(request: pytest.FixtureRequest) -> str:
    """Each event loop in turn, by its name, for tests that run it in a process of its own."""
    return str(request.param)


@pytest.fixture
def database(request: pytest.FixtureRequest) -> str:
    """Each database in turn (`pytest_generate_tests`); gives its name."""
    request.getfixturevalue(request.param)
    return str(request.param)


Run = Callable[..., Any]


def _eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    return loop


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Run:
    """Call it with a coroutine function (and arguments) to run that on a fresh loop."""
    factory = {"uvloop": uvloop.new_event_loop, "eager": _eager_loop}.get(
        request.param, asyncio.new_event_loop
    )

    def run_(function: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
        async def main() -> Any:
            result = await function(*args)
            await _settled()
            return result

        with asyncio.Runner(debug=request.param == "asyncio", loop_factory=factory) as runner:
            loop = runner.get_loop()
            # Debug mode warns of a slow callback, which on a loaded machine is any.
            loop.slow_callback_duration = 60.0
            result = runner.run(main())
        gc.collect()
        assert not bridge._bridges, "a bridge was left behind"
        assert not pools._pools.get(loop), "a pool was left behind"
        assert not loops._clients.get(loop), "a cache's connections were left behind"
        return result

    return run_


def _type_of_aclose() -> type[Any]:
    """What `aclose()` of an async generator gives, for which the library has no name."""

    async def generator() -> AsyncGenerator[None, None]:
        yield

    closing: Any = generator().aclose()
    closing.close()  # it will never be awaited
    return type(closing)


_CLOSING = _type_of_aclose()


async def _settled() -> None:
    """Wait for background work (resets, closes) and see that no other task is left."""
    await tasks.wait_for_spawned(30.0)
    # The loop's own tasks, which close the async generators that a library (redis-py) abandons.
    closing = [task for task in asyncio.all_tasks() if isinstance(task.get_coro(), _CLOSING)]
    if closing:
        await asyncio.wait(closing, timeout=30.0)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"tasks were left behind: {left}"


@pytest.fixture
def threads() -> Iterator[Counts]:
    """Count executor submissions, of every loop, and thread starts."""
    with watch_threads() as counts:
        yield counts


@pytest.fixture
def nothing_blocks() -> Iterator[None]:
    """No statement of the test blocks a loop's thread."""
    statistics.reset()
    yield
    assert statistics.blocked == 0
