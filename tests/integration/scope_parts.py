"""What programs of tasks and transactions are made of: actors, their frames, and blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

SEEDED = "a"
"""A row that is there from the beginning: to write it again is an error."""

Place = Literal["async", "sync", "thread"]
"""What code can do where it is: await, be in a greenlet and call `await_`, or only block."""

PLACES: dict[str, tuple[tuple[Place, ...], Place | None]] = {
    "atomic": (("async", "sync", "thread"), None),
    "hold": (("async",), None),
    "request": (("async",), None),
    "detached": (("async",), None),
    "group": (("async",), None),
    "bridged": (("async",), "sync"),
    "portal": (("async",), "async"),
    "thread": (("async", "sync"), "thread"),
    "back": (("sync", "thread"), "async"),
}
"""For each kind of frame, where it can be entered and what the code in it can do."""


class NotCovered(Exception):
    """The operation is not possible, or not part of what the model says something about."""


class Cancelled(Exception):
    """Stands for `asyncio.CancelledError` among the outcomes."""


@dataclass(eq=False)
class Block:
    """A transaction, a savepoint, or the connection of a hold or request (no transaction)."""

    kind: Literal["atomic", "hold", "request"]
    parent: Block | None
    savepoint: bool = True
    """Whether it can be rolled back without what is around it."""
    state: Literal["open", "ended", "killed"] = "open"
    doomed: bool = False
    interrupted: bool = False
    """Whether it is doomed since a statement in it was interrupted."""
    child: Block | None = None
    """The block that is open in it."""
    caller: Frame | None = None
    """The frame in a thread that keeps others out until it ends."""
    rows: list[str] = field(default_factory=list)
    hooks: list[tuple[Block, str]] = field(default_factory=list)
    """For a transaction: all of it, in the order of their registration, with their block."""

    @property
    def within(self) -> Block | None:
        """The block around it that shares its fate: none for a transaction in a hold."""
        return None if self.parent is None or self.parent.kind != "atomic" else self.parent

    @property
    def transaction(self) -> Block:
        return self if self.within is None else self.within.transaction

    @property
    def is_over(self) -> bool:
        return self.state != "open" or (self.parent is not None and self.parent.is_over)

    def is_in(self, outer: Block) -> bool:
        return self is outer or (self.parent is not None and self.parent.is_in(outer))

    @property
    def is_free(self) -> bool:
        return self.child is None and self.caller is None


@dataclass(eq=False)
class Frame:
    """A block of an actor's code."""

    kind: str
    place: Place
    scope: Block | None
    """The innermost block that the code in it is in."""
    outer: Block | None
    catches: bool = False
    block: Block | None = None
    """What it opened, if it did."""
    children: list[str] = field(default_factory=list)
    """Of a group: the actors that have not ended."""


@dataclass(eq=False)
class Actor:
    frames: list[Frame]
    base: Block | None
    group: tuple[str, Frame] | None = None
    """Whose group it belongs to."""
    detached: bool = False
    """Whether it was started in detached code."""
    state: Literal["idle", "waiting", "joining", "ended"] = "idle"
    pending: tuple[str, dict[str, Any]] | None = None
    """What it waits for its turn with."""

    @property
    def place(self) -> Place:
        return self.frames[-1].place if self.frames else "async"

    @property
    def scope(self) -> Block | None:
        scope = self.frames[-1].scope if self.frames else self.base
        if scope is not None and scope.kind == "request" and scope.state != "open":
            return None  # Whoever outlives a request is like any other code.
        return scope


@dataclass
class Report:
    """What an actor must tell: a value, or the class of an error; or that it has ended."""

    actor: str
    outcome: Any = None
    end: bool = False
