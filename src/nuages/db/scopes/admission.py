"""Admission to send a statement now: ask, wait, then look again.

A connection that belongs to a scope is used in turns. Code that waited, for its turn or for
something that comes after it (the connection's lock, SQLite's queue of writers), may find that
its block has ended meanwhile, and that the connection serves somebody else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from nuages.db.scopes import tree
from nuages.db.scopes.chain import Chain, current_chain
from nuages.db.scopes.fair_lock import caller_label
from nuages.db.scopes.tree import SUSPENDED, Kind, Node, current_node
from nuages.exceptions import ForeignConnection, ScopeEnded

if TYPE_CHECKING:
    from nuages.db.scopes.lease import Lease
    from nuages.db.scopes.scope import Scope


class Used(Protocol):
    """A driver's connection, which knows the wrapper that uses it."""

    @property
    def wrapper(self) -> Lease | None:
        """The wrapper that uses the connection now."""


class Admission:
    """One use of a connection, from before its turn to the end of its statement."""

    __slots__ = ("_connection", "_scope", "_seals", "_wrapper", "call")

    def __init__(self, wrapper: Lease | None, connection: Used | None = None) -> None:
        self._connection = connection
        self._wrapper = wrapper
        self._scope = scope = None if wrapper is None else wrapper.scope
        self._seals = 0 if scope is None else scope.seals
        self.call: Node | None = None

    def take_turn(self, *, keep: bool = False) -> None:
        """Wait until nothing else of the scope uses the connection; `give_back` ends that.

        With `keep` the block's own code takes a turn, too: else tasks inside could come before it
        while it waits for something other than them. Raises TransactionManagementError where the
        block was broken meanwhile.
        """
        if self._wrapper is not None and self._scope is not None:
            self.call = take_turn(self._wrapper, self._scope, keep=keep)

    def give_back(self) -> None:
        """Let the next caller of the scope go on."""
        call, self.call = self.call, None
        if call is not None:
            call.end()

    def block_began_to_end(self) -> bool:
        """Tell whether a block of the connection began to end: the caller's or one beside it."""
        return self._scope is not None and self._scope.seals != self._seals

    def look_again(self) -> None:
        """Raise `ScopeEnded` where the caller's block has ended (after a wait)."""
        wrapper, scope = self._wrapper, self._scope
        if self._connection is not None and self._connection.wrapper is not wrapper:
            raise ScopeEnded(task=caller_label())
        if wrapper is None or scope is None:
            return
        if wrapper.scope is not scope:
            raise ScopeEnded(task=caller_label())
        if scope.seals != self._seals:
            self._seals = scope.seals
            require(wrapper, scope)


def require(wrapper: Lease, scope: Scope) -> None:
    """Raise `ScopeEnded` where the calling code's block has ended: the code waited too long."""
    if scope.is_ended_by_caller:
        return
    node = current_node(wrapper.alias)
    if node is None or node.scope is not scope or tree.is_over(node):
        raise ScopeEnded(task=caller_label())


def take_turn(wrapper: Lease, scope: Scope, *, keep: bool = False) -> Node | None:
    """Wait until the calling code may use `wrapper`'s connection, which `scope` owns.

    Returns a node whose turn must be given back after the statement, where the calling code has
    no chain to keep the node (a thread of the user's own that carries the scope in its context),
    or is to `keep` the turn. `Admission.take_turn` says more, and what this raises.
    """
    if scope.ending is not None and scope.is_ended_by_caller:
        return None
    was_sound = not wrapper.needs_rollback
    call = _take_turn(wrapper, scope, keep)
    if was_sound and wrapper.needs_rollback:
        if call is not None:
            call.end()
        wrapper.validate_no_broken_transaction()
    return call


def _take_turn(wrapper: Lease, scope: Scope, keep: bool) -> Node | None:
    node = current_node(wrapper.alias)
    chain = current_chain()
    if node is None or node.scope is not scope:
        node = scope.root
        if node.is_dropped_hold:
            # The caller found the connection just before the generator around it was dropped. Its
            # call may have begun before that, and has the turn.
            node = _call_of(chain, scope) or node
        elif tree.has_left(scope):
            raise ScopeEnded(task=caller_label())
        else:
            raise ForeignConnection(owner=node.label, caller=caller_label())
    own = node.chain is chain and (chain is not None or node.owned_by_caller)
    if own:
        if node.state is SUSPENDED:
            assert node.parent is not None
            tree.acquire_turn(node.parent, node)
        if not keep:
            node.wait_for_children()
            return None
    if keep and _is_in_statement(node, chain):
        return None
    call = Node(Kind.CALL, scope, node, chain)
    tree.acquire_turn(node, call)
    if node.generators or node.parent is not None:
        tree.note_insider(node)
    if own or chain is None:
        return call
    tree.enter(call)
    chain.calls.append(call)
    return None


def _call_of(chain: Chain | None, scope: Scope) -> Node | None:
    """Return the call in `scope` that `chain` has begun and not ended."""
    calls = [] if chain is None else chain.calls
    return next((call for call in calls if call.scope is scope and not call.ended), None)


def _is_in_statement(node: Node, chain: Chain | None) -> bool:
    """Tell whether the calling code has the turn: finalisers close cursors anywhere."""
    holder = node.turns.holder
    return (
        isinstance(holder, Node)
        and holder.kind is Kind.CALL
        and holder.chain is chain
        and holder.owned_by_caller
    )
