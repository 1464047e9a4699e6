"""`make cache-bench`: Django's Redis cache (a thread for each call) and ours on one event loop.

A thousand tasks at once, each with a few operations, three gets to one set, against one Valkey.
The subjects take turns in every round, and the result is the ratio within a round, its median and
range. Nuages' app is not installed, so that stock Django is stock. That ours uses no thread is
counted while it is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import uvloop
from django.conf import settings

from tests import services

TASKS = 1000
OPERATIONS = 8
ROUNDS = 7
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


class ThreadsUsed:
    """Counts threads that start and calls that are given to executors."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> ThreadsUsed:
        self._originals = (threading.Thread.start, concurrent.futures.ThreadPoolExecutor.submit)
        start, submit = self._originals

        def counted_start(thread: threading.Thread) -> None:
            self.count += 1
            start(thread)

        def counted_submit(executor: Any, /, *args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return submit(executor, *args, **kwargs)

        threading.Thread.start = counted_start  # type: ignore[method-assign]
        concurrent.futures.ThreadPoolExecutor.submit = counted_submit  # type: ignore
        return self

    def __exit__(self, *exc_info: object) -> None:
        start, submit = self._originals
        threading.Thread.start = start  # type: ignore[method-assign]
        concurrent.futures.ThreadPoolExecutor.submit = submit  # type: ignore[method-assign]


async def measure(cache: Any, tasks: int) -> float:
    """Return operations a second; every value read is checked."""

    async def use(number: int) -> None:
        key, value = f"k{number}", {"number": number, "text": "x" * 100}
        for turn in range(OPERATIONS):
            if turn % 4 == 0:
                await cache.aset(key, value)
            elif (found := await cache.aget(key)) != value:
                raise AssertionError(f"{key} is {found!r}")

    began = time.perf_counter()
    await asyncio.gather(*(use(number) for number in range(tasks)))
    return tasks * OPERATIONS / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cache", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two rounds of a fifth of the tasks")
    quick = parser.parse_args().quick
    rounds, tasks = (2, TASKS // 5) if quick else (ROUNDS, TASKS)
    settings.configure()
    from django.core.cache.backends.redis import RedisCache as Stock

    from nuages.cache.redis import RedisCache as Ours

    print(f"{tasks} tasks, {OPERATIONS} operations each, {rounds} rounds; operations a second")
    with services.valkey_server() as url:
        for name, factory in LOOPS.items():
            ratios, found, used = [], {"stock": [], "ours": []}, 0
            with asyncio.Runner(loop_factory=factory) as runner:
                stock, ours = Stock(url, {"KEY_PREFIX": "s"}), Ours(url, {"KEY_PREFIX": "o"})
                for cache in (stock, ours):
                    runner.run(measure(cache, tasks // 5))  # connections and code are there
                for turn in range(rounds):
                    order = ["stock", "ours"] if turn % 2 else ["ours", "stock"]
                    for subject in order:
                        with ThreadsUsed() as threads:
                            cache = ours if subject == "ours" else stock
                            found[subject].append(runner.run(measure(cache, tasks)))
                        used += threads.count if subject == "ours" else 0
                    ratios.append(found["ours"][-1] / found["stock"][-1])
            if used:
                raise AssertionError(f"ours used threads, {used} times")
            print(
                f"{name:8} stock {statistics.median(found['stock']):7.0f}   "
                f"ours {statistics.median(found['ours']):7.0f}, no thread   "
                f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            )


if __name__ == "__main__":
    main()
