"""Makes the program of a seed: which statements may stand where, and how often each comes.

What would wait for itself by its own fault is not made: databases are locked in one order, tasks
are awaited in the block they were started in or at the end, and on SQLite, where one connection
writes at a time, code that is detached from a block only reads.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tests.search.model import OTHER_TASK
from tests.search.program import ASYNC, BRANCHES, EVERYWHERE, SYNC, Node, Place, Program

BATCH = 100
"""So many seeds in a row share a loop and a pool's size."""
LOOPS = ("uvloop", "asyncio") if sys.version_info < (3, 12) else ("uvloop", "asyncio", "eager")
POOLS = (10, 3, 2, 1, 4)
DEEPEST = 6
LEAVES = ("write", "read")


@dataclass(frozen=True)
class Spot:
    """Where a statement is to stand."""

    place: Place
    blocks: frozenset[str] = frozenset()
    """The aliases with a block around it."""
    manual: bool = False
    """Whether autocommit is off around it."""
    depth: int = 0
    alone: bool = True
    """Whether no other task or thread of the program runs at the same time."""
    cut: bool = False
    """Whether it may be cancelled."""
    only_reads: bool = False
    holds: bool = False
    """Whether a cursor or connection is held around it."""


def program(seed: int, vendor: str) -> Program:
    """Make the program of a seed."""
    chance = random.Random(f"{vendor} {seed}")
    batch = seed // BATCH
    maker = _Maker(chance, vendor, budget=chance.randint(3, 14))
    body = maker.body(Spot("coroutine"), longest=5)
    threshold = chance.choice([0, 0, 0, 40])
    loop, pool = LOOPS[batch % len(LOOPS)], POOLS[batch // len(LOOPS) % len(POOLS)]
    return Program(seed, body, vendor, loop, pool, threshold)


class _Maker:
    def __init__(self, chance: random.Random, vendor: str, budget: int) -> None:
        self.chance = chance
        self.vendor = vendor
        self.budget = budget

    def body(self, spot: Spot, longest: int = 3) -> tuple[Node, ...]:
        """Make some statements; at least one."""
        found: list[Node] = []
        for _ in range(self.chance.randint(1, longest)):
            node = self.statement(spot)
            found.append(node)
            if node.kind in ("raise", "return") or self.budget <= 0:
                break
            if node.kind in ("spawn", "gather", "group", "thread"):
                spot = replace(spot, alone=False)
        return tuple(found)

    def statement(self, spot: Spot) -> Node:
        """Make one statement that may stand there."""
        self.budget -= 1
        if spot.only_reads:
            return self._make_read(spot)
        kinds = [
            kind
            for kind, rule in RULES.items()
            if spot.place in rule.places
            and rule.fits(self, spot)
            and (kind in LEAVES or (self.budget > 0 and spot.depth < DEEPEST))
        ]
        (kind,) = self.chance.choices(kinds, [RULES[kind].weight for kind in kinds])
        return RULES[kind].make(self, replace(spot, depth=spot.depth + 1))

    def alias(self, spot: Spot) -> str:
        """An alias whose lock comes after those that are held."""
        if "other" in spot.blocks or self.chance.random() < 0.12:
            return "other"
        return "default"

    def _make_read(self, spot: Spot) -> Node:
        return Node(
            "read",
            {
                "alias": self.alias(spot),
                "how": self.pick("orm", "orm", "cursor", "cursor", "slow"),
            },
        )

    def pick(self, *values: Any) -> Any:
        """One of them."""
        return self.chance.choice(values)


Make = Callable[[_Maker, Spot], Node]
Fits = Callable[[_Maker, Spot], bool]


@dataclass(frozen=True)
class Rule:
    """Where a kind may stand and how often it comes, beside the others."""

    places: tuple[Place, ...]
    weight: float
    make: Make
    fits: Fits = lambda maker, spot: True


def _write(maker: _Maker, spot: Spot) -> Node:
    how = maker.pick("create", "create", "bulk", "get_or_create", "save", "cursor")
    return Node("write", {"alias": maker.alias(spot), "how": how})


def _read(maker: _Maker, spot: Spot) -> Node:
    return maker._make_read(spot)


def _on_alias(kind: str) -> Make:
    return lambda maker, spot: Node(kind, {"alias": maker.alias(spot)})


def _lock(maker: _Maker, spot: Spot) -> Node:
    return Node("lock", {"alias": max(spot.blocks)})


def _plain(kind: str) -> Make:
    return lambda maker, spot: Node(kind)


def _around(kind: str, place: Place | None = None) -> Make:
    """A kind with a body and nothing else."""
    return lambda maker, spot: Node(kind, {}, maker.body(replace(spot, place=place or spot.place)))


def _atomic(maker: _Maker, spot: Spot) -> Node:
    alias = maker.alias(spot)
    nested = alias in spot.blocks
    how = "plain"
    if spot.place in ASYNC:
        choices = {"plain": 10, "decorator": 3, "contextmanager": 3, "stack": 2}
        choices |= {OTHER_TASK: 0.3, "django": 0.5, "django_decorator": 0.5}
        (how,) = maker.chance.choices(list(choices), list(choices.values()))
    args = {"alias": alias, "how": how, "savepoint": maker.chance.random() > 0.15}
    args["durable"] = maker.chance.random() < (0.03 if nested else 0.15)
    inside = _in_block(spot, alias)
    if how == OTHER_TASK:
        # Its body is outside, on another connection.
        only_reads = maker.vendor == "sqlite" or bool(spot.blocks)
        inside = replace(spot, holds=True, only_reads=only_reads)
    return Node("atomic", args, maker.body(inside, longest=4))


def _in_block(spot: Spot, alias: str) -> Spot:
    return replace(spot, blocks=spot.blocks | {alias})


def _hold(kind: str) -> Make:
    return lambda maker, spot: Node(
        kind, {"alias": maker.alias(spot)}, maker.body(replace(spot, holds=True))
    )


def _crossed(maker: _Maker, spot: Spot) -> Node:
    alias = maker.alias(spot)
    inside = _in_block(replace(spot, depth=DEEPEST), alias)
    args = {"alias": alias, "outer": maker.pick("acursor", "hold")}
    return Node("crossed", args, (_write(maker, inside), _write(maker, inside)))


def _detached(maker: _Maker, spot: Spot) -> Node:
    only_reads = maker.vendor == "sqlite" and bool(spot.blocks)
    inside = replace(spot, blocks=frozenset(), only_reads=only_reads)
    if spot.blocks:
        # Locks of the databases that are held outside.
        inside = replace(inside, only_reads=only_reads or "other" in spot.blocks)
    return Node("detached", {}, maker.body(inside))


def _manual(maker: _Maker, spot: Spot) -> Node:
    alias = maker.alias(spot)
    args = {"alias": alias, "end": maker.pick("commit", "commit", "rollback")}
    body = maker.body(replace(_in_block(spot, alias), manual=True))
    if maker.vendor == "sqlite":
        # As in stock Django a savepoint that is the first statement is the transaction, which its
        # end commits.
        body = (Node("write", {"alias": alias, "how": "create"}), *body)
    return Node("manual", args, body)


def _iterate(maker: _Maker, spot: Spot) -> Node:
    alias = maker.alias(spot)
    source = maker.pick(
        *("aiterator", "aiterator", "prefetch", "queryset", "values_list", "acursor_rows"),
        *("with_aiterator", "with_hold", "with_cursor", "with_atomic"),
    )
    leave = maker.pick("break", "break", "return", "raise", "end", "cycle")
    closing = maker.chance.random() < 0.3 and leave != "cycle" and source != "queryset"
    inside = replace(spot, holds=True)
    if source == "with_atomic":
        # A transaction in a cycle keeps what it has locked until somebody collects garbage.
        if leave == "cycle" or not spot.alone:
            leave, closing = "break", True
        inside = replace(inside, only_reads=True)
    args = {"source": source, "alias": alias, "leave": leave, "after": maker.pick(1, 2, 3)}
    return Node("iterate", args | {"closing": closing}, maker.body(inside, longest=2))


def _iterate_sync(maker: _Maker, spot: Spot) -> Node:
    args = {"source": maker.pick("iterator", "cursor"), "alias": maker.alias(spot)}
    args |= {"leave": maker.pick("break", "return", "raise", "end", "cycle", "cycle")}
    args |= {"after": maker.pick(1, 2, 3)}
    return Node("iterate_sync", args, maker.body(replace(spot, holds=True), longest=2))


def _cut(maker: _Maker, spot: Spot) -> Node:
    at = sorted({maker.chance.randint(1, 12)})
    for _ in range(maker.pick(0, 0, 1, 2)):
        at.append(at[-1] + maker.pick(1, 1, 2, 4))
    args = {"at": at, "timing": maker.pick("early", "early", "late", "timer", "timer")}
    return Node("cut", args, maker.body(replace(spot, cut=True), longest=3))


def _thread(maker: _Maker, spot: Spot) -> Node:
    # Threads that are sensitive share one, in which another may wait for what this one has.
    sensitive = spot.alone and not spot.cut and maker.chance.random() < 0.5
    body = maker.body(replace(spot, place="thread"))
    return Node("thread", {"thread_sensitive": sensitive}, body)


def _branches(kind: str) -> Make:
    def make(maker: _Maker, spot: Spot) -> Node:
        inside = replace(spot, alone=False, cut=spot.cut or kind == "group")
        count = maker.pick(2, 2, 3)
        branches = [Node("branch", {}, maker.body(inside, longest=2)) for _ in range(count)]
        return Node(kind, {}, tuple(branches))

    return make


def _spawn(maker: _Maker, spot: Spot) -> Node:
    return Node("spawn", {}, maker.body(replace(spot, alone=False, cut=False)))


def _hook(maker: _Maker, spot: Spot) -> Node:
    alias = maker.alias(spot)
    args = {"alias": alias, "how": maker.pick("plain", "async", "returns")}
    args["fails"] = maker.pick("no", "no", "no", "no", "error", "database")
    inside = replace(spot, depth=DEEPEST, blocks=spot.blocks - {alias})
    body = maker.chance.random() < 0.4 and (args["how"] == "plain" or spot.place in ASYNC)
    # It runs where the block ends, so it keeps to what may stand anywhere.
    write = Node("write", {"alias": alias, "how": maker.pick("create", "cursor")})
    return Node("hook", args, (write,) if body and inside.blocks <= {alias} else ())


def _collect(maker: _Maker, spot: Spot) -> Node:
    return Node("collect", {"where": maker.pick("here", "thread")})


def _pause(maker: _Maker, spot: Spot) -> Node:
    return Node("pause", {"times": maker.chance.randint(1, 6)})


RULES: dict[str, Rule] = {
    "write": Rule(EVERYWHERE, 26, _write),
    "read": Rule(EVERYWHERE, 12, _read),
    "atomic": Rule(EVERYWHERE, 24, _atomic),
    "iterate": Rule(ASYNC, 14, _iterate),
    "iterate_sync": Rule(SYNC, 12, _iterate_sync, lambda m, s: s.place == "sync" or s.alone),
    "try": Rule(EVERYWHERE, 5, _around("try")),
    "raise": Rule(EVERYWHERE, 3, _plain("raise"), lambda m, s: s.depth > 0),
    "return": Rule(EVERYWHERE, 2, _plain("return"), lambda m, s: s.depth > 0),
    "violate": Rule(EVERYWHERE, 1, _on_alias("violate")),
    "lock": Rule(EVERYWHERE, 2, _lock, lambda m, s: bool(s.blocks) and not s.manual),
    "hook": Rule(EVERYWHERE, 6, _hook, lambda m, s: not s.manual),
    "hold": Rule(ASYNC, 4, _hold("hold")),
    "acursor": Rule(ASYNC, 4, _hold("acursor")),
    "crossed": Rule(ASYNC, 0.5, _crossed, lambda m, s: not s.blocks),
    "detached": Rule(ASYNC, 3, _detached),
    "manual": Rule(SYNC, 3, _manual, lambda m, s: not s.blocks and not s.holds),
    "cut": Rule(ASYNC, 12, _cut, lambda m, s: not s.cut),
    "spawn": Rule(ASYNC, 5, _spawn, lambda m, s: not s.manual),
    "gather": Rule(ASYNC, 5, _branches("gather"), lambda m, s: not s.manual),
    "group": Rule(ASYNC, 4, _branches("group"), lambda m, s: not s.manual),
    "thread": Rule(ASYNC, 6, _thread),
    "off_loop": Rule(("sync",), 5, _around("off_loop", "thread")),
    "bridged": Rule(ASYNC, 10, _around("bridged", "sync")),
    "portal": Rule(("coroutine",), 3, _around("portal", "portal")),
    "back": Rule(SYNC, 5, _around("back", "coroutine")),
    "fork": Rule(("thread",), 0.7, _on_alias("fork"), lambda m, s: s.alone),
    "collect": Rule(EVERYWHERE, 3, _collect),
    "pause": Rule(ASYNC, 3, _pause),
}
assert set(BRANCHES) <= set(RULES)
