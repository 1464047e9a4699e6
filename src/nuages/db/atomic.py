"""The rules of an atomic block, sync or async, on the loop.

`enter_atomic` and `exit_atomic` stand behind Django's `Atomic` (`seams/transaction.py`): they
take and give the block's turn in its scope and leave the SQL to Django.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.transaction import Atomic

from nuages.bridge.core import current_bridge
from nuages.db.backends.base.base import LoopWrapper
from nuages.db.routing import Storage
from nuages.db.scopes import tree as _scope
from nuages.db.scopes.admission import take_turn
from nuages.db.scopes.chain import chain_or_thread, current_chain
from nuages.db.scopes.finalising import (
    end_abandoned,
    is_collecting,
    leave_to_others,
    may_do_io_here,
)
from nuages.db.scopes.scope import end_open_children, leave_scope, open_scope
from nuages.db.scopes.tree import Kind, Node, context_node, current_node
from nuages.db.testing import transactions as testing
from nuages.exceptions import OpenBlock, ScopeEnded

django_enter: Callable[[Atomic], None] = Atomic.__enter__
django_exit: Callable[..., None] = Atomic.__exit__


def enter_atomic(atomic: Atomic) -> None:
    """Enter a block: begin a transaction, which makes a scope, or nest in the one there is."""
    if atomic._from_testcase and testing.enter(atomic, django_enter):  # type: ignore[attr-defined]
        return
    wrapper = connections[atomic.using or DEFAULT_DB_ALIAS]
    if not isinstance(wrapper, LoopWrapper) or (wrapper.role != "lease" and wrapper.node is None):
        django_enter(atomic)
        return
    if wrapper.node is None:
        wrapper.opening_block = True
        try:
            django_enter(atomic)
        finally:
            wrapper.opening_block = False
        node = open_scope(wrapper, Kind.TRANSACTION)
    elif testing.is_ground(wrapper):
        django_enter(atomic)
        return
    else:
        # In a thread without a chain the call is this function's to end.
        call = take_turn(wrapper)
        here = call or current_node(wrapper.alias)
        assert here is not None
        kind = Kind.SAVEPOINT if wrapper.in_atomic_block else Kind.TRANSACTION
        node = Node(kind, wrapper, here, current_chain())
        try:
            _scope.acquire_turn(here, node)
            _scope.enter(node)
            wrapper.opening_block = True
            seals, savepoints = wrapper.seals, len(wrapper.savepoint_ids)
            if wrapper.blocks:
                # So that code beside the new block sees it; noted back when that ends.
                wrapper.blocks[-1].doomed = wrapper._needs_rollback
            try:
                django_enter(atomic)
                if wrapper.seals != seals:
                    try:
                        wrapper.require_scope()
                    except BaseException:
                        _forget_entry(wrapper, atomic, savepoints)
                        raise
            except BaseException:
                node.end()
                raise
            finally:
                wrapper.opening_block = False
        finally:
            if call is not None:
                call.end()
    node.atomic = atomic
    node.depth = (len(wrapper.atomic_blocks), len(wrapper.savepoint_ids))
    wrapper.blocks.append(node)
    atomic.__dict__.setdefault("_nuages_nodes", []).append(node)


def _forget_entry(wrapper: LoopWrapper, atomic: Atomic, savepoints: int) -> None:
    """Undo what Django noted for a block that was entered while the one around it ended."""
    if wrapper.atomic_blocks and wrapper.atomic_blocks[-1] is atomic:
        wrapper.atomic_blocks.pop()
    del wrapper.savepoint_ids[savepoints:]


def exit_atomic(atomic: Atomic, *exc_info: Any) -> None:
    """Leave a block, which seals it: nothing started inside can run in it any more."""
    if atomic._from_testcase and testing.leave(atomic, django_exit, exc_info):  # type: ignore[attr-defined]
        return
    node = node_of(atomic)
    if node is None:
        django_exit(atomic, *exc_info)
        return
    if is_collecting() or _is_finalised(node, exc_info[0]):
        # Rolled back whatever it ends with: nobody hears of what a finaliser commits.
        closed = GeneratorExit()
        leave_to_others(
            node.wrapper, functools.partial(_exit_node, node, atomic, GeneratorExit, closed, None)
        )
        return
    if node.wrapper.abandoned:
        end_abandoned(node.wrapper)
    _exit_node(node, atomic, *exc_info)


def _is_finalised(node: Node, kind: type[BaseException] | None) -> bool:
    """Whether a generator is closed where nothing can be awaited, and there is something to be."""
    if kind is not GeneratorExit or current_bridge() is not None:
        return False
    raw = node.wrapper.connection
    return not may_do_io_here() and raw is not None and raw.is_alive()


def _exit_node(node: Node, atomic: Atomic, *exc_info: Any) -> None:
    atomic.__dict__["_nuages_nodes"].remove(node)
    wrapper, alias = node.wrapper, node.alias
    if node.ended:
        # An outer block ended first and rolled this one back.
        _scope.leave(node)
        if exc_info[0] is None:
            raise ScopeEnded(task=node.label)
        return
    outside = context_node(alias)
    if outside is not node:
        # Left in another context than it was entered in (an async generator, a fixture), or
        # before a block inside it that was opened here.
        _scope.set_node(alias, node)
    left_open = end_open_children(node)
    error: BaseException | None = None
    if left_open is not None and exc_info[0] is None:
        error = OpenBlock(child=left_open.label)
        exc_info = (type(error), error, None)
    caller = chain_or_thread()
    outer_ending, wrapper.ending = wrapper.ending, caller
    try:
        django_exit(atomic, *exc_info)
    finally:
        if wrapper.ending is caller:
            # Else its hooks ran after its end, and another's end began meanwhile.
            wrapper.ending = outer_ending
        if node in wrapper.blocks:
            wrapper.blocks.remove(node)
        if wrapper.blocks and wrapper.blocks[-1].doomed:
            wrapper.blocks[-1].doomed = False
            wrapper._needs_rollback = True
        if node.parent is None:
            leave_scope(wrapper)
        node.end()
        if not _is_within(outside, node) and outside is not node:
            _scope.set_node(alias, outside)
    if error is not None:
        raise error


def node_of(atomic: Atomic) -> Node | None:
    """Return the node of an entered block: the calling context's, where there are several."""
    nodes: list[Node] | None = atomic.__dict__.get("_nuages_nodes")
    if not nodes:
        return None
    here = context_node(nodes[-1].alias)
    while here is not None:
        if here.atomic is atomic and here in nodes:
            return here
        here = here.previous
    return nodes[-1]


def _is_within(inner: Node | None, outer: Node) -> bool:
    while inner is not None:
        if inner is outer:
            return True
        inner = inner.parent
    return False


@contextmanager
def published_scopes() -> Iterator[None]:
    """Let coroutines that this thread runs by `async_to_sync` join its open transactions."""
    nodes = [
        _publish(wrapper)
        for wrapper in _thread_wrappers()
        if isinstance(wrapper, LoopWrapper) and wrapper.node is None and wrapper.in_atomic_block
    ]
    try:
        yield
    finally:
        for node in nodes:
            node.wrapper.node = None
            node.end()


def _thread_wrappers() -> list[Any]:
    storage = vars(connections)["_connections"]
    return storage.thread_wrappers() if isinstance(storage, Storage) else []


def _publish(wrapper: LoopWrapper) -> Node:
    node = Node(Kind.TRANSACTION, wrapper, None, object())
    wrapper.node = node
    _scope.enter(node)
    return node
