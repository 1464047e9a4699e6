"""Counts what the process hands to thread pools, and which threads it starts."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

submitted = 0
started = 0


def install() -> None:
    """Count from now on."""
    submit, start = ThreadPoolExecutor.submit, threading.Thread.start

    def counted_submit(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        global submitted
        submitted += 1
        return submit(self, *args, **kwargs)

    def counted_start(self: Any) -> None:
        global started
        started += 1
        start(self)

    ThreadPoolExecutor.submit = counted_submit  # type: ignore[method-assign]
    threading.Thread.start = counted_start  # type: ignore[method-assign]
