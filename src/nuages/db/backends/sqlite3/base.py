"""Django's SQLite backend over a connection that is worked by a thread of its own.

`ENGINE = "nuages.db.backends.sqlite3"`. On a loop, transactions on a file begin IMMEDIATE unless
`OPTIONS["transaction_mode"]` says otherwise (one that reads and then writes would fail at once
when another has written meanwhile, and waiting cannot help), and the file is in WAL mode unless
`OPTIONS["init_command"]` sets a journal mode. An in-memory database is exactly one connection.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db.backends.sqlite3 import base as django_base
from django.db.backends.sqlite3 import creation as django_creation

from nuages.bridge import current_bridge
from nuages.db.backends.base import session_warning as session_state
from nuages.db.backends.base.base import LoopWrapper
from nuages.db.backends.base.session_check import Snapshot
from nuages.db.backends.sqlite3.connection import Connection
from nuages.db.backends.sqlite3.cursor import Cursor
from nuages.db.backends.sqlite3.snapshot import snapshot
from nuages.db.backends.sqlite3.worker import Job, Worker
from nuages.db.pool.options import PoolOptions
from nuages.db.testing.databases import TestDatabases
from nuages.exceptions import ForkedDatabase


class DatabaseCreation(TestDatabases, django_creation.DatabaseCreation):
    """Django's, with our pools closed in time."""


_in_memory: dict[tuple[str, str], Connection] = {}
"""The one connection of every in-memory database."""
_process = os.getpid()


