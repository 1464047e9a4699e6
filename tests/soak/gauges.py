"""What the server process says of itself, and its log as lines that can be judged."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType, ModuleType, TracebackType
from typing import Any

from nuages.bridge import core as bridge
from nuages.bridge import tasks
from nuages.cache.loops import open_clients
from nuages.db.pool.pool import open_pools
from tests.soak.errors import classes
from tests.soak.kinds import ON_PURPOSE, SQLITE_FILE

_PAGE = os.sysconf("SC_PAGE_SIZE")
FEW_TASKS = 6
"""With fewer tasks than this nobody asks but who measures."""
WAITING = ("concurrent/futures/thread.py", "sqlite3/worker.py")
"""Where threads wait for work."""
FEW_WAYS = 5
"""So many of the ways to what keeps a greenlet are told."""

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


def resident() -> int:
    """The resident size of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def _greenlets_left() -> list[str]:
    """Say of each greenlet, but the idle ones and the request's own, where it waits or what
    keeps it."""
    here = bridge.bridge_of(asyncio.current_task())  # type: ignore[arg-type]
    assert here is not None
    known = {id(item) for item in (*bridge._idle.greenlets, here.greenlet)}
    return list(map(_why, (found for found in _noted if id(found) not in known)))


def _why(found: Any) -> str:
    if (frame := found.gr_frame) is not None:
        return "".join(traceback.format_stack(frame, 12))
    return f"ended, and {_kept_by(found)}"


def _kept_by(found: Any) -> str:
    """Tell the shortest ways to `found` from what keeps it.

    An exception that somebody keeps holds its frames, and each of those many things: so it is the
    first holders that nothing else refers to that tell (C code keeps them, or a module).
    """
    known: dict[int, Any] = {id(found): found}
    inner_of: dict[int, int] = {}
    ways: list[str] = []
    layer = [found]
    own = {id(known)}
    while layer and len(ways) < FEW_WAYS:
        own.add(id(layer))
        holders = gc.get_referrers(*layer)
        own.add(id(holders))
        inner = {id(item) for item in layer}
        held, layer = set(), []
        for holder in holders:
            if id(holder) in own or _is_own(holder):
                continue
            of = inner.intersection(map(id, gc.get_referents(holder)))
            held |= of
            if of and id(holder) not in known:
                known[id(holder)] = holder
                inner_of[id(holder)] = of.pop()
                if type(holder) is not ModuleType:
                    layer.append(holder)
        ways += [_way(key, known, inner_of) for key in inner - held]
    return "kept by\n" + "\nand by\n".join(ways[:FEW_WAYS])


def _errors_kept() -> list[str]:
    """Say of each exception that was raised and is still there what keeps it."""
    found = [
        item
        for item in gc.get_objects()
        if issubclass(type(item), BaseException) and item.__traceback__ is not None
    ]
    texts = []
    while found:
        item = found.pop()  # or the list would be one that keeps it
        texts.append(f"{type(item).__name__}, {_kept_by(item)}")
    return texts


def _threads_at_work() -> list[str]:
    """Where the threads are that neither run the loop nor wait for something to do."""
    here = threading.get_ident()
    return [
        "".join(traceback.format_stack(frame, 12))
        for thread, frame in sys._current_frames().items()
        if thread != here and not frame.f_code.co_filename.endswith(WAITING)
    ]


def _is_own(holder: Any) -> bool:
    """Whether it is one of the search's own frames and iterators."""
    kind: Any = type(holder)  # and not `__class__`, which Django's lazy objects answer otherwise
    return issubclass(kind, Iterator) or (
        kind is FrameType and holder.f_code.co_filename == __file__
    )


def _way(key: int, known: dict[int, Any], inner_of: dict[int, int]) -> str:
    lines = []
    while True:
        item = known[key]
        kind: Any = type(item)
        if kind is not TracebackType:
            text = repr(item) if kind is FrameType else f"{kind.__module__}.{kind.__qualname__}"
            text += f" of {', '.join(map(str, item))}" if kind is dict else ""
            lines.append(f"  {text[:200]}")
        if key not in inner_of:
            return "\n".join(lines)
        key = inner_of[key]


def _descriptors() -> int:
    """How many are open, but for those of a database file.

    While one connection has a lock, SQLite keeps the descriptors of others that were closed, and
    opens the next connections with them ("Posix Advisory Locks Are Broken" in its os_unix.c).
    """
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            count += not os.readlink(f"/proc/self/fd/{name}").endswith(SQLITE_FILE)
    return count


def gauges() -> dict[str, Any]:
    """Count what may be left behind, after a collection.

    A greenlet that waits for its next call is a reserve, and counts apart from those at work; so
    does a connection to the cache, which is kept once there was need of it.
    """
    gc.collect()
    reserve = len(bridge._idle.greenlets)
    quiet = len(asyncio.all_tasks()) < FEW_TASKS
    caches = [pool.stats() for client in open_clients() for pool in client.pools()]
    return {
        "time": time.monotonic(),
        "rss": resident(),
        "processor": time.process_time(),
        "tasks": len(asyncio.all_tasks()),
        "background": len(tasks._spawned),
        "bridges": len(bridge._bridges),
        "greenlets": len(_noted) - reserve,
        "greenlets left": _greenlets_left() if quiet and len(_noted) - reserve > 1 else [],
        "errors kept": _errors_kept() if quiet else [],
        "threads at work": _threads_at_work() if quiet else [],
        "reserve": reserve,
        "threads": threading.active_count(),
        "descriptors": _descriptors() - sum(cache["idle"] for cache in caches),
        "cache connections in use": sum(cache["used"] for cache in caches),
        "pools": {pool.alias: pool.stats() for pool in open_pools()},
        "scopes": sum(len(pool.scopes) for pool in open_pools()),
        "objects": len(gc.get_objects()),
    }
