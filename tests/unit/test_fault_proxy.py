"""`nuages.test.FaultProxy` before a server that answers what it is asked, on both loops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from nuages.test import FaultProxy

PATIENCE = 10.0
Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run_(function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            async with asyncio.timeout(PATIENCE):
                await function()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"tasks were left behind: {left}"

        with asyncio.Runner(debug=True, loop_factory=factory) as runner:
            runner.run(main())

    return run_


class Echo:
    """A server that sends back what it gets, and remembers in which pieces that came."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.came = asyncio.Event()
        self.tasks: set[asyncio.Task[Any]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            while piece := await reader.read(65536):
                self.pieces.append(piece)
                self.came.set()
                writer.write(piece)
                await writer.drain()
        except ConnectionError:
            self.pieces.append(b"reset")
            self.came.set()
        finally:
            writer.close()
            self.tasks.discard(task)


@asynccontextmanager
async def echo() -> AsyncIterator[tuple[Echo, int]]:
    served = Echo()
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0)
    try:
        yield served, server.sockets[0].getsockname()[1]
    finally:
        server.close()
        while served.tasks:
            await asyncio.wait(served.tasks)


class Client:
    """Talks through the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, proxy: FaultProxy) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", proxy.port))

    def say(self, text: bytes) -> None:
        self.writer.write(text)

    async def hear(self, count: int) -> bytes:
        return await self.reader.readexactly(count)

    async def ask(self, text: bytes) -> bytes:
        self.say(text)
        return await self.hear(len(text))

    async def is_cut(self) -> bool:
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.writer.transport.abort()


@asynccontextmanager
async def site() -> AsyncIterator[tuple[Echo, FaultProxy, Client]]:
    async with echo() as (server, port), FaultProxy("127.0.0.1", port) as proxy:
        client = await Client.to(proxy)
        assert await client.ask(b"hello") == b"hello"
        yield server, proxy, client
        client.close()


def test_it_lets_everything_pass(run: Run) -> None:
    async def main() -> None:
        async with site() as (_, proxy, client):
            large = bytes(range(256)) * 20_000
            assert await client.ask(large) == large
            assert proxy.kept == 0

    run(main)


def test_what_is_stalled_is_kept_and_passes_later(run: Run) -> None:
    async def main() -> None:
        async with site() as (server, proxy, client):
            proxy.stall()
            proxy.accepted.clear()
            late = await Client.to(proxy)
            await proxy.accepted.wait()
            client.say(b"one")
            late.say(b"two")
            await proxy.until_kept()
            while proxy.kept != 2:  # noqa: ASYNC110
                await asyncio.sleep(0)
            assert server.pieces == [b"hello"]
            proxy.resume()
            assert await client.hear(3) == b"one"
            assert await late.hear(3) == b"two"
            assert await client.ask(b"three") == b"three"
            assert proxy.kept == 0
            late.close()

    run(main)


def test_the_answers_alone_are_stalled(run: Run) -> None:
    async def main() -> None:
        async with site() as (server, proxy, client):
            proxy.stall("to_client")
            server.came.clear()
            client.say(b"one")
            await server.came.wait()
            await proxy.until_kept()
            assert server.pieces == [b"hello", b"one"]
            proxy.resume()
            assert await client.hear(3) == b"one"

    run(main)


def test_new_connections_may_go_on(run: Run) -> None:
    async def main() -> None:
        async with site() as (server, proxy, client):
            proxy.stall("to_server", new=False)
            client.say(b"one")
            await proxy.until_kept()
            late = await Client.to(proxy)
            assert await late.ask(b"two") == b"two"
            assert server.pieces == [b"hello", b"two"]
            late.close()

    run(main)


@pytest.mark.parametrize(
    ("direction", "arrived"), [("to_server", [b"hello"]), ("to_client", [b"hello", b"a COMMIT"])]
)
def test_a_stall_at_a_piece(run: Run, direction: Any, arrived: list[bytes]) -> None:
    async def main() -> None:
        async with site() as (server, proxy, client):
            other = await Client.to(proxy)
            proxy.stall(direction, at=b"COMMIT")
            assert await client.ask(b"one") == b"one"
            server.pieces.remove(b"one")
            client.say(b"a COMMIT")
            await proxy.until_kept()
            assert server.pieces == arrived
            assert await other.ask(b"no COMMIT") == b"no COMMIT"
            proxy.resume()
            assert await client.hear(8) == b"a COMMIT"
            other.close()

    run(main)


def test_the_end_of_a_connection_is_kept_as_well(run: Run) -> None:
    async def main() -> None:
        async with site() as (server, proxy, client):
            proxy.stall()
            client.writer.close()
            await proxy.until_kept()
            assert server.tasks
            proxy.ended.clear()
            proxy.resume()
            await proxy.ended.wait()

    run(main)


@pytest.mark.parametrize("reset", [False, True])
def test_cut(run: Run, reset: bool) -> None:
    async def main() -> None:
        async with site() as (server, proxy, client):
            server.came.clear()
            proxy.ended.clear()
            assert proxy.cut(reset=reset) == 1
            if reset:
                with pytest.raises(ConnectionResetError):
                    await client.reader.read(1)
                await server.came.wait()
                assert server.pieces[-1] == b"reset"
            else:
                assert await client.is_cut()
            await proxy.ended.wait()
            again = await Client.to(proxy)
            assert await again.ask(b"again") == b"again"
            again.close()

    run(main)


def test_byte_by_byte(run: Run) -> None:
    async def main() -> None:
        async with site() as (server, proxy, client):
            proxy.trickle()
            client.say(b"slowly")
            heard = [await client.reader.read(100) for _ in range(6)]
            assert heard == [b"s", b"l", b"o", b"w", b"l", b"y"]
            assert server.pieces == [b"hello", *heard]
            proxy.resume()
            client.say(b"at once")
            assert await client.reader.read(100) == b"at once"

    run(main)


def test_refused_and_accepted_again(run: Run) -> None:
    async def main() -> None:
        async with site() as (_, proxy, client):
            for _ in range(2):
                proxy.refuse()
                with pytest.raises(ConnectionRefusedError):
                    await Client.to(proxy)
                assert await client.ask(b"open") == b"open"
                await proxy.accept()
                again = await Client.to(proxy)
                assert await again.ask(b"again") == b"again"
                again.close()

    run(main)


def test_another_target(run: Run) -> None:
    async def main() -> None:
        async with site() as (first, proxy, client), echo() as (second, port):
            proxy.target = ("127.0.0.1", port)
            assert await client.ask(b"old") == b"old"
            late = await Client.to(proxy)
            assert await late.ask(b"new") == b"new"
            assert (first.pieces[-1], second.pieces) == (b"old", [b"new"])
            late.close()

    run(main)


def test_a_server_that_is_away_ends_the_connection(run: Run) -> None:
    async def main() -> None:
        async with site() as (_, proxy, client):
            gone = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
            port = gone.sockets[0].getsockname()[1]
            gone.close()
            await gone.wait_closed()
            proxy.target = ("127.0.0.1", port)
            late = await Client.to(proxy)
            assert await late.is_cut()
            assert await client.ask(b"open") == b"open"
            late.close()

    run(main)
