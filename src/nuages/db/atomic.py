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
from nuages.bridge.generators import Generators, when_dropped
from nuages.db.backends.base.base import LoopWrapper
from nuages.db.backends.base.driver import may_do_io
from nuages.db.routing import Storage
from nuages.db.scopes import tree
from nuages.db.scopes.admission import Admission, take_turn
from nuages.db.scopes.chain import chain_or_thread, current_chain
from nuages.db.scopes.fair_lock import caller_label
from nuages.db.scopes.finalising import (
    end_left,
    is_collecting,
    leave_to_others,
    may_do_io_here,
)
from nuages.db.scopes.scope import Scope, open_scope
from nuages.db.scopes.tree import KILLED, Kind, Node, current_node
from nuages.db.testing import transactions as testing
from nuages.exceptions import (
    AtomicInCoroutine,
    BlockInterrupted,
    EnteredElsewhere,
    ForkedBlock,
    OpenBlock,
    ScopeEnded,
)

django_enter: Callable[[Atomic], None] = Atomic.__enter__
django_exit: Callable[..., None] = Atomic.__exit__


def entered_in(atomic: Atomic, generators: Generators) -> None:
    """Note which async generators a block is in that is about to be entered."""
    if generators:
        atomic.__dict__["_nuages_generators"] = generators


def enter_atomic(atomic: Atomic) -> None:
    """Enter a block: begin a transaction, which makes a scope, or nest in an existing scope."""
    if atomic._from_testcase and testing.enter(atomic, django_enter):  # type: ignore[attr-defined]
        return
    wrapper = connections[atomic.using or DEFAULT_DB_ALIAS]
    if isinstance(wrapper, LoopWrapper):
        if wrapper.forked:
            raise ForkedBlock()
        if not may_do_io():
            raise AtomicInCoroutine()
    if not isinstance(wrapper, LoopWrapper) or (wrapper.role != "lease" and wrapper.scope is None):
        django_enter(atomic)
        return
    if wrapper.scope is None:
        django_enter(atomic)
        node = open_scope(wrapper, Kind.TRANSACTION).root
    elif testing.is_ground(wrapper):
        django_enter(atomic)
        return
    else:
        nested = _nest(atomic, wrapper, wrapper.scope)
        if nested is None:
            # The block around it was a generator's, which was dropped just now.
            enter_atomic(atomic)
            return
        node = nested
    node.atomic = atomic
    node.depth = (len(wrapper.atomic_blocks), len(wrapper.savepoint_ids))
    generators = atomic.__dict__.pop("_nuages_generators", None)
    if generators is not None:
        node.generators = when_dropped(generators, node.abandon)
    node.scope.blocks.append(node)
    atomic.__dict__.setdefault("_nuages_nodes", []).append(node)


def _nest(atomic: Atomic, wrapper: LoopWrapper, scope: Scope) -> Node | None:
    """Enter a block in a scope: in its turn, which the block keeps until it ends.

    Returns None where the calling code is outside of the scope by now.
    """
    admission = Admission(wrapper)
    # In a thread without a chain this function must end the call.
    call = take_turn(wrapper, scope)
    try:
        here = call or current_node(wrapper.alias)
        if here is None or here.scope is not scope:
            return None
        node = Node(Kind.SAVEPOINT, scope, here, current_chain())
        tree.acquire_turn(here, node)
        if not wrapper.in_atomic_block:
            node.kind = Kind.TRANSACTION
        tree.enter(node)
        if scope.blocks:
            # So that code beside the new block sees it; noted back when the new block ends.
            scope.blocks[-1].doomed = wrapper._needs_rollback
        try:
            admission.look_again()
            savepoints = tuple(wrapper.savepoint_ids)
            django_enter(atomic)
            try:
                admission.look_again()
            except BaseException:
                _forget_entry(wrapper, atomic, savepoints)
                raise
        except BaseException:
            node.end()
            raise
    finally:
        if call is not None:
            call.end()
    return node


def _forget_entry(wrapper: LoopWrapper, atomic: Atomic, savepoints: tuple[Any, ...]) -> None:
    """Undo what Django has just noted for a block: the block around it ended meanwhile.

    The new savepoint, which was not among `savepoints`, went with the block that ended.
    """
    if wrapper.atomic_blocks and wrapper.atomic_blocks[-1] is atomic:
        wrapper.atomic_blocks.pop()
    if wrapper.savepoint_ids and wrapper.savepoint_ids[-1] not in savepoints:
        wrapper.savepoint_ids.pop()
    if wrapper.connection is None:
        # The connection was a hold's, which ended while the transaction began.
        wrapper.drop_connection()


def exit_atomic(atomic: Atomic, *exc_info: Any) -> None:
    """Leave a block, which seals it: nothing started inside can run in it any more."""
    if atomic._from_testcase and testing.leave(atomic, django_exit, exc_info):  # type: ignore[attr-defined]
        return
    node = node_of(atomic)
    wrapper = connections[atomic.using or DEFAULT_DB_ALIAS] if node is None else node.wrapper
    if isinstance(wrapper, LoopWrapper) and wrapper.forked and atomic in wrapper.atomic_blocks:
        _leave_forked(wrapper, atomic, failed=exc_info[0] is not None)
        return
    if node is None:
        django_exit(atomic, *exc_info)
        return
    if is_collecting() or _is_finalised(node, exc_info[0]):
        # The block is rolled back whatever it ends with: nobody hears what a finaliser commits.
        if not (is_collecting() or node.ended):
            # The block is over at once for all code that was in it, whoever ends it.
            node.seal()
        leave_to_others(node.scope, functools.partial(_exit_dropped, node, atomic))
        return
    if node.scope.unended:
        end_left(node.scope)
    _exit_node(node, atomic, *exc_info)


