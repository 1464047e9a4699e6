"""Django's MySQL backend over a connection that awaits on the event loop.

`ENGINE = "nuages.db.backends.mysql"`, for MySQL and MariaDB. Everything but the driver is
Django's; the driver is PyMySQL, where Django's own engine has mysqlclient. The parts of Django's
module that depend on the driver are overridden here, so a process may use both.
"""

from __future__ import annotations

import inspect
import socket
import types
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from django.core.exceptions import ImproperlyConfigured

try:
    import pymysql  # type: ignore[import-untyped]
except ImportError as error:
    raise ImproperlyConfigured(
        'The engine "nuages.db.backends.mysql" needs PyMySQL: pip install "nuages[mysql]".'
    ) from error

if pymysql.VERSION[:2] < (1, 1):
    raise ImproperlyConfigured(
        'The engine "nuages.db.backends.mysql" needs PyMySQL 1.1 or newer; you have '
        f'{".".join(map(str, pymysql.VERSION[:3]))}: pip install -U "nuages[mysql]".'
    )

from django.db import IntegrityError
from django.db.backends.utils import typecast_time
from pymysql import converters, err
from pymysql.constants import CR, ER, FIELD_TYPE  # type: ignore[import-untyped]

from nuages.bridge import current_bridge
from nuages.db.backends.base import session_warning as session_state
from nuages.db.backends.base.base import LoopWrapper
from nuages.db.backends.base.commit_outcome import KnownOutcome
from nuages.db.backends.base.session_check import Snapshot
from nuages.db.backends.mysql.connection import Connection
from nuages.db.backends.mysql.snapshot import snapshot
from nuages.db.pool.reconnect import UNREACHABLE
from nuages.db.testing.databases import TestDatabases
from nuages.seams.mysqldb import mysqldb

with mysqldb():
    from django.db.backends.mysql import base as django_base
    from django.db.backends.mysql import creation as django_creation

_DjangoWrapper: Any = django_base.DatabaseWrapper

Database: Any = types.ModuleType("pymysql")
Database.__dict__.update(pymysql.__dict__)
Database.connect = Database.Connection = Connection

CONVERSIONS = {**converters.conversions, FIELD_TYPE.TIME: typecast_time}
"""PyMySQL's conversions, with TIME as Django wants it: a time, not a timedelta."""

_PARAMETERS = {*inspect.signature(pymysql.connections.Connection).parameters} - {"defer_connect"}
_AWAY = (
    ER.CON_COUNT_ERROR,  # too many connections
    ER.TOO_MANY_USER_CONNECTIONS,
    ER.SERVER_SHUTDOWN,
    # The connection broke before it was established.
    CR.CR_SERVER_GONE_ERROR,
    CR.CR_SERVER_LOST,
)
_CONNECTION_KILLED = 1927
"""MariaDB's ER_CONNECTION_KILLED, which PyMySQL does not name."""
_ENDS_SESSION = (
    ER.SERVER_SHUTDOWN,
    ER.NORMAL_SHUTDOWN,
    _CONNECTION_KILLED,
    CR.CR_SERVER_GONE_ERROR,
    CR.CR_SERVER_LOST,
)
_MYSQLCLIENT_ONLY = {
    "passwd": "password",
    "db": "database",
    "ssl_mode": "ssl_disabled, ssl_ca, ssl_verify_cert and ssl_verify_identity",
    "compress": "nothing: PyMySQL has no compression",
    "named_pipe": "nothing: PyMySQL has no named pipes",
}

_server_data: dict[int, dict[str, Any]] = {}
"""Answers that Django asks for once a wrapper; here wrappers come and go with every task."""


class CursorWrapper(django_base.CursorWrapper):
    """Django's cursor wrapper, for PyMySQL's errors."""

    def execute(self, query: Any, args: Any = None) -> Any:
        """Do as Django does."""
        return self._mapped(self.cursor.execute, query, args)

    def executemany(self, query: Any, args: Any) -> Any:
        """Do as Django does."""
        return self._mapped(self.cursor.executemany, query, args)

    def _mapped(self, method: Any, *args: Any) -> Any:
        try:
            return method(*args)
        except err.OperationalError as error:
            if error.args[0] in self.codes_for_integrityerror:
                raise IntegrityError(*error.args) from error
            raise


