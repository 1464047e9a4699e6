"""Opening a connection: as libpq does it, and nothing of it blocks the loop's thread."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connection

from nuages import on_loop
from nuages.db import acursor
from tests.integration.conftest import Run, use
from tests.services import PostgresServer

pytestmark = pytest.mark.postgresql


@pytest.fixture
def configure(postgresql: dict[str, Any]) -> Callable[..., None]:
    """Change the default database's entry: keywords are keys, `options` goes into OPTIONS."""

    def change(options: dict[str, Any] | None = None, **keys: Any) -> None:
        entry = {k: v for k, v in postgresql.items() if k != "TEST"} | keys
        use(entry | {"OPTIONS": options or {}})

    return change


@contextmanager
def silent_server() -> Iterator[int]:
    """A listener that accepts and never says anything; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def refusing_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def one() -> int:
    async with acursor() as cursor:
        await cursor.execute("SELECT 1")
        return int((await cursor.fetchone())[0])


async def raw_info() -> Any:
    @on_loop
    def info() -> Any:
        connection.ensure_connection()
        found = connection.connection.info
        return found.host, found.port, found.get_parameters()

    return await info()


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Every name that Python resolves: (name, whether on the main thread, where the loop is)."""
    names: list[tuple[str, bool]] = []
    getaddrinfo = socket.getaddrinfo

    def noted(host: Any, *args: Any, **kwargs: Any) -> Any:
        names.append((host, threading.current_thread() is threading.main_thread()))
        if host == "db.nuages.test":
            host = "127.0.0.1"
        return getaddrinfo(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", noted)
    return names


def test_names_are_resolved_off_the_loops_thread(
    configure: Any, resolved: list[tuple[str, bool]]
) -> None:
    """asyncio's own resolver runs `socket.getaddrinfo` in a thread, so it can be watched."""

    async def main() -> None:
        assert await one() == 1

    configure(HOST="db.nuages.test")
    asyncio.run(main())
    assert ("db.nuages.test", False) in resolved
    assert not [name for name, on_main in resolved if on_main]


def test_a_name_that_does_not_exist(configure: Any, run: Run) -> None:
    async def main() -> None:
        with pytest.raises(OperationalError, match=r"nowhere\.invalid|resolve|not known"):
            await one()

    configure(HOST="nowhere.invalid")
    run(main)


def test_addresses_need_no_resolver(configure: Any, resolved: list[Any]) -> None:
    async def main() -> None:
        assert await one() == 1

    configure(HOST="127.0.0.1")
    asyncio.run(main())
    assert [name for name, _ in resolved if name == "127.0.0.1"] == []


def test_the_second_host_answers_where_the_first_refuses(
    configure: Any, postgresql: dict[str, Any], run: Run
) -> None:
    port = postgresql["PORT"]

    async def main() -> None:
        assert await one() == 1
        host, used, _ = await raw_info()
        assert (host, used) == ("127.0.0.1", int(port))

    configure(HOST="127.0.0.1,127.0.0.1", PORT=f"{refusing_port()},{port}")
    run(main)


def test_the_second_host_answers_where_the_first_is_silent(
    configure: Any, postgresql: dict[str, Any], run: Run
) -> None:
    async def main() -> None:
        ticks = 0

        async def heartbeat() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.05)

        beating = asyncio.create_task(heartbeat())
        assert await one() == 1
        beating.cancel()
        await asyncio.wait([beating])
        assert ticks > 10  # two seconds, libpq's shortest timeout, in which the loop went on

    with silent_server() as silent:
        configure(
            {"connect_timeout": 2},
            HOST="127.0.0.1,127.0.0.1",
            PORT=f"{silent},{postgresql['PORT']}",
        )
        run(main)


def test_every_failure_is_told(configure: Any, run: Run) -> None:
    first, second = refusing_port(), refusing_port()

    async def main() -> None:
        with pytest.raises(OperationalError) as caught:
            await one()
        text = str(caught.value)
        assert str(first) in text
        assert str(second) in text
        assert "Multiple connection attempts failed" in text

    configure(HOST="127.0.0.1,127.0.0.1", PORT=f"{first},{second}")
    run(main)


