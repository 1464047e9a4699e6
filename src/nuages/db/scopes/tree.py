"""The nodes of a scope: blocks of code on one connection, and whose turn it is.

A scope is a tree. Its root is what took the connection out of free use: an outermost transaction,
a hold, or the pin of an open `aiterator()`. Below it stand nested atomic blocks and the bridged
calls of other tasks. A node has the turn of its parent while it lives, so siblings never
interleave: saves that are gathered in a transaction run one after another, concurrent savepoints
nest. A node's own code needs no turn but waits while a child has one.

The current node of every alias is kept in one contextvar, so tasks and threads started inside a
block see it. The variable is set back to its previous value, never reset by token: async
generators change context between steps. A generator that is dropped leaves its nodes in its
consumer's context; they are *abandoned* from then on, and the consumer's code is outside of them.

This module is longer than most: where a node is in its life, who finds it and whose turn it is
are one state machine, and are best read together.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from nuages.bridge.generators import Generators, when_dropped
from nuages.conf import setting
from nuages.db.scopes.detachment import Detachment, detached_aliases
from nuages.db.scopes.fair_lock import FairLock, caller_label, running_caller
from nuages.exceptions import EnteredElsewhere, ScopeDeadlock, ScopeEnded

if TYPE_CHECKING:
    from nuages.db.scopes.lease import Lease
    from nuages.db.scopes.scope import Scope

_EMPTY: Mapping[str, Node] = MappingProxyType({})
_nodes: ContextVar[Mapping[str, Node]] = ContextVar("nuages.db.nodes", default=_EMPTY)


class RequestNodes(dict[str, "Node"]):
    """The connections that one request holds, by alias, with CONNECTION_PER = "request"."""

    ended = False
    """Whether it is over: tasks that outlive the request use connections like any other code."""


request_nodes: ContextVar[RequestNodes | None] = ContextVar(
    "nuages.db.request_nodes", default=None
)
chains_around: ContextVar[tuple[weakref.ref[Any], ...]] = ContextVar(
    "nuages.db.chains_around", default=()
)
"""The chains of calls that had a lease when they started this code, outermost first."""

context_variables: tuple[ContextVar[Any], ...] = (
    _nodes,
    request_nodes,
    detached_aliases,
    chains_around,
)
"""The variables that say, in a context, which scope its code is in."""


def held_by_request(alias: str) -> RequestNodes | None:
    """Return the running request's connections, if the one for `alias` is to be among them."""
    held = request_nodes.get()
    return None if held is None or held.ended or alias in detached_aliases.get() else held


test_nodes: dict[str, Node] = {}
"""The roots of the transactions that a running test has open; empty but in tests.

They are not in a context: whatever runs in the process during the test works on the test's
connection, on any loop and in any thread (`db/testing/` opens and ends the transactions).
"""


class Kind(Enum):
    """The kinds of things that a node stands for."""

    TEST = "test"
    """The transaction of a TestCase."""

    HOLD = "hold"
    """`hold_connection()`."""
    REQUEST = "request"
    """A request's connection with CONNECTION_PER = "request"."""
    PIN = "pin"
    """An open `aiterator()` or `acursor()`: seen by its own task only."""
    TRANSACTION = "transaction"
    SAVEPOINT = "savepoint"
    CALL = "call"
    """A bridged call of a task that found the scope in its context."""


class State(Enum):
    """A node's place in its life."""

    LIVE = "live"
    """It has its parent's turn."""
    SUSPENDED = "suspended"
    """It waits for that turn, or has given it back while awaiting something else (as calls do)."""
    ENDING = "ending"
    """Sealed: only whoever ends it may still use it."""
    ENDED = "ended"
    KILLED = "killed"
    """Ended, and rolled back, by the end of a block around it."""

    def __init__(self, value: str) -> None:
        self.ended = value in ("ended", "killed")
        self.has_turn = value in ("live", "ending")
        """Whether it goes on: not one that was given a turn and has not woken up yet."""


