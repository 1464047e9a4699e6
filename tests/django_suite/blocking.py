"""Finds database calls that block the event loop's own thread, whatever the backend says of
itself.

Owns the independent witness against the backends' own count. It watches the places where the
drivers really wait:

- psycopg: every function of ``psycopg.waiting`` that blocks on a socket, and ``cancel()``, which
  opens a connection of its own. A wait counts when its generator asks to wait at all: one that has
  its answer already does not block;
- PyMySQL: what it does with a socket that blocks, and every `select.poll()` that it, or Nuages on
  its behalf, waits in. A socket that never blocks, awaited by the loop, is not noted;
- sqlite3: opening a file, and every statement, through the trace callback, which SQLite calls in
  the thread that executes the statement;
- redis-py's sync client: connecting, sending and reading.

Only the loop's thread counts, and only while the loop runs the suite: threads that tests start
block as they please. A call made straight from a test's own file into a driver (a test that opens
its own connection with psycopg or sqlite3) is the test's doing and is not counted.
"""

import functools
import select
import socket
import sqlite3
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from nuages.test import blocking

MOST_STACKS = 10
STACK_DEPTH = 25

_SOCKET_CALLS = ("connect", "recv", "recv_into", "send", "sendall")
_OUR_BACKEND = "/nuages/db/backends/mysql/"


class BlockingWatch:
    """Counts blocking database calls on one thread, and keeps the stacks of the first few."""

    def __init__(self, suite: Path, report: Callable[[str], None]) -> None:
        self.blocked = 0
        self._suite = f"{suite}/"
        self._report = report
        self._thread: int | None = None
        self._transparent = {__file__, sqlite3.__file__, sqlite3.dbapi2.__file__}
        self._driver_folders: list[str] = []

    def install(self, *, psycopg: bool, redis: bool = False, pymysql: bool = False) -> None:
        """Wrap the drivers' blocking calls; must come before anything imports them by name."""
        self._watch_sqlite()
        if redis:
            self._watch_redis()
        if psycopg:
            self._watch_psycopg()
        if pymysql:
            self._watch_pymysql()

    def start(self) -> None:
        """Count from now on, on the calling thread."""
        self._thread = threading.get_ident()

    def stop(self) -> None:
        """Count no longer."""
        self._thread = None

    def note(self, what: str) -> None:
        """Count one blocking call if it is made on the watched thread."""
        if threading.get_ident() != self._thread:
            return
        frame = sys._getframe(1)
        if self._is_the_tests_own(frame):
            return
        self.blocked += 1
        if self.blocked <= MOST_STACKS:
            lines = traceback.format_stack(frame, limit=STACK_DEPTH)
            self._report(f"{what}\n{''.join(lines)}")

    def _is_the_tests_own(self, frame: FrameType | None) -> bool:
        while frame is not None:
            name = frame.f_code.co_filename
            inside = name in self._transparent or name.startswith(tuple(self._driver_folders))
            if not inside:
                return name.startswith(self._suite)
            frame = frame.f_back
        return False

    def _watch_pymysql(self) -> None:
        import pymysql  # type: ignore[import-untyped]

        self._driver_folders.append(f"{Path(pymysql.__file__).parent}/")
        for name in _SOCKET_CALLS:
            setattr(socket.socket, name, self._watched_socket_call(name))
        original_poll = select.poll

        class Poll:
            """A poll that is noted where it waits for a database."""

            def __init__(poll) -> None:
                poll._poll = original_poll()

            def __getattr__(poll, name: str) -> Any:
                return getattr(poll._poll, name)

            def poll(poll, timeout: float | None = None) -> Any:
                ready = poll._poll.poll(0)
                if ready or timeout == 0:
                    return ready
                if self._is_a_drivers():
                    self.note("select.poll")
                return poll._poll.poll(timeout)

        select.poll = Poll  # type: ignore[assignment]

    def _watched_socket_call(self, name: str) -> Callable[..., Any]:
        original = getattr(socket.socket, name)

        @functools.wraps(original)
        def call(sock: socket.socket, *arguments: Any) -> Any:
            if self._is_here() and sock.gettimeout() != 0.0 and self._is_a_drivers():
                self.note(f"socket.{name}")
            return original(sock, *arguments)

        return call

    def _is_a_drivers(self) -> bool:
        """Whether the calling code is PyMySQL, or Nuages' use of it."""
        frame: FrameType | None = sys._getframe(2)
        for _ in range(12):
            if frame is None:
                return False
            name = frame.f_code.co_filename
            if name.startswith(tuple(self._driver_folders)) or _OUR_BACKEND in name:
                return True
            frame = frame.f_back
        return False

    def _watch_psycopg(self) -> None:
        import psycopg

        self._driver_folders += [f"{Path(psycopg.__file__).parent}/", blocking.__file__]
        for owner, name, watched in list(blocking.psycopg_waits(self._is_here, self.note)):
            setattr(owner, name, watched)

    def _is_here(self) -> bool:
        return threading.get_ident() == self._thread

    def _watch_redis(self) -> None:
        from redis import connection

        self._driver_folders.append(f"{Path(connection.__file__).parent}/")
        for name in ("connect", "send_packed_command", "read_response"):
            original = getattr(connection.AbstractConnection, name)
            watched = self._watched_call(original, f"redis.Connection.{name}")
            setattr(connection.AbstractConnection, name, watched)

    def _watched_call(self, original: Callable[..., Any], what: str) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*arguments: Any, **options: Any) -> Any:
            self.note(what)
            return original(*arguments, **options)

        return call

    def _watch_sqlite(self) -> None:
        original = sqlite3.connect

        @functools.wraps(original)
        def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
            self.note("sqlite3.connect")
            connection: sqlite3.Connection = original(*arguments, **options)
            connection.set_trace_callback(self._trace)
            return connection

        sqlite3.connect = sqlite3.dbapi2.connect = connect  # type: ignore[assignment]

    def _trace(self, statement: str) -> None:
        if not statement.startswith("-- "):  # a trigger's inner statement: its outer one counts
            self.note(f"sqlite3: {statement[:500]}")
