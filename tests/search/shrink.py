"""Makes a program that fails smaller while it fails in the same way (delta debugging)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

from tests.search.generate import RULES
from tests.search.program import BRANCHES, Node, Place, Program

INNER: dict[str, Place] = {
    "bridged": "sync",
    "portal": "portal",
    "thread": "thread",
    "off_loop": "thread",
    "back": "coroutine",
}
"""Where the body of a kind runs, if not where it stands."""
SIMPLER = {
    "how": ("plain", "create", "orm"),
    "alias": ("default",),
    "savepoint": (True,),
    "durable": (False,),
    "closing": (False,),
    "after": (1,),
    "leave": ("break", "end"),
    "fails": ("no",),
    "where": ("here",),
    "timing": ("early",),
    "thread_sensitive": (False,),
    "times": (1,),
    "source": ("aiterator", "iterator"),
}
"""The values of arguments that are tried instead, the simplest first."""
Body = tuple[Node, ...]


async def shrink(program: Program, fails: Callable[[Program], Awaitable[bool]]) -> Program:
    """Return the smallest program found for which `fails` holds, as it does for `program`."""
    while True:
        for smaller in candidates(program):
            if await fails(smaller):
                program = smaller
                break
        else:
            return program


def candidates(program: Program) -> Iterator[Program]:
    """Programs that are one step smaller, the largest steps first."""
    for smaller in _bodies(program.body):
        if is_valid(smaller, "coroutine"):
            yield program.with_body(smaller)
    if program.threshold:
        yield replace(program, threshold=0)
    if program.pool != 10:
        yield replace(program, pool=10)
    for body in _simpler(program.body):
        if is_valid(body, "coroutine"):
            yield program.with_body(body)


def is_valid(body: Body, place: Place) -> bool:
    """Decide whether each statement may stand where it stands."""
    for node in body:
        if node.kind not in RULES or place not in RULES[node.kind].places:
            return False
        if node.kind in BRANCHES:
            if not all(b.kind == "branch" and is_valid(b.body, place) for b in node.body):
                return False
        elif node.kind != "hook" and not is_valid(node.body, INNER.get(node.kind, place)):
            return False
    return True


def _bodies(body: Body) -> Iterator[Body]:
    """Without a statement, with its body in its place, or with something less in it."""
    for number in range(len(body)):
        yield (*body[:number], *body[number + 1 :])
    for number, node in enumerate(body):
        before, after = body[:number], body[number + 1 :]
        if node.kind in BRANCHES:
            for branch in node.body:
                yield (*before, *branch.body, *after)
        elif node.body:
            yield (*before, *node.body, *after)
        for inner in _bodies(node.body):
            yield (*before, replace(node, body=inner), *after)


def _simpler(body: Body) -> Iterator[Body]:
    """With one argument simpler."""
    for number, node in enumerate(body):
        before, after = body[:number], body[number + 1 :]
        for args in _simpler_args(node):
            yield (*before, replace(node, args=args), *after)
        for inner in _simpler(node.body):
            yield (*before, replace(node, body=inner), *after)


def _simpler_args(node: Node) -> Iterator[dict[str, object]]:
    for name, value in node.args.items():
        for simple in SIMPLER.get(name, ()):
            if value == simple:
                break
            if _takes(node.kind, name, simple):
                yield node.args | {name: simple}
        if name == "at" and len(value) > 1:
            yield from (
                node.args | {"at": [*value[:place], *value[place + 1 :]]}
                for place in range(len(value))
            )


def _takes(kind: str, name: str, value: object) -> bool:
    """Decide whether that argument of that kind may have the value."""
    if name == "how":
        taken = {"write": ("create",), "read": ("orm",), "atomic": ("plain",), "hook": ("plain",)}
        return value in taken[kind]
    if name == "source":
        return value == ("iterator" if kind == "iterate_sync" else "aiterator")
    return True
