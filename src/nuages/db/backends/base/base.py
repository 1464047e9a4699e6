"""The base of the wrappers of all our backends.

`LoopWrapper` is mixed in before Django's `DatabaseWrapper` of a vendor. A wrapper has a role:

* ``plain``: outside a loop, and copies; a connection of its own, exactly as in Django.
* ``lease``: of a chain of calls on the loop; its connection comes from the pool at the first
  I/O and goes back as soon as it is idle.
* ``facade``: for bare coroutine code; does no I/O.

A backend adds a raw connection class that fulfils `driver.RawConnection`. `LoopWrapper` is one
class, as long as the list of Django's methods that a lease must answer differently.
"""

from __future__ import annotations

import _thread
import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from django.db.backends.base.base import BaseDatabaseWrapper

from nuages.bridge import current_bridge
from nuages.db import engines
from nuages.db.backends.base import session_check
from nuages.db.backends.base.block_state import BlockState
from nuages.db.backends.base.context_state import ContextState, be_lending, of_caller
from nuages.db.backends.base.driver import GiveBack
from nuages.db.backends.base.forked import Forked
from nuages.db.backends.base.leasing import acquire, lend, take_back
from nuages.db.backends.base.open_cursors import OpenCursors
from nuages.db.backends.base.query_log import QueryCapture
from nuages.db.backends.base.transactions import Transactions
from nuages.db.pool import reconnect
from nuages.db.pool.options import PoolOptions, check_seconds
from nuages.db.pool.pool import Pool, Session, logger, on_loop_of
from nuages.db.scopes.admission import take_turn
from nuages.db.scopes.chain import Chain, current_chain
from nuages.db.scopes.fair_lock import caller_label
from nuages.db.scopes.finalising import is_collecting
from nuages.db.scopes.scope import Scope
from nuages.db.scopes.tree import Kind, current_node, enter
from nuages.exceptions import (
    ForkedBlock,
    ScopeEnded,
)
from nuages.tracebacks import PASSWORD_FRAMES, hide_frames

# Registered here, because the app that registers the other checks is what this one misses.
engines.register()

if TYPE_CHECKING:

    class _Base(BaseDatabaseWrapper):
        """Django's wrapper with its private parts, which the stubs leave out."""

        _thread_ident: int
        _force_debug_cursor: bool
        Database: Any
        _queries_log: deque[Any]
        _execute_wrappers: list[Any]

        def _commit(self) -> None: ...
        def _rollback(self) -> None: ...
        def _savepoint_rollback(self, sid: str) -> None: ...
        def _set_autocommit(self, autocommit: bool) -> None: ...
        def _prepare_cursor(self, cursor: Any) -> Any: ...

else:
    _Base = object


