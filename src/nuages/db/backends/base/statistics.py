"""Process-wide counts of how database statements were waited for.

`bridged` were awaited on the loop, `worker` were handed to SQLite's worker thread, `blocked`
blocked a thread whose event loop was running. The last count should be 0: it is kept so that a
test, a watchdog or a curious reader can see it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Statistics:
    """Counts since the process started or `reset()` was called."""

    bridged: int = 0
    worker: int = 0
    blocked: int = 0

    def reset(self) -> None:
        """Set every count to zero."""
        self.bridged = self.worker = self.blocked = 0


statistics = Statistics()
