"""`python -m tests.search`: run random programs, judge them, make those that fail small.

    python -m tests.search [--database NAME] [--programs N] [--seconds S] [--first SEED]
        [--seed SEED] [--jobs N] [--shrink SECONDS]

--database is postgresql, sqlite or mysql. --seconds ends the search earlier; --seed runs the one
program of a seed, ten times. Faults are grouped by their kind; of each group all seeds are
printed, and one program that was made as small as it could be in so many seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field

from tests.search import databases
from tests.search.generate import BATCH, program
from tests.search.program import Program
from tests.search.shrink import shrink
from tests.search.workers import Result, Worker, working

TRIES = 6
"""How often a program runs before it counts as one that does not fail."""
EVERY = 15.0
"""Seconds between two lines of progress."""


@dataclass
class Search:
    """What was found so far."""

    vendor: str
    begin: float = field(default_factory=time.monotonic)
    done: int = 0
    groups: dict[str, list[Result]] = field(default_factory=dict)
    told: float = 0.0

    def add(self, result: Result) -> None:
        """Count a program."""
        self.done += 1
        if result.faults:
            group = self.groups.setdefault(result.signature, [])
            group.append(result)
            if len(group) == 1:
                print(f"seed {result.seed}: {result.faults[0].partition(chr(10))[0]}", flush=True)
        if time.monotonic() - self.told > EVERY:
            self.told = time.monotonic()
            print(f"  {self}", flush=True)

    def __str__(self) -> str:
        seconds = time.monotonic() - self.begin
        failed = sum(map(len, self.groups.values()))
        return (
            f"{self.done:,} programs on {self.vendor} in {seconds:.0f} s"
            f" ({60 * self.done / seconds:,.0f} a minute), {failed} failed"
            f" in {len(self.groups)} ways"
        )


def main() -> int:
    """Run the search; returns 1 where a program failed."""
    options = _options()
    with databases.servers(options.database) as make:
        return asyncio.run(_main(options, [make() for _ in range(options.jobs)]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.search")
    parser.add_argument("--database", choices=databases.VENDORS, default="postgresql")
    parser.add_argument("--programs", type=int, default=50_000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--shrink", type=float, default=60.0, metavar="SECONDS")
    return parser.parse_args()


async def _main(options: argparse.Namespace, entries: list[databases.Entries]) -> int:
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(working(each)) for each in entries]
        search = Search(options.database)
        if options.seed is not None:
            chosen = program(options.seed, options.database)
            print(chosen.text(), flush=True)
            async for result in workers[0].run(chosen, 10):
                search.add(result)
        else:
            batches = iter(
                range(options.first, options.first + options.programs, BATCH),
            )
            end = options.first + options.programs
            async with asyncio.TaskGroup() as tasks:
                for worker in workers:
                    tasks.create_task(_search(worker, search, batches, end, options.seconds))
        await _tell(search, workers, options.shrink)
        print(search)
        return 1 if search.groups else 0


async def _search(
    worker: Worker, search: Search, batches: object, end: int, seconds: float
) -> None:
    for begin in batches:  # type: ignore[attr-defined]
        async for result in worker.seeds(search.vendor, begin, min(begin + BATCH, end)):
            search.add(result)
        if time.monotonic() - search.begin > seconds:
            return


async def _tell(search: Search, workers: list[Worker], seconds: float) -> None:
    """Print each group of faults with its smallest program."""
    waiting = iter(sorted(search.groups.items(), key=lambda item: -len(item[1])))

    async def work(worker: Worker) -> None:
        for kind, results in waiting:
            seeds = [result.seed for result in results]
            small = min(
                (program(seed, search.vendor) for seed in seeds),
                key=lambda each: sum(1 for _ in each.walk()),
            )
            found = await _smallest(worker, small, kind, seconds)
            example = next(result for result in results if result.seed == small.seed)
            print(f"\n{len(seeds)} failed like this: seeds {', '.join(map(str, seeds[:20]))}")
            print(*(f"  {fault}" for fault in example.faults[:4]), sep="\n")
            print(found.text(), flush=True)

    async with asyncio.TaskGroup() as tasks:
        for worker in workers:
            tasks.create_task(work(worker))


async def _smallest(worker: Worker, start: Program, kind: str, seconds: float) -> Program:
    smallest = start

    async def fails(candidate: Program) -> bool:
        nonlocal smallest
        async with aclosing(worker.run(candidate, TRIES)) as results:
            if await _has(results, kind):
                smallest = candidate
                return True
        return False

    try:
        async with asyncio.timeout(seconds):
            await shrink(start, fails)
    except TimeoutError:
        await worker.close(kill=True)
    return smallest


async def _has(results: AsyncIterator[Result], kind: str) -> bool:
    found = [result async for result in results]
    return any(result.faults and result.signature == kind for result in found)


if __name__ == "__main__":
    sys.exit(main())
