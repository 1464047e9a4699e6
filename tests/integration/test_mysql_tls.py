"""TLS to a MySQL server: its handshake and every read of it awaited on the loop."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from typing import Any

import pymysql  # type: ignore[import-untyped]
import pytest
from django.db import OperationalError, connection, connections

from nuages import on_loop
from nuages.db import aatomic, hold_connection
from nuages.exceptions import BlockInterrupted
from tests import services
from tests.integration.conftest import Run, close_thread_connection, use
from tests.integration.pool_tools import Heartbeat, fetch, the_pool
from tests.integration.scope_tools import until

pytestmark = pytest.mark.both_loops


@pytest.fixture
def tls(tls_mysql_server: services.TLSMySQLServer) -> Iterator[dict[str, Any]]:
    """A database on a server with TLS, which is verified."""
    use(
        {
            "ENGINE": "nuages.db.backends.mysql",
            "NAME": "mysql",
            "HOST": "localhost",
            "PORT": str(tls_mysql_server.port),
            "USER": "root",
            "OPTIONS": {
                "ssl": {"ca": str(tls_mysql_server.authority)},
                "bind_address": "127.0.0.1",
            },
        }
    )
    yield connections.settings["default"]
    close_thread_connection()


CIPHER = "SHOW SESSION STATUS LIKE 'Ssl_cipher'"


async def cipher() -> str:
    async with hold_connection() as held:

        def ask() -> Any:
            with held.cursor() as cursor:
                cursor.execute(CIPHER)
                return cursor.fetchone()[1]

        return str(await on_loop(ask)())


def test_it_is_encrypted_and_used_as_any_other(tls: dict[str, Any], run: Run) -> None:
    text = "0123456789" * 200_000

    async def main() -> None:
        assert await cipher()
        async with Heartbeat() as heart:
            before = heart.beats
            assert await fetch("SELECT %s", text) == text
            assert heart.beats > before
        rows = await asyncio.gather(*(fetch("SELECT %s", n) for n in range(20)))
        assert rows == list(range(20))
        with pytest.raises(BlockInterrupted):
            async with aatomic():
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await fetch("SELECT SLEEP(60)")
        assert await fetch("SELECT 1") == 1
        opened = the_pool().opened
        await fetch("SET @x = 1")
        rows = await asyncio.gather(*(fetch("SELECT @x") for _ in range(opened)))
        assert rows == [None] * opened
        assert the_pool().opened == opened
        await until(lambda: the_pool().stats()["used"] == 0)

    run(main)


def test_in_both_ways(tls: dict[str, Any], run: Run) -> None:
    with connection.cursor() as cursor:
        cursor.execute(CIPHER)
        assert cursor.fetchone()[1]

    async def main() -> None:
        from asgiref.sync import sync_to_async

        async with hold_connection():
            number = await fetch("SELECT CONNECTION_ID()")

            def in_thread() -> Any:
                with connection.cursor() as cursor:
                    cursor.execute("SELECT CONNECTION_ID(), REPEAT('x', 1000000)")
                    return cursor.fetchone()[0]

            assert await sync_to_async(in_thread)() == number
            assert await fetch("SELECT CONNECTION_ID()") == number

    run(main)


@pytest.mark.parametrize("why", ["authority", "name"])
def test_a_server_that_cannot_be_verified_is_refused(
    tls: dict[str, Any], run: Run, why: str, tls_mysql_server: services.TLSMySQLServer
) -> None:
    if why == "authority":
        tls["OPTIONS"]["ssl"] = {"ca": str(tls_mysql_server.other_authority)}
    else:
        tls["HOST"] = "127.0.0.1"

    async def main() -> None:
        with pytest.raises(OperationalError, match=r"2003.*CERTIFICATE_VERIFY_FAILED"):
            await fetch("SELECT 1")
        assert the_pool().stats()["size"] == 0

    run(main)


def test_an_sslcontext_of_ones_own(
    tls: dict[str, Any], run: Run, tls_mysql_server: services.TLSMySQLServer
) -> None:
    context = ssl.create_default_context(cafile=str(tls_mysql_server.authority))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    tls["OPTIONS"]["ssl"] = context

    async def main() -> None:
        assert await cipher()

    run(main)


def test_without_options_it_is_encrypted_where_the_server_can(
    tls: dict[str, Any], run: Run
) -> None:
    del tls["OPTIONS"]["ssl"]

    async def main() -> None:
        # PyMySQL 1.2 asks for TLS by itself, 1.1 does not.
        assert bool(await cipher()) is (pymysql.VERSION[:2] >= (1, 2))

    run(main)


def test_none_where_it_is_switched_off(tls: dict[str, Any], run: Run) -> None:
    tls["OPTIONS"].pop("ssl")
    tls["OPTIONS"]["ssl_disabled"] = True

    async def main() -> None:
        assert await cipher() == ""

    run(main)


def test_the_handshake_does_not_block_the_loop_and_ends_at_its_timeout(
    tls: dict[str, Any], run: Run
) -> None:
    """A server that greets, and says no more when it is asked for TLS."""
    greeting = b"".join(
        (
            b"\x0a5.5.5-10.11.0-MariaDB\0" + (7).to_bytes(4, "little") + b"12345678\0",
            b"\xff\xff\x2d\x02\x00\xff\xff\x15" + bytes(10) + b"123456789012\0",
            b"mysql_native_password\0",
        )
    )

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(len(greeting).to_bytes(3, "little") + b"\0" + greeting)
        await reader.read()
        writer.close()

    async def main() -> None:
        async with await asyncio.start_server(deaf, "127.0.0.1", 0) as listening:
            tls["PORT"] = str(listening.sockets[0].getsockname()[1])
            tls["OPTIONS"]["connect_timeout"] = 0.2
            async with Heartbeat() as heart:
                before = heart.beats
                with pytest.raises(OperationalError, match="timed out"):
                    await fetch("SELECT 1")
                assert heart.beats > before + 10
            await asyncio.sleep(0.01)

    run(main)
