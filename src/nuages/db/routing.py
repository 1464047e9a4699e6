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
from typing import TYPE_CHECKING, Any

from django.db import connections

from nuages.bridge import current_bridge
from nuages.db.engines import RoutedStorage, foreign_aliases, is_named_ours
from nuages.db.scopes import tree as _scope
from nuages.db.scopes.chain import chain_of, current_chain
from nuages.db.scopes.finalising import end_left
from nuages.db.scopes.scope import hold_for_request
from nuages.db.scopes.tree import current_node

if TYPE_CHECKING:
    pass


def has_none() -> bool:
    """Whether no wrapper is there for the calling code, which is in a bridge; at a quick look."""
    bridge = current_bridge()
    if bridge is None or foreign_aliases():
        return False
    chain = chain_of(bridge)
    if chain is not None and chain.wrappers:
        return False
    for alias in connections.settings:  # noqa: SIM110 - a generator would cost more than this
        if current_node(alias) is not None:
            return False
    return True


class Storage(RoutedStorage):
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
        if node is not None and node.scope.unended:
            end_left(node.scope)
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
            if entry is not None and is_named_ours(entry):
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
