"""Scopes: a connection that belongs to a block of code, from its beginning to its end.

A scope owns its wrapper's connection. It knows the blocks that are open there, who is ending one,
and how often one began to end, so that code that waited meanwhile looks again (`admission.py`).
It begins with an outermost transaction, a hold, or an open `aiterator()` or `acursor()`.

An early exit is a normal end. What a generator held when it was dropped is over for its consumer
at once (`tree.Node.abandoned`). A block that is open in it by then keeps the connection, and the
scope ends with the block (`let_go`): the finaliser, which runs later, must not take them away.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nuages.db.pool.pool import on_loop_of
from nuages.db.scopes import tree
from nuages.db.scopes.chain import Chain, chain_or_thread, current_chain, task_behind
from nuages.db.scopes.family import dismiss, serve
from nuages.db.scopes.tree import Kind, Node, current_node
from nuages.exceptions import ScopeEnded

if TYPE_CHECKING:
    from threading import Thread

    from nuages.db.pool.pool import Pool
    from nuages.db.scopes.holder import Holder
    from nuages.db.scopes.lease import Lease


class Scope:
    """The ownership of one wrapper's connection."""

    __slots__ = (
        "__weakref__",
        "blocks",
        "ending",
        "forget",
        "holders",
        "left",
        "pool",
        "root",
        "seals",
        "unended",
        "wrapper",
    )

    def __init__(self, wrapper: Lease, kind: Kind, chain: object) -> None:
        self.wrapper = wrapper
        self.blocks: list[Node] = []
        """The open atomic blocks, outermost first."""
        self.ending: Chain | Thread | None = None
        """The chain, or else the thread, that is ending a block: it needs no turn."""
        self.seals = 0
        """How often a block began to end."""
        self.unended: list[Callable[[], None]] = []
        """Calls that end the blocks finalisers have left, innermost last (`finalising.py`)."""
        self.holders: list[Holder] = []
        """What keeps the connection, other than blocks, in the order in which they began."""
        self.left = False
        """Whether the last block to end ends the scope: what began the scope is over."""
        self.pool: Pool | None = None
        """The pool that the connection is from."""
        self.forget: Callable[[], object] | None = None
        """For manual mode: undoes that the scope ends with its task (on the loop's thread)."""
        self.root = Node(kind, self, None, chain)
        vars(wrapper)["scope"] = self

    def __repr__(self) -> str:
        return f"<Scope of {self.root!r}, {len(self.blocks)} blocks>"

    @property
    def is_ended_by_caller(self) -> bool:
        """Tell whether the calling code is ending one of the scope's blocks."""
        return self.ending is not None and self.ending is chain_or_thread()

    # Blocks

    def end_open_children(self, node: Node) -> Node | None:
        """Seal `node`: blocks still open inside are over; return the innermost one."""
        first = self.blocks.index(node) + 1 if node in self.blocks else 0
        inner = self.blocks[first:]
        for child in inner:
            child.kill()
        if inner:
            del self.blocks[first:]
            atomic_depth, savepoint_depth = node.depth
            del self.wrapper.atomic_blocks[atomic_depth:]
            del self.wrapper.savepoint_ids[savepoint_depth:]
        # A call in flight ends with its statement (the connection's lock); the next is refused.
        node.seal()
        return inner[-1] if inner else None

    def has_dropped_block(self, node: Node) -> bool:
        """Tell whether a block in `node`, still open, is in a generator that was dropped."""
        return node in self.blocks and any(
            block.abandoned for block in self.blocks[self.blocks.index(node) + 1 :]
        )

    @contextmanager
    def ended_by(self, caller: Chain | Thread) -> Iterator[None]:
        """Note that `caller`, whose code this is, ends a block inside."""
        outer, self.ending = self.ending, caller
        try:
            yield
        finally:
            if self.ending is caller:
                # Else the block's hooks ran after its end, and another one began to end meanwhile.
                self.ending = outer

    def block_ended(self, node: Node) -> None:
        """Take a block out; the scope ends with its outermost block."""
        if node in self.blocks:
            self.blocks.remove(node)
        if node.parent is None or (self.left and not self.blocks):
            self.leave()
        node.end()

    def own_block(self) -> Node | None:
        """Return the innermost block that the calling code is in; None outside of all of them."""
        node = current_node(self.root.alias)
        while node is not None and node not in self.blocks:
            node = node.parent
        return node

    def is_beside_transaction(self) -> bool:
        """Tell whether the calling code is in a hold, outside a transaction that is open in it."""
        if not self.blocks or self.root.kind not in (Kind.HOLD, Kind.REQUEST):
            return False
        if self.is_ended_by_caller:
            return False
        try:
            return self.own_block() is None
        except ScopeEnded:
            return False

    def block_around_others(self) -> Node | None:
        """Return the calling code's block, where another task has a block open within it."""
        if len(self.blocks) < 2:
            return None
        try:
            block = self.own_block()
        except ScopeEnded:
            return None
        return None if block is self.blocks[-1] else block

    # Its end

    def wait_for_calls(self) -> None:
        """Wait for calls of tasks that began in a hold which the scope has outlived."""
        holder = self.root.turns.holder
        if isinstance(holder, Node) and holder.kind is Kind.CALL:
            self.root.wait_for_children()

    def leave(self) -> None:
        """End the scope; its connection goes on as a lease of the calling chain."""
        wrapper = self.wrapper
        if wrapper.scope is not self:
            return
        vars(wrapper)["scope"] = None
        self.holders.clear()
        if self.pool is not None:
            self.pool.scope_ended(self)
            if self.forget is not None:
                on_loop_of(self.pool, self.forget)
        self.root.end()
        chain = current_chain()
        if wrapper.role == "lease":
            # First: a kept wrapper tells of the caller's own session, unless it serves the caller.
            vars(wrapper)["serves"] = chain
        wrapper.forget_closed()
        if wrapper.connection is None or wrapper.role != "lease":
            return
        if self.root.was_dropped and (at_work := wrapper.chain_at_work()) is not None:
            # Its consumer was in it, and has begun to read something there.
            chain = at_work
        elif chain is None or self.left:
            wrapper.release()
            dismiss(wrapper, chain)
            return
        serve(wrapper, chain)
        chain.has_lease(wrapper)
        chain.wrappers.setdefault(wrapper.alias, wrapper)
        if wrapper.lends and chain is current_chain():
            wrapper.lend()

    def let_go(self) -> None:
        """End the scope without I/O: now, or with the last block that is open in it."""
        self.left = True
        if not self.blocks:
            self.leave()

    def end_hold(self, *, goes_on: bool = False) -> Node | None:
        """End a hold; return the innermost block that a task has open in it.

        This waits for a statement in flight. What is not committed is rolled back; a block whose
        COMMIT is answered meanwhile is not open any more. The scope ends, unless it `goes_on` for
        what the hold is in.
        """
        wrapper = self.wrapper
        left_open = self.end_open_children(self.root)
        try:
            if wrapper.connection is not None:
                wrapper.connection.state_is_meant = True
                with self.ended_by(chain_or_thread()):
                    wrapper.connection.wait_for_statement()
                if wrapper.transaction_over:
                    left_open = None
        finally:
            is_opening = wrapper.session is not None and wrapper.session.raw is None
            if wrapper.in_atomic_block or not wrapper.autocommit or is_opening:
                wrapper.drop_connection()
            if goes_on:
                self.root.open_again()
            else:
                self.leave()
        return left_open

    def end_forgotten(self) -> None:
        """End the scope where nobody is left to do so: what is open in it is rolled back."""
        self.wrapper.scope = None
        self.holders.clear()
        for block in (self.root, *self.blocks):
            block.end()
            block.kill()
        self.blocks.clear()
        if self.pool is not None:
            self.pool.scope_ended(self)
        self.wrapper.drop_connection()


