"""Blocks of `detached()`: code that is outside of the scopes around it, on purpose."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from nuages.db.scopes.fair_lock import running_caller

if TYPE_CHECKING:
    from nuages.db.scopes.tree import Node

detached_aliases: ContextVar[Mapping[str, Detachment]] = ContextVar(
    "nuages.db.detached_aliases", default=MappingProxyType({})
)
"""The databases whose scopes the calling code has stepped out of by `detached()`."""


def _outwards(node: Node | None) -> Iterator[Node]:
    while node is not None:
        yield node
        node = node.previous


class Detachment:
    """Code that is outside of the scopes of one alias, by `detached()`.

    It refers to nodes weakly, because tasks of the block may outlive what is around it. When a
    generator with the block in it is dropped, its consumer is in those scopes again, and so is
    what it starts from then on; tasks that used the database in the block stay outside.
    """

    __slots__ = (
        "__weakref__",
        "_before",
        "_insiders",
        "_outer",
        "_owner",
        "abandoned",
        "generators",
    )

    def __init__(self, before: Node | None, outer: Detachment | None) -> None:
        # Outer nodes as well: a block in a generator that is dropped ends before its time.
        self._before = tuple([weakref.ref(node) for node in _outwards(before)])
        self._outer = outer
        self._owner = weakref.ref(running_caller())
        self._insiders: weakref.WeakSet[Any] = weakref.WeakSet()
        self.abandoned = False
        self.generators: object = None
        """What notes that the block is in a generator that was dropped."""

    @property
    def before(self) -> Node | None:
        """The node that the code around the block is in; None outside scopes."""
        return next((node for one in self._before if (node := one()) is not None), None)

    def around(self) -> Iterator[Node]:
        """Yield the nodes around the block, innermost first."""
        step: Detachment | None = self
        while step is not None:
            if (node := step.before) is not None:
                yield node
            step = step._outer

    def is_around(self, other: Detachment | None) -> bool:
        """Tell whether this block is `other`, or one that `other` is in."""
        while other is not None and other is not self:
            other = other._outer
        return other is self

    def abandon(self) -> None:
        """Note that the block's generator was dropped (from a finaliser, anywhere)."""
        self.abandoned = True

    def is_left_by_caller(self) -> bool:
        """Tell whether the block is over for the calling code, though nobody has left it.

        Where it is not, the caller is noted, and stays outside when the generator is dropped.
        """
        caller = running_caller()
        if not self.abandoned:
            if caller is not self._owner():
                self._insiders.add(caller)
            return False
        return caller not in self._insiders

    def undo(self, alias: str) -> None:
        """Take the block out of the calling context; `tree.set_node` is to put `before` back."""
        detached = {**detached_aliases.get()}
        if self._outer is None:
            del detached[alias]
        else:
            detached[alias] = self._outer
        detached_aliases.set(detached)
