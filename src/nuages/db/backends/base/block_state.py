"""The state of its own atomic block, for each of several tasks that share a connection.

Django keeps on the connection what is true of its innermost block. Where tasks have blocks open
inside one another's scope, or one task has a transaction in a hold that another uses too, the
innermost block may be somebody else's.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import TYPE_CHECKING, Any

from nuages.db.backends.base.context_state import of_caller
from nuages.db.backends.base.on_commit import call_hook
from nuages.db.scopes.chain import Chain, chain_or_thread
from nuages.db.scopes.scope import Scope
from nuages.db.scopes.tree import Kind

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper as _Base
else:
    _Base = object

TRANSACTION = Kind.TRANSACTION


class BlockState(_Base):
    """Mixin: `needs_rollback`, `on_commit` and the like are of the calling code's block."""

    scope: Scope | None
    _needs_rollback = False
    """The innermost block's; the blocks around it note their own on their nodes."""
    _committed_by: Chain | Thread | None = None

    @property
    def run_commit_hooks_on_set_autocommit_on(self) -> bool:
        """Tell whether the calling code has committed, and switches autocommit on next.

        While that code runs its hooks afterwards, others go on: one may have committed, too.
        """
        return self._committed_by is not None and self._committed_by is chain_or_thread()

    @run_commit_hooks_on_set_autocommit_on.setter
    def run_commit_hooks_on_set_autocommit_on(self, value: bool) -> None:
        if value:
            vars(self)["_committed_by"] = chain_or_thread()
        elif self._committed_by is not None and self._committed_by is chain_or_thread():
            vars(self)["_committed_by"] = None

    @property
    def needs_rollback(self) -> bool:
        """Tell whether the calling code's innermost block must be rolled back."""
        scope = self.scope
        if (
            scope is None
            or not scope.blocks
            or (len(scope.blocks) == 1 and scope.root.kind is TRANSACTION)
        ):
            return self._needs_rollback
        if scope.is_beside_transaction():
            return False
        block = scope.block_around_others()
        return self._needs_rollback if block is None else block.doomed

    @needs_rollback.setter
    def needs_rollback(self, value: bool) -> None:
        scope = self.scope
        if (
            scope is None
            or not scope.blocks
            or (len(scope.blocks) == 1 and scope.root.kind is TRANSACTION)
        ):
            vars(self)["_needs_rollback"] = value
            return
        if scope.is_beside_transaction():
            return
        block = scope.block_around_others()
        if block is None:
            self._needs_rollback = value
        else:
            block.doomed = value

    @of_caller
    def on_commit(self, func: Callable[[], Any], robust: bool = False) -> None:
        """Do as Django does; a hook belongs to the caller's block, not to another task's."""
        scope = self.scope
        if scope is not None and scope.is_beside_transaction():
            call_hook(func, robust)
            return
        super().on_commit(func, robust)
        block = None if scope is None else scope.block_around_others()
        if block is not None:
            own = set(self.savepoint_ids[: block.depth[1]])
            self.run_on_commit[-1] = (own, *self.run_on_commit[-1][1:])
