"""The databases of the runs: where the server is, each process's own names, the settings module.

Owns everything that tells one process's databases from another's. The names carry the process that
made them, so runs do not meet, and what a killed run left is found and dropped by the next one. On
SQLite the suite's databases are in memory, as in Django's own settings for it: nothing to drop.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

URL_VARIABLE = "NUAGES_TEST_POSTGRES_URL"
DEFAULT_URL = "postgresql://postgres@127.0.0.1:5432/postgres"
MYSQL_URL_VARIABLE = "NUAGES_TEST_MYSQL_URL"
MYSQL_DEFAULT_URL = "mysql://root@127.0.0.1:3306/"

ENGINES = {
    ("stock", "postgresql"): "django.db.backends.postgresql",
    ("stock", "sqlite"): "django.db.backends.sqlite3",
    ("stock", "mysql"): "django.db.backends.mysql",
    ("loop", "postgresql"): "nuages.db.backends.postgresql",
    ("loop", "sqlite"): "nuages.db.backends.sqlite3",
    ("loop", "mysql"): "nuages.db.backends.mysql",
}

REDIS_BACKEND = "django.core.cache.backends.redis.RedisCache"
REDIS_MODULES = frozenset(["cache"])
"""Django's test modules that have tests of a Redis cache."""

# The tests of these modules start projects with the engine of these settings, in processes and
# without the app, which Nuages refuses. Those processes get stock's engine, by an external backend
# (as Django calls it) that is ours in the process of the tests and stock's in what it starts.
# `migrations` does so from Django 6.1 on.
OWN_PROJECTS = {"admin_scripts", "logging_tests", "migrations", "urlpatterns_reverse"}
# On MySQL the stock side has it, too, wherever projects are started: they must find PyMySQL as
# MySQLdb, which our own engine sees to by itself.
STOCK_PROJECTS = {"mysql": OWN_PROJECTS | {"test_runner"}}
SHIM = "nuages_suite_engine"

_PREFIX = "nuages_suite_"
_OURS = re.compile(rf"^(?:test_)?{_PREFIX}(?P<process>\d+)_")


class ServerError(RuntimeError):
    """The server does not answer."""


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server and the user that both sides run as."""

    host: str
    port: int
    user: str
    password: str
    maintenance: str
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def from_environment(cls) -> "Server":
        """Return the server named by the environment, else the one on this machine."""
        return cls.from_url(os.environ.get(URL_VARIABLE) or DEFAULT_URL)

    @classmethod
    def from_url(cls, url: str) -> "Server":
        """Return the server of a ``postgresql://user:password@host:port/database?option=`` URL."""
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query))
        return cls(
            host=options.pop("host", "") or unquote(parts.hostname or "127.0.0.1"),
            port=int(options.pop("port", "") or parts.port or 5432),
            user=unquote(parts.username or "postgres"),
            password=unquote(parts.password or ""),
            maintenance=unquote(parts.path.lstrip("/")) or "postgres",
            options=tuple(sorted(options.items())),
        )

    def settings(self) -> dict[str, Any]:
        """Return what Django's ``DATABASES`` needs to reach the server."""
        found: dict[str, Any] = {"HOST": self.host, "PORT": self.port, "USER": self.user}
        if self.password:
            found["PASSWORD"] = self.password
        if self.options:
            found["OPTIONS"] = dict(self.options)
        return found

    @contextmanager
    def connection(self) -> Iterator[Any]:
        """Yield a connection in autocommit to the maintenance database."""
        import psycopg

        try:
            connection = psycopg.connect(self._conninfo(), autocommit=True)
        except psycopg.OperationalError as error:
            raise ServerError(
                f"no PostgreSQL for the suite at {self.host}:{self.port}: {error}\n"
                f"Start one, or name another in {URL_VARIABLE}."
            ) from error
        with connection:
            yield connection

    def _conninfo(self) -> str:
        from psycopg.conninfo import make_conninfo

        return make_conninfo(
            "",
            host=self.host,
            port=self.port,
            user=self.user,
            password=self.password or None,
            dbname=self.maintenance,
            **{"connect_timeout": "10", **dict(self.options)},
        )

    def version(self) -> str:
        """Return the server's version."""
        with self.connection() as connection:
            return str(connection.execute("SHOW server_version").fetchone()[0])

    def nature(self) -> dict[str, Any]:
        """Return what, other than its version, the results on a server depend on."""
        with self.connection() as connection:
            locale = connection.execute(
                "SELECT pg_encoding_to_char(encoding), datcollate, datctype FROM pg_database "
                "WHERE datname = 'template1'"
            ).fetchone()
            extensions = connection.execute(
                "SELECT name FROM pg_available_extensions ORDER BY name"
            ).fetchall()
        return {"locale": list(locale), "extensions": [name for (name,) in extensions]}

    def create(self, names: tuple[str, ...]) -> None:
        """Create the databases that a process is configured with; its tests use others."""
        with self.connection() as connection:
            for name in names:
                connection.execute(f'CREATE DATABASE "{name}"')

    def drop(self, names: tuple[str, ...]) -> None:
        """Drop ``names`` and their test databases, whoever is still connected."""
        with self.connection() as connection:
            for name in names:
                for each in (f"test_{name}", name):
                    connection.execute(f'DROP DATABASE IF EXISTS "{each}" WITH (FORCE)')

    def drop_leftovers(self) -> list[str]:
        """Drop the databases of runs whose process is gone; return their names."""
        with self.connection() as connection:
            rows = connection.execute("SELECT datname FROM pg_database").fetchall()
            left = [name for (name,) in rows if is_leftover(name)]
            for name in left:
                connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        return left


