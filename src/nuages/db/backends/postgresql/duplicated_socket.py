"""libpq's socket as the event loop knows it: by a descriptor of its own.

libpq closes its descriptor itself as soon as it finds the connection lost, in whichever thread it
was called from. The next socket of the process gets that number, and what was registered with
the loop for the old one would be taken for the new one's: its reader would be replaced, and it
would never wake again. A duplicate (POSIX `dup`) stays ours until it has left the loop.
"""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress

from nuages.db.backends.base.watched_socket import WatchedSocket


class DuplicatedSocket(WatchedSocket):
    """A duplicate of the descriptor `fd`, which it owns."""

    def __init__(self, fd: int) -> None:
        super().__init__(os.dup(fd))
        self._mutex = threading.Lock()

    def shut_down(self) -> None:
        """Shut the socket down, whoever waits for it: every call on it ends with an error.

        Not in a process that was forked, where it is the parent's.
        """
        # What is closed in another thread meanwhile is another file's descriptor the next moment.
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
        # Registered with a loop it would be alive.
        if getattr(self, "_fd", -1) != -1:
            os.close(self._fd)
