"""Holders: the holds and open iterations or cursors that one scope's connection is kept for.

Code in a hold, or in the body of an `aiterator()`, shares its connection, and what that code
opens may outlive the hold or the iteration: two iterations of one task end in any order, and a
generator that holds a connection is dropped while its consumer reads from that connection. So a
scope has a list of holders. The scope goes on, with the connection, until the last of them ends,
and is abandoned when all holders that are left are in generators that were dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nuages.bridge.generators import Generators, when_dropped
from nuages.db.scopes.scope import Scope, open_scope
from nuages.db.scopes.tree import Kind

if TYPE_CHECKING:
    from nuages.db.scopes.lease import Lease


class Holder:
    """One hold, or open iteration or cursor, of a scope."""

    __slots__ = ("_generators", "dropped", "kind", "scope")

    def __init__(self, scope: Scope, kind: Kind, generators: Generators) -> None:
        self.scope = scope
        self.kind = kind
        self.dropped = False
        """Whether an async generator that the holder is in was dropped."""
        self._generators: Generators = ()
        if generators:
            self._generators = when_dropped(generators, self._drop)
        scope.holders.append(self)
        if len(scope.holders) > 1:
            self._tell_root()
        else:
            scope.root.generators = self._generators

    @property
    def is_alone(self) -> bool:
        """Tell whether the scope ends with this holder; False where the scope has ended."""
        return self.scope.holders == [self]

    @property
    def has_others(self) -> bool:
        """Tell whether the connection is kept for others as well."""
        return self in self.scope.holders and not self.is_alone

    @property
    def is_within_others(self) -> bool:
        """Tell whether it began in another holder, which goes on."""
        return self in self.scope.holders and self.scope.holders[0] is not self

    @property
    def is_within_hold(self) -> bool:
        """Tell whether it began in a hold, whose tasks may use the connection."""
        holders = self.scope.holders
        return self in holders and any(
            holder.kind is Kind.HOLD for holder in holders[: holders.index(self)]
        )

    def leave(self) -> None:
        """End it; the last one ends the scope, whose connection goes on as the chain's lease."""
        self._generators = ()
        holders = self.scope.holders
        if self not in holders:
            return
        holders.remove(self)
        raw = self.scope.wrapper.connection
        if self.kind is Kind.HOLD and raw is not None:
            raw.state_is_meant = True
        if holders:
            self._tell_root()
        else:
            self.scope.leave()

    def _drop(self) -> None:
        """Note that the holder was dropped (from a finaliser, anywhere)."""
        self.dropped = True
        if all([holder.dropped for holder in tuple(self.scope.holders)]):
            self.scope.root.abandon()

    def _tell_root(self) -> None:
        root, holders = self.scope.root, self.scope.holders
        is_hold = any(holder.kind is Kind.HOLD for holder in holders)
        root.kind = Kind.HOLD if is_hold else Kind.PIN
        root.generators = [holder._generators for holder in holders if holder._generators]
        if all(holder.dropped for holder in holders):
            root.abandon()
        elif root.abandoned:
            # Dropped between the caller's look-up and now.
            root.abandoned = False


def keep(wrapper: Lease, kind: Kind, generators: Generators) -> Holder | None:
    """Keep `wrapper`'s connection for the calling task's `kind`, a hold or a pin.

    Where the holder is opened in async `generators`, it is dropped with the first of them. Returns
    None where something else keeps the connection: the caller's block, another task's hold.
    """
    if wrapper.scope is None:
        return Holder(open_scope(wrapper, kind), kind, generators)
    return keep_shared(wrapper, kind, generators)


def keep_shared(wrapper: Lease, kind: Kind, generators: Generators) -> Holder | None:
    """Keep a connection as `keep` does if other holders of the calling task keep it already."""
    scope = wrapper.scope
    assert scope is not None
    if not (scope.holders and scope.root.owned_by_caller):
        return None
    return Holder(scope, kind, generators) if scope.own_block() is None else None