def open_scope(wrapper: Lease, kind: Kind) -> Scope:
    """Make `wrapper`'s connection belong to a scope whose root is the calling code's."""
    chain = current_chain()
    scope = Scope(wrapper, kind, chain)
    vars(wrapper)["serves"] = None
    if wrapper.session is not None:
        scope.pool = wrapper.session.pool
        scope.pool.scopes.add(scope)
    if chain is not None:
        wrapper.note_opened(chain)
        if wrapper in chain.active:
            chain.active.remove(wrapper)
        if chain.wrappers.get(wrapper.alias) is wrapper:
            # From now on the wrapper is found by its scope, and only by code in that scope.
            del chain.wrappers[wrapper.alias]
    tree.enter(scope.root)
    return scope


def hold_for_request(wrapper: Lease) -> Node:
    """Make `wrapper`'s connection, open or not, the request's: all the request's tasks find it."""
    caller = current_chain()
    loop = asyncio.get_running_loop() if caller is None else caller.loop
    # A chain of its own: no task's code may go without a turn.
    return Scope(wrapper, Kind.REQUEST, Chain(loop)).root


def manual_mode(wrapper: Lease, *, on: bool) -> None:
    """Follow `set_autocommit()` outside `atomic`: off makes a scope, on ends it.

    Where a task, or a thread that it awaited, does not switch autocommit on again, nobody is left
    to do so when the task ends: the scope ends then.
    """
    scope = wrapper.scope
    if on and scope is None:
        opened = open_scope(wrapper, Kind.TRANSACTION)
        if (chain := current_chain()) is not None and opened.pool is not None:
            # Not sooner, because a thread may go on after the task has given it up.
            chain.left_open.append(
                functools.partial(on_loop_of, opened.pool, _end_with_task, opened, task_behind())
            )
    elif (
        not on
        and scope is not None
        and scope.root.atomic is None
        and scope.root.kind is Kind.TRANSACTION
    ):
        session = wrapper.session
        # The scope goes on while a new connection is opened, which Django begins in autocommit.
        if session is None or session.raw is not None:
            scope.leave()


def _end_with_task(scope: Scope, task: asyncio.Task[Any] | None) -> None:
    """Have `scope` end with `task`, if nobody ends it before (on the loop's thread)."""

    def end(_: object) -> None:
        if scope.wrapper.scope is scope:
            scope.wrapper.end_forgotten("its task ended")

    if scope.root.ended:
        return
    if task is None or task.get_loop().is_closed():
        end(task)
        return
    task.add_done_callback(end)
    scope.forget = functools.partial(task.remove_done_callback, end)
