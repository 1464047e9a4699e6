"""`python -m tests.search.worker`: runs the programs that it reads, and says what was wrong.

Each line of its input is a program, a range of seeds, or nothing any more; each line of its output
is one of its answers, as JSON: `begin` with the seed of a program, `end` with its faults, `ready`.
Where a program leaves something behind it ends; a new one takes its place.
A process that ends before it has said `end` has crashed or hangs in the program it began, and its
error output has every thread's stack, or every task's.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import itertools
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import django
import uvloop

DEADLINE = 30.0
"""Seconds that a program may take; it takes a hundredth of one."""
QUIET = 3.0
"""Seconds in which connections must be back after it."""

_runs = itertools.count()


def main() -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.search.settings"
    warnings.simplefilter("error")
    logging.disable(logging.CRITICAL)
    django.setup()
    faulthandler.enable()
    from tests.search.databases import entries, judge

    judges = {alias: judge(entry) for alias, entry in entries().items()}
    _prepare(judges)
    gc.collect()
    gc.freeze()
    say(ready=True)
    for line in sys.stdin:
        command = json.loads(line)
        for programs in _batches(_programs(command)):
            run_batch(programs, judges)
        say(ready=True)


def say(**answer: Any) -> None:
    """Answer with a line."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _prepare(judges: dict[str, Any]) -> None:
    """Make the tables and the rows that are iterated over."""
    from django.core.management import call_command
    from django.db import connections

    from tests.library.models import Author, Book
    from tests.search.statements.queries import SEEDED

    for alias in judges:
        call_command("migrate", database=alias, run_syncdb=True, verbosity=0)
        if Author.objects.using(alias).exists():
            continue  # This worker takes the place of one that crashed.
        for number in range(SEEDED):
            author = Author.objects.using(alias).create(name=f"seed {number}")
            Book.objects.using(alias).create(title=f"book {number}", author=author)
    connections.close_all()


def _programs(command: dict[str, Any]) -> Iterator[Any]:
    from tests.search.generate import program
    from tests.search.program import Program

    if "program" in command:
        yield from [Program.load(command["program"])] * command["times"]
    else:
        for seed in range(*command["seeds"]):
            yield program(seed, command["vendor"])


def _batches(programs: Iterable[Any]) -> Iterator[list[Any]]:
    """Those that share a loop and a pool."""
    for _, batch in itertools.groupby(programs, lambda each: (each.loop, each.pool)):
        yield list(batch)


def run_batch(programs: list[Any], judges: dict[str, Any]) -> None:
    """Run programs one after another on one loop."""
    from django.conf import settings
    from django.db import connections

    first = programs[0]
    for alias in judges:
        connections.settings[alias]["OPTIONS"]["pool"] = {
            "max_size": first.pool,
            "timeout": settings.POOL_TIMEOUT,
        }
        judges[alias].clean()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        # More threads than a program starts, so that none waits for another to begin.
        loop.set_default_executor(ThreadPoolExecutor(32))
        for program in programs:
            say(begin=program.seed)
            begin = time.monotonic()
            faults, left = await run_one(program, judges)
            say(end=program.seed, faults=faults + left, seconds=time.monotonic() - begin)
            if left:
                # It would hit the next program.
                os._exit(0)

    with asyncio.Runner(loop_factory=_factory(first.loop)) as runner:
        runner.run(main())


def _factory(name: str) -> Any:
    if name == "uvloop":
        return uvloop.new_event_loop
    if name == "asyncio":
        return asyncio.new_event_loop

    def eager() -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
        return loop

    return eager


async def run_one(program: Any, judges: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Run a program and judge it; return what is wrong, and what is left of it.

    A program that hangs ends the process.
    """
    from tests.search import inside
    from tests.search.running import Run, run_program, tell

    run = Run(program, f"{program.seed}.{next(_runs)}")
    unhandled: list[str] = []

    def unhandled_in_loop(_: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        text = f" {tell(error)}" if error is not None else ""
        unhandled.append(f"the loop was told: {context['message']}{text}")

    def unraisable(what: Any) -> None:
        unhandled.append(f"nobody could be told, in {what.object!r:.60}: {tell(what.exc_value)}")

    asyncio.get_running_loop().set_exception_handler(unhandled_in_loop)
    sys.unraisablehook = unraisable
    faulthandler.dump_traceback_later(DEADLINE * 1.5, exit=True)
    thresholds = gc.get_threshold()
    if program.threshold:
        gc.set_threshold(program.threshold, 5, 5)
    task = asyncio.create_task(run_program(run))
    try:
        done, _ = await asyncio.wait([task], timeout=DEADLINE)
        if not done:
            inside.dump_tasks()
            os._exit(3)
        task.result()
    finally:
        gc.set_threshold(*thresholds)
    wrong = await inside.look(QUIET)
    for alias, judge in judges.items():
        if judge.open_transactions():
            wrong += await inside.until_gone(judge, alias, QUIET)
    present = {alias: judge.tags(run.mark) for alias, judge in judges.items()}
    faulthandler.cancel_dump_traceback_later()
    return [*run.faults, *run.journal.judge(present), *unhandled], wrong


if __name__ == "__main__":
    main()
