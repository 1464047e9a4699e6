"""PyMySQL's connection, with its waits awaited on the event loop.

Everything that PyMySQL reads and writes goes through `_read_bytes` and `_write_bytes`, and the
socket is a `Transport`, through which TLS goes, too. A command and its answer are one *exchange*
(`exchange.py`), which takes the connection's lock.

This module is longer than most: it is one class, half of which lists PyMySQL's commands.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from pymysql import connections, err  # type: ignore[import-untyped]
from pymysql.constants import CLIENT, CR, SERVER_STATUS  # type: ignore[import-untyped]

from nuages.bridge import current_bridge
from nuages.db.backends.base.connection_lock import ConnectionLock
from nuages.db.backends.base.driver import GiveBack, RawConnection, may_do_io
from nuages.db.backends.base.statistics import statistics
from nuages.db.backends.mysql.connecting import open_socket, open_unix_socket
from nuages.db.backends.mysql.exchange import Exchange
from nuages.db.backends.mysql.kill_query import Identity, identity_of
from nuages.db.backends.mysql.results import Result, tracked
from nuages.db.backends.mysql.session_state import trace_of
from nuages.db.backends.mysql.tls import context_for
from nuages.db.backends.mysql.transport import Transport
from nuages.db.scopes.fair_lock import Caller
from nuages.exceptions import BridgeClosed, SyncInCoroutine

if TYPE_CHECKING:
    from nuages.db.backends.base.base import LoopWrapper
    from nuages.db.pool.pool import Pool

logger = logging.getLogger("nuages.mysql")

RESET_CONNECTION = 0x1F
"""COM_RESET_CONNECTION (MySQL 5.7.3, MariaDB 10.2.4), which PyMySQL does not name."""
ROLLED_BACK = 1213
"""ER_LOCK_DEADLOCK: the server has rolled the whole transaction back."""
_PLAIN = frozenset({"utf8", "cp1252", "latin1", "ascii"})
"""Encodings in which no byte of ASCII is part of another character."""
_QUIT = b"\1\0\0\0\1"


class Connection(connections.Connection):  # type: ignore[misc]
    """A PyMySQL connection that awaits inside a bridge and blocks elsewhere, as ever."""

    wrapper: LoopWrapper | None = None
    pool: Pool | None = None
    state_is_meant = False
    recent: deque[Any] | None = None
    session_state: str = ""
    """The first statement that left state behind in the session; empty for none."""
    abandoned: Any = None
    """The result of an unbuffered cursor that is gone, if the result was not read to its end."""
    identity: Identity = ()
    """The identity of the server; empty where the server does not say."""
    _role: Any = ...
    """The role of a fresh session, or None; Ellipsis where the server does not say."""
    isolation_of_wrapper: str | None = None
    _maybe_state = False
    _other_database = False
    """Whether the session may be in a database other than the one it was opened in."""
    _checks_off = False
    _takes_several = True
    """Whether the server takes several statements in one text."""
    _connecting_until: float | None = None
    _connecting = False
    _current_timeout: float | None = None

    _result: Any

    def __init__(self, *, connect_to: Any = None, **params: Any) -> None:
        self._params = params
        self._connect_to = connect_to
        """The address of the server itself, whatever the host name means by now."""
        self._peer: Any = None
        """The address that this is connected to, which a socket that is lost does not know."""
        self._process = os.getpid()
        self.lock = ConnectionLock(self)
        self.exchange = Exchange(self)
        self._baseline: tuple[Any, ...] = ()
        self._sock: Transport | None
        self.server_status: int = SERVER_STATUS.SERVER_STATUS_AUTOCOMMIT
        super().__init__(**params)
        self._takes_several = bool(self.client_flag & CLIENT.MULTI_STATEMENTS)
        self.note_baseline()

    # Opening

    def connect(self, sock: Any = None) -> None:
        """Connect as PyMySQL does; inside a bridge nothing blocks.

        `connect_timeout` is for each address, and then for the greeting and authentication.
        """
        if current_bridge() is None and not may_do_io():
            raise SyncInCoroutine()
        try:
            transport = Transport(sock or self._open_socket())
        except OSError as error:
            raise self._unreachable(error) from error
        transport.unwatched = self._unwatched
        context = getattr(self, "ctx", None)
        if context is not None:
            self.ctx = _Context(self, transport, context)
        self._connecting = True
        if self.connect_timeout is not None:
            self._connecting_until = time.monotonic() + self.connect_timeout
        try:
            super().connect(transport)
        except BaseException:
            transport.leave()
            transport.close()
            raise
        finally:
            transport.detach()
            self._connecting = False
            self._connecting_until = None
            if context is not None:
                self.ctx = context

    def _open_socket(self) -> Any:
        timeout = self.connect_timeout
        if self.unix_socket:
            opened = open_unix_socket(self.unix_socket, timeout=timeout)
            self.host_info = "Localhost via UNIX socket"
            self._secure = True
            return opened
        host, port = self._connect_to or (self.host, self.port)
        opened = open_socket(host, port, timeout=timeout, bind_address=self.bind_address)
        try:
            self._peer = opened.getpeername()[:2]
        except OSError:
            opened.close()
            raise
        self.host_info = f"socket {self.host}:{self.port}"
        return opened

    def _unreachable(self, error: OSError) -> err.OperationalError:
        found = err.OperationalError(
            CR.CR_CONN_HOST_ERROR, f"Can't connect to MySQL server on {self.host!r} ({error})"
        )
        found.original_exception = error
        return found

    def _create_ssl_ctx(self, sslp: Any) -> Any:
        """Do as PyMySQL does, once: reading the system's authorities takes a tenth of a second."""
        return context_for(sslp, super()._create_ssl_ctx)

    def beside(self, deadline: float) -> Connection:
        """Open a second connection to the same server, by `time.monotonic()` = `deadline`."""
        params = {
            name: value
            for name, value in self._params.items()
            if name not in ("init_command", "sql_mode", "database", "db", "cursorclass")
        }
        rest = max(deadline - time.monotonic(), 0.001)
        params |= {"connect_timeout": rest, "read_timeout": rest, "write_timeout": rest}
        params["autocommit"] = None
        return type(self)(connect_to=self._peer, **params)

    # Reading, writing, waiting

    def _read_bytes(self, num_bytes: int) -> bytes:
        transport = self._sock
        if transport is None:
            raise err.OperationalError(CR.CR_SERVER_LOST, _LOST)
        position = transport.position
        end = position + num_bytes
        if end <= len(transport.data):
            transport.position = end
            return transport.data[position:end]
        try:
            while transport.available() < num_bytes:
                if transport.eof:
                    self._force_close()
                    raise err.OperationalError(CR.CR_SERVER_LOST, _LOST)
                self._wait(transport, False, self._read_timeout)
        except OSError as error:
            self._force_close()
            raise err.OperationalError(CR.CR_SERVER_LOST, f"{_LOST} ({error})") from error
        return transport.take(num_bytes)

    def _write_bytes(self, data: bytes) -> None:
        transport = self._sock
        if transport is None:
            raise err.OperationalError(CR.CR_SERVER_GONE_ERROR, _CLOSED)
        rest = memoryview(data)
        try:
            while rest:
                sent = transport.send(rest)
                if not sent:
                    self._wait(transport, True, self._write_timeout)
                rest = rest[sent:]
        except OSError as error:
            self._force_close()
            raise err.OperationalError(
                CR.CR_SERVER_GONE_ERROR, f"MySQL server has gone away ({error!r})"
            ) from error

    def _wait(self, transport: Transport, writing: bool, timeout: float | None) -> None:
        """Wait until something was received, or there is room to write.

        Raises TimeoutError, and what interrupted the wait if it leaves nothing to be read.
        """
        limit = None if timeout is None else time.monotonic() + timeout
        if self._connecting_until is not None:
            limit = min(limit or self._connecting_until, self._connecting_until)
        bridge = current_bridge()
        if bridge is None:
            self._wait_in_thread(transport, writing, limit)
            return
        exchange = self.exchange
        while True:
            until = exchange.look_again_at(limit)
            rest = None if until is None else until - time.monotonic()
            try:
                if transport.wait_on_loop(bridge, writing, rest):
                    return
            except (GeneratorExit, BridgeClosed):
                self.terminate()
                raise
            except Exception:
                raise
            except BaseException as interruption:
                if bridge.shields and isinstance(interruption, asyncio.CancelledError):
                    bridge.deferred_cancel = interruption
                    exchange.shield()
                else:
                    exchange.interrupt(interruption, can_go_on=not (writing or self._connecting))
                if transport.available():
                    return  # data came together with the interruption
                continue
            if until is not None and time.monotonic() >= until:
                exchange.waited_long()

    def _wait_in_thread(self, transport: Transport, writing: bool, limit: float | None) -> None:
        # A thread that shares a scope waits by itself. The loop lets go of the socket when data
        # arrives that no bridge waits for, and takes it up again at its next wait.
        if asyncio._get_running_loop() is not None:
            if not may_do_io():
                raise SyncInCoroutine()
            statistics.blocked += 1
            transport.detach()
        rest = None if limit is None else limit - time.monotonic()
        if not transport.wait_in_thread(writing, rest):
            raise TimeoutError("timed out")

    # PyMySQL's commands: each with its answer is one exchange

    def query(self, sql: Any, unbuffered: bool = False) -> Any:
        """Do as PyMySQL does; notes what the statement leaves in the session."""
        if isinstance(sql, str):
            sql = sql.encode(self.encoding, "surrogateescape")
        text = sql
        if self.encoding not in _PLAIN:
            # In such an encoding a character's second byte may be a backslash.
            text = bytes(sql).decode(self.encoding, "replace").encode()
        escapes = not self.server_status & SERVER_STATUS.SERVER_STATUS_NO_BACKSLASH_ESCAPES
        trace = trace_of(text, several=self._takes_several, escapes=escapes)
        if trace:
            self._note(trace, text)
        if self.recent is not None:
            self.recent.append(sql[:1000])
        with self.exchange:
            try:
                return super().query(bytes(sql), unbuffered)
            except err.OperationalError as error:
                self._mark_rolled_back(error)
                raise

    def _note(self, trace: str, sql: bytes) -> None:
        if trace.startswith("checks"):
            self._checks_off = trace == "checks off"
            return
        if trace == "maybe":
            self._maybe_state = True
        elif not self.session_state:
            self.session_state = sql[:200].decode("utf-8", "replace")
        if trace != "state":
            self._other_database = True

    def _mark_rolled_back(self, error: Exception) -> None:
        # The statements that follow would be in a new transaction, and half of the work be lost.
        wrapper = self.wrapper
        if error.args[0] == ROLLED_BACK and wrapper is not None:
            wrapper.note_interruption(lost=True)

    def _execute_command(self, command: int, sql: Any) -> None:
        if self._sock is None:
            # As in mysqlclient. PyMySQL has InterfaceError for a closed and for a lost connection.
            raise err.OperationalError(CR.CR_SERVER_GONE_ERROR, _CLOSED)
        abandoned, self.abandoned = self.abandoned, None
        if abandoned is not None and abandoned is self._result and abandoned.unbuffered_active:
            abandoned._finish_unbuffered_query()
        super()._execute_command(command, sql)

    def _read_query_result(self, unbuffered: bool = False) -> Any:
        self._result = None
        result = Result(self)
        if unbuffered:
            result.init_unbuffered_query()
        else:
            result.read()
        self._result = result
        if result.server_status is not None:
            self.server_status = result.server_status
        return result.affected_rows

    def next_result(self, unbuffered: bool = False) -> Any:
        """Do as PyMySQL does."""
        with self.exchange:
            return super().next_result(unbuffered)

    def begin(self) -> None:
        """Do as PyMySQL does."""
        with self.exchange:
            super().begin()

    def commit(self) -> None:
        """Do as PyMySQL does."""
        with self.exchange:
            super().commit()

    def rollback(self) -> None:
        """Do as PyMySQL does."""
        with self.exchange:
            super().rollback()

    def autocommit(self, value: bool) -> None:
        """Do as PyMySQL does: nothing is sent where the session is in that mode already."""
        with self.exchange:
            super().autocommit(value)

    def select_db(self, db: Any) -> None:
        """Do as PyMySQL does; the session is reset, as its next user expects another database."""
        self._note("use", b"USE")
        with self.exchange:
            super().select_db(db)

    def set_character_set(self, charset: str, collation: str | None = None) -> None:
        """Do as PyMySQL does."""
        with self.exchange:
            super().set_character_set(charset, collation)

    def show_warnings(self) -> Any:
        """Do as PyMySQL does."""
        with self.exchange:
            return super().show_warnings()

    def ping(self, reconnect: bool = False) -> None:
        """Do as PyMySQL does, but reconnect only if asked to."""
        with self.exchange:
            super().ping(reconnect)

    def kill(self, thread_id: int) -> None:
        """Do as PyMySQL does: KILL, by a statement (the command is gone from MySQL 8.4)."""
        self.query(f"KILL {thread_id:d}")

    def reset(self) -> None:
        """Send COM_RESET_CONNECTION, and do what `connect()` does after authentication.

        A session whose role is not the one of its beginning is closed. Raises OperationalError
        where the server does not know the command.
        """
        with self.exchange:
            if self._other_database and self.db is None:
                raise err.OperationalError(0, "nothing takes a session out of a database again")
            self._execute_command(RESET_CONNECTION, b"")
            self._read_ok_packet()
            if self._other_database:
                super().select_db(self.db)
        charset, _, collation = self._baseline[:3]
        self.set_character_set(charset, collation)
        with self.cursor() as cursor:
            if self.sql_mode is not None:
                cursor.execute("SET sql_mode=%s", (self.sql_mode,))
            if self.init_command is not None:
                cursor.execute(self.init_command)
        if self.autocommit_mode is not None:
            self.autocommit(True)
        if self._role is not Ellipsis and self._current_role() != self._role:
            # The server keeps the role, and cannot be told to take the one of the beginning.
            self.terminate()
        self.note_baseline()

    def cursor(self, cursor: Any = None) -> Any:
        """Do as PyMySQL does; the cursor takes its own results, and leaves none unread."""
        return tracked(cursor or self.cursorclass)(self)

    def thread_id(self) -> int:
        """The session's number on its server."""
        (number,) = self.server_thread_id
        return int(number)

    def close(self) -> None:
        """Close the connection; its socket leaves the loop first."""
        if not self._closed:
            self.terminate()

    # What the pool asks

    def terminate(self) -> None:
        """Close at once, without waiting."""
        self._closed = True
        self._force_close()

    def _force_close(self) -> None:
        # PyMySQL calls this, too, in whichever thread it finds the connection lost.
        transport = self._sock
        self._sock = self._rfile = None
        if transport is None:
            return
        self._closed = True
        loop = transport.loop
        if loop is not None and loop.is_running() and asyncio._get_running_loop() is not loop:
            # The socket is in another thread's loop, which it must leave before it is closed.
            loop.call_soon_threadsafe(self._part, transport)
        else:
            self._part(transport)

    def _part(self, transport: Transport) -> None:
        transport.leave()  # as only this thread may
        if not self.lock.end_when_free(lambda: self._close(transport)):
            transport.shut_down()  # a thread waits for it
        transport.wake_waiting()

    def _close(self, transport: Transport) -> None:
        at_rest = not (self.exchange.open or self._connecting or transport.eof)
        if at_rest and self._process == os.getpid():
            try:
                transport.send(memoryview(_QUIT))
            except OSError:
                logger.debug("the server was gone before it could be told that we leave")
        transport.close()

    def __del__(self) -> None:
        transport = getattr(self, "_sock", None)
        if transport is not None:
            transport.leave()
            transport.close()

    def _unwatched(self) -> None:
        """Look at data that came while nobody waits: to an idle session, the server's good-bye."""
        if self.wrapper is None and self.pool is not None:
            if self.is_alive():
                self.attach(self.pool)
            else:
                self.pool.lost(self)

    def attach(self, pool: Pool) -> None:
        """Keep the socket registered with the pool's loop from now on."""
        self.pool = pool
        if self._sock is not None:
            self._sock.attach(pool.loop)

    def detach(self) -> None:
        """Take the socket out of the loop (on the loop's thread)."""
        if self._sock is not None:
            self._sock.detach()

    def wait_for_statement(self) -> None:
        """Wait until the statement in flight has ended."""
        with self.lock:
            pass

    def is_open(self) -> bool:
        """Tell whether the connection was not closed here."""
        return self._sock is not None

    def has_more(self) -> bool:
        """Tell whether something of the last result is left to be read."""
        result = self._result
        return result is not None and bool(result.unbuffered_active or result.has_next)

    def is_alive(self) -> bool:
        """Tell whether the connection is open, as far as can be told without a round trip."""
        transport = self._sock
        if transport is None:
            return False
        if self.lock.locked() or self.has_more() or transport.seems_quiet():
            return True
        if not self.lock.acquire_nowait(Caller()):
            return True  # whoever has the lock by now will find out
        try:
            return transport.is_quiet()
        finally:
            self.lock.release()

    def in_transaction(self) -> bool:
        """Tell whether the server has said that a transaction is open."""
        return bool(self.server_status & SERVER_STATUS.SERVER_STATUS_IN_TRANS)

    def is_idle(self) -> bool:
        """Tell whether nothing is under way: no statement, transaction or unbuffered result."""
        if self.lock.locked():
            return False
        if self._sock is None:
            return True
        if self.in_transaction():
            return False
        # A result that a finaliser has left keeps nobody waiting: the connection is closed then.
        return not self.has_more() or self.abandoned is self._result

    def is_working(self) -> bool:
        """Tell whether a statement is in flight."""
        return self.lock.locked()

    def is_outside_transaction(self) -> bool:
        """Tell whether the session is in no transaction."""
        return not self.in_transaction()

    def quiesce(self) -> bool:
        """Tell whether no statement is in flight: only its own loop could end one."""
        return self._sock is not None and not self.lock.locked()

    def note_identity(self) -> None:
        """Ask which server this is: statements are cancelled on that server only.

        Where the server does not say, a statement that is cancelled ends with its connection.
        """
        try:
            self.identity = identity_of(self)
            self._role = self._current_role()
        except err.DatabaseError as error:
            if self._sock is None:
                raise
            logger.info("a server does not say which it is: %s", error)

    def _current_role(self) -> Any:
        self.query("SELECT CURRENT_ROLE()")
        return self._result.rows[0][0]

    def note_baseline(self) -> None:
        """Remember the settings of a fresh connection, to see later whether they changed."""
        self._baseline = self._settings()
        self.session_state = ""
        self.state_is_meant = False
        self._maybe_state = self._checks_off = self._other_database = False

    def _settings(self) -> tuple[Any, ...]:
        return (
            self.charset,
            self.encoding,
            self.collation,
            self.use_unicode,
            self.cursorclass,
            self._read_timeout,
            self._write_timeout,
            *self.encoders.values(),
            None,
            *self.decoders.values(),
        )

    def inspect(self) -> GiveBack:
        """Return what must be done before another user gets this connection."""
        if self._sock is None or self.lock.locked() or self.has_more():
            return "close"
        if self._settings() != self._baseline:
            return "close"
        if (
            self.in_transaction()
            or not self.get_autocommit()
            or self.session_state
            or self._maybe_state
            or self._checks_off
            # What a function has set in a hold left no trace.
            or self.state_is_meant
        ):
            return "reset"
        return "reuse"


_LOST = "Lost connection to MySQL server during query"
_CLOSED = "MySQL server has gone away (the connection is closed)"


class _Context:
    """A stand-in for an SSLContext while PyMySQL connects: the handshake waits as all else."""

    def __init__(self, connection: Connection, transport: Transport, context: Any) -> None:
        self._connection = connection
        self._transport = transport
        self._context = context

    def wrap_socket(self, sock: Any, server_hostname: str | None = None) -> Transport:
        transport, connection = self._transport, self._connection
        secure = transport.begin_tls(self._context, server_hostname)
        transport.handshake(secure, lambda writing: connection._wait(transport, writing, None))
        return transport


_: type[RawConnection] = Connection  # mypy sees that the contract is kept
