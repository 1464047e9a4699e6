"""Which connection serves the code that is running now.

`django.db.connections[alias]` asks here (`seams/connections.py` routes it). In order: the
scope that the calling code is in; the lease of its chain of calls, in a bridge or in a thread
that `sync_to_async` runs; in bare coroutine code a facade that does no I/O; elsewhere Django's
own wrapper of the thread.

A *chain* is what one task does between entering its outermost bridge and leaving it (or one call
of a thread). Its leases go back to the pool at its end, and whenever it awaits something that is
not the driver's own, as long as they are idle.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from django.db import connections

from nuages import bridge as _bridge
from nuages.bridge import Bridge, current_bridge
from nuages.db import scope as _scope
from nuages.db.native import foreign_aliases
from nuages.db.scope import Kind, Node, current_node
from nuages.db.turns import caller_label
from nuages.exceptions import ForeignConnection

if TYPE_CHECKING:
    from nuages.db.backends.base import LoopWrapper

_KEY = "nuages.db.chain"
_ENGINES = "nuages.db.backends."

thread_task: ContextVar[weakref.ref[asyncio.Task[Any]] | None] = ContextVar(
    "nuages.db.thread_task", default=None
)
"""In a thread of `sync_to_async`: the task that awaits it."""


class Chain:
    """The leases and scope calls of one chain of calls."""

    __slots__ = ("__weakref__", "active", "calls", "left_open", "loop", "wrappers")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.wrappers: dict[str, Any] = {}
        """Wrappers by alias, connected or not."""
        self.active: list[LoopWrapper] = []
        """Wrappers that have a connection of the pool."""
        self.calls: list[Node] = []
        self.left_open: list[Callable[[], None]] = []
        """What sees to the end of scopes that may outlive the chain."""

    def give_back(self) -> None:
        """Give idle leases back, and turns of calls in a scope that nobody needs now."""
        for wrapper in tuple(self.active):
            if wrapper.node is not None:
                self.active.remove(wrapper)
            elif wrapper.is_idle():
                self.active.remove(wrapper)
                wrapper.release()
        for call in self.calls:
            if call.live and not call.turns.locked():
                call.give_turn_back()

    def end(self) -> None:
        """End every call in a scope and give back every lease, idle or not."""
        for call in reversed(self.calls):
            call.end()
        self.calls.clear()
        for wrapper in self.active:
            if wrapper.node is None:
                wrapper.release()
        self.active.clear()
        while self.left_open:
            self.left_open.pop()()


class _ThreadChain(threading.local):
    chain: Chain | None = None


_thread = _ThreadChain()


def current_chain() -> Chain | None:
    """The chain of the calling code; None outside a bridge and `sync_to_async`'s threads."""
    bridge = current_bridge()
    if bridge is None:
        return _thread.chain if asyncio._get_running_loop() is None else None
    chain: Chain | None = bridge.locals.get(_KEY)
    if chain is None:
        chain = bridge.locals[_KEY] = Chain(bridge.loop)
    return chain


def chain_or_thread() -> Chain | threading.Thread:
    """Who the calling code is: its chain, elsewhere its thread."""
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
    """In a thread: borrow connections from the pools of `loop` until the end of the block."""
    outer, _thread.chain = _thread.chain, Chain(loop)
    try:
        yield
    finally:
        chain, _thread.chain = _thread.chain, outer
        chain.end()


def _suspended(bridge: Bridge) -> None:
    chain: Chain | None = bridge.locals.get(_KEY)
    if chain is not None and (chain.active or chain.calls):
        chain.give_back()


def _ended(bridge: Bridge) -> None:
    chain: Chain | None = bridge.locals.get(_KEY)
    if chain is None:
        return
    if bridge.outer is None:
        chain.end()
    elif chain.active or chain.calls:
        chain.give_back()


def install_hooks() -> None:
    """Let the bridge tell when it waits for something else and when it ends. Idempotent."""
    if _suspended not in _bridge.suspend_hooks:
        _bridge.suspend_hooks.append(_suspended)
        _bridge.end_hooks.append(_ended)


install_hooks()


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


def has_none() -> bool:
    """Whether no wrapper is there for the calling code, which is in a bridge; at a quick look."""
    bridge = current_bridge()
    if bridge is None or foreign_aliases():
        return False
    chain: Chain | None = bridge.locals.get(_KEY)
    if chain is not None and chain.wrappers:
        return False
    for alias in connections.settings:  # noqa: SIM110 - a generator would cost more than this
        if current_node(alias) is not None:
            return False
    return True


class Storage:
    """Takes the place of `ConnectionHandler._connections`: one attribute an alias.

    Django's `__getitem__`, `__setitem__`, `all(initialized_only=True)` and so on keep working on
    it as they are. Wrappers of other engines stay in Django's own storage.
    """

    def __init__(self, original: Any, managed: type) -> None:
        self.__dict__.update(_original=original, _managed=managed, _facades=threading.local())

    def _store(self) -> dict[str, Any] | None:
        chain = current_chain()
        if chain is not None:
            return chain.wrappers
        if asyncio._get_running_loop() is not None:
            facades: dict[str, Any] = self._facades.__dict__
            return facades
        return None

    def __getattr__(self, alias: str) -> Any:
        node = current_node(alias)
        if node is not None:
            return node.wrapper
        store = self._store()
        if store is None:
            return getattr(self._original, alias)
        try:
            return store[alias]
        except KeyError:
            entry = connections.settings.get(alias)
            if entry is not None and entry["ENGINE"].startswith(_ENGINES):
                # What this thread opened outside the loop stays there.
                raise AttributeError(alias) from None
        wrapper = getattr(self._original, alias)
        if isinstance(wrapper, self._managed):
            # The same for a subclass of ours elsewhere.
            raise AttributeError(alias)
        return wrapper

    def __setattr__(self, alias: str, wrapper: Any) -> None:
        store = self._store()
        if store is None or not isinstance(wrapper, self._managed):
            setattr(self._original, alias, wrapper)
            return
        if wrapper.connection is None:
            wrapper.role = "lease" if current_chain() is not None else "facade"
        held = _scope.held_by_request(alias)
        if held is not None and wrapper.role == "lease":
            held[alias] = hold_for_request(wrapper)
        else:
            store[alias] = wrapper

    def __delattr__(self, alias: str) -> None:
        store = self._store()
        if store is not None and alias in store:
            del store[alias]
        else:
            self._facades.__dict__.pop(alias, None)
            delattr(self._original, alias)

    def thread_wrappers(self) -> list[Any]:
        """The calling thread's own wrappers, as Django stores them; none where a loop runs."""
        if asyncio._get_running_loop() is not None:
            return []
        return [
            getattr(self._original, alias)
            for alias in connections.settings
            if hasattr(self._original, alias)
        ]
