"""A wrapper in a forked child: it leaves its connection to the parent (`db/forking.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper as _Base

    from nuages.db.pool.pool import Session
    from nuages.db.scopes.chain import Chain
    from nuages.db.scopes.scope import Scope
else:
    _Base = object


class Forked(_Base):
    """Mixin: what becomes of a wrapper where the process forks."""

    forked = False
    """Whether this process was forked in a block of its, which goes on in the parent only."""

    scope: Scope | None
    serves: Chain | None
    session: Session | None
    lends: bool
    _lent: Session | None
    _cursors: list[Any]
    _forget_transaction: Callable[[], None]

    def is_copied(self) -> bool:
        """Tell whether a forked child has a database of its own, a copy of its parent's."""
        return False

    def leave_to_parent(self) -> Any:
        """Forget the connection without I/O, in a forked child; return what must be kept.

        Where a block is open on the connection, or autocommit was switched off, the child cannot
        go on.
        """
        state = vars(self)
        left = state.get("connection"), state.get("session"), self._lent
        if left[0] is not None and self.is_copied():
            return left
        self._lent = None
        self.lends = False
        self._cursors = []
        manual = left[0] is not None and not self.autocommit and self.settings_dict["AUTOCOMMIT"]
        self.forked = self.forked or bool(state.get("in_atomic_block")) or manual
        self.connection = self.session = self.serves = None
        if not self.forked:
            self._begin_anew()
        return left

    def leave_forked(self, atomic: Any) -> None:
        """Leave a block that goes on in the parent; after the last one the wrapper is as new."""
        del self.atomic_blocks[self.atomic_blocks.index(atomic) :]
        if not self.atomic_blocks:
            self._begin_anew()

    def _begin_anew(self) -> None:
        self.scope = None
        self.forked = self.closed_in_transaction = False
        self._forget_transaction()
