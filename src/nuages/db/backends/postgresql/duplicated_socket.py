"""libpq's socket as the event loop knows it: by a descriptor of its own.

libpq closes its descriptor itself as soon as it finds the connection lost, in whichever thread it
was called from. The next socket of the process gets that number, and what was registered with
the loop for the old one would be taken for the new one's: its reader would be replaced, and it
would never wake again. A duplicate (POSIX `dup`) stays ours until it has left the loop.
"""

from __future__ import annotations

import os

from nuages.db.backends.base.watched_socket import WatchedSocket


class DuplicatedSocket(WatchedSocket):
    """A duplicate of the descriptor `fd`, which it owns."""

    def __init__(self, fd: int) -> None:
        super().__init__(os.dup(fd))

    def close(self) -> None:
        """Leave the loop and close the duplicate. Idempotent."""
        self.leave()
        fd, self._fd = self._fd, -1
        if fd != -1:
            os.close(fd)

    def __del__(self) -> None:
        # Registered with a loop it would be alive.
        if getattr(self, "_fd", -1) != -1:
            os.close(self._fd)
