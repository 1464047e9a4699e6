"""The transaction of a test: whatever runs in the process during the test works in it.

Django's TestCase opens its transactions on the test's own thread, outside any event loop. An
async test runs elsewhere: on another loop, in tasks, in threads, in a server that the test
started. So while a TestCase has a transaction open on one of our backends, its wrapper serves
every user of the alias, in turns, and its connection waits as each caller can: awaited in a
bridge, blocking in a thread. The root of the turns is kept in `tree.test_nodes`, which is empty
in production.

The test's own thread, outside loops, is the ground that all else stands on: it needs no turn, and
its blocks are plain Django's.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.transaction import Atomic

from nuages.db.pool.pool import Pool, every_pool
from nuages.db.scopes import tree as _scope
from nuages.db.scopes.chain import current_chain
from nuages.db.scopes.scope import Scope
from nuages.db.scopes.tree import Kind, Node
from nuages.exceptions import ScopeEnded, TestConnectionLost

if TYPE_CHECKING:
    from nuages.db.backends.base.base import LoopWrapper


@dataclass
class _Level:
    """One of a test's own blocks: the class's, or the test's in it."""

    atomic: Atomic
    atomic_blocks: int
    savepoint_ids: int


_levels: dict[str, list[_Level]] = {}
"""The blocks that tests have open, by alias, outermost first."""

run_hooks: list[Callable[[], None]] = []
"""Hooks called when this process begins to run tests: their databases are about to be made."""

_lost: dict[str, str] = {}
"""Which test lost the connection of its class's transaction, by alias."""


def begin_run() -> None:
    """Call the hooks: this process is going to run tests."""
    for hook in run_hooks:
        hook()


def enter(atomic: Atomic, django_enter: Callable[[Atomic], None]) -> bool:
    """Enter a block of a TestCase; False where it is a block like any other.

    It is such a block where the whole test run is on a loop, and with other engines.
    """
    if asyncio._get_running_loop() is not None or current_chain() is not None:
        return False
    alias = atomic.using or DEFAULT_DB_ALIAS
    wrapper = connections[alias]
    from nuages.db.backends.base.base import LoopWrapper

    if not isinstance(wrapper, LoopWrapper):
        return False
    root = _scope.test_nodes.get(alias)
    if root is None and wrapper.scope is not None:
        return False
    if root is not None and wrapper.closed_in_transaction:
        raise TestConnectionLost(alias=alias, test=_lost.get(alias, "An earlier test"))
    django_enter(atomic)
    if root is None:
        _lost.pop(alias, None)
        root = Scope(wrapper, Kind.TEST, None).root
        _scope.test_nodes[alias] = root
    level = _Level(atomic, len(wrapper.atomic_blocks), len(wrapper.savepoint_ids))
    _levels.setdefault(alias, []).append(level)
    return True


def leave(atomic: Atomic, django_exit: Callable[..., None], exc_info: tuple[Any, ...]) -> bool:
    """Leave a block that `enter` entered; what was left open inside is rolled back with it."""
    alias = atomic.using or DEFAULT_DB_ALIAS
    levels = _levels.get(alias)
    if not levels or levels[-1].atomic is not atomic:
        return False
    root = _scope.test_nodes[alias]
    wrapper = root.wrapper
    _end_blocks(root)
    levels.pop()
    try:
        django_exit(atomic, *exc_info)
    finally:
        if not levels:
            del _levels[alias], _scope.test_nodes[alias]
            wrapper.scope = None
            root.end()
            wrapper.unshare()
    return True


def is_ground(wrapper: LoopWrapper) -> bool:
    """Tell whether this is the test's own thread, outside loops and blocks of others."""
    root = None if wrapper.scope is None else wrapper.scope.root
    return (
        root is not None
        and root.kind is Kind.TEST
        and root.owned_by_caller
        and current_chain() is None
        and _scope.current_node(wrapper.alias) is root
    )


