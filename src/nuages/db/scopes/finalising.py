"""Finalisers and connections: a finaliser may do nothing. It takes notes; the owner closes.

The garbage collector runs finalisers (the `finally` of an abandoned generator, say) in any task
and any thread, in the middle of any statement, even of the same connection. Waiting there would
wait for the very code that is interrupted, and a greenlet that switched there would let others in
between two steps that must not be separated. So `may_close()` says no; a cursor is orphaned, to
be closed before its connection's next statement or at its give-back, and a block is put on its
scope's list of blocks to end, to be rolled back by the next code in its scope, or by the pool's
loop if none comes.

Python tells of a collection by `gc.callbacks`. An object that dies outside a collection is
finalised by the code that let its last reference go, at a place like any other: what counts there
is whose the connection is, and whether it is free.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nuages.bridge.core import current_bridge, run_on_loop
from nuages.db.pool.pool import Pool
from nuages.db.scopes.chain import current_chain
from nuages.db.scopes.tree import ancestor_with_turn, current_node
from nuages.exceptions import ScopeEnded

if TYPE_CHECKING:
    from nuages.db.backends.base.base import LoopWrapper
    from nuages.db.scopes.scope import Scope

_collecting: int | None = None
"""The thread in which a collection runs; there is never more than one collection."""


def _collection(phase: str, info: dict[str, Any]) -> None:
    global _collecting
    _collecting = threading.get_ident() if phase == "start" else None


def install_hook() -> None:
    """Have the garbage collector tell when it runs. Idempotent."""
    if _collection not in gc.callbacks:
        gc.callbacks.append(_collection)


install_hook()


def is_collecting() -> bool:
    """Tell whether the calling code was called by the garbage collector, as a finaliser."""
    return _collecting is not None and _collecting == threading.get_ident()


def may_do_io_here() -> bool:
    """Tell whether the calling code, which may be a finaliser, may wait for a database."""
    if is_collecting():
        return False
    bridge = current_bridge()
    if bridge is not None:
        return not bridge.closing
    return asyncio._get_running_loop() is None


def may_close(wrapper: LoopWrapper | None, *, busy: bool) -> bool:
    """Tell whether the calling code may do I/O to close a cursor of `wrapper`'s, now.

    Only where nobody has to be waited for: the connection is that of the calling code, not `busy`
    with a statement, and its turn in the scope is free.
    """
    if busy or wrapper is None or not may_do_io_here():
        return False
    if wrapper.scope is not None:
        return _has_turn_at_once(wrapper.scope)
    if wrapper.role == "lease":
        chain = current_chain()
        return chain is not None and wrapper in chain.active
    return wrapper.allow_thread_sharing or wrapper._thread_ident == threading.get_ident()


def _has_turn_at_once(scope: Scope) -> bool:
    if scope.is_ended_by_caller:
        return True
    try:
        node = current_node(scope.root.alias)
        if node is None or node.scope is not scope:
            return False
        return node.has_turn and ancestor_with_turn(node).turns.holder is None
    except ScopeEnded:
        return False


def leave_to_others(scope: Scope, end: Callable[[], None]) -> None:
    """Have `end` called, from a finaliser, by the next code in the scope or by the pool's loop."""
    scope.unended.append(end)
    pool = scope.pool
    if pool is not None and not pool.loop.is_closed():
        end_later(pool, functools.partial(_end_left_yet, scope))


def end_later(pool: Pool, end: Callable[[], None]) -> None:
    """Have `end` called by a task of the pool's loop, which is not closed (from a finaliser)."""
    # In a context of its own: the current one belongs to the code that the finaliser interrupted.
    pool.loop.call_soon_threadsafe(
        pool.run_in_background, lambda: run_on_loop(end, (), {}), context=contextvars.Context()
    )


def _end_left_yet(scope: Scope) -> None:
    if scope.unended:
        end_left(scope)


def end_left(scope: Scope) -> None:
    """End what finalisers have left of a scope, where the calling code may wait for that."""
    if not may_do_io_here():
        return
    # Taken out first, because ending one looks the wrapper up.
    ends, scope.unended = scope.unended, []
    try:
        while ends:
            ends.pop()()
    except BaseException:
        # Cancelled, say: the next code in the scope goes on, or the pool's loop.
        for end in ends:
            leave_to_others(scope, end)
        raise
