"""Every operation of the Redis cache is cancelled at every one of its suspensions.

After each of them the pool is whole and no connection gets an answer that was another's, no task
or bridge is left, no lock of a computation is left, and what is stored is that of before or of
after: a command that was sent may have been carried out. See `test_sweep` for `POINTS`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from nuages import on_loop
from nuages.cache.redis import RedisCache
from tests.integration.cache_tools import ours, prefix, stock, the_pool
from tests.integration.conftest import Run
from tests.integration.sweep_tools import LOOPS, POINTS, TIMES, TIMINGS, Counted, Cut, settled

BEFORE: dict[str, Any] = {"a": "old", "b": 5, "c": [1, 2]}
SIZE = 2
"""Connections that the pool may have."""


async def computed() -> str:
    await asyncio.sleep(0)
    return "computed"


async def wait_for_a_place(cache: RedisCache) -> None:
    async with asyncio.TaskGroup() as others:
        for _ in range(2 * SIZE):
            others.create_task(cache.aget("a"))
        await asyncio.sleep(0)
        await cache.aset("a", "new")


async def gathered(cache: RedisCache) -> None:
    await asyncio.gather(*(cache.aget(key) for key in "abc"))


async def in_a_bridge(cache: RedisCache) -> None:
    def work() -> None:
        cache.set("a", cache.get("b"))
        cache.incr("b")

    await on_loop(work)()


@dataclass
class Operation:
    """Something that is asked of a cache; see `sweep_tools.Operation`."""

    name: str
    run: Callable[[RedisCache], Awaitable[Any]]
    between: tuple[dict[str, Any], ...] = ()
    cold: bool = False

    def __str__(self) -> str:
        return self.name


OPERATIONS = [
    Operation("get", lambda cache: cache.aget("a")),
    Operation("get, and connect", lambda cache: cache.aget("a"), cold=True),
    Operation("get many", lambda cache: cache.aget_many(["a", "b", "none"])),
    Operation("gathered gets", gathered),
    Operation("set", lambda cache: cache.aset("a", "new")),
    Operation("set, and connect", lambda cache: cache.aset("a", "new"), cold=True),
    Operation("set many", lambda cache: cache.aset_many({"a": "new", "d": "more"})),
    Operation("set a large value", lambda cache: cache.aset("a", "x" * 4_000_000)),
    Operation("add", lambda cache: cache.aadd("d", "new")),
    Operation("increment", lambda cache: cache.aincr("b", 3)),
    Operation("touch", lambda cache: cache.atouch("a", 100)),
    Operation("delete", lambda cache: cache.adelete("a")),
    Operation("delete many", lambda cache: cache.adelete_many(["a", "b"])),
    Operation("clear", lambda cache: cache.aclear()),
    Operation("get or set", lambda cache: cache.aget_or_set("d", computed)),
    Operation("one computes", lambda cache: cache.aget_or_set("e", computed)),
    Operation("sync function", in_a_bridge, between=({**BEFORE, "a": 5},)),
    Operation("wait for a place", wait_for_a_place),
]


async def sweep(operation: Operation, url: str, counted: Counted) -> None:
    """Cut the operation at each of its suspensions, and check what is left each time."""
    name = prefix()
    cache = ours(url, name, max_connections=SIZE, stampede=operation.name == "one computes")
    outside = stock(url, name)

    def reset() -> None:
        outside.clear()
        outside.set_many(BEFORE)

    def snapshot() -> dict[str, Any]:
        with redis.Redis.from_url(url) as client:
            keys = [key.decode() for key in client.keys(f"{name}:*")]  # type: ignore[union-attr]
        return dict(outside.get_many([key.removeprefix(f"{name}:1:") for key in keys]))

    reset()
    await operation.run(cache)
    after = snapshot()
    legal = [BEFORE, after, *operation.between]
    for times, timing in itertools.product(TIMES, TIMINGS):
        for point in itertools.count(1) if POINTS == 0 else range(1, POINTS + 1):
            reset()
            if operation.cold:
                await cache.aclose()
            where = f"{operation} at {point}, {times} times, {timing}"
            cut = Cut(operation.run(cache), range(point, point + times), timing)
            task = asyncio.create_task(cut.run())
            await asyncio.wait([task])
            await settled()
            stats = the_pool().stats()
            assert (stats["used"], stats["waiting"]) == (0, 0), f"{where}: {stats}"
            left = snapshot()
            if not cut.cancelled:
                await task
                assert left == after, where
                break
            assert task.cancelled(), f"{where}: ended with {task}"
            assert left in legal, f"{where}: {left}"
            # An answer that nobody read would be taken for that of the next command.
            outside.set("probe", where)
            probes = await asyncio.gather(*(cache.aget("probe") for _ in range(2 * SIZE)))
            assert probes == [where] * (2 * SIZE)
            counted.points += 1
            counted.committed += left == after != BEFORE


@pytest.fixture(scope="module")
def counted() -> Iterator[Counted]:
    """What was swept; printed at the end."""
    found = Counted()
    yield found
    print(f"\nredis: {found}", end="")


@pytest.fixture(scope="module")
def url(valkey_url: str) -> str:
    """A database that is cleared by nobody else."""
    return urlsplit(valkey_url)._replace(path="/11").geturl()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("run", LOOPS, indirect=True)
@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_whatever_is_cancelled_leaves_the_cache_whole(
    operation: Operation, url: str, run: Run, counted: Counted
) -> None:
    run(sweep, operation, url, counted)
    counted.operations.add(operation.name)
    assert counted.points
