"""A task that is cancelled at its k-th suspension, and what must hold after it.

`Cut` awaits a coroutine step by step. A suspension is whatever the coroutine yields to its task: a
wait for the driver, a turn, a place in the pool. It is cancelled there early, before anything can
have been answered, or late, when the answer is there but the task has not seen it yet.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Awaitable, Callable, Container, Coroutine, Generator
from dataclasses import dataclass, field
from typing import Any, Literal

from nuages.bridge import core as bridge
from nuages.bridge import tasks

Timing = Literal["early", "late"]
TIMINGS: tuple[Timing, ...] = ("early", "late")
POINTS = int(os.environ.get("NUAGES_SWEEP_POINTS", "1"))
"""How many suspensions are tried; 0: all."""
TIMES = (1,) if POINTS == 1 else (1, 2)
"""How often an operation is cancelled: at a suspension, and at the next one too."""
LOOPS = ["asyncio", "uvloop"] if POINTS == 0 else ["uvloop"]
"""As a part of `make test`, and of CI, it is kept short."""


class Cut:
    """Awaits a coroutine, and cancels the task that does at the suspensions `at`, from 1."""

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, Any],
        at: Container[int],
        timing: Timing,
        then: Callable[[], object] = lambda: None,
    ) -> None:
        self._coroutine = coroutine
        self._at = at
        self._timing = timing
        self._then = then
        """What an early cancellation is followed by before the loop goes on."""
        self.suspensions = 0
        self.cancelled = 0

    async def run(self) -> Any:
        """Await it in the task that calls this."""
        return await self

    def __await__(self) -> Generator[Any, Any, Any]:
        send: Callable[[Any], Any] = self._coroutine.send
        value: Any = None
        while True:
            try:
                waited_for = send(value)
            except StopIteration as stop:
                return stop.value
            finally:
                value = None  # an error in it would refer to itself by this frame
            self.suspensions += 1
            if self.suspensions in self._at:
                self.cancelled += 1
                task = asyncio.current_task()
                assert task is not None
                if self._timing == "early" or waited_for is None:
                    task.cancel()
                    self._then()
                else:
                    # Before the task's own callback: it wakes to an answer and a cancellation.
                    waited_for.add_done_callback(functools.partial(_cancel, task))
                del task  # as with `value`
            try:
                value, send = (yield waited_for), self._coroutine.send
            except BaseException as error:
                value, send = error, self._coroutine.throw
            finally:
                del waited_for  # as with `value`


def _cancel(task: asyncio.Task[Any], _: object) -> None:
    task.cancel()


@dataclass
class Operation:
    """Something of the public API that is cut short."""

    name: str
    run: Callable[[], Awaitable[Any]]
    between: tuple[Any, ...] = ()
    """Data that may be left besides that of before and after: what is not one transaction."""
    cold: bool = False
    """Whether it starts with an empty pool, so that a connection is opened."""
    databases: tuple[str, ...] = ("postgresql", "sqlite", "mysql")

    def __str__(self) -> str:
        return self.name


@dataclass
class Counted:
    """What was swept."""

    operations: set[str] = field(default_factory=set)
    points: int = 0
    committed: int = 0
    """How many of the cancelled ones were found committed."""

    def __str__(self) -> str:
        return (
            f"{len(self.operations)} operations cancelled {self.points} times, "
            f"{self.committed} of them were committed by then"
        )


async def settled() -> None:
    """Wait for what goes on in the background, and see that nothing else is left."""
    while tasks._spawned:
        await asyncio.wait(list(tasks._spawned))
    # An iterator that was abandoned is closed by a task of the loop's own.
    if left := asyncio.all_tasks() - {asyncio.current_task()}:
        _, left = await asyncio.wait(left, timeout=10.0)
    assert not left, f"tasks were left behind: {left}"
    assert not bridge._bridges, f"bridges were left behind: {bridge._bridges}"
