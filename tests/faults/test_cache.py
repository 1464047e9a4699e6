"""The cache's server fails: Valkey, which forgets everything when it is killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis

from nuages.cache.redis import RedisCache
from tests.faults.databases import Cache
from tests.faults.world import World, fault
from tests.integration.cache_tools import ours

REDIS = ("redis",)


@asynccontextmanager
async def cache_of(world: World, **options: object) -> AsyncIterator[RedisCache]:
    """A cache through the proxy, which is well again when the block ends."""
    assert isinstance(world.database, Cache)
    cache = ours(world.database.url, **options)
    yield cache
    world.proxy.resume()
    await cache.aset("afterwards", 1)
    assert await cache.aget("afterwards") == 1
    await cache.aclose()


@fault("server killed and restarted, connections idle", deadline=2, on=REDIS)
async def test_restarted(world: World) -> None:
    async with cache_of(world) as cache:
        await cache.aset("a", 1)
        await asyncio.to_thread(world.database.server.restart)
        world.strikes()
        assert await world.answers(cache.aget("a")) is None
        world.row.note("empty")


@fault("server away", deadline=3, on=REDIS)
async def test_away(world: World) -> None:
    async with cache_of(world) as cache:
        await cache.aset("a", 1)
        world.database.server.kill()
        world.strikes()
        await world.raises(cache.aget("a"), redis.ConnectionError)
        await asyncio.to_thread(world.database.server.start)


@fault("connection reset during get()", deadline=2, on=REDIS)
async def test_reset_during_get(world: World) -> None:
    async with cache_of(world) as cache:
        await cache.aset("a", 1)
        world.proxy.stall("to_client", new=False)
        task = asyncio.create_task(cache.aget("a"))
        await world.proxy.until_kept()
        world.strikes()
        world.proxy.cut(reset=True)
        assert await world.answers(task) == 1


@fault("connection reset during incr(), which was done", deadline=2, on=REDIS)
async def test_reset_during_incr(world: World) -> None:
    """It is not sent again."""
    async with cache_of(world) as cache:
        await cache.aset("n", 1)
        world.proxy.stall("to_client", new=False)
        task = asyncio.create_task(cache.aincr("n"))
        await world.proxy.until_kept()
        world.strikes()
        world.proxy.cut(reset=True)
        await world.raises(task, redis.ConnectionError)
        assert await cache.aget("n") == 2
        world.row.note("done once")


@fault("network stalled, asyncio.timeout(0.5)", deadline=2, on=REDIS)
async def test_stalled(world: World) -> None:
    async with cache_of(world) as cache:
        await cache.aset("a", 1)
        world.proxy.stall(new=False)
        world.strikes()
        await world.raises(world.within(0.5, cache.aget("a")), TimeoutError)
        assert await cache.aget("a") == 1


@fault("network stalled, OPTIONS socket_timeout 0.5", deadline=2, on=REDIS)
async def test_socket_timeout(world: World) -> None:
    async with cache_of(world, socket_timeout=0.5) as cache:
        await cache.aset("a", 1)
        world.proxy.stall(new=False)
        world.strikes()
        await world.raises(cache.aget("a"), redis.TimeoutError)


@fault("everything arrives byte by byte", deadline=5, on=REDIS)
async def test_byte_by_byte(world: World) -> None:
    async with cache_of(world) as cache:
        world.proxy.trickle()
        world.strikes()
        await world.answers(cache.aset_many({"a": "x" * 100, "b": [1, 2]}))
        assert await cache.aget_many(["a", "b"]) == {"a": "x" * 100, "b": [1, 2]}
