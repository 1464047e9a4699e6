"""Opening a connection: as libpq does it, and nothing of it blocks the loop's thread."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connection, connections
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from nuages import on_loop
from nuages.db import acursor
from nuages.test import FaultProxy
from tests.integration.conftest import Run, use
from tests.integration.pool_tools import backend, cancelled, fetch, server
from tests.library.models import Tag
from tests.services import FullPostgresServer, PostgresServer, fresh_database

pytestmark = [pytest.mark.both_loops, pytest.mark.postgresql]


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


@pytest.fixture(scope="module")
def tls_database(full_postgres_server: FullPostgresServer) -> Iterator[dict[str, str]]:
    """A database of the role that may log in over TLS only; gives its part of DATABASES."""
    user = full_postgres_server.tls_user
    with fresh_database(full_postgres_server.url) as url:
        parts = conninfo_to_dict(url)
        with psycopg.connect(url, autocommit=True) as client:
            owned = sql.SQL("ALTER DATABASE {} OWNER TO {}")
            client.execute(owned.format(*map(sql.Identifier, (str(parts["dbname"]), user))))
        yield {
            "NAME": str(parts["dbname"]),
            "HOST": "localhost",
            "PORT": str(parts["port"]),
            "USER": user,
            "PASSWORD": "",
        }


@pytest.fixture
def verified(full_postgres_server: FullPostgresServer) -> dict[str, str]:
    """The options with which a client trusts nobody but the server."""
    return {"sslmode": "verify-full", "sslrootcert": str(full_postgres_server.authority)}


@pytest.mark.parametrize("mode", ["require", "verify-full"])
def test_a_session_over_tls(
    configure: Any, tls_database: dict[str, str], verified: dict[str, str], run: Run, mode: str
) -> None:
    """Answers and statements of many TLS records, so that reads and writes are partial."""

    async def main() -> None:
        async with acursor() as cursor:
            await cursor.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
            assert await cursor.fetchone() == (True,)
            await cursor.execute("SELECT repeat('x', 5000000)")
            assert len((await cursor.fetchone())[0]) == 5_000_000
            await cursor.execute("SELECT length(%s)", ["x" * 5_000_000])
            assert await cursor.fetchone() == (5_000_000,)

    configure(verified if mode == "verify-full" else {"sslmode": mode}, **tls_database)
    run(main)


def test_sessions_over_tls_side_by_side(
    configure: Any, tls_database: dict[str, str], verified: dict[str, str], run: Run
) -> None:
    """Each task is answered while all the others' statements are on their way."""
    barrier: asyncio.Barrier

    async def ask(number: int) -> None:
        async with acursor() as cursor:
            await cursor.execute("SELECT 1")
            await barrier.wait()
            await cursor.execute("SELECT repeat(%s, 500000), pg_backend_pid()", [str(number)])
            text, pid = await cursor.fetchone()
            assert text == str(number) * 500_000
            pids.add(pid)

    async def main() -> None:
        nonlocal barrier
        barrier = asyncio.Barrier(5)
        pids.clear()
        await asyncio.gather(*(ask(number) for number in range(5)))
        assert len(pids) == 5

    pids: set[int] = set()
    configure(verified | {"pool": {"max_size": 5}}, **tls_database)
    run(main)


def test_a_certificate_of_another_authority_is_refused(
    configure: Any,
    tls_database: dict[str, str],
    verified: dict[str, str],
    full_postgres_server: FullPostgresServer,
    run: Run,
) -> None:
    async def main() -> None:
        with pytest.raises(OperationalError, match="certificate verify failed"):
            await one()

    configure(
        verified | {"sslrootcert": str(full_postgres_server.other_authority)}, **tls_database
    )
    run(main)


def test_a_certificate_for_another_name_is_refused(
    configure: Any, tls_database: dict[str, str], verified: dict[str, str], run: Run
) -> None:
    """The name is the one in DATABASES, whatever address it was resolved to before."""

    async def main() -> None:
        with pytest.raises(OperationalError, match=r'does not match host name "127\.0\.0\.1"'):
            await one()

    configure(verified, **tls_database | {"HOST": "127.0.0.1"})
    run(main)


def test_a_login_without_tls_is_refused_where_tls_is_demanded(
    configure: Any, tls_database: dict[str, str], run: Run
) -> None:
    async def main() -> None:
        with pytest.raises(OperationalError, match="no encryption"):
            await one()

    configure({"sslmode": "disable"}, **tls_database)
    run(main)


class Overhearing(FaultProxy):
    """A proxy that remembers what the client said on each of its connections."""

    def __init__(self, entry: dict[str, Any]) -> None:
        super().__init__(entry["HOST"], int(entry["PORT"]))
        self.said: list[bytearray] = []

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said, read = bytearray(), reader.read
        self.said.append(said)

        async def noted(size: int = -1) -> bytes:
            data = await read(size)
            said.extend(data)
            return data

        reader.read = noted  # type: ignore[method-assign]
        super()._serve(reader, writer)


SSL_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")
TLS_HANDSHAKE = b"\x16\x03"


def test_a_query_over_tls_is_cancelled_over_tls(
    configure: Any, tls_database: dict[str, str], verified: dict[str, str], run: Run
) -> None:
    """In clear, a cancel request would tell whoever listens how to cancel this session again."""

    async def main() -> None:
        async with server() as pg, Overhearing(tls_database) as proxy:
            connections.settings["default"]["PORT"] = str(proxy.port)
            pid = await backend()
            task = asyncio.create_task(fetch("SELECT pg_sleep(60) /* over TLS */"))
            await pg.until_running("/* over TLS */")
            await cancelled(task)
            await pg.until_idle()
            assert await backend() == pid
            assert len(proxy.said) == 2  # the session, and the cancel request
            for said in proxy.said:
                assert said.startswith(SSL_REQUEST + TLS_HANDSHAKE)

    configure(verified, **tls_database)
    run(main)


def test_a_server_side_cursor_over_tls(
    configure: Any, tls_database: dict[str, str], verified: dict[str, str], run: Run
) -> None:
    @on_loop
    def with_table(create: bool) -> None:
        with connection.schema_editor() as editor:
            (editor.create_model if create else editor.delete_model)(Tag)

    async def main() -> None:
        await with_table(True)
        try:
            names = [f"{number:04}" for number in range(1000)]
            await Tag.objects.abulk_create(Tag(name=name) for name in names)
            found = []
            async for tag in Tag.objects.order_by("name").aiterator(chunk_size=100):
                found.append(tag.name)
                if len(found) == 150:
                    assert await fetch("SELECT count(*) FROM pg_cursors WHERE is_holdable") == 1
            assert found == names
            assert await fetch("SELECT count(*) FROM pg_cursors WHERE is_holdable") == 0
        finally:
            await with_table(False)

    configure(verified, **tls_database)
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
