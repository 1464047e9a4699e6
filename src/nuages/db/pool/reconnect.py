"""Trying again to open a connection: `OPTIONS["pool"]["reconnect_timeout"]`."""

from __future__ import annotations

import asyncio
import errno
import random
import time
from collections.abc import Callable, Iterator

from nuages.bridge import current_bridge

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0

UNREACHABLE = (
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ENOENT,
    errno.ETIMEDOUT,
)
"""System errors that mean that a server is away, so that trying again may help."""


def pauses(timeout: float, clock: Callable[[], float] = time.monotonic) -> Iterator[float]:
    """Yield the seconds before each further attempt, growing, until `timeout` has gone by.

    They are spread by a fifth, so that many clients of a starting server do not come at once.
    """
    end = clock() + timeout
    pause = FIRST_PAUSE
    while (rest := end - clock()) > 0:
        yield min(pause * random.uniform(0.8, 1.2), rest)  # noqa: S311 - a pause
        pause = min(pause * 2, LONGEST_PAUSE)


def sleep(seconds: float) -> None:
    """Wait: in a bridge by awaiting, which a cancellation ends; elsewhere in the thread."""
    bridge = current_bridge()
    if bridge is None:
        time.sleep(seconds)
    else:
        bridge.wait(asyncio.sleep(seconds))
