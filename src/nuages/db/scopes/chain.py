"""Chains: what one task does between entering its outermost bridge and leaving it.

One call of a thread of `sync_to_async` is a chain too. A chain's leases go back to the pool at
its end, and, if they are idle, whenever it awaits something that is not the driver's own.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from nuages.bridge import Bridge
from nuages.bridge import core as _bridge
from nuages.bridge.core import current_bridge
from nuages.db.scopes.family import dismiss
from nuages.db.scopes.tree import LIVE, Node, chains_around, nodes_around

if TYPE_CHECKING:
    from nuages.db.scopes.lease import Lease


CHAIN = "nuages.db.chain"
"""The chain of a bridge, among its locals."""


thread_task: ContextVar[weakref.ref[asyncio.Task[Any]] | None] = ContextVar(
    "nuages.db.thread_task", default=None
)
"""In a thread of `sync_to_async`: the task that awaits the thread."""


class Chain:
    """The leases and scope calls of one chain of calls."""

    __slots__ = ("__weakref__", "active", "calls", "ended", "left_open", "loop", "wrappers")

    in_thread = False
    """Whether the chain is a thread's."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.ended = False
        self.wrappers: dict[str, Any] = {}
        """Wrappers by alias, connected or not."""
        self.active: list[Lease] = []
        """Wrappers that have a connection from the pool."""
        self.calls: list[Node] = []
        self.left_open: list[Callable[[], None]] = []
        """Calls that see to the end of scopes that may outlive the chain."""

    def has_lease(self, wrapper: Lease) -> None:
        """Note that `wrapper` has a connection now; tasks started from here on can tell."""
        self.active.append(wrapper)
        around = chains_around.get()
        if around:
            if around[-1]() is self:
                return
            around = tuple(
                [one for one in around if (chain := one()) is not None and not chain.ended]
            )
        chains_around.set((*around, weakref.ref(self)))

    def give_back(self) -> None:
        """Give back idle leases, and the turns of calls in a scope which nobody needs now."""
        for wrapper in tuple(self.active):
            if wrapper.scope is not None:
                self.active.remove(wrapper)
            elif wrapper.is_idle():
                self.active.remove(wrapper)
                wrapper.release()
        for call in self.calls:
            if call.state is LIVE and not call.turns.locked():
                call.give_turn_back()

    def end(self) -> None:
        """End every call in a scope and give back every lease, idle or not."""
        for call in reversed(self.calls):
            call.end()
        self.calls.clear()
        self.ended = True
        served = dict.fromkeys((*self.active, *self.wrappers.values()))
        for wrapper in self.active:
            if wrapper.scope is None:
                wrapper.release()
        self.active.clear()
        self.wrappers.clear()
        for wrapper in served:
            dismiss(wrapper, self)
        while self.left_open:
            self.left_open.pop()()


class ThreadChain(Chain):
    """One call of a thread of `sync_to_async`."""

    __slots__ = ()

    in_thread = True


def count_held(alias: str, loop: asyncio.AbstractEventLoop) -> int:
    """Return how many connections of the pool of `alias` on `loop` the code around the caller has.

    Those are the connections of the scopes that the caller is in, or is detached from, and leases
    that a chain around it keeps while waiting for something other than a statement.
    """
    holding: set[int] = set()
    for node in nodes_around(alias):
        wrapper = node.scope.wrapper
        if wrapper.scope is node.scope and _is_of(wrapper, alias, loop):
            holding.add(id(wrapper))
    for one in chains_around.get():
        chain: Chain | None = one()
        if chain is not None:
            for wrapper in tuple(chain.active):
                if wrapper.scope is None and _is_of(wrapper, alias, loop) and wrapper.is_kept():
                    holding.add(id(wrapper))
    return len(holding)


def _is_of(wrapper: Lease, alias: str, loop: asyncio.AbstractEventLoop) -> bool:
    session = wrapper.session
    return session is not None and wrapper.alias == alias and session.pool.loop is loop


class _Thread(threading.local):
    chain: Chain | None = None


_thread = _Thread()


def current_chain() -> Chain | None:
    """The chain of the calling code; None outside a bridge and `sync_to_async`'s threads."""
    bridge = current_bridge()
    if bridge is None:
        return _thread.chain if asyncio._get_running_loop() is None else None
    chain: Chain | None = bridge.locals.get(CHAIN)
    if chain is None:
        chain = bridge.locals[CHAIN] = Chain(bridge.loop)
    return chain


def chain_or_thread() -> Chain | threading.Thread:
    """Return the chain of the calling code, or its thread where there is no chain."""
    return current_chain() or threading.current_thread()


def task_behind() -> asyncio.Task[Any] | None:
    """The task whose bridge the calling code is in, or that awaits its thread; None elsewhere."""
    bridge = current_bridge()
    if bridge is not None:
        return bridge.task
    task = thread_task.get()
    return None if task is None else task()


@contextmanager
def thread_chain(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Borrow connections from the pools of `loop` until the end of the block (in a thread)."""
    outer, _thread.chain = _thread.chain, ThreadChain(loop)
    try:
        yield
    finally:
        chain, _thread.chain = _thread.chain, outer
        chain.end()


def forget_thread_chain() -> None:
    """Forget the thread's chain, after a fork: the parent's loops give no connections here."""
    found, _thread.chain = _thread.chain, None
    if found is not None:
        # When the chain's code ends in the child, nothing is left to be given back.
        found.ended = True
        found.active.clear()
        found.calls.clear()
        found.wrappers.clear()
        found.left_open.clear()


def _suspended(bridge: Bridge) -> None:
    chain: Chain | None = bridge.locals.get(CHAIN)
    if chain is not None and (chain.active or chain.calls):
        chain.give_back()


def _ended(bridge: Bridge) -> None:
    chain: Chain | None = bridge.locals.get(CHAIN)
    if chain is None:
        return
    if bridge.outer is None:
        chain.end()
    elif chain.active or chain.calls:
        chain.give_back()


def install_hooks() -> None:
    """Have bridges report when they wait for something else and when they end. Idempotent."""
    if _suspended not in _bridge.suspend_hooks:
        _bridge.suspend_hooks.append(_suspended)
        _bridge.end_hooks.append(_ended)


install_hooks()