LIVE, SUSPENDED, ENDING, ENDED, KILLED = State
_BLOCKS = (Kind.TRANSACTION, Kind.SAVEPOINT)


class Node:
    """One block or call in a scope."""

    __slots__ = (
        "__weakref__",
        "_owner",
        "abandoned",
        "alias",
        "atomic",
        "chain",
        "depth",
        "doomed",
        "ender",
        "generators",
        "insiders",
        "interrupted",
        "kind",
        "label",
        "parent",
        "previous",
        "scope",
        "state",
        "turns",
        "was_dropped",
        "wrapper",
    )

    def __init__(self, kind: Kind, scope: Scope, parent: Node | None, chain: object) -> None:
        self.kind = kind
        self.scope = scope
        self.wrapper: Lease = scope.wrapper
        """The one whose connection the scope owns."""
        self.alias: str = self.wrapper.alias
        self.parent = parent
        self.chain = chain
        """The chain of calls that opened it; that chain's own code needs no turn."""
        self.previous: Node | None = None
        self.turns = FairLock()
        self.state = LIVE
        self.ender: Any = None
        """The task (or thread) that is ending it, which alone may still use it."""
        self.abandoned = False
        """Whether the async generator that it was opened in was dropped."""
        self.was_dropped = False
        """Whether it has ever been abandoned."""
        self.generators: object = None
        """What notes the drop of its generators, for as long as it is kept here."""
        self.insiders: weakref.WeakSet[Any] | None = None
        """The other tasks that used it, if it was opened in a generator: they are in it."""
        self.atomic: Any = None
        self.depth = (0, 0)
        self.doomed = False
        """Whether it must be rolled back; noted while another task's block is open in it."""
        self.interrupted = False
        """Whether it is doomed because a statement of it was interrupted, unasked."""
        self._owner = weakref.ref(running_caller())
        self.label = caller_label()

    def __repr__(self) -> str:
        return f"<Node {self.kind.value} of {self.alias!r}, {self.state.value}, {self.label}>"

    @property
    def ended(self) -> bool:
        """Tell whether the node is over."""
        return self.state.ended

    @property
    def has_turn(self) -> bool:
        """Tell whether it goes on."""
        return self.state.has_turn

    @property
    def owned_by_caller(self) -> bool:
        """Tell whether the running task (or thread) is the one that opened this node."""
        return self._owner() is running_caller()

    @property
    def has_no_task(self) -> bool:
        """Tell whether the task that entered it is done: its body runs in another task then."""
        owner = self._owner()
        return owner is None or (isinstance(owner, asyncio.Future) and owner.done())

    @property
    def is_closed_to_caller(self) -> bool:
        """Tell whether it is over, or somebody else is ending it."""
        if self.ender is None:
            return self.state.ended
        return self.state.ended or self.ender is not running_caller()

    @property
    def is_dropped_hold(self) -> bool:
        """Tell whether it still holds a connection for a generator that was dropped."""
        return self.abandoned and self.kind not in _BLOCKS and not self.is_closed_to_caller

    def abandon(self) -> None:
        """Note that the generator it was opened in was dropped (from a finaliser, anywhere).

        The consumer is outside from now on. Whoever unwinds the generator ends the node.
        """
        self.abandoned = self.was_dropped = True

    def has_insider(self) -> bool:
        """Tell whether the calling task was started in it, and not by its consumer later on."""
        return self.insiders is not None and running_caller() in self.insiders

    def seal(self) -> None:
        """Close the node to all but the calling task, which is about to end it."""
        self.state, self.ender = ENDING, running_caller()
        # For its own end the node is found in the context again.
        self.abandoned = False
        self.scope.seals += 1
        self.turns.refuse_waiting(ScopeEnded(task="a task"))

    def open_again(self) -> None:
        """Undo `seal`: only what was in the node is over, its own code goes on."""
        self.state, self.ender = LIVE, None
        holder = self.turns.holder
        if isinstance(holder, Node) and holder.ended:
            self.turns.release()

    def kill(self) -> None:
        """Note that a block around it has ended, and with it all that it did."""
        self.state, self.ender, self.generators = KILLED, None, None
        self.turns.refuse_waiting(ScopeEnded(task="a task"))

    def adopt(self) -> None:
        """Make the running task (or thread) the owner of the node, even if it was abandoned."""
        self._owner = weakref.ref(running_caller())
        self.abandoned = False

    def wait_for_children(self) -> None:
        """Wait until no child has the turn (before this node's own statements)."""
        if self.turns.holder is not None:
            _acquire(self, self)
            self.turns.release()

    def give_turn_back(self) -> None:
        """Let the parent's next child go on."""
        if self.state is LIVE and self.parent is not None:
            self.state = SUSPENDED
            self.parent.turns.release()

    def end(self) -> None:
        """End this node. What waits for its turn goes on at the next live node above."""
        if self.state.ended:
            return
        had_turn = self.state.has_turn
        self.state, self.ender, self.generators = ENDED, None, None
        heir = self.turns.holder
        if (
            had_turn
            and self.parent is not None
            and isinstance(heir, Node)
            and heir.state.has_turn
            and (self.kind is Kind.CALL or heir.owned_by_caller)
        ):
            # A block opened in a call outlives it (`async with aatomic()`): it takes the call's
            # place, so that nothing slips in between. A task that outlives a block does not.
            heir.parent = self.parent
            self.parent.turns.holder = heir
            had_turn = False
        self.turns.refuse_waiting(_Requeue())
        if had_turn and self.parent is not None:
            self.parent.turns.release()
        leave(self)


