"""The cursors that are open on a wrapper's connection, and who opened them.

A lease is idle, and may go back to the pool, when nobody has a cursor that may execute yet.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from nuages.db.backends.base.context_state import of_caller
from nuages.db.scopes.chain import Chain, current_chain
from nuages.exceptions import IterationEnded

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    from nuages.db.scopes.scope import Scope

    class _Base(BaseDatabaseWrapper):
        def _prepare_cursor(self, cursor: Any) -> Any: ...

else:
    _Base = object


def _refuse_rows(*args: Any) -> NoReturn:
    raise IterationEnded()


class _OpenCursor(weakref.ref[Any]):
    """A cursor of a scope, and the chain that opened it: weakly, both."""

    __slots__ = ("chain",)

    chain: Callable[[], Chain | None]


def _opened(cursor: Any, chain: Chain | None) -> weakref.ref[Any]:
    if chain is None:
        return weakref.ref(cursor)
    opened = _OpenCursor(cursor)
    opened.chain = weakref.ref(chain)
    return opened


def _opened_by(chain: Chain, opened: weakref.ref[Any]) -> weakref.ref[Any]:
    cursor = opened()
    is_known = cursor is None or isinstance(opened, _OpenCursor)
    return opened if is_known else _opened(cursor, chain)


class OpenCursors(_Base):
    """Mixin: a wrapper that knows its open cursors."""

    role: str
    scope: Scope | None
    lends: bool
    lend: Callable[[], None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._cursors: list[weakref.ref[Any]] = []
        self._iterations: weakref.WeakSet[Any] | None = None
        super().__init__(*args, **kwargs)

    def _prepare_cursor(self, cursor: Any) -> Any:
        if self.role == "lease":
            if len(self._cursors) >= 16:
                self._has_cursor()
            scope = self.scope
            # Whose it is matters where the scope may be dropped: in a generator.
            may_be_dropped = scope is not None and scope.root.generators
            self._cursors.append(
                _opened(cursor, current_chain()) if may_be_dropped else weakref.ref(cursor)
            )
            if self.lends:
                made = super()._prepare_cursor(cursor)
                made.close = functools.partial(self._close_and_lend, cursor)
                return made
        return super()._prepare_cursor(cursor)

    def _close_and_lend(self, cursor: Any) -> None:
        try:
            cursor.close()
        finally:
            self.lend()

    @of_caller
    def chunked_cursor(self) -> Any:
        """Do as Django does; rows that are left keep no lease, unless they are on the server."""
        made = super().chunked_cursor()
        if self._cursors and self._cursors[-1]() is made.cursor:
            vars(made)["opened"] = self._cursors.pop()  # such a cursor executes once
        if self.role == "lease":
            if self._iterations is None:
                self._iterations = weakref.WeakSet()
            self._iterations.add(made)
        return made

    def note_opened(self, chain: Chain) -> None:
        """Note that `chain`, served so far, has opened what is open: the wrapper gets a scope."""
        if self._cursors:
            self._cursors = [_opened_by(chain, one) for one in self._cursors]
        for made in tuple(self._iterations or ()):
            if "opened" in vars(made):
                vars(made)["opened"] = _opened_by(chain, vars(made)["opened"])

    def chain_at_work(self) -> Chain | None:
        """Return a chain on this loop that goes on and has a cursor open here; None for none."""
        self._has_cursor()
        opened = [*self._cursors]
        for made in tuple(self._iterations or ()):
            if "opened" in vars(made) and self.has_rows_left(made.cursor):
                opened.append(vars(made)["opened"])
        for each in opened:
            chain = each.chain() if isinstance(each, _OpenCursor) else None
            if chain is not None and not (chain.ended or chain.in_thread):
                return chain
        return None

    def _end_iterations(self) -> None:
        """Have code that goes on with an `iterator()` told why it cannot (at give-back)."""
        for made in tuple(self._iterations or ()):
            if self.has_rows_left(made.cursor):
                made.fetchmany = _refuse_rows
                self.close_cursor(made.cursor)
        self._iterations = None

    def has_rows_left(self, cursor: Any) -> bool:
        """Tell whether an open cursor has rows that only the connection can give."""
        return False

    def _has_cursor(self) -> bool:
        """Tell whether somebody has a cursor that may execute yet, on this connection."""
        if self._cursors:
            self._cursors[:] = [
                one
                for one in self._cursors
                if (cursor := one()) is not None and self.cursor_is_open(cursor)
            ]
        return bool(self._cursors)

    def cursor_is_open(self, cursor: Any) -> bool:
        """Tell whether a cursor that `create_cursor()` has made is still open."""
        raise NotImplementedError

    def close_cursor(self, cursor: Any) -> None:
        """Close a cursor without I/O: it must not execute any more."""
        raise NotImplementedError
