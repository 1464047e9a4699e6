"""A thread's own connections, for the coroutines that it runs by `async_to_sync`.

Stock Django has one connection for a sync program and for the coroutines it calls: what is set in
its session, a transaction by `set_autocommit(False)`, temporary tables, locks, query capture and
`execute_wrapper()` hold for both. So while a thread waits in `async_to_sync`, the code that it
runs there works on the thread's connections, opened or not, one task after another. Loops that a
program runs itself (`asyncio.run()`) have pools.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections

from nuages.db.atomic import give_to_thread, published_scopes
from nuages.db.backends.base.base import LoopWrapper
from nuages.db.engines import foreign_aliases
from nuages.db.routing import Storage
from nuages.db.scopes.family import Family, OwnFamilies, begin_with
from nuages.db.scopes.scope import Scope
from nuages.db.scopes.tree import (
    Kind,
    Node,
    RequestNodes,
    context_node,
    request_nodes,
    set_node,
)


class ThreadNodes(RequestNodes):
    """The connections of a thread that waits for its coroutines, each from its first use on."""

    def __init__(self, storage: Storage) -> None:
        super().__init__()
        self._storage = storage
        self._thread_ident = threading.get_ident()
        self._lock = threading.Lock()
        self._wrappers: dict[str, Any] = {each.alias: each for each in storage.thread_wrappers()}
        self._made: dict[str, LoopWrapper] = {}

    def get(self, alias: str, default: Any = None) -> Node | Any:
        """Return the node of an alias; `default` where its engine is not ours."""
        found = super().get(alias)
        if found is None and alias not in foreign_aliases():
            with self._lock:
                found = super().get(alias) or self._publish(alias)
        return default if found is None else found

    def _publish(self, alias: str) -> Node:
        wrapper: Any = self._wrappers.get(alias)
        if wrapper is None:
            wrapper = connections.create_connection(alias)
            self._made[alias] = wrapper
            # The wrapper is the waiting thread's, whoever asked first.
            wrapper._thread_ident = self._thread_ident
            Family().join(wrapper)
        if wrapper.scope is not None:
            # In the transaction that the thread has open.
            return wrapper.scope.root  # type: ignore[no-any-return]
        begin_with(wrapper)
        # A chain of its own: no task's code may go without a turn.
        node = self[alias] = Scope(wrapper, Kind.REQUEST, object()).root
        return node

    def end(self) -> None:
        """Take back the thread's connections, with those opened meanwhile (in the thread)."""
        self.ended = True
        for node in self.values():
            give_to_thread(node.scope)
        for alias, wrapper in self._made.items():
            setattr(self._storage, alias, wrapper)


@contextmanager
def published_connections() -> Iterator[None]:
    """Let coroutines that this thread runs by `async_to_sync` use its connections.

    They do not where the thread itself works for a loop, or on connections of a request.
    """
    storage = vars(connections)["_connections"]
    before = request_nodes.get()
    if not isinstance(storage, Storage) or (before is not None and not before.ended):
        with published_scopes():
            yield
        return
    nodes = ThreadNodes(storage)
    request_nodes.set(nodes)
    try:
        # Families belong to the coroutines' context, which asgiref brings back.
        with OwnFamilies(), published_scopes():
            for wrapper in storage.thread_wrappers():
                if isinstance(wrapper, LoopWrapper):
                    # What was set on the wrapper holds for detached code, too.
                    begin_with(wrapper)
            yield
    finally:
        request_nodes.set(before)
        nodes.end()
        for alias in connections:
            _drop_ended(alias)


def _drop_ended(alias: str) -> None:
    """Take what has ended out of the thread's context, which asgiref brought back.

    A block that a coroutine left open is no scope's any more, and the thread is in no scope.
    """
    node = first = context_node(alias)
    while node is not None and node.ended:
        node = node.previous
    if node is not first:
        set_node(alias, node)