class _Requeue(Exception):
    """The node whose turn was waited for has ended; wait at the node above."""


def current_node(alias: str) -> Node | None:
    """Return the innermost node that has not ended, for the calling code; None outside scopes.

    Raises `ScopeEnded` where the transaction that this code was started in is over: a silent
    write outside of that transaction would be worse.
    """
    node = above = _nodes.get().get(alias)
    while above is not None:
        state = above.state
        if (
            (
                state is not LIVE
                and state is not SUSPENDED
                and (state is not ENDING or above.ender is not running_caller())
            )
            or above.abandoned
            or above.kind is Kind.PIN
        ):
            node = _climb(node)
            break
        above = above.parent
    if node is None:
        if detached_aliases.get() and _has_left_detachment(alias):
            return current_node(alias)
        if test_nodes and (root := test_nodes.get(alias)) is not None:
            return _in_test(root)
        if request_nodes.get() is not None and (held := held_by_request(alias)) is not None:
            return held.get(alias)
    return node


def _in_test(root: Node) -> Node:
    """Return the node of code that is in no scope while a test has its transaction open."""
    if not root.owned_by_caller:
        root.wrapper.share()
    blocks = root.scope.blocks
    if blocks and root.alias in detached_aliases.get():
        # Outside of the block around the code there is nothing but that block's own connection.
        return blocks[-1]
    return root


def _climb(node: Node | None) -> Node | None:
    """Return the innermost node from `node` on that the calling code is in, if any."""
    while node is not None:
        barrier = _barrier(node)
        if barrier is None:
            return node
        if barrier.kind is Kind.CALL:
            node = barrier.parent
        elif _is_passable(barrier):
            node = barrier.previous
        else:
            # A nested block too: the outer one would commit what this block rolled back.
            raise ScopeEnded(task=caller_label())
    return None


def _is_passable(barrier: Node) -> bool:
    """Tell whether the calling code may go on outside of `barrier`, which is over."""
    return (
        barrier.kind in (Kind.CALL, Kind.PIN, Kind.REQUEST, Kind.TEST)
        or barrier.abandoned
        or barrier.owned_by_caller
        or (barrier.was_dropped and not barrier.has_insider())
    )


