"""Patience with locks: a schema change that gives up its place in the queue and comes again.

An ALTER TABLE that waits for its lock makes every later query of the table wait behind it. With
PostgreSQL's `lock_timeout` it gives up after a moment, those queries go on, and it is tried again
after a pause. A migration in a transaction is rolled back and repeated as a whole. Where there is
no transaction, a statement that did not get its lock did nothing, so it alone is repeated, in
place; in a transaction that the migration opened itself it cannot be repeated, and ends it.

Building or dropping an index CONCURRENTLY holds nobody up while it waits for old transactions, and
leaves an invalid index if stopped in between: it gets no timeout.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from django.db import OperationalError

from nuages.bridge import await_, current_bridge
from nuages.exceptions import MigrationLockTimeout, MigrationNotRepeatable

T = TypeVar("T")

LONGEST_PAUSE = 30.0
_REPEATABLE = frozenset({"55P03", "40P01"})
"""SQLSTATEs: lock_not_available, and deadlock_detected, after which repeating is as good."""
_CONCURRENTLY = re.compile(r"\s*(CREATE|DROP|REINDEX)\b[^;']*\bCONCURRENTLY\b", re.IGNORECASE)


@dataclass(frozen=True)
class Patience:
    """The time that a statement waits for a lock, and how often it is tried again."""

    timeout: float
    """Seconds."""
    retries: int
    say: Callable[[str], None]
    """A function that is told, in a sentence, when something is tried again."""

    def pauses(self) -> Iterator[float]:
        """Yield the seconds before each further try: growing, spread by half to either side."""
        for count in range(self.retries):
            pause = min(self.timeout * 2**count, LONGEST_PAUSE)
            yield pause * random.uniform(0.5, 1.5)  # noqa: S311 - a pause

    def again(self, function: Callable[[], T], migration: str) -> T:
        """Call `function` until it gets its locks; raises MigrationLockTimeout on giving up."""
        pauses = self.pauses()
        while True:
            try:
                return function()
            except OperationalError as error:
                if not lacks_lock(error):
                    raise
                pause = next(pauses, None)
                if pause is None:
                    raise MigrationLockTimeout(
                        migration=migration, timeout=self.timeout, tries=self.retries + 1
                    ) from error
                text = str(error).strip().splitlines()[0]
            self.say(f"{text}; tried again in {pause:.1f} s")
            sleep(pause)


_patience: ContextVar[Patience | None] = ContextVar("nuages.migrations.patience", default=None)


@contextmanager
def patience(timeout: float, retries: int, say: Callable[[str], None]) -> Iterator[None]:
    """Run the migrations of a block with a `lock_timeout` (in seconds) and this many retries."""
    token = _patience.set(Patience(timeout, retries, say))
    try:
        yield
    finally:
        _patience.reset(token)


def lock_timeout() -> float | None:
    """The seconds that a migration's statement may wait for a lock; None for any time."""
    found = _patience.get()
    return None if found is None else found.timeout


def lacks_lock(error: BaseException) -> bool:
    """Tell whether a statement did not get its lock in time, or was chosen to end a deadlock."""
    return getattr(error.__cause__, "sqlstate", None) in _REPEATABLE


def sleep(seconds: float) -> None:
    """Wait: in a bridge by awaiting, while idle connections go back; else in the thread."""
    if current_bridge() is None:
        time.sleep(seconds)
    else:
        await_(asyncio.sleep(seconds))


def repeated(migration: Any, once: Callable[[Callable[[Any], Any]], T]) -> T:
    """Call `once` with a function that makes the state for a try, as often as patience allows.

    Without patience the state is used as it is; a try that is repeated has changed only a copy.
    """
    found = _patience.get()
    if found is None:
        return once(lambda state: state)
    if migration.atomic:
        return found.again(lambda: once(lambda state: state.clone()), str(migration))
    try:
        return once(lambda state: state)
    except OperationalError as error:
        if not lacks_lock(error):
            raise
        raise MigrationNotRepeatable(migration=str(migration)) from error


def begin(editor: Any) -> None:
    """Set the connection's lock timeout (in a schema editor that was just entered)."""
    found = _patience.get()
    connection = editor.connection
    if found is None or editor.collect_sql or connection.vendor != "postgresql":
        return
    if editor.atomic_migration:
        set_timeout(connection, found.timeout, local=True)
        return
    with connection.cursor() as cursor:
        cursor.execute("SHOW lock_timeout")
        (before,) = cursor.fetchone()
    wrapping = connection.execute_wrapper(_Statements(found))
    set_timeout(connection, found.timeout)
    wrapping.__enter__()
    editor._nuages_locks = wrapping, before


def end(editor: Any) -> None:
    """Put the lock timeout back (in a schema editor that is about to be left)."""
    kept = vars(editor).pop("_nuages_locks", None)
    if kept is None:
        return
    wrapping, before = kept
    wrapping.__exit__(None, None, None)
    connection = editor.connection
    if connection.connection is not None and not connection.connection.closed:
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('lock_timeout', %s, false)", [before])


def set_timeout(connection: Any, seconds: float, local: bool = False) -> None:
    """Set the seconds that a PostgreSQL statement waits for a lock; 0 means any time."""
    with connection.cursor() as cursor:
        scope = "LOCAL " if local else ""
        cursor.execute(f"SET {scope}lock_timeout = {round(seconds * 1000)}")


class _Statements:
    """An `execute_wrapper` around each statement of a migration that is not atomic."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience

    def __call__(
        self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any
    ) -> Any:
        connection = context["connection"]
        if many or connection.in_atomic_block:
            return execute(sql, params, many, context)
        if _CONCURRENTLY.match(str(sql)):
            set_timeout(connection, 0)
            try:
                return execute(sql, params, many, context)
            finally:
                set_timeout(connection, self._patience.timeout)
        return self._patience.again(
            lambda: execute(sql, params, many, context), "The statement of a migration"
        )
