"""Many open event streams on one worker with a pool of 5.

`make streams` opens 2,000 and prints the figures.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from psycopg.conninfo import conninfo_to_dict

from tests import services

STREAMS = int(os.environ.get("NUAGES_STREAMS", "500"))
EVENTS = 3
ROOT = Path(__file__).parents[2]


@pytest.fixture
def site(postgres_url: str) -> Iterator[int]:
    """Serve the site by uvicorn; gives its port."""
    needed = 2 * STREAMS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"{needed} file descriptors are needed, and the limit here is {hard}")
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    with services.fresh_database(postgres_url) as url:
        parts = conninfo_to_dict(url)
        environment = os.environ | {
            "STREAMS_DATABASE": str(parts["dbname"]),
            "STREAMS_HOST": str(parts["host"]),
            "STREAMS_PORT": str(parts.get("port", "")),
            "STREAMS_USER": str(parts["user"]),
            "STREAMS_PASSWORD": str(parts.get("password", "")),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        environment.pop("DJANGO_SETTINGS_MODULE", None)
        subprocess.run(
            [
                *(sys.executable, "-c"),
                "import tests.acceptance.streams_site; from django.core.management import "
                "call_command; call_command('migrate', run_syncdb=True, verbosity=0)",
            ],
            env=environment, check=True, timeout=50,
        )  # fmt: skip
        listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "uvicorn", "tests.acceptance.streams_site:application"),
                *("--fd", str(listener.fileno()), "--loop", "uvloop", "--no-access-log"),
                *("--lifespan", "on", "--timeout-keep-alive", "600"),
            ],
            env=environment, pass_fds=[listener.fileno()],
        )  # fmt: skip
        port = listener.getsockname()[1]
        listener.close()
        yield port
        server.terminate()
        assert server.wait(30) in (0, -signal.SIGTERM)  # uvicorn ends by the signal it got
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Client:
    """A connection that says what it is given, and reads."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Client:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.writer.close()
        await self.writer.wait_closed()

    async def get(self, path: str) -> bytes:
        """Send a GET; return the head of the response."""
        self.writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        head = await self.reader.readuntil(b"\r\n\r\n")
        assert b"200" in head.splitlines()[0], head
        return head

    async def json(self, path: str) -> Any:
        import json

        head = await self.get(path)
        (length,) = (
            int(line.split(b":")[1])
            for line in head.splitlines()
            if line.lower().startswith(b"content-length:")
        )
        return json.loads(await self.reader.readexactly(length)) if length else None

    async def until(self, text: bytes) -> None:
        await self.reader.readuntil(text)


async def seconds(client: Client) -> float:
    begun = time.perf_counter()
    await client.json("/ordinary/")
    return time.perf_counter() - begun


async def listen(client: Client) -> None:
    await client.__aenter__()
    head = await client.get("/events/")
    assert b"text/event-stream" in head


async def main(port: int) -> None:
    async with Client(port) as visitor:
        for _ in range(50):
            await seconds(visitor)
        alone = statistics.median([await seconds(visitor) for _ in range(50)])
        before = await visitor.json("/listening/0/")
        clients = [Client(port) for _ in range(STREAMS)]
        for first in range(0, STREAMS, 100):
            await asyncio.gather(*(listen(c) for c in clients[first : first + 100]))
        opened = await visitor.json(f"/listening/{STREAMS}/")
        assert opened["generators"] == STREAMS
        assert opened["used"] == 0
        assert opened["connections"] <= 5
        among = statistics.median([await seconds(visitor) for _ in range(50)])
        for number in range(1, EVENTS + 1):
            await visitor.json(f"/publish/{number}/")
            # While all of them ask for a connection too.
            during = await seconds(visitor)
            await asyncio.gather(*(client.until(f"id: {number}\n".encode()) for client in clients))
        told = await visitor.json(f"/listening/{STREAMS}/")
        assert told["used"] == 0
        assert told["connections"] <= 5
        await asyncio.gather(*(client.__aexit__() for client in clients))
        await visitor.json("/listening/0/")
        # A request that has to wait has a task that listens for its disconnect.
        async with asyncio.timeout(20):
            while (after := await visitor.json("/listening/0/"))["tasks"] > before["tasks"]:
                pass
        assert after["generators"] == 0
        assert after["bridges"] == before["bridges"]
        assert after["used"] == 0
        each = (told["memory"] - before["memory"]) / STREAMS
        print(
            f"\n{STREAMS} open event streams on one worker, pool of 5:"
            f"\n  memory for each        {each / 1024:.1f} KiB"
            f"\n  connections held       {told['used']} (pool: {told['connections']} open)"
            f"\n  tasks for each         {(told['tasks'] - before['tasks']) / STREAMS:.1f}"
            f"\n  an ordinary request    {among / alone:.1f} times as long as with no stream; "
            f"{during / alone:.0f} times while an event goes to all"
        )


@pytest.mark.postgresql
@pytest.mark.timeout(180)
def test_many_streams_with_few_connections(site: int) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(site))
