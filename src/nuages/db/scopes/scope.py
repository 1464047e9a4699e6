"""The beginnings and ends of scopes: whose a connection is, from here to there."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any, TypeVar

from nuages.db.pool.pool import on_loop_of
from nuages.db.scopes import tree as _scope
from nuages.db.scopes.chain import chain_or_thread, current_chain, task_behind
from nuages.db.scopes.tree import Kind, Node
from nuages.exceptions import ScopeEnded

if TYPE_CHECKING:
    from nuages.db.backends.base.base import LoopWrapper

T = TypeVar("T")


def end_open_children(node: Node) -> Node | None:
    """Seal `node`: blocks still open inside are over; return the innermost one."""
    blocks = node.wrapper.blocks
    first = blocks.index(node) + 1 if node in blocks else 0
    inner = blocks[first:]
    for child in inner:
        child.killed = True
        child.ended = True
        child.turns.refuse_waiting(ScopeEnded(task="a task"))
    if inner:
        del blocks[first:]
        atomic_depth, savepoint_depth = node.depth
        del node.wrapper.atomic_blocks[atomic_depth:]
        del node.wrapper.savepoint_ids[savepoint_depth:]
    # A call in flight ends with its statement (the connection's lock); its next one is refused.
    node.seal()
    return inner[-1] if inner else None


def open_scope(wrapper: LoopWrapper, kind: Kind) -> Node:
    """Make `wrapper`'s connection belong to a scope whose root is the calling code's."""
    chain = current_chain()
    node = Node(kind, wrapper, None, chain)
    wrapper.node = node
    if wrapper.session is not None:
        node.pool = wrapper.session.pool
        node.pool.scopes.add(node)
    if chain is not None:
        if wrapper in chain.active:
            chain.active.remove(wrapper)
        if chain.wrappers.get(wrapper.alias) is wrapper:
            # From now on it is found by the scope, and only by code in the scope.
            del chain.wrappers[wrapper.alias]
    _scope.enter(node)
    return node


def leave_scope(wrapper: LoopWrapper) -> None:
    """End `wrapper`'s scope; its connection goes on as a lease of the calling chain."""
    node, wrapper.node = wrapper.node, None
    if node is None:
        return
    if node.pool is not None:
        node.pool.scope_ended(node)
        if node.forget is not None:
            on_loop_of(node.pool, node.forget)
    node.end()
    wrapper.forget_closed()
    if wrapper.connection is None or wrapper.role != "lease":
        return
    chain = current_chain()
    if chain is None:
        wrapper.release()
        return
    chain.active.append(wrapper)
    chain.wrappers.setdefault(wrapper.alias, wrapper)


def end_hold(wrapper: LoopWrapper) -> Node | None:
    """End the scope of a hold; return the innermost block that a task has open in it.

    It waits for a statement in flight. What is not committed is rolled back.
    """
    node = wrapper.node
    if node is None:
        return None
    left_open = end_open_children(node)
    outer_ending, wrapper.ending = wrapper.ending, chain_or_thread()
    try:
        if wrapper.connection is not None:
            wrapper.connection.state_is_meant = True
            wrapper.connection.settle()
    finally:
        wrapper.ending = outer_ending
        if wrapper.in_atomic_block or not wrapper.autocommit:
            wrapper.drop_connection()
        leave_scope(wrapper)
    return left_open


def manual_mode(wrapper: LoopWrapper, *, on: bool) -> None:
    """Follow `set_autocommit()` outside `atomic`: off makes a scope, on ends it.

    A task that ends without switching it on again, be it in a thread that it awaited, leaves
    nobody who could: it is done here.
    """
    node = wrapper.node
    if on and node is None:
        opened = open_scope(wrapper, Kind.TRANSACTION)
        if (chain := current_chain()) is not None and opened.pool is not None:
            # Not sooner, since a thread may go on when the task has given it up.
            chain.left_open.append(
                functools.partial(on_loop_of, opened.pool, _end_with_task, opened, task_behind())
            )
    elif not on and node is not None and node.atomic is None and node.kind is Kind.TRANSACTION:
        session = wrapper.session
        # While a new connection is opened, which Django begins in autocommit, it goes on.
        if session is None or session.raw is not None:
            leave_scope(wrapper)


def _end_with_task(node: Node, task: asyncio.Task[Any] | None) -> None:
    """On the loop's thread: have the scope of `node` end with `task`, if nobody ends it before."""

    def end(_: object) -> None:
        if node.wrapper.node is node:
            node.wrapper.end_forgotten("its task ended")

    if node.ended:
        return
    if task is None or task.get_loop().is_closed():
        end(task)
        return
    task.add_done_callback(end)
    node.forget = functools.partial(task.remove_done_callback, end)