@dataclass(frozen=True)
class MySQLServer(Server):
    """A MySQL or MariaDB server; both sides reach it with PyMySQL."""

    @classmethod
    def from_environment(cls) -> "MySQLServer":
        """Return the server named by the environment, else the one on this machine."""
        return cls.from_url(os.environ.get(MYSQL_URL_VARIABLE) or MYSQL_DEFAULT_URL)

    @classmethod
    def from_url(cls, url: str) -> "MySQLServer":
        """Return the server of a ``mysql://user:password@host:port/`` URL."""
        parts = urlsplit(url)
        return cls(
            host=unquote(parts.hostname or "127.0.0.1"),
            port=parts.port or 3306,
            user=unquote(parts.username or "root"),
            password=unquote(parts.password or ""),
            maintenance="",
        )

    @contextmanager
    def connection(self) -> Iterator[Any]:
        """Yield a connection in autocommit."""
        import pymysql  # type: ignore[import-untyped]

        try:
            connection = pymysql.connect(
                host=self.host, port=self.port, user=self.user, password=self.password,
                autocommit=True, connect_timeout=10,
            )  # fmt: skip
        except pymysql.OperationalError as error:
            raise ServerError(
                f"no MySQL or MariaDB for the suite at {self.host}:{self.port}: {error}\n"
                f"Start one, or name another in {MYSQL_URL_VARIABLE}."
            ) from error
        with connection:
            yield connection

    def _rows(self, *statements: str) -> list[tuple[Any, ...]]:
        """Execute the statements; return the rows of the last."""
        with self.connection() as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall())

    def version(self) -> str:
        """Return the server's version."""
        return str(self._rows("SELECT VERSION()")[0][0])

    def nature(self) -> dict[str, Any]:
        """Return what, other than its version, the results on a server depend on."""
        variables = ("character_set_server", "collation_server", "sql_mode", "time_zone")
        row = self._rows(f"SELECT {', '.join(f'@@{name}' for name in variables)}")[0]
        zones = self._rows("SELECT COUNT(*) FROM mysql.time_zone_name")[0][0]
        return {**dict(zip(variables, row, strict=True)), "has_time_zones": zones > 0}

    def create(self, names: tuple[str, ...]) -> None:
        """Create the databases that a process is configured with; its tests use others."""
        self._rows(*(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4" for name in names))

    def drop(self, names: tuple[str, ...]) -> None:
        """Drop ``names`` and their test databases; whoever waits in one is ended first."""
        every = [each for name in names for each in (f"test_{name}", name)]
        listed = ", ".join(f"'{name}'" for name in every)
        processes = f"SELECT id FROM information_schema.processlist WHERE db IN ({listed})"
        for (number,) in self._rows(processes):
            with suppress(Exception):  # it may have ended meanwhile
                self._rows(f"KILL {number}")
        self._rows(*(f"DROP DATABASE IF EXISTS `{name}`" for name in every))

    def drop_leftovers(self) -> list[str]:
        """Drop the databases of runs whose process is gone; return their names."""
        left = [name for (name,) in self._rows("SHOW DATABASES") if is_leftover(name)]
        if left:
            self._rows(*(f"DROP DATABASE IF EXISTS `{name}`" for name in left))
        return left


SERVERS: dict[str, type[Server]] = {"postgresql": Server, "mysql": MySQLServer}
"""The databases that are on a server."""


def names_for(process: int, number: int) -> tuple[str, str]:
    """Return the two database names of the ``number``-th run of tool process ``process``."""
    name = f"{_PREFIX}{process}_{number}"
    return name, f"{name}_other"


def is_leftover(name: str) -> bool:
    """Tell whether ``name`` was made by a run of this tool whose process is gone."""
    match = _OURS.match(name)
    if match is None:
        return False
    try:
        os.kill(int(match["process"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def shim_text(side: str, database: str) -> str:
    """Return the `base` module of the backend `SHIM`."""
    driver = ""
    if database == "mysql":
        driver = (
            "    import sys\n"
            "    from nuages.seams.mysqldb import stand_ins\n"
            "    sys.modules.update(stand_ins())\n"
        )
    return (
        "import os\n\n"
        'if os.environ.setdefault("NUAGES_SUITE_PROCESS", str(os.getpid())) == str(os.getpid()):\n'
        f"    from {ENGINES[side, database]}.base import *\n"
        "else:\n"
        f"{driver}"
        f"    from {ENGINES['stock', database]}.base import *\n"
    )


def settings_text(
    side: str,
    database: str,
    names: tuple[str, str],
    server: Server | None,
    module: str = "",
    redis_url: str | None = None,
    number: int = 0,
) -> str:
    """Return the settings module of one run: Django's own for SQLite, with our databases.

    With `redis_url` there is a Redis cache, without which Django skips its tests of one. They find
    it by the import path of Django's class, so that is what both sides name; on the loop's side
    `launch` puts ours in its place.
    """
    engine = ENGINES[side, database]
    if module in (OWN_PROJECTS if side == "loop" else STOCK_PROJECTS.get(database, ())):
        engine = SHIM
    databases: dict[str, dict[str, Any]] = {}
    for alias, name in zip(("default", "other"), names, strict=True):
        databases[alias] = {"ENGINE": engine}
        if server is not None:
            databases[alias] |= {"NAME": name, "TEST": {"NAME": f"test_{name}"}}
            databases[alias] |= server.settings()
    caches: dict[str, dict[str, Any]]
    caches = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    if redis_url is not None:
        # Every run of a call has one of the server's sixteen databases.
        caches["redis"] = {"BACKEND": REDIS_BACKEND, "LOCATION": redis_url}
        caches["redis"]["OPTIONS"] = {"db": number % 16}
    return (
        "from test_sqlite import *  # noqa: F403\n\n"
        f"DATABASES = {databases!r}\n"
        f"CACHES = {caches!r}\n"
        'TEST_RUNNER = "nuages_suite_runner.Runner"\n'
    )