class LoopWrapper(
    ContextState,
    OpenCursors,
    Forked,
    Transactions,
    QueryCapture,
    BlockState,
    engines.OwnEngine,
    _Base,
):
    """Mixin for Django's `DatabaseWrapper` classes."""

    role: Literal["plain", "lease", "facade"] = "plain"
    session: Session | None = None
    scope: Scope | None = None
    """The scope that this wrapper's connection belongs to, if it belongs to a block of code."""
    lends = False
    """Whether it is a thread's, with a connection for one statement, or block, at a time."""
    seen_by_threads = False
    """Whether a thread has found it in a scope, and may go on to use it after the scope's end."""
    _lent: Session | None = None
    """The session that the thread had for its last statement, and may find again (`lend`)."""

    def pool_options(self) -> PoolOptions:
        """Return the pool's options; raises ImproperlyConfigured."""
        return PoolOptions.parse(self.alias, self.settings_dict)

    # Opening: from the pool for a lease

    @of_caller
    def connect(self) -> None:
        """Connect; a lease checks a connection out of the pool of its loop."""
        engines.require_app(self.alias)
        if self.forked:
            raise ForkedBlock()
        try:
            self._connect()
        except BaseException as error:
            hide_frames(error, PASSWORD_FRAMES)
            raise

    def _connect(self) -> None:
        if self.scope is None:
            self._connect_now()
            return
        # A request's or a hold's connection: any of several tasks may be the first to use it.
        turn = take_turn(self, self.scope)
        if turn is not None:
            # In a thread without a chain: so that the statements of connecting need no turn.
            enter(turn)
        try:
            if self.connection is None:
                self._connect_now()
        finally:
            if turn is not None:
                turn.end()

    def _connect_now(self) -> None:
        chain = self._chain_to_serve() if self.role == "lease" else None
        if chain is None:
            super().connect()
            self._bound()
        else:
            self._check_out(chain)

    def _chain_to_serve(self) -> Chain | None:
        """The caller's chain; in a thread without one, the chain that opened the scope around."""
        chain = current_chain()
        if chain is not None or self.scope is None or asyncio._get_running_loop() is not None:
            return chain
        opener = self.scope.root.chain
        return opener if isinstance(opener, Chain) else None

    def _check_out(self, chain: Chain) -> None:
        if self.scope is None and self.serves is not chain and self.family is not None:
            # The wrapper was found in a block that has ended meanwhile, in another thread.
            raise ScopeEnded(task=caller_label())
        if self.session is not None:
            self._drop_session()
        if self.lends:
            self.lends = False
        if self.is_subclassed:
            # However the last session ended.
            self.forget_session()
        while True:
            session = acquire(self, chain.loop)
            vars(self)["session"] = session
            try:
                if session.raw is None:
                    self._open(session)
                elif not self._reuse(session):
                    continue
                if self.session is not session:
                    raise ScopeEnded(task=caller_label())
            except BaseException as error:
                raw, self.connection = self.connection, None
                if self.session is session:
                    if raw is not None and session.raw is None:
                        session.opened(raw)
                    self._drop_session()
                    raise
                # The hold around it ended meanwhile, and has given the place up already.
                if raw is not None:
                    raw.terminate()
                if isinstance(error, Exception):
                    raise ScopeEnded(task=caller_label()) from error
                raise
            break
        if self.scope is None and self not in chain.active:
            chain.has_lease(self)
        if chain.in_thread:
            self.lends = True
            be_lending(self)

    def _open(self, session: Session) -> None:
        self._connect_patiently(session.pool)
        session.opened(self.connection)
        session.pool.opened += 1
        self._bound()
        if current_bridge() is not None:
            self.connection.attach(session.pool)
        if session_check.is_on():
            session_check.begin(self, session)

    def _connect_patiently(self, pool: Pool) -> None:
        pauses = reconnect.pauses(pool.options.reconnect_timeout)
        while True:
            try:
                super().connect()
                return
            except self.Database.OperationalError as error:
                pause = next(pauses, None)
                if pause is None or pool.closed or not self.is_away(error):
                    raise
                logger.info(
                    "the server of %r is away, again in %.2f s: %s", self.alias, pause, error
                )
            raw, self.connection = self.connection, None
            if raw is not None:
                raw.terminate()
            reconnect.sleep(pause)

    def is_away(self, error: Exception) -> bool:
        """Tell whether connecting failed because the server is not up: a retry may help."""
        return False

    def take_statement_timeout(self, params: dict[str, Any]) -> float | None:
        """Take our option "statement_timeout" (seconds) out of connection parameters."""
        timeout = params.pop("statement_timeout", None)
        if timeout is None:
            return None
        where = f'DATABASES[{self.alias!r}]["OPTIONS"]["statement_timeout"]'
        return check_seconds(where, timeout)

    def _reuse(self, session: Session) -> bool:
        self._forget_transaction()
        is_checked = self.settings_dict["CONN_HEALTH_CHECKS"]
        vars(self).update(
            closed_in_transaction=False,
            errors_occurred=False,
            close_at=None,
            connection=session.raw,
            autocommit=True,
            health_check_enabled=is_checked,
            health_check_done=True,
        )
        self._bound()
        if is_checked and not self.is_usable():
            self.connection = None
            self._drop_session()
            return False
        return True

    def _bound(self) -> None:
        self.connection.wrapper = self

    def _forget_transaction(self) -> None:
        # Past `__setattr__`, which every assignment would call. Django keeps `rollback_exc`, and
        # with it every frame of a request that is over: contexts outlive it.
        vars(self).update(
            in_atomic_block=False,
            savepoint_ids=[],
            atomic_blocks=[],
            _needs_rollback=False,
            rollback_exc=None,
            run_on_commit=[],
        )

    # Giving back

    def is_idle(self) -> bool:
        """Tell whether the connection could serve somebody else right now."""
        return (
            self.scope is None
            and not self.in_atomic_block
            and self.autocommit
            and not self._has_cursor()
            and (self.connection is None or self.connection.is_idle())
        )

    def is_kept(self) -> bool:
        """Tell whether the code that has this lease keeps it while waiting for something else.

        Others ask, perhaps in another thread; so this changes nothing.
        """
        raw = self.__dict__.get("connection")
        if raw is None or raw.is_working():
            return False
        cursors = [one() for one in tuple(self._cursors)]
        return not raw.is_idle() or any(
            cursor is not None and self.cursor_is_open(cursor) for cursor in cursors
        )

    def is_single(self) -> bool:
        """Tell whether the whole database is one connection."""
        return False

    # A thread's lease between two statements

    def lend(self) -> None:
        """Let others have the connection (in its thread, where a statement or a block ended).

        They may until it is used here again, that is until somebody reads `connection`: the
        attribute is not there meanwhile (`Lending`), so nothing can use what has become
        somebody else's. A session with state that a reset would end stays with the thread.
        """
        session = self.session
        if (
            not self.lends
            or session is None
            # A finaliser closes cursors in the middle of anything.
            or is_collecting()
            or self._thread_ident != _thread.get_ident()
            or asyncio._get_running_loop() is not None
            or not self.is_idle()
        ):
            return
        chain = current_chain()
        if chain is None or self not in chain.active or session.raw is not self.connection:
            return
        if session.raw.inspect() != "reuse":
            return
        self._lent, self.session = session, None
        del self.connection
        lend(session, type(self), self.settings_dict)

    def take_back_lent(self) -> None:
        """Have the session again that the thread has lent, or none if others have it."""
        session, self._lent = self._lent, None
        if session is not None and session.pool.reclaim_own(session):
            self.session, self.connection = session, session.raw
            return
        self.connection = None
        self._cursors = []
        self._forget_transaction()

    def release(self) -> None:
        """Give the lease's connection back to the pool, reset or closed where need be."""
        raw = self.connection  # first: it may have been lent
        session = self.session
        forgot = not self.is_subclassed or self._forget_session()
        if self._iterations:
            self._end_iterations()
        cursors = self._cursors
        vars(self).update(session=None, connection=None, _cursors=[])
        self._forget_transaction()
        for one in cursors:
            if (cursor := one()) is not None:
                self.close_cursor(cursor)
        if session is None:
            return
        if raw is None:
            on_loop_of(session.pool, session.pool.discard, session)
            return
        raw.wrapper = None
        verdict: GiveBack = "close" if not (self.autocommit and forgot) else raw.inspect()
        if verdict == "reuse":
            raw.state_is_meant = False
        on_loop_of(session.pool, take_back, session, verdict, type(self), self.settings_dict)

    def _forget_session(self) -> bool:
        """Let a subclass forget the session that goes back; tell whether it could."""
        try:
            self.forget_session()
        except Exception:
            logger.exception(
                "close() of %s failed while a connection of %r was given back; it is closed",
                type(self).__qualname__,
                self.alias,
            )
            return False
        return True

    def end_forgotten(self, when: str) -> None:
        """End a scope that nobody is left to end: close its connection, and say so."""
        scope = self.scope
        assert scope is not None
        logger.warning(
            "Closed a connection of %r that was still in use when %s: a transaction, or a hold, "
            "of %s was not ended. What was not committed is rolled back.",
            self.alias,
            when,
            scope.root.label,
        )
        scope.end_forgotten()

    def drop_connection(self) -> None:
        """Close the connection without I/O and be as new."""
        raw, self.connection = self.connection, None
        self.autocommit = True
        self._forget_transaction()
        self._drop_session()
        if raw is not None and raw.is_alive():
            # Still being opened, and so not the session's yet.
            raw.terminate()

    def _drop_session(self) -> None:
        session, self.session = self.session, None
        if session is not None:
            on_loop_of(session.pool, session.pool.discard, session)

    @of_caller
    def close(self) -> None:
        """Close the connection to the database (a lease's too, not only give it back).

        A test's connection is closed by the test's own thread only: whoever else is done with
        it would end the test's transaction.
        """
        if self.gives_back:
            return
        if self.forked and not self.atomic_blocks:
            self._begin_anew()
        root = None if self.scope is None else self.scope.root
        if root is not None and root.kind is Kind.TEST and not root.owned_by_caller:
            return
        super().close()
        self.forget_closed()

    def forget_closed(self) -> None:
        """Give up the place in the pool of a connection that was closed."""
        if self.connection is None and self.session is not None:
            chain = current_chain()
            if chain is not None and self in chain.active:
                chain.active.remove(self)
            self._drop_session()

    def close_if_unusable_or_obsolete(self) -> None:
        """Do as Django does; a lease's age is the pool's business."""
        if self.role == "lease":
            vars(self)["close_at"] = None
        super().close_if_unusable_or_obsolete()

    @contextmanager
    def temporary_connection(self) -> Iterator[Any]:
        """Do as Django does; a lease goes back to the pool instead of being closed."""
        opened = self.connection is None
        try:
            with self.cursor() as cursor:
                yield cursor
        finally:
            if opened and self.role == "lease":
                chain = current_chain()
                if chain is not None and self in chain.active and self.is_idle():
                    chain.active.remove(self)
                    self.release()
            elif opened:
                self.close()

    def share(self) -> None:
        """Prepare a test's connection for use beside the test's own thread. Idempotent."""

    def unshare(self) -> None:
        """Undo `share`, at the end of the test's transaction."""

    def snapshot(self) -> session_check.Snapshot:
        """Ask the server what is set in the session."""
        raise NotImplementedError

    def reset_session(self) -> None:
        """Bring the session back to the state of a fresh one, before another user gets it."""
        raise NotImplementedError

    # Connections that are lost

    def _terminate(self) -> None:
        if self.connection is not None:
            self.connection.terminate()

    def abandon(self) -> None:
        """Drop the connection without I/O: the server rolls back what is open on it."""
        self._terminate()
        if self.in_atomic_block:
            self.closed_in_transaction = True
            self.needs_rollback = True

    def wait_for_end(self, raw: Any) -> None:
        """Block until a connection that was dropped has let its locks go."""

    def _is_dead(self) -> bool:
        return self.connection is None or not self.connection.is_alive()

    def is_lost(self, error: Exception) -> bool:
        """Tell whether a statement failed with the connection, which may not have noticed yet."""
        return self._is_dead() or self.ends_session(error)

    def ends_session(self, error: Exception) -> bool:
        """Tell whether the server says with this error that it ends the session."""
        return False

    # Who may use it

    def validate_thread_sharing(self) -> None:
        """Do as Django does; code in the scope of this connection may use it in any thread."""
        if self._thread_ident != _thread.get_ident():
            node = current_node(self.alias)
            if node is None or node.wrapper is not self:
                super().validate_thread_sharing()
