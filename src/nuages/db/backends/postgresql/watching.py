"""A connection's socket as the event loop knows it: by a descriptor of its own.

libpq closes its descriptor itself as soon as it finds the connection lost, in whichever thread it
was called from. The next socket of the process gets that number, and what was registered with
the loop for the old one would be taken for the new one's: its reader would be replaced, and it
would never wake again. A duplicate (POSIX `dup`) stays ours until it has left the loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import select
from collections.abc import Callable


class WatchedSocket:
    """A duplicate of the descriptor `socket`, registered with at most one loop.

    All but making it is done on the thread of that loop.
    """

    def __init__(self, socket: int) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        """The loop it is registered with for reading."""
        self._fd = os.dup(socket)
        self._process = os.getpid()
        self._writing: asyncio.AbstractEventLoop | None = None
        self._errors: select.poll | None = None

    def watch(self, loop: asyncio.AbstractEventLoop, readable: Callable[[], None]) -> None:
        """Have `loop` call `readable` whenever there is something to read."""
        self.unwatch()
        # It may outlive the caller, whose context it must not keep alive.
        contextvars.Context().run(loop.add_reader, self._fd, readable)
        self.loop = loop
        if not isinstance(loop, asyncio.SelectorEventLoop):
            # uvloop drops the reader of a socket that is in error after one call, and what is
            # still to be read, the end of the stream at least, would never wake us.
            self._errors = select.poll()
            self._errors.register(self._fd, 0)

    def unwatch(self) -> None:
        """Undo `watch`."""
        loop, self.loop = self.loop, None
        self._errors = None
        if loop is not None and self._may_leave(loop):
            loop.remove_reader(self._fd)

    def watch_writing(self, loop: asyncio.AbstractEventLoop, writable: Callable[[], None]) -> None:
        """Have `loop` call `writable` whenever something can be sent."""
        loop.add_writer(self._fd, writable)
        self._writing = loop

    def unwatch_writing(self) -> None:
        """Undo `watch_writing`, if need be."""
        loop, self._writing = self._writing, None
        if loop is not None and self._may_leave(loop):
            loop.remove_writer(self._fd)

    def _may_leave(self, loop: asyncio.AbstractEventLoop) -> bool:
        # A process that was forked shares the registrations (of epoll) with its parent.
        return not loop.is_closed() and self._process == os.getpid()

    def is_in_error(self) -> bool:
        """Whether the loop may call no more, though something is left to be read."""
        return self._errors is not None and bool(self._errors.poll(0))

    def close(self) -> None:
        """Leave the loop and close the duplicate. Idempotent."""
        self.unwatch()
        self.unwatch_writing()
        fd, self._fd = self._fd, -1
        if fd != -1:
            os.close(fd)

    def __del__(self) -> None:
        # Registered with a loop it would be alive.
        if getattr(self, "_fd", -1) != -1:
            os.close(self._fd)