def _barrier(start: Node) -> Node | None:
    """Return the outermost node, from `start` upwards, that the calling code is outside of.

    Raises `ScopeEnded` where a block around the caller's cannot commit any more.
    """
    barrier: Node | None = None
    in_block = False
    """Whether a block on the path goes on, with its connection, whatever the root becomes."""
    step: Node | None = start
    while step is not None:
        if step.state is KILLED:
            raise ScopeEnded(task=caller_label())
        if step.is_closed_to_caller:
            is_outside, in_block = True, False
        elif step.abandoned and step.kind in _BLOCKS:
            if in_block:
                raise ScopeEnded(task=caller_label())
            is_outside = True
        elif step.abandoned or (step.kind is Kind.PIN and not step.owned_by_caller):
            is_outside = not in_block
        else:
            is_outside = False
            in_block = in_block or step.kind in _BLOCKS
        if is_outside:
            if barrier is not None and not _is_passable(barrier):
                # A block inside is over, and the caller was started in that one.
                raise ScopeEnded(task=caller_label())
            barrier = step
        step = step.parent
    return barrier


def acquire_turn(node: Node, child: Node) -> None:
    """Take the turn of the innermost live node from `node` upwards for `child`, its new child.

    Raises `ScopeDeadlock` past NUAGES["SCOPE_TIMEOUT"], `ScopeEnded` where the scope is over.
    """
    child.state = SUSPENDED
    child.parent = _acquire(node, child)
    child.state = LIVE


def _acquire(node: Node, child: Node) -> Node:
    timeout = float(setting["SCOPE_TIMEOUT"])
    while True:
        live = ancestor_with_turn(node)
        seals = live.scope.seals
        holder = live.turns.holder
        if (
            isinstance(holder, Node)
            and holder.kind in _BLOCKS
            and holder.has_no_task
            and not holder.was_dropped  # the holder is about to be ended
        ):
            raise EnteredElsewhere(opener=holder.label, caller=child.label)
        try:
            taken = live.turns.acquire(child, timeout)
        except _Requeue:
            continue
        if not taken:
            holder = live.turns.holder
            raise ScopeDeadlock(
                waiter=child.label, holder=holder.label if holder else "nobody", timeout=timeout
            )
        if seals != live.scope.seals and is_over(node):
            # The caller's block began to end between the turn's arrival and now.
            live.turns.release()
            raise ScopeEnded(task=caller_label())
        if live.state.has_turn:
            return live
        live.turns.release()


def is_over(node: Node | None) -> bool:
    """Tell whether a block around the caller, who is in `node`, has ended or is being ended."""
    while node is not None:
        if node.is_closed_to_caller and not (node.state is ENDED and node.kind is Kind.CALL):
            return True
        if node.abandoned and node.kind in _BLOCKS:
            return True
        node = node.parent
    return False


def ancestor_with_turn(node: Node) -> Node:
    """Return `node`, or the nearest node above it that has its turn."""
    while not node.state.has_turn and node.parent is not None:
        node = node.parent
    if node.state.ended:
        raise ScopeEnded(task=caller_label())
    return node


def enter(node: Node) -> None:
    """Make `node` the current one in the calling context."""
    nodes = _nodes.get()
    node.previous = nodes.get(node.alias)
    _nodes.set({**nodes, node.alias: node})


def leave(node: Node) -> None:
    """Take `node`, and inner nodes that ended, out of the calling context; live ones stay."""
    current = _nodes.get().get(node.alias)
    inner = None
    while current is not None and current is not node:
        if not current.ended:
            inner = current
        current = current.previous
    if current is None:
        return
    if inner is None:
        set_node(node.alias, node.previous)
    else:
        inner.previous = node.previous


def set_node(alias: str, node: Node | None) -> None:
    """Set the current node of `alias` in the calling context; None for no scope."""
    nodes = {**_nodes.get()}
    if node is None:
        nodes.pop(alias, None)
    else:
        nodes[alias] = node
    _nodes.set(nodes)