class DatabaseWrapper(LoopWrapper, django_base.DatabaseWrapper):
    """Django's wrapper, awaited on the loop."""

    creation_class = DatabaseCreation
    _shared: Connection | None = None
    """The connection that has a worker for the length of a test."""

    def pool_options(self) -> PoolOptions:
        """Return the options; an in-memory database has one connection, never closed."""
        options = super().pool_options()
        if self.is_in_memory_db():
            options = dataclasses.replace(options, min_size=1, max_size=1, max_lifetime=None)
        return options

    def get_connection_params(self) -> dict[str, Any]:
        """Do as Django does, with our connection class and without our options."""
        params: dict[str, Any] = super().get_connection_params()
        params.pop("pool", None)
        self._statement_timeout = self.take_statement_timeout(params)
        factory = params.setdefault("factory", Connection)
        if not (isinstance(factory, type) and issubclass(factory, Connection)):
            raise ImproperlyConfigured(
                f'DATABASES[{self.alias!r}]["OPTIONS"]["factory"] must be a subclass of '
                f"{Connection.__module__}.{Connection.__name__}, not {factory!r}."
            )
        self.transaction_mode = self._transaction_mode()
        return params

    def _transaction_mode(self) -> str | None:
        given = self.settings_dict["OPTIONS"].get("transaction_mode")
        if given is None and self.role == "lease" and not self.is_in_memory_db():
            return "IMMEDIATE"
        return given.upper() if given else None

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Do as Django does; a lease's connection is opened by its worker."""
        key = (self.alias, str(conn_params["database"]))
        in_memory = self.is_in_memory_db()
        serves_loop = self.role == "lease" and self._chain_to_serve() is not None
        is_of_thread = self.role == "plain" and self.scope is not None
        if (current_bridge() is None or is_of_thread) and not serves_loop:
            if in_memory and os.getpid() != _process and self._take_part(key):
                return _in_memory[key]
            connection = super().get_new_connection(conn_params)
            connection.statement_timeout = self._statement_timeout
            if in_memory and not (key in _in_memory and _in_memory[key].is_alive()):
                _in_memory[key] = connection
            return connection
        worker = Worker()
        in_memory = in_memory and self.role == "lease"
        if in_memory and self._take_part(key):
            connection = _in_memory[key]
            if connection.worker is None:
                worker.call(lambda: connection.serve_loop(worker))
            else:
                worker.stop()
            return connection
        opened: list[Connection] = []

        def close() -> None:
            for each in opened:
                each.close()

        try:
            worker.call(lambda: opened.append(self._open_in_worker(conn_params, worker)))
        except BaseException:
            # The worker may have opened the connection, or still be about to.
            worker.submit(Job(close, None))
            worker.stop()
            raise
        (connection,) = opened
        if in_memory:
            connection.kept = True
            _in_memory[key] = connection
        return connection

    @staticmethod
    def _take_part(key: tuple[str, str]) -> bool:
        """Become one more user of a database in memory; tell whether there is such a database."""
        connection = _in_memory.get(key)
        if connection is None or not connection.is_alive():
            return False
        if connection.in_use_by_parent:
            raise ForkedDatabase(database=key[1])
        connection.kept = True
        connection.shared += 1
        return True

    def is_copied(self) -> bool:
        """Tell whether the database is in memory, and this wrapper's own."""
        return self.role == "plain" and bool(self.is_in_memory_db())

    def _open_in_worker(self, conn_params: dict[str, Any], worker: Worker) -> Connection:
        connection: Connection = super().get_new_connection(conn_params)
        try:
            connection.statement_timeout = self._statement_timeout
            if not self.is_in_memory_db() and not self._sets_journal_mode():
                connection.switch_to_wal()
            connection.serve_loop(worker)
        except BaseException:
            connection.close()
            raise
        return connection

    def _sets_journal_mode(self) -> bool:
        return "journal_mode" in self.settings_dict["OPTIONS"].get("init_command", "").lower()

    def _open(self, session: Any) -> None:
        super()._open(session)
        self.connection.attach(session.pool)  # in a thread, too: a worker serves any thread
        self.connection.note_baseline()

    def is_single(self) -> bool:
        """Tell whether the database is in memory."""
        return bool(self.is_in_memory_db())

    def _reuse(self, session: Any) -> bool:
        self.transaction_mode = self._transaction_mode()
        session.raw.unverified = True
        return super()._reuse(session)

    def create_cursor(self, name: str | None = None) -> Any:
        """Do as Django does, with our cursor."""
        return self.connection.cursor(factory=Cursor)

    def cursor_is_open(self, cursor: Any) -> bool:
        """Tell whether a cursor that `create_cursor()` has made is still open."""
        return bool(cursor.is_open())

    def has_rows_left(self, cursor: Any) -> bool:
        """Tell whether rows are left that the worker has not read yet."""
        return bool(cursor.has_rows_left())

    def close_cursor(self, cursor: Any) -> None:
        """Close a cursor without I/O."""
        cursor.forget()

    def share(self) -> None:
        """Give the connection a worker, so that it blocks no loop and two never use it at once."""
        connection = self.connection
        if connection is None:
            return
        connection.in_test = True
        if self._shared is None and connection.begin_sharing():
            self._shared = connection

    def unshare(self) -> None:
        """Take the worker away again."""
        if self.connection is not None:
            self.connection.in_test = self.connection._write_of_test = False
        connection, self._shared = self._shared, None
        if connection is not None:
            connection.end_sharing()

    def wait_for_end(self, raw: Any) -> None:
        """Block until the worker has closed the connection: until then a writer fails at once."""
        if raw is not None and raw.worker is not None and not raw.is_alive():
            raw.worker.join()

    def close(self) -> None:
        """Do as Django does: an in-memory database stays open."""
        if not self.is_in_memory_db():
            super().close()
        else:
            self.validate_thread_sharing()

    def close_pool(self) -> None:
        """Do nothing: a SQLite session has no time zone."""

    def snapshot(self) -> Snapshot:
        """Ask what is set in the connection."""
        return snapshot(self.connection)

    def reset_session(self) -> None:
        """Roll back what was left open; a session with state of its own is closed."""
        connection = self.connection
        connection.rollback()
        state, meant = connection.what_was_left(), connection.state_is_meant
        connection.forget_state()
        if state and connection.kept:
            # Not closed: the database would end with it. What Django switches is switched back.
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA legacy_alter_table = OFF")
        elif state:
            if not meant:
                session_state.warn(self.alias, state)
            connection.terminate()

    def _set_autocommit(self, autocommit: bool) -> None:
        try:
            self._switch_isolation_level(autocommit)
        finally:
            # sqlite3 commits an open transaction when autocommit is switched on.
            self.connection.leave_gate_after_transaction()

    def _switch_isolation_level(self, autocommit: bool) -> None:
        connection = self.connection
        if connection.worker is None or current_bridge() is None:
            super()._set_autocommit(autocommit)
            return
        level = None if autocommit else ""
        if connection.isolation_level == level:
            return

        def switch() -> None:
            connection.isolation_level = level

        with self.wrap_database_errors:
            if connection.in_transaction:
                connection.in_worker(switch)
            else:
                switch()
