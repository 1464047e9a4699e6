"""What the server process says of itself, and its log as lines that can be judged."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from nuages import background, bridge
from nuages.cache.loops import open_clients
from nuages.db.pool import open_pools
from tests.soak.kinds import ON_PURPOSE

_PAGE = os.sysconf("SC_PAGE_SIZE")


_noted: weakref.WeakSet[Any] = weakref.WeakSet()


class NotedGreenlet(bridge.greenlet):  # type: ignore[misc]
    """The bridge's, counted: the garbage collector does not show those that gc.freeze() hid."""

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        _noted.add(self)


bridge.greenlet = NotedGreenlet


class JsonLines(logging.Formatter):
    """One line for a record, with the class of its exception: all else is no record."""

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        errors = ",".join(sorted(classes(error))) if error is not None else None
        line = {
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "errors": errors,
        }
        if record.exc_info and errors != ON_PURPOSE:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def classes(error: BaseException | None) -> set[str]:
    """The names of an exception's class, or of the classes of a group's exceptions."""
    if isinstance(error, BaseExceptionGroup):
        return set().union(*map(classes, error.exceptions))
    return {type(error).__name__}


def resident() -> int:
    """The resident size of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def gauges() -> dict[str, Any]:
    """Count what may be left behind, after a collection.

    A greenlet that waits for its next call is a reserve, and counts apart from those at work; so
    does a connection to the cache, which is kept once there was need of it.
    """
    gc.collect()
    reserve = len(bridge._idle.greenlets)
    caches = [pool.stats() for client in open_clients() for pool in client.pools()]
    return {
        "time": time.monotonic(),
        "rss": resident(),
        "processor": time.process_time(),
        "tasks": len(asyncio.all_tasks()),
        "background": len(background._spawned),
        "bridges": len(bridge._bridges),
        "greenlets": len(_noted) - reserve,
        "reserve": reserve,
        "threads": threading.active_count(),
        "descriptors": len(os.listdir("/proc/self/fd")) - sum(cache["idle"] for cache in caches),
        "cache connections in use": sum(cache["used"] for cache in caches),
        "pools": {pool.alias: pool.stats() for pool in open_pools()},
        "scopes": sum(len(pool.scopes) for pool in open_pools()),
        "objects": len(gc.get_objects()),
    }
