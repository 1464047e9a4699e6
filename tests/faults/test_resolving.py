"""The name of the database's host cannot be looked up: unknown, or nobody answers.

The process that asks has a resolver of the test's own, which takes a mount namespace, and so root.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from django.db import OperationalError

from tests.faults.world import World, fault

ADDRESS = "127.0.0.153"
HOST = "database.faults.invalid"
NXDOMAIN = b"\x81\x83"
RUN = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'


class Resolver(asyncio.DatagramProtocol):
    """A name server that knows no name, and says so, or does not."""

    def __init__(self, *, silent: bool) -> None:
        self.silent = silent
        self.asked = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.asked += 1
        if not self.silent:
            # The question again, as its own answer (RFC 1035, 4.1).
            self.transport.sendto(data[:2] + NXDOMAIN + data[4:6] + bytes(6) + data[12:], address)


@asynccontextmanager
async def resolver(*, silent: bool) -> AsyncIterator[Resolver]:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a resolver of the test's own takes root and unshare(1)")
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(
        lambda: Resolver(silent=silent), local_addr=(ADDRESS, 53)
    )
    try:
        yield protocol
    finally:
        transport.close()


@contextmanager
def configuration() -> Iterator[str]:
    """A resolv.conf that names that resolver."""
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(f"nameserver {ADDRESS}\noptions timeout:20 attempts:1\n")
        file.flush()
        yield file.name


async def ask(world: World) -> dict[str, Any]:
    """What came of asking at HOST, in a process with that resolver."""
    entry = world.database.entry() | {"OPTIONS": {"connect_timeout": 2}}
    with configuration() as path:
        process = await asyncio.create_subprocess_exec(
            *("unshare", "--mount", "/bin/sh", "-c", RUN, path),
            *(sys.executable, "-m", "tests.faults.resolving", json.dumps(entry), HOST),
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(output)
    assert found["error"] == OperationalError.__name__, found
    assert found["beats"] > 20, "the loop was blocked"
    assert found["then"] == 0
    world.row.took(found["seconds"])
    world.row.note(f"`{found['error']}`")
    return found


@fault("host name unknown", deadline=2)
async def test_unknown(world: World) -> None:
    async with resolver(silent=False) as asked:
        found = await ask(world)
        assert asked.asked
    assert HOST in found["text"]


@fault("resolver does not answer, connect_timeout 2", deadline=4)
async def test_no_answer(world: World) -> None:
    async with resolver(silent=True) as asked:
        found = await ask(world)
        assert asked.asked
    assert HOST in found["text"]
