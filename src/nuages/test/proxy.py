"""A TCP proxy that fails on purpose, before any server: a database, a cache, an HTTP service.

It knows no protocol, only connections and pieces of bytes. It runs on the test's own event loop,
so that events in the proxy and in the code under test have an order that a test can rely on, and a
test can await what it needs: that a connection was accepted, that a piece is kept.

It is modelled on psycopg's `fix_proxy`, which stands before its pool's tests.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from types import TracebackType
from typing import Literal

Direction = Literal["both", "to_server", "to_client"]

_PIECE = 65536
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on, 0 seconds: closing sends RST instead of FIN."""


class _Way:
    """One direction of a connection."""

    def __init__(
        self, to: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.to = to
        self.reader = reader
        self.writer = writer
        self.gate: asyncio.Event | None = None
        """The event that a stalled way waits for; None where it is not stalled."""


class FaultProxy:
    """A TCP proxy on 127.0.0.1 before `host`:`port` that fails when it is told to.

    `async with FaultProxy(host, port) as proxy:` listens on `proxy.port` (that of the argument
    `listen`, by default a free one) until the block ends, which cuts every connection. Use it on
    one event loop; code that blocks this loop's thread can get no answer through the proxy.
    """

    def __init__(self, host: str, port: int, *, listen: int = 0) -> None:
        self.target = (host, port)
        """Where new connections go. Set it to switch over; `cut()` ends connections to the old."""
        self.port = listen
        self.accepted = asyncio.Event()
        """An event set with every connection that is accepted; yours to clear."""
        self.ended = asyncio.Event()
        """An event set with every connection that has ended, on both sides; yours to clear."""
        self.kept = 0
        """How many pieces are kept back now."""
        self._listener: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ways: set[_Way] = set()
        self._stalled: dict[str, asyncio.Event] = {}
        self._triggers: list[tuple[str, bytes]] = []
        self._keeps = asyncio.Event()
        self._trickles = False

    def __repr__(self) -> str:
        return f"<FaultProxy 127.0.0.1:{self.port} to {self.target}: {len(self._tasks)} open>"

    async def __aenter__(self) -> FaultProxy:
        await self.accept()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.refuse()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Faults

    def refuse(self) -> None:
        """Stop listening: new connections are refused, open ones go on."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def accept(self) -> None:
        """Listen (again, after `refuse()`), on the same port. Raises OSError if it is taken."""
        if self._listener is None:
            self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            self.port = self._listener.sockets[0].getsockname()[1]

    def cut(self, *, reset: bool = False) -> int:
        """End every connection: in order (FIN), or with `reset` at once (RST), on both sides.

        Returns how many there were.
        """
        ways = list(self._ways)
        for way in ways:
            transport = way.writer.transport
            if reset and not transport.is_closing():
                connected: socket.socket = transport.get_extra_info("socket")
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            transport.abort()
        return len(ways) // 2

    def stall(self, direction: Direction = "both", *, at: bytes = b"", new: bool = True) -> None:
        """Let nothing pass any more, not even ends of connections; keep all until `resume()`.

        Without `at`, on every connection, and with `new` also on later ones. With `at`, on the
        first connection on which the client sends a piece with these bytes: towards the server
        that piece is the first to be kept, towards the client whatever follows it, the answer.
        (A piece is what arrives at once. The bytes are looked for in one piece, so let them be
        part of something short.)
        """
        self._keeps.clear()
        ways = ("to_server", "to_client") if direction == "both" else (direction,)
        if at:
            self._triggers += [(to, at) for to in ways]
            return
        gates = {to: self._stalled.get(to) or asyncio.Event() for to in ways}
        for way in self._ways:
            if way.gate is None and way.to in gates:
                way.gate = gates[way.to]
        if new:
            self._stalled |= gates

    def trickle(self) -> None:
        """Let everything pass byte by byte from now on, each in a packet of its own."""
        self._trickles = True

    def resume(self) -> None:
        """Let what was kept pass, and everything after it as it comes."""
        self._trickles = False
        self._stalled.clear()
        self._triggers.clear()
        for way in self._ways:
            if way.gate is not None:
                way.gate.set()
                way.gate = None

    async def until_kept(self) -> None:
        """Wait until something has been kept back since the last `stall()`."""
        await self._keeps.wait()

    # Serving

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted.set()
        task = asyncio.create_task(self._connect(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self.ended.set()
        if not task.cancelled():
            task.result()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream, out = await asyncio.open_connection(*self.target)
        except OSError:
            return  # the server is away
        else:
            await self._carry(reader, writer, upstream, out)
        finally:
            writer.transport.abort()

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        upstream: asyncio.StreamReader,
        out: asyncio.StreamWriter,
    ) -> None:
        there, back = _Way("to_server", reader, out), _Way("to_client", upstream, writer)
        for way in (there, back):
            connected: socket.socket = way.writer.transport.get_extra_info("socket")
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            way.gate = self._stalled.get(way.to)
        self._ways |= {there, back}
        pumps = [
            asyncio.create_task(self._pump(there, back)),
            asyncio.create_task(self._pump(back, None)),
        ]
        try:
            # Where one side has closed, nothing is left to be said: no half-open connections.
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._ways -= {there, back}
            out.transport.abort()
            for pump in pumps:
                pump.cancel()
            ends = await asyncio.gather(*pumps, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception):
                raise end

    async def _pump(self, way: _Way, back: _Way | None) -> None:
        with suppress(OSError):
            while True:
                piece = await way.reader.read(_PIECE)
                if back is not None and piece:
                    self._pull_triggers(piece, way, back)
                while way.gate is not None:
                    await self._keep(way.gate)
                if not piece:
                    way.writer.close()
                    await way.writer.wait_closed()
                    return
                await (self._drop_by_drop if self._trickles else self._pass)(way.writer, piece)

    def _pull_triggers(self, piece: bytes, there: _Way, back: _Way) -> None:
        pulled = [(to, at) for to, at in self._triggers if at in piece]
        for to, at in pulled:
            self._triggers.remove((to, at))
            way = there if to == "to_server" else back
            if way.gate is None:
                way.gate = asyncio.Event()

    async def _keep(self, gate: asyncio.Event) -> None:
        self.kept += 1
        self._keeps.set()
        try:
            await gate.wait()
        finally:
            self.kept -= 1

    async def _pass(self, writer: asyncio.StreamWriter, piece: bytes) -> None:
        writer.write(piece)
        await writer.drain()

    async def _drop_by_drop(self, writer: asyncio.StreamWriter, piece: bytes) -> None:
        for position in range(len(piece)):
            await self._pass(writer, piece[position : position + 1])
            # A reader on this loop gets this byte alone: it looks before the second turn.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
