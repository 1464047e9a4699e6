"""The beginnings and ends of transactions: whether COMMIT was answered, and what follows it.

A block ends as committed only where COMMIT was sent and answered, however its connection, its
scope or a hold around it ends meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, cast

from django.db import Error

from nuages.bridge import current_bridge
from nuages.db.backends.base.context_state import of_caller
from nuages.db.backends.base.driver import may_do_io
from nuages.db.backends.base.on_commit import CommittedHooks
from nuages.db.scopes.chain import Chain, chain_or_thread
from nuages.db.scopes.scope import Scope, manual_mode
from nuages.db.scopes.tree import Kind
from nuages.exceptions import NotCommitted, ScopeEnded, SyncInCoroutine

if TYPE_CHECKING:
    from threading import Thread

    from django.db.backends.base.base import BaseDatabaseWrapper

    from nuages.db.scopes.lease import Lease

    class _Base(BaseDatabaseWrapper):
        def _commit(self) -> None: ...
        def _rollback(self) -> None: ...

else:
    _Base = object

FAILED_AT_END = (
    "The block ended without an error, but a statement of a task or thread in it, which the end "
    "waited for, failed, and the database rolled back all of the block. Await what you start in a "
    "transaction before it ends."
)


class Transactions(_Base):
    """Mixin: a wrapper whose transactions end as they were answered."""

    role: str
    scope: Scope | None
    left_by: Chain | Thread | None
    _committed_by: Chain | Thread | None
    _drop_session: Callable[[], None]
    _terminate: Callable[[], None]
    _is_dead: Callable[[], bool]
    is_lost: Callable[[Exception], bool]

    transaction_over = False
    """Whether a COMMIT or ROLLBACK was answered since the transaction began."""
    lost_at_end = False
    """Whether the database rolled the transaction back while COMMIT waited for a statement."""

    def _commit(self) -> None:
        if self.connection is None and self.role == "lease":
            # Django would do nothing, and the block would end as if it had been committed.
            raise NotCommitted()
        vars(self).update(transaction_over=False, lost_at_end=False)
        self._send_commit()
        vars(self)["transaction_over"] = True
        if self.lost_at_end:
            raise NotCommitted(FAILED_AT_END)

    def _send_commit(self) -> None:
        bridge = current_bridge()
        if bridge is None:
            super()._commit()
            return
        # The outcome of a COMMIT must be known before a cancellation is delivered, because the
        # outcome decides whether the on-commit hooks run.
        try:
            with bridge.shield():
                super()._commit()
        except Exception:
            raise  # Django's rollback follows
        except BaseException:
            # COMMIT was not sent yet: cancelled while another task's statement was in flight.
            try:
                self._rollback()
            except BaseException:
                self._terminate()
                raise
            raise

    def rollback(self) -> None:
        """Do as Django does; by hand, a cancellation meanwhile is raised when it is done."""
        super().rollback()
        bridge = current_bridge()
        if bridge is not None and self._is_by_hand():
            bridge.deliver()

    def _rollback(self) -> None:
        if self._is_by_hand():
            self._roll_back_by_hand()
            return
        super()._rollback()
        self.transaction_over = True

    def _is_by_hand(self) -> bool:
        """Tell whether no block ends, but a transaction in manual mode."""
        scope = self.scope
        return scope is not None and scope.ending is None

    def _roll_back_by_hand(self) -> None:
        """Roll back, whatever happens: to switch autocommit on would commit what is still open."""
        bridge = current_bridge()
        if not self._is_dead():
            try:
                with nullcontext() if bridge is None else bridge.shield():
                    super()._rollback()
            except Exception:
                raise
            except BaseException:
                # It was not sent yet: cancelled while another task's statement was in flight.
                self._terminate()
                self._forget_if_dead()
                raise
            self.transaction_over = True
        # The transaction has ended with a connection that is gone, and what the program is about
        # to raise (a cancellation, say) must not be lost.
        self._forget_if_dead()

    def _forget_if_dead(self) -> None:
        if self._is_dead():
            self.connection = None
            self._drop_session()

    def note_interruption(self, *, lost: bool = False) -> None:
        """Note that a statement was interrupted: the work of the caller's block is incomplete.

        `lost`: the database has rolled back the whole transaction. A statement of a task that is
        late, which the end of the task's block waits for, is the task's own matter otherwise.
        """
        scope = self.scope
        if not self.in_atomic_block:
            if lost and scope is not None and scope.ending is not None:
                self.lost_at_end = True
            return
        blocks = [] if scope is None else scope.blocks
        if not lost and blocks and blocks[-1].is_closed_to_caller:
            return
        self.needs_rollback = True
        if scope is not None and scope.blocks and not scope.is_beside_transaction():
            block = scope.block_around_others() or scope.blocks[-1]
            block.interrupted = True

    @of_caller
    def set_autocommit(
        self, autocommit: bool, force_begin_transaction_with_broken_autocommit: bool = False
    ) -> None:
        """Do as Django does; off, it makes a scope of a lease."""
        if not may_do_io():
            raise SyncInCoroutine()
        if self.role != "lease":
            self._switch_autocommit(autocommit, force_begin_transaction_with_broken_autocommit)
            return
        ending = self._is_ending()
        if autocommit and ending:
            if not self.run_commit_hooks_on_set_autocommit_on:
                # Not committed. Where the end was interrupted, Django has not come to clearing it.
                self.run_on_commit = []
            if not self._is_dead() and not self._has_ended():
                # The transaction's end was interrupted; its outcome is not known here.
                self._terminate()
            if self._is_dead():
                self._end_without_connection()
                return
        self._switch_autocommit(autocommit, force_begin_transaction_with_broken_autocommit)
        if not force_begin_transaction_with_broken_autocommit and not ending:
            manual_mode(cast("Lease", self), on=not autocommit)

    def _is_ending(self) -> bool:
        """Tell whether a block is ending: the scope's, or the caller's in a scope that is over."""
        scope = self.scope
        if scope is None:
            return self.left_by is not None and self.left_by is chain_or_thread()
        return scope.ending is not None

    def _has_ended(self) -> bool:
        """Tell whether the transaction is over, and no thread is about to go on with it."""
        ended: bool = self.connection.is_outside_transaction()
        return ended and (self.transaction_over or not self.connection.is_working())

    def _switch_autocommit(self, autocommit: bool, force_begin: bool) -> None:
        if not autocommit:
            vars(self)["transaction_over"] = False
        committed_by = self._committed_by
        ending = self._is_ending()
        try:
            super().set_autocommit(autocommit, force_begin)
        except (Error, ScopeEnded) as error:
            committed = committed_by is not None and committed_by is chain_or_thread()
            ended = autocommit and (committed or ending)
            if not ended or self.autocommit:
                raise
            if not isinstance(error, ScopeEnded) and not self.is_lost(error):
                raise
            # The transaction had ended before, whether committed or rolled back: all that failed
            # is that the connection goes on. With ScopeEnded a hold around it began to end.
            self._terminate()
            self._end_without_connection()

    def _end_without_connection(self) -> None:
        """End a block on a connection that is gone: no I/O, and no new connection."""
        self.connection = None
        self.autocommit = True
        if self.run_commit_hooks_on_set_autocommit_on:
            # The connection was lost after the answer to COMMIT.
            self.run_commit_hooks_on_set_autocommit_on = False
            self.run_and_clear_commit_hooks()
        else:
            self.run_on_commit = []

    def run_and_clear_commit_hooks(self) -> None:
        """Do as Django does; the hooks run after the scope, in autocommit."""
        scope = self.scope
        # Where the scope goes with the block, so does the connection, and all that is noted of it.
        hooks = self.run_on_commit
        if scope is not None and not self.in_atomic_block:
            if scope.root.kind is Kind.TRANSACTION:
                scope.leave()
            elif scope.blocks:
                # The block was in a hold, which goes on.
                scope.ending = None
                scope.block_ended(scope.blocks[-1])
        if not hooks:
            super().run_and_clear_commit_hooks()
            return
        self.validate_no_atomic_block()
        committed = CommittedHooks(hooks)
        self.run_on_commit = committed.entries
        with committed.run():
            super().run_and_clear_commit_hooks()

    @of_caller
    def get_autocommit(self) -> bool:
        """Do as Django does; in coroutine code outside a transaction, without connecting."""
        if self.role == "facade" and not may_do_io():
            return True
        return super().get_autocommit()
