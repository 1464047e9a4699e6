"""The threads that hash passwords: as many as there are cores.

A hash takes a core for a good part of a second, without the interpreter's lock. More hashes at
once than there are cores would end no sooner, and the loop's thread would wait longer for a core.
They have threads of their own, so that no other work for threads (a file, a mail) waits behind.
Further hashes wait here, first come, first served; one whose request is cancelled is dropped.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from nuages.bridge.threads import in_thread_of

T = TypeVar("T")

_lock = threading.Lock()
_executor: ThreadPoolExecutor | None = None


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def hashing_threads() -> ThreadPoolExecutor:
    """Return the process's executor for hashing; it is made when first used."""
    global _executor
    with _lock:
        if _executor is None:
            _executor = ThreadPoolExecutor(cores(), thread_name_prefix="nuages-hashing")
        return _executor


async def in_hashing_thread(hasher: object, function: Callable[[], T]) -> T:
    """Call a method of `hasher` in one of the threads for hashing.

    All else is as in `bridge.threads.in_thread`.
    """
    return await in_thread_of(hashing_threads(), function)


def _forked() -> None:
    """Forget the executor: threads do not live on in a child process."""
    global _executor, _lock
    _executor, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
