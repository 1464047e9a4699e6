"""A socket that never blocks, its buffer, and the two ways to wait for it.

PyMySQL reads from a file and writes to a socket. Both are this object, which PyMySQL is given as
its socket. On a loop the socket stays registered while its connection is in the pool, so waiting
costs no system call and a server that closes is noticed; data that arrives while somebody waits is
taken over at once. Without a loop the wait is in `poll()`. A connection can be used in both ways.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from nuages.bridge import Bridge
from nuages.db.backends.base.watched_socket import WatchedSocket

_CHUNK = 65536


class Transport:
    """A connected, non-blocking socket, TLS or not, with what was read from it."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self.sock: socket.socket | None = connected
        self.data = b""
        self.position = 0
        """Where in `data` the next byte to read is; what arrived later is in the chunks."""
        self.eof = False
        self.unwatched: Callable[[], None] | None = None
        """A function called on the loop when data, or the end, arrives while nobody waits."""
        self._chunks: list[bytes] = []
        self._chunked = 0
        self._error: Exception | None = None
        self._wants_write = False
        self._takes = True
        self._ready = False
        self._fd = connected.fileno()
        self._watched = WatchedSocket(self._fd)
        self._future: asyncio.Future[None] | None = None

    # What PyMySQL asks of a socket

    def settimeout(self, seconds: float | None) -> None:
        """Do nothing: each wait has its own timeout."""

    def makefile(self, mode: str) -> Transport:
        """Return this object: PyMySQL only closes its file, the reading is ours."""
        return self

    # The buffer

    def available(self) -> int:
        """Return how many bytes can be read without waiting."""
        return len(self.data) - self.position + self._chunked

    def take(self, count: int) -> bytes:
        """Return `count` bytes, which must be available."""
        end = self.position + count
        if end > len(self.data):
            self.data = b"".join((self.data[self.position :], *self._chunks))
            self._chunks.clear()
            self._chunked, self.position, end = 0, 0, count
        data = self.data[self.position : end]
        self.position = end
        return data

    def receive(self) -> bool:
        """Take over what has arrived; tell whether that was anything, the end included.

        Raises OSError where the connection broke.
        """
        if self.sock is None:
            self.eof = True
            return True
        self._wants_write = False
        try:
            chunk = self.sock.recv(_CHUNK)
            while isinstance(self.sock, ssl.SSLSocket) and chunk and self.sock.pending():
                self._add(chunk)
                chunk = self.sock.recv(_CHUNK)
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError):
            return False
        except ssl.SSLWantWriteError:
            self._wants_write = True
            return False
        except ssl.SSLEOFError:
            chunk = b""
        if chunk:
            self._add(chunk)
        else:
            self.eof = True
        return True

    def _add(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._chunked += len(chunk)

    def send(self, data: memoryview) -> int:
        """Send what fits; return how many bytes that was, 0 where the caller must wait first."""
        if self.sock is None:
            raise BrokenPipeError("the connection was closed")
        try:
            return self.sock.send(data)
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0

    # TLS

    def begin_tls(self, context: ssl.SSLContext, server_hostname: str | None) -> ssl.SSLSocket:
        """Put TLS on the socket; the handshake is still to be done (`handshake`)."""
        if self.available() or self.sock is None:
            # Data sent in clear before the handshake may be anybody's.
            raise ConnectionAbortedError("the server sent data before the TLS handshake")
        self.detach()
        secure = context.wrap_socket(
            self.sock, server_hostname=server_hostname, do_handshake_on_connect=False
        )
        self.sock = secure
        return secure

    def handshake(self, secure: ssl.SSLSocket, wait: Callable[[bool], None]) -> None:
        """Do the TLS handshake; `wait(writing)` waits for the socket."""
        self._takes = False
        try:
            while True:
                try:
                    secure.do_handshake()
                    return
                except ssl.SSLWantReadError:
                    wait(False)
                except ssl.SSLWantWriteError:
                    wait(True)
        finally:
            self._takes = True

    # Waiting

    def wait_in_thread(self, writing: bool, timeout: float | None) -> bool:
        """Block until the socket is ready, and take over what arrived; False past `timeout`."""
        if self.sock is None:
            raise ConnectionAbortedError("the connection was closed")
        writing = writing or self._wants_write
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT if writing else select.POLLIN)
        if not poll.poll(None if timeout is None else max(timeout, 0.0) * 1000):
            return False
        if not writing and self._takes:
            self.receive()
        return True

    def wait_on_loop(self, bridge: Bridge, writing: bool, timeout: float | None) -> bool:
        """Await until the socket is ready, and take over what arrived; False past `timeout`.

        Raises OSError where the connection broke, and whatever interrupts the wait.
        """
        loop = bridge.loop
        self.attach(loop)
        future = self._future = loop.create_future()
        timer = None if timeout is None else loop.call_later(max(timeout, 0.0), wake, future)
        self._ready = False
        if writing or self._wants_write:
            self._watched.watch_writing(loop, self._writable)
        try:
            bridge.wait(future)
        finally:
            self._future = None
            if timer is not None:
                timer.cancel()
            self._watched.unwatch_writing()
        if self._error is not None:
            error, self._error = self._error, None
            try:
                raise error
            finally:
                del error  # which refers to this frame
        if self.sock is None:
            raise ConnectionAbortedError("the connection was closed")
        return self._ready

    def _writable(self) -> None:
        self._ready = True
        if self._future is not None:
            wake(self._future)

    def _readable(self) -> None:
        future = self._future
        if future is None:
            self._notice()
            return
        if not self._takes:
            self.detach()  # or this would be called over and over until the handshake reads
            self._ready = True
            wake(future)
            return
        try:
            self._ready = self.receive() or self._wants_write
        except Exception as error:
            self._error = error
            self._ready = True
        if self.eof or self._error is not None or self._watched.is_in_error():
            self.detach()
        if self._ready:
            wake(future)

    def _notice(self) -> None:
        """Unregister a socket that has data, or the end, for nobody; report it (`unwatched`)."""
        self.detach()
        if self.unwatched is not None:
            self.unwatched()

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Keep the socket registered with `loop` from now on (on the loop's thread)."""
        if self._watched.loop is loop:
            return
        if self.sock is None:
            raise ConnectionAbortedError("the connection was closed")
        self._watched.watch(loop, self._readable)

    def detach(self) -> None:
        """Take the socket out of its loop (on the loop's thread)."""
        self._watched.unwatch()

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that the socket is registered with."""
        return self._watched.loop

    # The end

    def seems_quiet(self) -> bool:
        """Tell whether the socket is open with nothing to read; a look that disturbs nobody."""
        if self.sock is None or self.eof or self.available():
            return False
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return not poll.poll(0)

    def is_quiet(self) -> bool:
        """Tell whether the socket is open and nothing has arrived that was not asked for.

        This reads, so no other thread may be using the connection.
        """
        if self.sock is None or self.eof:
            return False
        if self.seems_quiet():
            return True
        try:
            # The readable data may be TLS's own.
            return not self.receive() and not self.available()
        except OSError:
            return False

    def leave(self) -> None:
        """Take the socket out of its loop for good (on the loop's thread)."""
        self._watched.leave()

    def shut_down(self) -> None:
        """End the connection under a thread that waits for the socket, which stays open."""
        sock = self.sock
        if sock is not None and not self._watched.is_of_parent:
            with suppress(OSError):  # it is not connected any more
                # Not TLS's own shutdown, which takes away parts that a thread is using.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def wake_waiting(self) -> None:
        """Have a waiter on the loop look at what has become of the connection."""
        if self._future is not None:
            wake(self._future)

    def close(self) -> None:
        """Close the socket, which has left its loop and which no other thread uses."""
        closing, self.sock = self.sock, None
        if closing is not None:
            closing.close()
        self.wake_waiting()

    def __getattr__(self, name: str) -> Any:
        # For anything else that an authentication plugin may ask of a socket.
        if self.sock is None:
            raise AttributeError(name)
        return getattr(self.sock, name)


def wake(future: asyncio.Future[None]) -> None:
    """End the wait for `future`, if it has not ended yet."""
    if not future.done():
        future.set_result(None)
