"""The connection that serves the code that is running now.

`django.db.connections[alias]` asks here (`seams/connections.py` routes it). In order: the
scope that the calling code is in; the lease of its chain of calls, in a bridge or in a thread
that `sync_to_async` runs; in bare coroutine code a facade that does no I/O; elsewhere Django's
own wrapper of the thread. Leases and facade are members of the context's family
(`scopes/family.py`), which shares what is set on them.

A *chain* is what one task does between entering its outermost bridge and leaving it (or one call
of a thread). Its leases go back to the pool at its end, and, if they are idle, whenever it awaits
something that is not the driver's own.
"""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING, Any

from django.db import connections

from nuages.bridge import current_bridge
from nuages.db.backends.base.context_state import follow
from nuages.db.engines import RoutedStorage, foreign_aliases, is_named_ours
from nuages.db.scopes import tree as _scope
from nuages.db.scopes.chain import CHAIN, current_chain
from nuages.db.scopes.family import (
    Family,
    family_for,
    forget_family,
    has_families,
    known_family,
    serve,
    take_idle,
)
from nuages.db.scopes.finalising import end_left
from nuages.db.scopes.scope import hold_for_request
from nuages.db.scopes.tree import current_node

if TYPE_CHECKING:
    from nuages.db.scopes.chain import Chain


def _blocks_the_loop() -> bool:
    """Tell whether sync code may block in a coroutine; its connection is the thread's then."""
    return bool(os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"))


def has_none() -> bool:
    """Tell, by a quick look, whether the calling code, in a bridge, has no wrapper yet."""
    bridge = current_bridge()
    if bridge is None or foreign_aliases():
        return False
    if has_families():
        return False
    chain: Chain | None = bridge.locals.get(CHAIN)
    if chain is not None and chain.wrappers:
        return False
    for alias in connections.settings:  # noqa: SIM110 - a generator would cost more than this
        if current_node(alias) is not None:
            return False
    return True


class Storage(RoutedStorage):
    """The object in place of `ConnectionHandler._connections`: one attribute an alias.

    Django's `__getitem__`, `__setitem__`, `all(initialized_only=True)` and so on keep working on
    it as they are. Wrappers of other engines stay in Django's own storage.
    """

    def __init__(self, original: Any, managed: type) -> None:
        self.__dict__.update(_original=original, _managed=managed, _blocking=threading.local())

    def __getattr__(self, alias: str) -> Any:
        node = current_node(alias)
        if node is not None and node.scope.unended:
            end_left(node.scope)
            node = current_node(alias)
        if node is not None:
            if asyncio._get_running_loop() is None:
                node.wrapper.seen_by_threads = True
            return node.wrapper
        chain = current_chain()
        if chain is not None:
            wrapper = chain.wrappers.get(alias)
            if wrapper is None and (wrapper := take_idle(alias)) is not None:
                self._give(alias, wrapper, chain)
        elif asyncio._get_running_loop() is not None:
            wrapper = self._facade(alias)
        else:
            return getattr(self._original, alias)
        if wrapper is not None:
            return wrapper
        entry = connections.settings.get(alias)
        if entry is not None and is_named_ours(entry):
            # The wrapper that this thread opened outside the loop stays there.
            raise AttributeError(alias)
        wrapper = getattr(self._original, alias)
        if isinstance(wrapper, self._managed):
            # The same holds for a subclass of ours in another package.
            raise AttributeError(alias)
        return wrapper

    def __setattr__(self, alias: str, wrapper: Any) -> None:
        chain = current_chain()
        outside = chain is None and asyncio._get_running_loop() is None
        if outside or not isinstance(wrapper, self._managed):
            setattr(self._original, alias, wrapper)
            if isinstance(wrapper, self._managed) and wrapper.family is None:
                # The family is for coroutines that the thread runs.
                Family().join(wrapper)
            return
        if wrapper.connection is None:
            vars(wrapper)["role"] = "facade" if chain is None else "lease"
        if chain is None and _blocks_the_loop():
            vars(self._blocking)[alias] = wrapper
            return
        family = family_for(alias)
        if wrapper.connection is None and wrapper.family is None:
            family.join(wrapper)
        if chain is None:
            follow(wrapper)
            family.facade = wrapper
        else:
            self._give(alias, wrapper, chain)

    def _give(self, alias: str, wrapper: Any, chain: Chain) -> None:
        """Let `wrapper` serve a chain, or the request that holds its connections."""
        if wrapper.role == "lease" and _scope.request_nodes.get() is not None:
            held = _scope.held_by_request(alias)
            if held is not None:
                held[alias] = hold_for_request(wrapper)
                return
        chain.wrappers[alias] = wrapper
        if wrapper.family is not None:
            serve(wrapper, chain)

    def _facade(self, alias: str) -> Any:
        if _blocks_the_loop():
            return vars(self._blocking).get(alias)
        family = known_family(alias)
        return None if family is None else family.facade

    def __delattr__(self, alias: str) -> None:
        """Forget the wrappers of the calling context, with what was set on them."""
        chain = current_chain()
        found = [
            forget_family(alias),
            chain is not None and chain.wrappers.pop(alias, None) is not None,
            vars(self._blocking).pop(alias, None) is not None,
        ]
        outside = chain is None and asyncio._get_running_loop() is None
        if outside or not any(found):
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