def at_work() -> list[str]:
    """Describe what is at work in the tests' transactions, beside the test's own thread."""
    found: list[str] = []
    for alias, root in _scope.test_nodes.items():
        found += _work(root, alias)
    return found


def _work(root: Node, alias: str) -> list[str]:
    blocks = root.scope.blocks
    found = [f"the atomic block of {block.label} on {alias!r}" for block in blocks]
    holder = root.turns.holder
    if holder is not None and holder not in blocks:
        found.append(f"the work of {holder.label} on {alias!r}")
    return found


def end_leftovers(test: str) -> list[str]:
    """End what a test left open: blocks in its transaction, transactions on any loop.

    `test` is the test's name in later errors. Tasks that are still at work must have been ended
    before, where that was possible. Returns a description of everything found.
    """
    found: list[str] = []
    for alias, root in _scope.test_nodes.items():
        found += _end_blocks(root)
        if root.wrapper.closed_in_transaction:
            _lost.setdefault(alias, test)
    for pool in every_pool():
        if pool.alias not in _scope.test_nodes:
            found += _on_thread_of(pool, _end_transactions, pool)
    found += _end_given_to_thread()
    for alias in connections:
        # async_to_sync brings back the context of what it called.
        _scope.set_node(alias, None)
    return found


def close_pools(alias: str) -> None:
    """Close the connections to a database that is about to be dropped or copied."""
    for pool in every_pool():
        if pool.alias == alias:
            _on_thread_of(pool, pool.clear)


def _end_transactions(pool: Pool) -> list[str]:
    found = []
    for scope in list(pool.scopes):
        if scope.root.kind is Kind.TRANSACTION:
            found.append(f"the transaction of {scope.root.label} on {scope.root.alias!r}")
            wrapper, raw = scope.wrapper, scope.wrapper.connection
            wrapper.end_forgotten("its test ended")
            wrapper.wait_for_end(raw)
    pool.clear()
    return found


def _end_given_to_thread() -> list[str]:
    """Roll back what coroutines left open on the connections of the thread that ran them."""
    found = []
    if asyncio._get_running_loop() is None:
        for wrapper in connections.all(initialized_only=True):
            openers = [vars(block).get("_nuages_left_by") for block in wrapper.atomic_blocks]
            if wrapper.alias in _scope.test_nodes or not any(openers):
                continue
            found.append(f"the transaction of {next(filter(None, openers))} on {wrapper.alias!r}")
            error = ScopeEnded(task="a test")
            while wrapper.atomic_blocks:
                wrapper.atomic_blocks[-1].__exit__(ScopeEnded, error, None)
    return found


def _on_thread_of(pool: Pool, function: Callable[..., Any], *args: Any) -> Any:
    if asyncio._get_running_loop() is pool.loop or not pool.loop.is_running():
        return function(*args)
    done: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def call() -> None:
        try:
            done.set_result(function(*args))
        except BaseException as error:
            done.set_exception(error)

    pool.loop.call_soon_threadsafe(call)
    return done.result()


def _end_blocks(root: Node) -> list[str]:
    wrapper = root.wrapper
    level = _levels[root.alias][-1]
    found = _work(root, root.alias)
    for block in root.scope.blocks:
        block.kill()
    if not found and len(wrapper.atomic_blocks) > level.atomic_blocks:
        found.append(f"an atomic block on {root.alias!r}")
    root.scope.blocks.clear()
    del wrapper.atomic_blocks[level.atomic_blocks :]
    del wrapper.savepoint_ids[level.savepoint_ids :]
    _scope.set_node(root.alias, None)
    root.turns.holder = None
    root.turns.refuse_waiting(ScopeEnded(task="a task"))
    raw = wrapper.connection
    if raw is not None and not (raw.is_alive() and raw.quiesce()):
        # The connection is broken, or in a statement whose loop does not run any more.
        wrapper.abandon()
        wrapper.wait_for_end(raw)
        found.append(f"a broken connection to {root.alias!r}")
    return found
