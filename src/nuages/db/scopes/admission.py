"""Who may send a statement now: whose turn it is on a connection that belongs to a scope."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from nuages.db.scopes import tree as _scope
from nuages.db.scopes.chain import Chain, current_chain
from nuages.db.scopes.fair_lock import caller_label
from nuages.db.scopes.tree import Kind, Node, current_node
from nuages.exceptions import ForeignConnection

if TYPE_CHECKING:
    from nuages.db.backends.base.base import LoopWrapper


def take_turn(wrapper: LoopWrapper, *, keep: bool = False) -> Node | None:
    """Wait until the calling code may use `wrapper`'s connection for a statement.

    Returns a node whose turn must be given back after the statement, where the calling code has
    no chain to keep it (a thread of the user's own that carries the scope in its context). With
    `keep` also where the code is the node's own, which tasks inside could otherwise come before
    while it waits for something else than them.
    """
    root = wrapper.node
    if root is None:
        return None
    chain = current_chain()
    if wrapper.ending is not None and wrapper.ending is (chain or threading.current_thread()):
        return None
    node = current_node(wrapper.alias)
    if node is None or node.wrapper is not wrapper:
        raise ForeignConnection(owner=root.label, caller=caller_label())
    own = node.chain is chain and (chain is not None or node.owned_by_caller)
    if own:
        if not node.live:
            assert node.parent is not None
            _scope.acquire_turn(node.parent, node)
        if not keep:
            node.wait_for_children()
            return None
    if keep and _is_in_statement(node, chain):
        return None
    call = Node(Kind.CALL, wrapper, node, chain)
    _scope.acquire_turn(node, call)
    if own or chain is None:
        return call
    _scope.enter(call)
    chain.calls.append(call)
    return None


def _is_in_statement(node: Node, chain: Chain | None) -> bool:
    """Whether the calling code has the turn: the garbage collector closes cursors anywhere."""
    holder = node.turns.holder
    return (
        isinstance(holder, Node)
        and holder.kind is Kind.CALL
        and holder.chain is chain
        and holder.owned_by_caller
    )


def hold_for_request(wrapper: LoopWrapper) -> Node:
    """Make `wrapper`'s connection, open or not, the request's: all of its tasks find it."""
    caller = current_chain()
    loop = asyncio.get_running_loop() if caller is None else caller.loop
    # A chain of its own: no task's code may go without a turn.
    node = wrapper.node = Node(Kind.REQUEST, wrapper, None, Chain(loop))
    return node