class DatabaseCreation(TestDatabases, django_creation.DatabaseCreation):
    """Django's, with our pools closed in time."""


class DatabaseWrapper(KnownOutcome, LoopWrapper, django_base.DatabaseWrapper):
    """Django's wrapper, awaited on the loop."""

    Database = Database
    creation_class = DatabaseCreation
    _is_pools_doing = False
    """Whether a connection is being opened or reset: the statements are in nobody's capture."""
    _given_server_data: dict[str, Any] | None = None

    # Connecting

    def get_connection_params(self) -> dict[str, Any]:
        """Do as Django does, without our options; raises ImproperlyConfigured for wrong ones."""
        params: dict[str, Any] = super().get_connection_params()
        options = self.settings_dict["OPTIONS"]
        params.pop("pool", None)
        self._statement_timeout = self.take_statement_timeout(params)
        if "conv" not in options:
            params["conv"] = CONVERSIONS
        for name, instead in _MYSQLCLIENT_ONLY.items():
            if name in options:
                raise ImproperlyConfigured(
                    f'DATABASES[{self.alias!r}]["OPTIONS"][{name!r}] is an option of mysqlclient '
                    f"that PyMySQL does not have. Instead: {instead}."
                )
        if unknown := sorted(params.keys() - _PARAMETERS):
            raise ImproperlyConfigured(
                f'DATABASES[{self.alias!r}]["OPTIONS"] has what PyMySQL does not know: '
                f"{', '.join(unknown)}. It knows {', '.join(sorted(_PARAMETERS))}."
            )
        # Django's set_autocommit() then finds the mode as it should be, without asking.
        params.setdefault("autocommit", self.settings_dict["AUTOCOMMIT"])
        return params

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Open a connection of ours."""
        connection = Connection(**conn_params)
        connection.wrapper = self
        connection.note_identity()
        return connection

    def init_connection_state(self) -> None:
        """Do as Django does, one assignment at a time: PyMySQL sends one statement at a time."""
        super(_DjangoWrapper, self).init_connection_state()
        assignments = []
        if self.isolation_level:
            level = self.isolation_level.upper()
            assignments.append(f"SET SESSION TRANSACTION ISOLATION LEVEL {level}")
        if self._statement_timeout is not None:
            assignments.append(self._limit_of_statements(self._statement_timeout))
        if self.features.is_sql_auto_is_null_enabled:
            assignments.append("SET SQL_AUTO_IS_NULL = 0")
        with self._quiet_cursor() if self._is_pools_doing else self.cursor() as cursor:
            for assignment in assignments:
                cursor.execute(assignment)

    def _limit_of_statements(self, seconds: float) -> str:
        if self.mysql_is_mariadb:
            return f"SET SESSION max_statement_time = {seconds:.6f}"
        return f"SET SESSION max_execution_time = {round(seconds * 1000)}"

    def _open(self, session: Any) -> None:
        self._is_pools_doing = True
        try:
            super()._open(session)
        finally:
            self._is_pools_doing = False
        connection = self.connection
        connection.isolation_of_wrapper = self.isolation_level
        connection.statement_timeout = self._statement_timeout
        connection.note_baseline()

    def _reuse(self, session: Any) -> bool:
        self.isolation_level = session.raw.isolation_of_wrapper
        self._statement_timeout = session.raw.statement_timeout
        return super()._reuse(session)

    def is_away(self, error: Exception) -> bool:
        """Tell whether the server is unreachable, shutting down, or has no room."""
        if error.args[:1] and error.args[0] in _AWAY:
            return True
        cause = getattr(error, "original_exception", None)
        if isinstance(cause, socket.gaierror):
            return cause.errno == socket.EAI_AGAIN
        return isinstance(cause, TimeoutError) or (
            isinstance(cause, OSError) and cause.errno in UNREACHABLE
        )

    def ends_session(self, error: Exception) -> bool:
        """Tell whether the server shuts down, or the session was killed."""
        return bool(error.args) and error.args[0] in _ENDS_SESSION

    def is_usable(self) -> bool:
        """Do as Django does."""
        try:
            self.connection.ping()
        except err.Error:
            return False
        return True

    @property
    def mysql_server_data(self) -> dict[str, Any]:
        """The answers of a server that Django asks about itself, once for a server and version.

        As in Django it can be set and deleted, which tests of other versions and modes do.
        """
        if self._given_server_data is not None:
            return self._given_server_data
        settings = self.settings_dict
        # Hashed, because error reports show what functions have at hand.
        names = ("HOST", "PORT", "USER", "NAME", "OPTIONS")
        key = hash(tuple(repr(settings[name]) for name in names))
        version = getattr(self.connection, "server_version", None)
        known = _server_data.get(key)
        if known is None or (version is not None and known["greeting"] != version):
            asked = types.SimpleNamespace(temporary_connection=self._quietly_connected)
            found: dict[str, Any] = _DjangoWrapper.mysql_server_data.func(asked)
            greeting = getattr(self.connection, "server_version", version)
            known = _server_data[key] = {**found, "greeting": greeting}
        return known

    @mysql_server_data.setter
    def mysql_server_data(self, data: dict[str, Any]) -> None:
        self._given_server_data = data

    @mysql_server_data.deleter
    def mysql_server_data(self) -> None:
        self._given_server_data = None

    @contextmanager
    def _quiet_cursor(self) -> Iterator[Any]:
        """A cursor whose queries are in nobody's capture."""
        with self.wrap_database_errors, self.connection.cursor() as cursor:
            yield cursor

    @contextmanager
    def _quietly_connected(self) -> Iterator[Any]:
        """Do as `temporary_connection()` does, with a quiet cursor."""
        with self.temporary_connection(), self._quiet_cursor() as cursor:
            yield cursor

    # Using

    def create_cursor(self, name: str | None = None) -> Any:
        """Do as Django does."""
        return CursorWrapper(self.connection.cursor())

    def cursor_is_open(self, cursor: Any) -> bool:
        """Tell whether a cursor that `create_cursor()` has made is still open."""
        return cursor.cursor.connection is not None

    def close_cursor(self, cursor: Any) -> None:
        """Close a cursor without I/O: `close()` would read what is left of its result."""
        cursor.cursor.connection = None

    def snapshot(self) -> Snapshot:
        """Ask the server what is set in the session."""
        return snapshot(self.connection, mariadb=self.mysql_is_mariadb)

    def reset_session(self) -> None:
        """Send COM_RESET_CONNECTION, and the settings of a new connection again."""
        connection = self.connection
        state, meant = connection.session_state, connection.state_is_meant
        if state and not meant:
            session_state.warn(self.alias, state)
        self._is_pools_doing = True
        connection.reset()
        if connection.is_alive():
            self.init_connection_state()
            connection.note_baseline()

    def close_pool(self) -> None:
        """Do nothing: a MySQL session has no time zone of Django's."""

    def _rollback(self) -> None:
        # Suppressed, as in Django: some tables know no transactions.
        with suppress(err.NotSupportedError):
            super()._rollback()

    def _set_autocommit(self, autocommit: bool) -> None:
        bridge = current_bridge()
        if bridge is None:
            super()._set_autocommit(autocommit)
        elif autocommit:
            # A transaction ends here and may have been committed: its hooks are to run.
            with bridge.shield():
                super()._set_autocommit(True)
        else:
            try:
                super()._set_autocommit(False)
            except BaseException:
                self._undo_begin()
                raise

    def _undo_begin(self) -> None:
        """Undo a cancelled `SET AUTOCOMMIT = 0`, which may have had effect: code may go on."""
        connection, bridge = self.connection, current_bridge()
        if not connection.is_alive() or connection.get_autocommit():
            return
        assert bridge is not None
        try:
            with bridge.shield():
                connection.autocommit(True)
        except BaseException:
            connection.terminate()
            raise
