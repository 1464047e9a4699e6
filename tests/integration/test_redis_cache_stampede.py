"""`get_or_set` with OPTIONS["stampede"]: one computes for tasks, threads and processes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from nuages import on_loop
from nuages.bridge import await_
from nuages.cache.stampede import LOCK_SUFFIX
from tests.integration.cache_tools import ours, prefix
from tests.integration.conftest import Counts, Run
from tests.integration.pool_tools import cancelled


def test_without_it_everybody_computes(valkey_url: str, run: Run) -> None:
    """A control: as with Django's own cache."""
    cache, computed, second = ours(valkey_url), 0, asyncio.Event()

    async def default() -> int:
        nonlocal computed
        computed += 1
        if computed > 1:
            second.set()
        await second.wait()
        return 5

    async def main() -> None:
        found = await asyncio.gather(*(cache.aget_or_set("a", default) for _ in range(20)))
        assert found == [5] * 20

    run(main)
    assert second.is_set()


@pytest.mark.parametrize("way", ["awaited", "in a bridge"])
def test_one_task_computes_for_two_hundred(
    valkey_url: str, run: Run, threads: Counts, way: str
) -> None:
    """Two caches stand for two processes: the tasks of each ask through one of them."""
    name, computed, asked, all_asked = prefix(), 0, 0, asyncio.Event()
    # Different options, so that they have different clients.
    caches = [ours(valkey_url, name, stampede=True, max_connections=n) for n in (5, 6)]

    async def default() -> dict[str, int]:
        nonlocal computed
        computed += 1
        await all_asked.wait()
        return {"value": computed}

    async def ask(cache: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 200:
            all_asked.set()
        if way == "awaited":
            return await cache.aget_or_set("a", default)
        return await on_loop(cache.get_or_set)("a", lambda: await_(default()))

    async def main() -> None:
        found = await asyncio.gather(*(ask(caches[n % 2]) for n in range(200)))
        assert found == [{"value": 1}] * 200
        # Nobody can change what the others have.
        assert len({id(value) for value in found}) == 200
        assert not await caches[0].ahas_key("a" + LOCK_SUFFIX)

    run(main)
    assert computed == 1
    threads.assert_none()


def test_one_thread_computes_for_ten(valkey_url: str) -> None:
    name, computed, together = prefix(), [], threading.Barrier(10)

    def default() -> int:
        computed.append(1)
        time.sleep(0.05)
        return 5

    def ask(_: int) -> Any:
        cache = ours(valkey_url, name, stampede=True)
        together.wait()
        return cache.get_or_set("a", default)

    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(ask, range(10))) == [5] * 10
    assert computed == [1]


def test_another_takes_over_where_the_owner_has_died(valkey_url: str, run: Run) -> None:
    """A process is killed in the middle of its computation; its lock expires."""
    name = prefix()
    options: dict[str, Any] = {"stampede": {"lock": 1.0, "wait": 20}}
    cache = ours(valkey_url, name, **options)
    code = f"""
from django.conf import settings
settings.configure()
from nuages.cache.redis import RedisCache
cache = RedisCache({valkey_url!r}, {{"OPTIONS": {options!r}, "KEY_PREFIX": {name!r}}})
def default():
    print("computing", flush=True)
    input()
cache.get_or_set("a", default)
"""
    owner = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "computing\n"
        owner.kill()
    lock = cache.make_key("a") + LOCK_SUFFIX

    async def main() -> None:
        async def default() -> str:
            return "computed"

        with redis.Redis.from_url(valkey_url) as server:
            assert server.get(lock) is not None
            found = await asyncio.gather(*(cache.aget_or_set("a", default) for _ in range(5)))
            assert found == ["computed"] * 5
            assert server.get(lock) is None
        await cache.adelete("a")

    run(main)


def test_who_waits_too_long_computes(valkey_url: str, run: Run) -> None:
    cache = ours(valkey_url, stampede={"lock": 60, "wait": 0.05})
    lock = cache.make_key("a") + LOCK_SUFFIX

    async def main() -> None:
        with redis.Redis.from_url(valkey_url) as server:
            server.set(lock, "somebody's", px=60_000)
            found = await asyncio.gather(*(cache.aget_or_set("a", lambda: 5) for _ in range(3)))
            assert found == [5] * 3
            # It is still the other one's.
            assert server.get(lock) == b"somebody's"

    run(main)


def test_the_next_one_computes_where_one_fails_or_is_cancelled(valkey_url: str, run: Run) -> None:
    cache = ours(valkey_url, stampede=True)

    async def main() -> None:
        began, computing = asyncio.Event(), 0

        async def default() -> str:
            nonlocal computing
            computing += 1
            if computing == 1:
                began.set()
                await asyncio.Event().wait()
            if computing == 2:
                raise LookupError("no value")
            return "value"

        first = asyncio.create_task(cache.aget_or_set("a", default))
        await began.wait()
        others = [asyncio.create_task(cache.aget_or_set("a", default)) for _ in range(5)]
        await cancelled(first)
        found = await asyncio.gather(*others, return_exceptions=True)
        assert sorted(map(str, found)) == ["no value", *["value"] * 4]
        assert computing == 3

    run(main)