def test_a_server_that_never_answers_ends_at_the_timeout(configure: Any, run: Run) -> None:
    async def main() -> None:
        with pytest.raises(OperationalError, match="timeout"):
            await one()

    with silent_server() as silent:
        configure({"connect_timeout": 2}, PORT=str(silent))
        run(main)


def test_cancelling_while_a_connection_is_opened(configure: Any, run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", int(port))) as listener:
            listener.setblocking(False)
            task = asyncio.create_task(one())
            accepted, _ = await loop.sock_accept(listener)
            with accepted:
                assert await loop.sock_recv(accepted, 4)  # the client has begun to talk
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                while await loop.sock_recv(accepted, 1024):
                    pass  # until the client has closed its socket

    port = refusing_port()
    configure({"pool": {"max_size": 1}}, PORT=str(port))
    run(main)


def test_a_refused_connection_frees_its_place_in_the_pool(
    configure: Any, postgresql: dict[str, Any], run: Run
) -> None:
    async def main() -> None:
        for _ in range(3):
            with pytest.raises(OperationalError, match="refused"):
                await one()

    configure({"pool": {"max_size": 1, "timeout": 1}}, PORT=str(refusing_port()))
    run(main)


@pytest.fixture
def guarded_role(postgresql: Any) -> Iterator[str]:
    with connection.cursor() as cursor:
        cursor.execute("DROP ROLE IF EXISTS nuages_guarded")
        cursor.execute("CREATE ROLE nuages_guarded")  # may not log in
    yield "nuages_guarded"
    with connection.cursor() as cursor:
        cursor.execute("DROP ROLE nuages_guarded")


def test_a_login_that_is_refused_says_why(
    configure: Any, postgresql: dict[str, Any], guarded_role: str, run: Run
) -> None:
    async def main() -> None:
        with pytest.raises(OperationalError, match="nuages_guarded"):
            await one()

    entry = dict(postgresql)
    configure(USER=guarded_role)
    run(main)
    use(entry)


def test_a_database_that_does_not_exist(configure: Any, run: Run) -> None:
    async def main() -> None:
        with pytest.raises(OperationalError, match="nuages_no_such"):
            await one()

    configure(NAME="nuages_no_such")
    run(main)


def _password_message(salt: bytes) -> bytes:
    """AuthenticationMD5Password (protocol 3.0)."""
    return b"R" + (12).to_bytes(4, "big") + (5).to_bytes(4, "big") + salt


def _error_message(text: str) -> bytes:
    body = b"SFATAL\0C28P01\0M" + text.encode() + b"\0\0"
    return b"E" + (len(body) + 4).to_bytes(4, "big") + body


def test_a_wrong_password_says_so(configure: Any, run: Run) -> None:
    """The tests' server trusts everybody, so a few lines of protocol stand in for one."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            length = int.from_bytes(await reader.readexactly(4), "big")
            code = int.from_bytes((await reader.readexactly(length - 4))[:4], "big")
            if code == 196608:  # StartupMessage; before it, requests for TLS or GSSAPI
                break
            writer.write(b"N")
        writer.write(_password_message(b"salt"))
        await reader.readexactly(1)
        await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big") - 4)
        writer.write(_error_message('password authentication failed for user "x"'))
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        served.set_result(asyncio.current_task())

    async def main() -> None:
        nonlocal served
        served = asyncio.get_running_loop().create_future()
        server = await asyncio.start_server(serve, "127.0.0.1", port)
        async with server:
            with pytest.raises(OperationalError, match="password authentication failed"):
                await one()
            await asyncio.wait([await served])

    served: asyncio.Future[Any] = None  # type: ignore[assignment]
    port = refusing_port()
    configure(PORT=str(port), USER="x", PASSWORD="wrong")
    run(main)


def test_a_unix_socket(
    configure: Any, postgres_server: PostgresServer, postgresql: dict[str, Any], run: Run
) -> None:
    if postgres_server.socket_url is None:
        pytest.skip("the server named by NUAGES_TEST_POSTGRES_URL is reached by TCP")
    from psycopg.conninfo import conninfo_to_dict

    parts = conninfo_to_dict(postgres_server.socket_url)

    async def main() -> None:
        assert await one() == 1
        assert (await raw_info())[0].startswith("/")

    configure(HOST=parts["host"], PORT=parts.get("port", ""))
    run(main)


@pytest.mark.parametrize("how", ["service file", "host in DATABASES"])
def test_a_service_file(
    configure: Any,
    postgresql: dict[str, Any],
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    lines = [f"dbname={postgresql['NAME']}", f"user={postgresql['USER']}"]
    keys = {"NAME": "", "USER": "", "PASSWORD": ""}
    if how == "service file":
        lines += [f"host={postgresql['HOST']}", f"port={postgresql['PORT']}"]
        keys |= {"HOST": "", "PORT": ""}
    (tmp_path / "services.conf").write_text("[nuages]\n" + "\n".join(lines) + "\n")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services.conf"))

    async def main() -> None:
        async with acursor() as cursor:
            await cursor.execute("SELECT current_database()")
            assert await cursor.fetchone() == (lines[0].removeprefix("dbname="),)

    configure({"service": "nuages"}, **keys)
    run(main)


def test_target_session_attrs(configure: Any, run: Run) -> None:
    async def main() -> None:
        assert await one() == 1

    async def refused() -> None:
        with pytest.raises(OperationalError, match=r"standby|read-only"):
            await one()

    configure({"target_session_attrs": "read-write"})
    run(main)
    configure({"target_session_attrs": "standby"})
    run(refused)


def test_options_reach_the_server(configure: Any, run: Run) -> None:
    async def main() -> None:
        async with acursor() as cursor:
            await cursor.execute("SELECT current_setting('application_name'), current_schema()")
            assert await cursor.fetchone() == ("nuages tests", "pg_catalog")

    configure({"application_name": "nuages tests", "options": "-c search_path=pg_catalog"})
    run(main)


@pytest.mark.parametrize("value", [-1, "ten", True])
def test_a_wrong_statement_timeout_is_named(configure: Any, run: Run, value: Any) -> None:
    async def main() -> None:
        with pytest.raises(ImproperlyConfigured, match="statement_timeout"):
            await one()

    configure({"statement_timeout": value})
    run(main)


def test_an_unknown_libpq_option_is_named(configure: Any, run: Run) -> None:
    async def main() -> None:
        with pytest.raises(Exception, match="no_such_option"):
            await one()

    configure({"no_such_option": "x"})
    run(main)


# TLS, on a full server


@pytest.fixture(scope="session")
def tls_parameters() -> dict[str, Any]:
    """A server with TLS; the wheel's PostgreSQL is built without."""
    url = os.environ.get("NUAGES_TEST_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/")
    try:
        with psycopg.connect(url, connect_timeout=5) as probe:
            if probe.execute("SHOW ssl").fetchone() != ("on",):
                pytest.skip("the full PostgreSQL server here has ssl = off")
            return probe.info.get_parameters() | {"password": probe.info.password}
    except psycopg.OperationalError as error:
        pytest.skip(f"no full PostgreSQL server to try TLS on: {error}")


def test_tls(configure: Any, tls_parameters: dict[str, Any], run: Run) -> None:
    @on_loop
    def used() -> bool:
        connection.ensure_connection()
        return bool(connection.connection.pgconn.ssl_in_use)

    async def main() -> None:
        assert await used()
        async with acursor() as cursor:
            await cursor.execute("SELECT repeat('x', 5000000)")
            assert len((await cursor.fetchone())[0]) == 5_000_000

    configure(
        {"sslmode": "require"},
        HOST=tls_parameters.get("host", ""),
        PORT=tls_parameters.get("port", ""),
        USER=tls_parameters["user"],
        PASSWORD=tls_parameters["password"],
        NAME=tls_parameters.get("dbname", "postgres"),
    )
    run(main)


def test_tls_is_refused_by_a_server_without(
    configure: Any, postgresql: dict[str, Any], run: Run
) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SHOW ssl")
        if cursor.fetchone() != ("off",):
            pytest.skip("the tests' server has TLS")

    async def main() -> None:
        with pytest.raises(OperationalError, match="SSL"):
            await one()

    configure({"sslmode": "require"})
    run(main)
