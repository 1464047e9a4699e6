"""What a program did, as it was told: its blocks, writes and hooks, and the judgement of them.

The journal knows nothing of Nuages. It is filled in by the running program and then compared with
what a second connection finds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

WriteState = Literal["begun", "done", "failed", "unknown"]
Outcome = Literal["open", "committed", "rolled back", "unknown"]


@dataclass(eq=False)
class Write:
    """One call that inserts rows, all of them or none."""

    tags: tuple[str, ...]
    state: WriteState = "begun"
    error: str = ""
    """What it raised."""


@dataclass(eq=False)
class Hook:
    """A function that was registered to run after the commit."""

    name: str
    state: WriteState = "begun"
    """Of its registration."""
    ran: int = 0
    failed: bool = False
    """Whether it raised, so that those after it do not run."""


@dataclass(eq=False)
class Block:
    """A transaction, or a savepoint in one."""

    alias: str
    parent: Block | None = None
    kind: str = "atomic"
    savepoint: bool = True
    outcome: Outcome = "open"
    troubled: bool = False
    """Whether something in it failed and was caught in it: it may be rolled back unseen."""
    shared: bool = False
    """Whether tasks or threads run in it that may outlive it."""
    hooks_lost: bool = False
    """Whether nobody knows if it was committed, so that its hooks may not have run."""
    writes: list[Write] = field(default_factory=list)
    hooks: list[Hook] = field(default_factory=list)
    children: list[Block] = field(default_factory=list)
    order: list[Hook] = field(default_factory=list)
    """Of a transaction: all its hooks, in the order of their registration."""
    frame: Any = None
    """Where a transaction was begun."""

    def __post_init__(self) -> None:
        if self.parent is not None:
            self.parent.children.append(self)

    @property
    def root(self) -> Block:
        """The transaction that it is in."""
        return self if self.parent is None else self.parent.root

    def trouble(self) -> None:
        """Note that it may be rolled back unseen at its end, with what shares its fate."""
        block: Block | None = self
        while block is not None and block.outcome == "open":
            block.troubled = True
            if block.savepoint:
                return
            block = block.parent

    @property
    def is_troubled(self) -> bool:
        """Whether it, or a block around it, is."""
        return self.troubled or (self.parent is not None and self.parent.is_troubled)

    @property
    def is_shared(self) -> bool:
        """Whether it, or a block around it, is."""
        return self.shared or (self.parent is not None and self.parent.is_shared)


@dataclass
class Journal:
    """All that one program did."""

    writes: dict[str, list[Write]] = field(default_factory=dict)
    """Outside of blocks, by alias."""
    roots: list[Block] = field(default_factory=list)
    hooks: list[Hook] = field(default_factory=list)
    """That were registered outside of blocks, and so run at once."""

    def open(
        self, alias: str, parent: Block | None, *, kind: str = "atomic", savepoint: bool = True
    ) -> Block:
        """Note that a block begins."""
        block = Block(alias, parent, kind, savepoint or parent is None)
        if parent is None:
            self.roots.append(block)
        return block

    def write(self, alias: str, block: Block | None, tags: tuple[str, ...]) -> Write:
        """Note that a write begins."""
        write = Write(tags)
        (block.writes if block else self.writes.setdefault(alias, [])).append(write)
        return write

    def hook(self, block: Block | None, name: str) -> Hook:
        """Note that a hook is registered."""
        hook = Hook(name)
        if block is None:
            self.hooks.append(hook)
        else:
            block.hooks.append(hook)
            block.root.order.append(hook)
        return hook

    def judge(self, present: Mapping[str, Iterable[str]]) -> list[str]:
        """Compare with the tags that are there, by alias; return what is wrong."""
        found = {alias: set(tags) for alias, tags in present.items()}
        wrong: list[str] = []
        for alias, writes in self.writes.items():
            wrong += _judge_writes(writes, found.get(alias, set()), "autocommit")
        for block in self.roots:
            wrong += judge_block(block, found.get(block.alias, set()))
        wrong += [each for hook in self.hooks for each in _judge_hook(hook, committed=True)]
        known = {tag for write in self._every_write() for tag in write.tags}
        for alias, tags in found.items():
            wrong += [f"{tag!r} of {alias!r} was written by nobody" for tag in tags - known]
        return wrong

    def _every_write(self) -> Iterator[Write]:
        for writes in self.writes.values():
            yield from writes
        blocks = list(self.roots)
        while blocks:
            block = blocks.pop()
            blocks += block.children
            yield from block.writes


def judge_block(block: Block, present: set[str], *, alive: bool = True) -> list[str]:
    """Judge a block and those in it; `alive`: whether what is around it was committed.

    Where it may be either way, it is well if it is so wholly.
    """
    first: list[str] | None = None
    for committed in _fates(block) if alive else (False,):
        wrong = _judge_fate(block, present, committed)
        if not wrong:
            return []
        first = first or wrong
    return first or []


def _fates(block: Block) -> tuple[bool, ...]:
    if block.outcome == "committed":
        return (True, False) if block.troubled else (True,)
    return (True, False) if block.outcome == "unknown" else (False,)


def _judge_fate(block: Block, present: set[str], committed: bool) -> list[str]:
    how = f"a {block.kind} block that was {'committed' if committed else 'rolled back'}"
    if block.outcome == "unknown":
        how = "a block whose outcome is unknown, neither wholly there nor wholly gone"
    wrong: list[str] = []
    if committed:
        wrong += _judge_writes(block.writes, present, how)
    else:
        tags = [tag for write in block.writes for tag in write.tags]
        wrong += [f"{tag!r} is there, of {how}" for tag in tags if tag in present]
    order = block.root.order
    stopped = next((number for number, hook in enumerate(order) if hook.failed), len(order))
    for hook in block.hooks:
        if (committed and block.root.hooks_lost) or order.index(hook) > stopped:
            continue
        wrong += _judge_hook(hook, committed)
    for child in block.children:
        wrong += judge_block(child, present, alive=committed)
    return wrong


def _judge_writes(writes: Iterable[Write], present: set[str], how: str) -> list[str]:
    wrong = []
    for write in writes:
        there = [tag in present for tag in write.tags]
        if write.state == "done" and not all(there):
            wrong.append(f"{write.tags} was acknowledged ({how}), and of it is there: {there}")
        elif write.state == "failed" and any(there):
            wrong.append(f"{write.tags} failed ({how}), and is there: {write.error}")
        elif any(there) and not all(there):
            wrong.append(f"of {write.tags} only a part is there: {there}")
    return wrong


def _judge_hook(hook: Hook, committed: bool) -> list[str]:
    if hook.state != "done":
        return [f"hook {hook.name} ran {hook.ran} times"] if hook.ran > 1 else []
    if hook.ran != int(committed):
        what = "committed" if committed else "not committed"
        return [f"hook {hook.name} ran {hook.ran} times, its block was {what}"]
    return []
