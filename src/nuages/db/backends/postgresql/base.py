"""Django's PostgreSQL backend over a connection that awaits on the event loop.

`ENGINE = "nuages.db.backends.postgresql"`. Everything but the wait is Django's; psycopg 3 is
needed.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import re
import socket
import types
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured

try:
    import psycopg
except ImportError as error:
    raise ImproperlyConfigured(
        'The engine "nuages.db.backends.postgresql" needs psycopg 3: '
        'pip install "nuages[postgresql]".'
    ) from error

if tuple(map(int, re.findall(r"\d+", psycopg.__version__)[:3])) < (3, 3, 6):
    raise ImproperlyConfigured(
        'The engine "nuages.db.backends.postgresql" needs psycopg 3.3.6 or newer; you have '
        f'{psycopg.__version__}: pip install -U "nuages[postgresql]".'
    )

from django.db.backends.postgresql import base as django_base
from django.db.backends.postgresql import creation as django_creation
from django.db.backends.postgresql.psycopg_any import register_tzloader

from nuages.bridge import current_bridge
from nuages.db.backends.base import session_warning as session_state
from nuages.db.backends.base.base import LoopWrapper
from nuages.db.backends.base.commit_outcome import KnownOutcome
from nuages.db.backends.base.session_check import Snapshot
from nuages.db.backends.base.transactions import FAILED_AT_END
from nuages.db.backends.postgresql.connection import Connection
from nuages.db.backends.postgresql.session_state import Noting
from nuages.db.backends.postgresql.snapshot import snapshot
from nuages.db.pool.pool import on_loop_of
from nuages.db.pool.reconnect import UNREACHABLE
from nuages.db.scopes.finalising import may_close
from nuages.db.testing.databases import TestDatabases
from nuages.exceptions import NotCommitted

# Django's backend calls `Database.connect()`; everything else of psycopg stays as it is.
Database: Any = types.ModuleType("psycopg")
Database.__dict__.update(psycopg.__dict__)
Database.connect = Connection.connect
Database.Connection = Connection


_AWAY = (
    # libpq has no code for these errors: its own words for the system's error, and the server's.
    *(f"failed: {os.strerror(code)}" for code in UNREACHABLE),
    "server closed the connection unexpectedly",
    f"could not receive data from server: {os.strerror(errno.ECONNRESET)}",
    "connection timeout expired",
    f"[Errno {socket.EAI_AGAIN}]",
    "sorry, too many clients already",
    "remaining connection slots are reserved",
    "too many connections for ",
    "the database system is starting up",
    "the database system is shutting down",
    "the database system is in recovery mode",
    "the database system is not yet accepting connections",
    "the database system is not accepting connections",
)

# admin_shutdown, crash_shutdown, database_dropped, idle_session_timeout; and
# statement_completion_unknown.
_ENDS_SESSION = ("57P01", "57P02", "57P04", "57P05", "40003")

_numbers = itertools.count(1)

if TYPE_CHECKING:
    _NamedCursor = psycopg.ServerCursor[Any]
else:
    _NamedCursor = object


class _Tracked(Noting, _NamedCursor):
    """Named cursor mixin: the connection knows which cursors are open on the server."""

    _conn: Connection
    _has_tags = False
    _savepoints = 0
    """How many savepoints of the connection had been rolled back when this was declared."""

    def _note_text(self, text: bytes) -> None:
        # Without the DECLARE: this cursor is known to its connection.
        super()._note_text(text.partition(b" FOR ")[2])

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        self._conn.open_cursors.add(self.name)
        self._conn.held_cursors.discard(self.name)
        self._savepoints = self._conn.savepoint_rollbacks
        try:
            return super().execute(*args, **kwargs)
        except psycopg.Error:
            self._conn.open_cursors.discard(self.name)
            raise
        except BaseException:
            # Cancelled. Django closes only what failed with an Exception.
            self.orphan()
            raise

    def _make_declare_statement(self, query: Any) -> Any:
        # Django looked before this cursor had its turn, maybe beside a transaction of another
        # task that is over now.
        self._withhold = self._withhold or self._conn.autocommit
        if self._withhold:
            self._conn.held_cursors.add(self.name)
        return super()._make_declare_statement(query)

    def __del__(self) -> None:  # type: ignore[override]
        # A collection may come to this cursor before the generator that would close it.
        if not getattr(self, "_closed", True):
            self.orphan()

    def orphan(self) -> None:
        """Leave it to the connection to close this cursor on the server, before a statement."""
        if self.name in self._conn.open_cursors:
            self._conn.orphaned_cursors.add(self.name)
        self._closed = True

    def close(self) -> None:
        """Do as psycopg does, with Django's errors, because iterating ends with this."""
        connection = self._conn
        wrapper: Any = connection.wrapper
        if self.closed:
            return
        if self.name not in connection.open_cursors:
            # The cursor was never declared, or it ended with its transaction.
            self._closed = True
            return
        if (
            not may_close(wrapper, busy=connection.lock.locked())
            # It may be gone with a savepoint: closing it would fail, and the transaction too.
            or self._savepoints != connection.savepoint_rollbacks
        ):
            self.orphan()
            return
        bridge = current_bridge()
        errors = wrapper.wrap_database_errors
        try:
            # Shielded, because a generator that is finalised would swallow a cancellation.
            with errors, nullcontext() if bridge is None else bridge.shield():
                super().close()
        except BaseException:
            # The connection is lost, say.
            self.orphan()
            raise
        connection.open_cursors.discard(self.name)
        connection.held_cursors.discard(self.name)


