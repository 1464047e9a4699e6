"""Programs: trees of statements, as data that can be run, cut down, stored and read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Place = Literal["coroutine", "portal", "sync", "thread"]
"""Where code runs: a bare coroutine, one that `on_loop` runs (implicit I/O), sync code on the
loop, sync code in a thread."""
ASYNC: tuple[Place, ...] = ("coroutine", "portal")
SYNC: tuple[Place, ...] = ("sync", "thread")
EVERYWHERE: tuple[Place, ...] = (*ASYNC, *SYNC)

BRANCHES = ("gather", "group")
"""Kinds whose body is a list of branches, each run by a task of its own."""


@dataclass(frozen=True)
class Node:
    """A statement: its kind, what it was given, and the statements in it."""

    kind: str
    args: dict[str, Any] = field(default_factory=dict)
    body: tuple[Node, ...] = ()

    def walk(self) -> Iterator[Node]:
        """Yield it and all that is in it."""
        yield self
        for node in self.body:
            yield from node.walk()


@dataclass(frozen=True)
class Program:
    """What one seed makes: code, and the loop and pool that it runs with."""

    seed: int
    body: tuple[Node, ...]
    vendor: str
    loop: str
    pool: int
    """The most connections of each alias."""
    threshold: int = 0
    """Allocations between two automatic collections; 0: Python's own figure."""

    def walk(self) -> Iterator[Node]:
        """Yield every statement."""
        for node in self.body:
            yield from node.walk()

    def kinds(self) -> set[str]:
        """The kinds of statements in it."""
        return {node.kind for node in self.walk()}

    def with_body(self, body: tuple[Node, ...]) -> Program:
        """The same with other statements."""
        return replace(self, body=body)

    def dump(self) -> str:
        """Write it as JSON, for a worker."""

        def plain(node: Node) -> list[Any]:
            return [node.kind, node.args, [plain(each) for each in node.body]]

        return json.dumps(vars(self) | {"body": [plain(node) for node in self.body]})

    @classmethod
    def load(cls, text: str) -> Program:
        """Read what `dump` wrote."""

        def node(parts: list[Any]) -> Node:
            kind, args, body = parts
            return Node(kind, args, tuple(node(each) for each in body))

        given = json.loads(text)
        return cls(**given | {"body": tuple(node(each) for each in given["body"])})

    def text(self) -> str:
        """Write it as a person reads it, much like Python."""
        head = f"# seed {self.seed}: {self.vendor}, {self.loop}, pool of {self.pool}"
        if self.threshold:
            head += f", gc.set_threshold({self.threshold})"
        return "\n".join([head, *_lines(self.body, "")])


def _lines(body: tuple[Node, ...], indent: str) -> Iterator[str]:
    for node in body:
        head = describe(node)
        if not node.body:
            yield indent + head
            continue
        yield f"{indent}{head}:"
        yield from _lines(node.body, indent + "    ")


def describe(node: Node) -> str:
    """The line of a statement, without what is in it."""
    given = dict(node.args)
    return _HEADS.get(node.kind, _plain)(node.kind, given)


def _plain(kind: str, given: dict[str, Any]) -> str:
    return f"{kind}({', '.join(f'{name}={value!r}' for name, value in given.items())})"


def _atomic(kind: str, given: dict[str, Any]) -> str:
    how = given.pop("how")
    if how != "plain":
        given["entered"] = how
    given = {n: v for n, v in given.items() if (n, v) not in _DEFAULTS}
    return _plain(kind, given)


def _iterate(kind: str, given: dict[str, Any]) -> str:
    left = f"then {given['leave']} after {given['after']}"
    closing = ", in aclosing()" if given.get("closing") else ""
    return f"for row in {given['source']}(using={given['alias']!r}){closing}, {left}"


def _cut(kind: str, given: dict[str, Any]) -> str:
    if given["timing"] == "timer":
        return f"cancelled after {given['at']} ticks, swallowed outside"
    return f"cancelled at its waits {given['at']} ({given['timing']}), swallowed outside"


_DEFAULTS = [("savepoint", True), ("durable", False)]
_HEADS: dict[str, Callable[[str, dict[str, Any]], str]] = {
    "atomic": _atomic,
    "iterate": _iterate,
    "iterate_sync": _iterate,
    "cut": _cut,
}
