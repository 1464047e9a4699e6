"""Runs a program's statements as real code, and notes what they are told.

A frame is where a statement stands: its place, the blocks around it by alias, and whether it may
be cancelled or may outlive those blocks.
"""

from __future__ import annotations

import asyncio
import gc
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from tests.search.journal import Block, Journal, Write
from tests.search.model import HookFailed, Planned, is_expected
from tests.search.program import ASYNC, Node, Place, Program, describe

F = TypeVar("F", bound=Callable[..., Any])

RETURN = "return"
"""What running a body gives where it is left by a `return`."""


@dataclass
class Run:
    """One run of one program."""

    program: Program
    mark: str
    """What its tags begin with; another one for each run."""
    journal: Journal = field(default_factory=Journal)
    faults: list[str] = field(default_factory=list)
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)
    threads: list[asyncio.Future[Any]] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)
    tainted: bool = False
    """Whether a generator was dropped with a transaction in it, which the code after it is in
    until it is closed (as `aatomic` says)."""
    shared_kinds: set[str] = field(default_factory=set)
    """The kinds of blocks that tasks or threads were started in, which may outlive them."""
    number: int = 0

    def tag(self) -> str:
        """A text that nobody else writes or asks for."""
        self.number += 1
        return f"{self.mark}:{self.number}"


@dataclass(frozen=True)
class Frame:
    """Where a statement stands."""

    run: Run
    place: Place
    blocks: Mapping[str, Block] = field(default_factory=dict)
    around: tuple[str, ...] = ()
    """The kinds of blocks around it that hold a connection."""
    late: bool = False
    """Whether it may outlive its blocks."""
    cancelled: bool = False
    """Whether a cancellation may come out of it."""

    def at(self, place: Place) -> Frame:
        """The frame of code that is called from here in that place."""
        return replace(self, place=place)

    def within(self, block: Block) -> Frame:
        """The frame of the body of a block that begins here."""
        if block.parent is None:
            block.frame = self
        return replace(self, blocks={**self.blocks, block.alias: block}, around=self._in("atomic"))

    def holding(self, kind: str) -> Frame:
        """The frame of the body of what holds a connection."""
        return replace(self, around=self._in(kind))

    def _in(self, kind: str) -> tuple[str, ...]:
        return (*self.around, kind)

    def outliving(self) -> Frame:
        """The frame of a task or thread that is started here."""
        for block in self.blocks.values():
            block.shared = True
        self.run.shared_kinds.update(self.around)
        return replace(self, late=self.late or bool(self.around))

    def outside(self, aliases: Iterable[str]) -> Frame:
        """The frame of code outside of the blocks of these aliases."""
        kept = {alias: block for alias, block in self.blocks.items() if alias not in aliases}
        return replace(self, blocks=kept)

    def note(self, node: Node, error: BaseException) -> None:
        """Note an error that comes out of `node`, where it may not; once."""
        if getattr(error, "search_has_seen", False):
            return
        error.search_has_seen = True  # type: ignore[attr-defined]
        if not is_expected(error, node, self):
            self.run.faults.append(f"{describe(node)} raised {tell(error)}")
        # Tasks beside this one see it before anybody catches it.
        self.swallow(error)

    def acknowledge(self, write: Write) -> None:
        """Note that a write was answered."""
        write.state = "unknown" if self.run.tainted else "done"

    def swallow(self, error: BaseException) -> None:
        """Note that an error was raised or caught here: the blocks around may be rolled back."""
        if not isinstance(error, (Planned, HookFailed)):
            for block in self.blocks.values():
                block.trouble()


def tell(error: BaseException) -> str:
    """Write an error with its causes and where each was raised, in one line."""
    parts: list[str] = []
    step: BaseException | None = error
    while step is not None and len(parts) < 4:
        last = traceback.extract_tb(step.__traceback__)[-1:]
        place = "".join(f" in {f.name}, {f.filename.rpartition('/')[2]}:{f.lineno}" for f in last)
        text = " ".join(str(step).split())
        parts.append(f"{type(step).__name__}: {text[:300]}{place}")
        step = step.__cause__ or step.__context__
    return " <- ".join(parts)


_ASYNC: dict[str, Callable[[Node, Frame], Awaitable[Any]]] = {}
_SYNC: dict[str, Callable[[Node, Frame], Any]] = {}


def statement(kind: str, places: tuple[Place, ...]) -> Callable[[F], F]:
    """Decorate the function that runs statements of that kind in these places."""

    def register(function: F) -> F:
        (_ASYNC if places == ASYNC else _SYNC)[kind] = function
        return function

    return register


async def run_async(body: Iterable[Node], frame: Frame) -> Any:
    """Run statements in a coroutine; gives RETURN where one of them returns."""
    for node in body:
        try:
            if await _ASYNC[node.kind](node, frame) is RETURN:
                return RETURN
        except BaseException as error:
            frame.note(node, error)
            raise
    return None


def run_sync(body: Iterable[Node], frame: Frame) -> Any:
    """Run statements in sync code; gives RETURN where one of them returns."""
    for node in body:
        try:
            if _SYNC[node.kind](node, frame) is RETURN:
                return RETURN
        except BaseException as error:
            frame.note(node, error)
            raise
    return None


async def run_task(body: Iterable[Node], frame: Frame) -> None:
    """Run statements as a task that nobody awaits for its result."""
    try:
        await run_async(body, frame)
    except (Exception, asyncio.CancelledError) as error:
        frame.swallow(error)


async def run_program(run: Run) -> None:
    """Run a program until its tasks and threads are over and what it dropped is collected."""
    import tests.search.statements  # noqa: F401 - registers them

    frame = Frame(run, "coroutine")
    await run_task(run.program.body, frame)
    for task in run.tasks:
        # One that waits for what an abandoned object has.
        if not task.done():
            gc.collect()
            await asyncio.wait([task])
    while waiting := [thread for thread in run.threads if not thread.done()]:
        await asyncio.wait(waiting)
    run.kept.clear()
    gc.collect()
