"""libpq's socket as the event loop knows it: by a descriptor of its own.

libpq closes its descriptor itself as soon as it finds the connection lost, in whichever thread it
was called from. The next socket of the process gets that number, and the loop's registration of
the old socket would be taken for the new one's: the new socket's reader would be replaced, and
would never wake again. A duplicate (POSIX `dup`) stays ours until it has left the loop.
"""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress

from nuages.db.backends.base.watched_socket import WatchedSocket


class DuplicatedSocket(WatchedSocket):
    """A duplicate of the descriptor `fd`; the object owns the duplicate."""

    def __init__(self, fd: int) -> None:
        super().__init__(os.dup(fd))
        self._mutex = threading.Lock()

    def shut_down(self) -> None:
        """Shut the socket down, whoever waits for it: every call on it ends with an error.

        Nothing is done in a process that was forked: there the socket is the parent's.
        """
        # A descriptor closed in another thread meanwhile is another file's the next moment.
        with self._mutex:
            if self._fd == -1 or self.is_of_parent:
                return
            alias = socket.socket(fileno=self._fd)
            try:
                with suppress(OSError):  # it is not connected any more
                    alias.shutdown(socket.SHUT_RDWR)
            finally:
                alias.detach()

    def close(self) -> None:
        """Leave the loop and close the duplicate. Idempotent."""
        self.leave()
        with self._mutex:
            fd, self._fd = self._fd, -1
        if fd != -1:
            os.close(fd)

    def __del__(self) -> None:
        # It is in no loop: registered with one, it would be alive.
        if getattr(self, "_fd", -1) != -1:
            os.close(self._fd)