class ServerSideCursor(_Tracked, django_base.ServerSideCursor):
    """Django's named cursor with client-side binding."""


class ServerBindingServerSideCursor(_Tracked, psycopg.ServerCursor[Any]):
    """A named cursor with server-side binding."""


class DatabaseCreation(TestDatabases, django_creation.DatabaseCreation):
    """Django's, with our pools closed in time."""


class DatabaseWrapper(KnownOutcome, LoopWrapper, django_base.DatabaseWrapper):
    """Django's wrapper, awaited on the loop."""

    Database = Database
    creation_class = DatabaseCreation
    isolation_level: Any
    """The one of the connection that is in use."""

    @property
    def pool(self) -> None:
        """Django's own pool is never used: ours is in `nuages.db.pool`."""
        return None

    def close_pool(self) -> None:
        """Close the idle connections of this loop's pool now, the others as they come back."""
        session = self.session
        if session is not None:
            session.pool.clear()
            # This one goes on until it is given back, with what was just configured.
            return
        loop = asyncio._get_running_loop()
        if loop is not None:
            from nuages.db.pool.pool import open_pools

            for pool in open_pools(loop):
                if pool.alias == self.alias:
                    pool.clear()

    def get_connection_params(self) -> dict[str, Any]:
        """Do as Django does, without our options."""
        params: dict[str, Any] = super().get_connection_params()
        timeout = self.take_statement_timeout(params)
        if timeout is not None:
            given = params.get("options", "")
            params["options"] = f"{given} -c statement_timeout={round(timeout * 1000)}".strip()
        return params

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Do as Django does."""
        connection = super().get_new_connection(conn_params)
        connection.wrapper = self
        connection.server_cursor_factory = ServerBindingServerSideCursor
        return connection

    def _open(self, session: Any) -> None:
        super()._open(session)
        self.connection.keep_descriptor()
        self.connection.note_baseline()
        self.connection.isolation_of_wrapper = self.isolation_level

    def _reuse(self, session: Any) -> bool:
        vars(self)["isolation_level"] = session.raw.isolation_of_wrapper
        return super()._reuse(session)

    def release(self) -> None:
        """Give the connection back; where it changed types, the pool opens all others anew.

        Types that receivers of `connection_created` register by oid (hstore and citext of
        django.contrib.postgres, a project's own) are as old as the connection.
        """
        raw = self.connection  # first: it may have been lent
        session = self.session
        if session is not None and raw is not None and raw.types_changed:
            # Before this one goes back, so that it is closed as well.
            on_loop_of(session.pool, session.pool.clear)
        super().release()

    def _savepoint_rollback(self, sid: str) -> None:
        super()._savepoint_rollback(sid)
        self.connection.savepoint_rollbacks += 1

    def _commit(self) -> None:
        connection = self.connection
        is_of_block = self.scope is not None and connection is not None
        # The server answers ROLLBACK to COMMIT then; Django takes that for a success and runs
        # the hooks. Without hooks its silence is relied on, for example by its own tests.
        had_failed = is_of_block and connection.is_failed()
        if had_failed and self.run_on_commit:
            raise NotCommitted(
                "The block ended without an error, but a statement in it had failed, and what "
                "that raised was caught in the block: PostgreSQL rolls back all of it, and the "
                "on-commit hooks do not run. Put what may fail into a block of its own (a "
                "savepoint), and catch its error outside."
            )
        super()._commit()
        self._transaction_ended()
        if is_of_block and connection.committed_failed and not had_failed:
            raise NotCommitted(FAILED_AT_END)

    def _rollback(self) -> None:
        super()._rollback()
        self._transaction_ended()

    def _transaction_ended(self) -> None:
        """Forget the cursors that ended with the transaction: all but those WITH HOLD."""
        connection = self.connection
        if connection is not None and connection.is_outside_transaction():
            connection.open_cursors &= connection.held_cursors
            connection.orphaned_cursors &= connection.held_cursors

    def is_away(self, error: Exception) -> bool:
        """Tell whether the server is unreachable, starting up, shutting down, or has no room."""
        text = str(error)
        return any(sign in text for sign in _AWAY)

    def ends_session(self, error: Exception) -> bool:
        """Tell whether `error` is of class 08 (connection exception) or a session's termination.

        A COMMIT that waits for a standby is committed already when its session is terminated.
        """
        state = getattr(error.__cause__, "sqlstate", None) or ""
        return state.startswith("08") or state in _ENDS_SESSION

    def create_cursor(self, name: str | None = None) -> Any:
        """Do as Django does; a named cursor is known to its connection until it is closed."""
        if not name:
            return super().create_cursor(name)
        connection = self.connection
        # Django counts cursors for each wrapper, and a connection serves one after another: it
        # may have a cursor of that name that is still to be closed.
        name = f"{name}_{next(_numbers)}"
        kind = (
            ServerBindingServerSideCursor
            if self.settings_dict["OPTIONS"].get("server_side_binding") is True
            else ServerSideCursor
        )
        cursor = kind(connection, name=name, scrollable=False, withhold=connection.autocommit)
        loader = connection.adapters.get_loader(
            django_base.TIMESTAMPTZ_OID, psycopg.pq.Format.TEXT
        )
        if self.timezone != loader.timezone:
            register_tzloader(self.timezone, cursor)
        return cursor

    def cursor_is_open(self, cursor: Any) -> bool:
        """Tell whether a cursor that `create_cursor()` has made is still open."""
        return not cursor.closed

    def has_rows_left(self, cursor: Any) -> bool:
        """Tell whether the cursor is open on the server."""
        return isinstance(cursor, _Tracked) and not cursor.closed

    def close_cursor(self, cursor: Any) -> None:
        """Close the cursor without I/O, as psycopg's own `close()` of a client-side cursor."""
        if isinstance(cursor, _Tracked):
            cursor.orphan()
        else:
            cursor.close()

    def snapshot(self) -> Snapshot:
        """Ask the server what is set in the session."""
        return snapshot(self.connection)

    def reset_session(self) -> None:
        """Send ROLLBACK, DISCARD ALL, and Django's settings of a new connection again.

        A session with state that DISCARD ALL leaves is closed.
        """
        connection = self.connection
        state = connection.session_state
        if state and not connection.state_is_meant:
            session_state.warn(self.alias, state)
        if connection.lasting_state:
            connection.terminate()
            return
        connection.rollback()
        with connection.cursor() as cursor:
            cursor.execute("DISCARD ALL")
        known = connection._prepared
        connection._prepared = type(known)()
        connection._prepared.prepare_threshold = known.prepare_threshold
        connection._prepared.prepared_max = known.prepared_max
        connection.open_cursors.clear()
        connection.held_cursors.clear()
        connection.orphaned_cursors.clear()
        self.init_connection_state()
        connection.forget_state()