def context_node(alias: str) -> Node | None:
    """Return the node in the calling context as it stands, ended or not."""
    if detached_aliases.get():
        while _has_left_detachment(alias):
            pass
    return _nodes.get().get(alias)


def has_left(scope: Scope) -> bool:
    """Tell whether the calling code was started in `scope`, which it is outside of now."""
    here = context_node(scope.root.alias)
    while here is not None:
        step: Node | None = here
        while step is not None:
            if step.scope is scope:
                return True
            step = step.parent
        here = here.previous
    return False


def note_insider(node: Node) -> None:
    """Note that the calling task works in `node`, for the generators that blocks are opened in."""
    step: Node | None = node
    while step is not None:
        if step.generators and not step.owned_by_caller:
            caller = running_caller()
            if isinstance(caller, asyncio.Future):
                if step.insiders is None:
                    step.insiders = weakref.WeakSet()
                step.insiders.add(caller)
        step = step.parent


def is_in_context(node: Node) -> bool:
    """Tell whether the calling context is that of code in `node`."""
    here = context_node(node.alias)
    while here is not None:
        if here is node:
            return True
        here = here.previous
    return False


def _has_left_detachment(alias: str) -> bool:
    """Undo a `detached()` block that the caller has left by a drop; tell whether there was one."""
    detached = detached_aliases.get()
    if not detached or (left := detached.get(alias)) is None or not left.is_left_by_caller():
        return False
    _undo(left, alias)
    return True


def _undo(detachment: Detachment, alias: str) -> None:
    detachment.undo(alias)
    set_node(alias, detachment.before)


def forget_left() -> None:
    """Take what is over for the calling task out of its context, which is about to be copied.

    A thread could not tell whether it was started in a block whose generator was dropped, or
    after the drop.
    """
    for alias in tuple(detached_aliases.get()):
        context_node(alias)
    for alias, node in tuple(_nodes.get().items()):
        if node.abandoned or node.was_dropped:
            with suppress(ScopeEnded):
                set_node(alias, _climb(node))


def detach(aliases: Iterable[str], generators: Generators) -> dict[str, Detachment]:
    """Take the calling context out of the scopes of `aliases`, in a block in `generators`."""
    detached = {**detached_aliases.get()}
    made = {alias: Detachment(context_node(alias), detached.get(alias)) for alias in aliases}
    for alias, one in made.items():
        if generators:
            one.generators = when_dropped(generators, one.abandon)
        set_node(alias, None)
    detached_aliases.set(detached | made)
    return made


def attach(made: Mapping[str, Detachment]) -> None:
    """Put the calling context back to what it was before `detach`, whose result this is."""
    for alias, one in made.items():
        one.generators = None
        if one.is_around(detached_aliases.get().get(alias)):
            _undo(one, alias)


def nodes_in_context() -> list[Node]:
    """Return the nodes of every alias that the calling context is in, ended or not."""
    found = []
    for here in (*_nodes.get().values(), *(request_nodes.get() or {}).values()):
        node: Node | None = here
        while node is not None:
            found.append(node)
            node = node.previous
    return found


def forget_context() -> None:
    """Forget the parent's scopes, except blocks open around the code (in a forked child)."""
    forked = {alias: node for alias, node in _nodes.get().items() if node.wrapper.forked}
    _nodes.set(forked)
    request_nodes.set(None)
    detached_aliases.set({})
    chains_around.set(())
    for alias, root in tuple(test_nodes.items()):
        if root.wrapper.connection is None:
            del test_nodes[alias]


def nodes_around(alias: str) -> Iterator[Node]:
    """Yield the nodes of `alias` that the calling code is in, or detached from, ended or not."""
    if (here := context_node(alias)) is not None:
        yield here
    detached = detached_aliases.get().get(alias)
    if detached is not None:
        yield from detached.around()
    held = request_nodes.get()
    if held is not None and not held.ended and (of_request := held.get(alias)) is not None:
        yield of_request