def _leave_forked(wrapper: LoopWrapper, atomic: Atomic, *, failed: bool) -> None:
    """Leave a block that goes on in the parent, without I/O (in a forked child)."""
    atomic.__dict__.pop("_nuages_nodes", None)
    wrapper.leave_forked(atomic)
    if not wrapper.forked:
        tree.set_node(wrapper.alias, None)
    if not failed:
        raise ForkedBlock()


def _is_finalised(node: Node, kind: type[BaseException] | None) -> bool:
    """Tell whether a generator is closed where the end of `node` should be awaited but cannot."""
    if kind is not GeneratorExit or current_bridge() is not None:
        return False
    raw = node.wrapper.connection
    return not may_do_io_here() and raw is not None and raw.is_alive()


def _exit_dropped(node: Node, atomic: Atomic) -> None:
    """Roll back a block that a finaliser has left, unless the block around it ends."""
    try:
        _exit_node(node, atomic, GeneratorExit, GeneratorExit(), None)
    except ScopeEnded:
        if not (node.ended or tree.is_over(node.parent)):
            raise


def _exit_node(node: Node, atomic: Atomic, *exc_info: Any) -> None:
    atomic.__dict__["_nuages_nodes"].remove(node)
    if node.ended:
        # An outer block ended first and rolled this one back.
        tree.leave(node)
        if exc_info[0] is None:
            raise ScopeEnded(task=node.label)
        return
    scope = node.scope
    outside = tree.context_node(node.alias)
    refusal: BaseException | None = None
    if exc_info[0] is None:
        refusal = _wait_for_dropped(node)
    left_open = scope.end_open_children(node)
    if exc_info[0] is None and refusal is None:
        refusal = _why_not(node, left_open)
    if refusal is not None:
        exc_info = (type(refusal), refusal, refusal.__traceback__)
    if outside is not node:
        # The block is left in a context other than the one it was entered in (an async generator,
        # a fixture), or before a block inside it that was opened here.
        tree.set_node(node.alias, node)
    _leave_block(node, atomic, exc_info, outside)
    if refusal is not None:
        raise refusal
    if exc_info[0] is None and node.state is KILLED and node.kind is Kind.SAVEPOINT:
        # The block around it began to end while this one did, and rolled this one back.
        raise ScopeEnded(task=node.label)


def _wait_for_dropped(node: Node) -> BaseException | None:
    """Wait until blocks in generators that `node`'s code has dropped are rolled back.

    The next statement of `node`'s code would wait so, too. Returns what the wait raised.
    """
    if not node.owned_by_caller or not node.scope.has_dropped_block(node):
        return None
    try:
        node.wait_for_children()
    except BaseException as error:
        return error
    return None


def _why_not(node: Node, left_open: Node | None) -> Exception | None:
    """Return why a block that is left without an error must not be committed; None if it may."""
    if left_open is not None:
        return OpenBlock(child=left_open.label)
    if not tree.is_in_context(node):
        return EnteredElsewhere(opener=node.label, caller=caller_label())
    if tree.is_over(node.parent):
        return ScopeEnded(task=node.label)
    if node.interrupted:
        return BlockInterrupted()
    return None


def _leave_block(node: Node, atomic: Atomic, exc_info: Any, outside: Node | None) -> None:
    scope = node.scope
    wrapper: Any = scope.wrapper
    state = vars(wrapper)
    caller = chain_or_thread()
    outer, state["left_by"] = wrapper.left_by, caller
    try:
        with scope.ended_by(caller):
            django_exit(atomic, *exc_info)
    except Exception:
        raise
    except BaseException:
        # Cancelled while waiting to roll back the savepoint, which was not done then. Django
        # reckons with the database's errors only, and the block around it would commit.
        if node.kind is Kind.SAVEPOINT:
            node.interrupted = wrapper._needs_rollback = True
        raise
    finally:
        state["left_by"] = outer
        if not wrapper._needs_rollback:
            # Its frames may hold something that keeps this very connection, in a left generator.
            state["rollback_exc"] = None
        if len(scope.blocks) > 1 and scope.blocks[-1] is node:
            around = scope.blocks[-2]
            around.interrupted |= node.interrupted and wrapper._needs_rollback
            if around.doomed:
                around.doomed = False
                wrapper._needs_rollback = True
        scope.block_ended(node)
        if not _is_within(outside, node) and outside is not node:
            tree.set_node(node.alias, outside)


def node_of(atomic: Atomic) -> Node | None:
    """Return the node of an entered block: the calling context's, where there are several."""
    nodes: list[Node] | None = atomic.__dict__.get("_nuages_nodes")
    if not nodes:
        return None
    here = tree.context_node(nodes[-1].alias)
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
        if isinstance(wrapper, LoopWrapper) and wrapper.scope is None and wrapper.in_atomic_block
    ]
    try:
        yield
    finally:
        for node in nodes:
            give_to_thread(node.scope)


def give_to_thread(scope: Scope) -> None:
    """End a scope whose connection goes on as its thread's own.

    A block that a coroutine left open in the scope goes on too, as in stock Django: it is Django's
    alone then.
    """
    if scope.wrapper.scope is scope:
        scope.wrapper.scope = None
    for block in reversed(scope.blocks):
        left = block.atomic.__dict__
        left["_nuages_nodes"].remove(block)
        left["_nuages_left_by"] = block.label
        block.end()
    scope.blocks.clear()
    scope.root.end()


def _thread_wrappers() -> list[Any]:
    storage = vars(connections)["_connections"]
    return storage.thread_wrappers() if isinstance(storage, Storage) else []


def _publish(wrapper: LoopWrapper) -> Node:
    node = Scope(wrapper, Kind.TRANSACTION, object()).root
    tree.enter(node)
    return node
