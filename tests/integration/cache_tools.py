"""Caches for the tests, each with a prefix of its own on one Valkey, and ways to call them."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from collections.abc import Callable
from typing import Any

from django.core.cache.backends.redis import RedisCache as DjangoRedisCache

from nuages import on_loop
from nuages.cache.loops import open_clients
from nuages.cache.pool import LoopPool
from nuages.cache.redis import RedisCache
from tests.integration.conftest import Run


def prefix() -> str:
    return uuid.uuid4().hex


def ours(url: Any, key_prefix: str | None = None, /, **options: Any) -> RedisCache:
    timeout = options.pop("TIMEOUT", 300)
    params = {"OPTIONS": options, "KEY_PREFIX": key_prefix or prefix(), "TIMEOUT": timeout}
    return RedisCache(url, params)


def stock(url: Any, key_prefix: str, /, **options: Any) -> DjangoRedisCache:
    return DjangoRedisCache(url, {"OPTIONS": options, "KEY_PREFIX": key_prefix})


def the_pool() -> LoopPool:
    """The only pool of the running loop."""
    [client] = open_clients()
    [pool] = client.pools()
    return pool


Call = Callable[..., Any]
Story = Callable[[Call], Any]
"""A coroutine function that awaits `call(name, *args)` for what it wants of a cache."""


def tell(run: Run, way: str, cache: Any, story: Any) -> Any:
    """Run `story` in one of WAYS."""

    async def awaited(name: str, *args: Any, **kwargs: Any) -> Any:
        return await getattr(cache, f"a{name}")(*args, **kwargs)

    async def in_a_bridge(name: str, *args: Any, **kwargs: Any) -> Any:
        return await on_loop(getattr(cache, name))(*args, **kwargs)

    async def in_a_thread(name: str, *args: Any, **kwargs: Any) -> Any:
        return await asyncio.to_thread(getattr(cache, name), *args, **kwargs)

    async def plainly(name: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(cache, name)(*args, **kwargs)

    if way != "plain":
        calls = {"awaited": awaited, "in a bridge": in_a_bridge, "in a thread": in_a_thread}
        return run(story, calls[way])
    # Without a loop: nothing in the story waits.
    coroutine = story(plainly)
    assert inspect.iscoroutine(coroutine)
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("the story waits for something in plain sync code")


WAYS = ("awaited", "in a bridge", "in a thread", "plain")
