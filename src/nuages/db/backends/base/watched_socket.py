"""A connection's socket as the event loop knows it: registered while the pool keeps it.

Because the socket is registered all the time, a wait costs no system call, and a connection that
the server closes is noticed while it is idle.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import select
from collections.abc import Callable


class WatchedSocket:
    """The descriptor `fd` of a socket, registered with at most one loop.

    The socket must leave the loop before its owner closes it. All but making a `WatchedSocket` is
    done on the thread of that loop.
    """

    def __init__(self, fd: int) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        """The loop that the socket is registered with for reading."""
        self._fd = fd
        self._process = os.getpid()
        self._writing: asyncio.AbstractEventLoop | None = None
        self._errors: select.poll | None = None

    def watch(self, loop: asyncio.AbstractEventLoop, readable: Callable[[], None]) -> None:
        """Have `loop` call `readable` whenever there is something to read."""
        self.unwatch()
        # The registration may outlive the caller, whose context it must not keep alive.
        contextvars.Context().run(loop.add_reader, self._fd, readable)
        self.loop = loop
        if not isinstance(loop, asyncio.SelectorEventLoop):
            # uvloop drops the reader of a socket that is in error after one call, and what is
            # still to be read, the end of the stream at least, would never wake us.
            self._errors = select.poll()
            self._errors.register(self._fd, 0)

    def unwatch(self) -> None:
        """Undo `watch`, if need be."""
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

    @property
    def is_of_parent(self) -> bool:
        """Tell whether this process was forked since, so that the socket is its parent's."""
        return self._process != os.getpid()

    def _may_leave(self, loop: asyncio.AbstractEventLoop) -> bool:
        # A process that was forked shares the registrations (of epoll) with its parent.
        return not (loop.is_closed() or self._process != os.getpid())

    def is_in_error(self) -> bool:
        """Tell whether the loop may call no more, though something is left to be read."""
        return self._errors is not None and bool(self._errors.poll(0))

    def leave(self) -> None:
        """Undo all registrations, which must be done before the descriptor is closed."""
        self.unwatch()
        self.unwatch_writing()
