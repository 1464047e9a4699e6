"""`BACKEND: "nuages.cache.redis.RedisCache"`: Django's Redis cache, natively on the event loop.

Keys and values are those of `django.core.cache.backends.redis.RedisCache`, so a project can change
from one to the other and keep what is in the cache. The `a*` methods await redis-py's asyncio
connections; the sync methods do the same in a bridge, and use redis-py's sync client elsewhere.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache
from django.core.cache.backends.redis import RedisCache as DjangoRedisCache
from django.core.cache.backends.redis import RedisCacheClient
from django.core.exceptions import ImproperlyConfigured
from django.utils.functional import cached_property

from nuages.bridge import Bridge, await_, current_bridge, run_on_loop
from nuages.bridge.tasks import spawn
from nuages.exceptions import BridgeClosed

try:
    import redis as _redis  # noqa: F401
except ImportError as error:
    raise ImproperlyConfigured(
        'nuages.cache.redis needs redis-py: pip install "nuages[redis]"'
    ) from error

from nuages.cache import synchronous
from nuages.cache.clients import UNLOCK, check_options
from nuages.cache.config import read
from nuages.cache.loops import client_for
from nuages.cache.stampede import Attempt, compute

_SYNC = (
    *("add", "get", "set", "touch", "delete", "get_many", "set_many", "delete_many"),
    *("has_key", "incr", "clear"),
)


def _bridged(name: str) -> Callable[..., Any]:
    """Return a sync method that in a bridge awaits its `a*` twin, and is Django's elsewhere."""
    original = getattr(DjangoRedisCache, name)

    @functools.wraps(original, updated=())
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if current_bridge() is None:
            return original(self, *args, **kwargs)
        return await_(getattr(self, f"a{name}")(*args, **kwargs))

    method.__module__ = __name__
    method.__qualname__ = f"RedisCache.{name}"
    return method


class RedisCache(DjangoRedisCache):
    """A cache in Redis or Valkey: servers, a sentinel's service or a cluster, by LOCATION.

    See `nuages.cache.locations` for LOCATION and docs/cache.md for OPTIONS. In a coroutine the
    `a*` methods are awaited; a sync call there blocks the loop, as with every cache of Django's.
    """

    def __init__(self, server: str | list[str], params: dict[str, Any]) -> None:
        options = params.get("OPTIONS") or {}
        self.config = read(server, options)
        super().__init__(list(self.config.location.servers), params)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """See that where a subclass overrides only a sync method, its `a*` twin calls that."""
        super().__init_subclass__(**kwargs)
        for name in _SYNC:
            if name in vars(cls) and f"a{name}" not in vars(cls):
                setattr(cls, f"a{name}", _calling(name))

    add: Any = _bridged("add")
    get: Any = _bridged("get")
    set: Any = _bridged("set")
    touch: Any = _bridged("touch")
    delete: Any = _bridged("delete")
    set_many: Any = _bridged("set_many")
    delete_many: Any = _bridged("delete_many")
    has_key: Any = _bridged("has_key")
    incr: Any = _bridged("incr")
    clear: Any = _bridged("clear")

    def check(self) -> None:
        """Make connections without connecting them; raises for options unknown to them."""
        check_options(self.config)

    @cached_property
    def _cache(self) -> RedisCacheClient:
        return synchronous.make_client(self.config)

    @property
    def _client(self) -> Any:
        return client_for(self.config)

    async def aget(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        """See `BaseCache.get`."""
        key = self.make_and_validate_key(key, version=version)
        data = await self._client.get(key)
        return default if data is None else await self._loads(data)

    async def aset(
        self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> None:
        """See `BaseCache.set`."""
        key = self.make_and_validate_key(key, version=version)
        data = await self.config.serializer.adumps(value)
        await self._client.set(key, data, self.get_backend_timeout(timeout))

    async def aadd(
        self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> bool:
        """See `BaseCache.add`. Atomic, so it serves as a lock."""
        key = self.make_and_validate_key(key, version=version)
        data = await self.config.serializer.adumps(value)
        added: bool = await self._client.add(key, data, self.get_backend_timeout(timeout))
        return added

    async def atouch(
        self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> bool:
        """See `BaseCache.touch`."""
        key = self.make_and_validate_key(key, version=version)
        touched: bool = await self._client.touch(key, self.get_backend_timeout(timeout))
        return touched

    async def adelete(self, key: Any, version: int | None = None) -> bool:
        """See `BaseCache.delete`."""
        key = self.make_and_validate_key(key, version=version)
        return bool(await self._client.delete_many([key]))

    async def aget_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        """See `BaseCache.get_many`: one command, or one for each node of a cluster."""
        made = {self.make_and_validate_key(key, version=version): key for key in keys}
        if not made:
            return {}
        found = await self._client.get_many(list(made))
        return {
            key: await self._loads(data)
            for key, data in zip(made.values(), found, strict=True)
            if data is not None
        }

    def get_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        """See `BaseCache.get_many`; without keys no command is sent, which Redis would refuse."""
        if current_bridge() is not None:
            return await_(self.aget_many(keys, version=version))
        keys = list(keys)
        return super().get_many(keys, version=version) if keys else {}

    async def aset_many(
        self,
        data: Mapping[Any, Any],
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
    ) -> list[Any]:
        """See `BaseCache.set_many`: one transaction; on a cluster one batch for each node."""
        made = {
            self.make_and_validate_key(key, version=version): (
                await self.config.serializer.adumps(value)
            )
            for key, value in data.items()
        }
        if made:
            await self._client.set_many(made, self.get_backend_timeout(timeout))
        return []

    async def adelete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        """See `BaseCache.delete_many`."""
        made = [self.make_and_validate_key(key, version=version) for key in keys]
        if made:
            await self._client.delete_many(made)

    async def ahas_key(self, key: Any, version: int | None = None) -> bool:
        """See `BaseCache.has_key`."""
        key = self.make_and_validate_key(key, version=version)
        found: bool = await self._client.has_key(key)
        return found

    async def aincr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """See `BaseCache.incr`. Atomic; the key keeps its timeout."""
        key = self.make_and_validate_key(key, version=version)
        value: int | None = await self._client.incr(key, delta)
        if value is None:
            raise ValueError(f"Key {key!r} not found.")
        return value

    def decr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """See `BaseCache.decr`."""
        value: int = self.incr(key, -delta, version=version)
        return value

    async def aclear(self) -> Any:
        """See `BaseCache.clear`."""
        return await self._client.clear()

    def get_or_set(
        self, key: Any, default: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> Any:
        """See `BaseCache.get_or_set`; with OPTIONS["stampede"] one caller computes for all."""
        value = self.get(key, self._missing_key, version=version)
        if value is not self._missing_key:
            return value
        return self._get_or_make(key, default, timeout, version)

    async def aget_or_set(
        self, key: Any, default: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> Any:
        """See `get_or_set`. `default` may be an async callable; a sync one runs in a bridge."""
        value = await self.aget(key, self._missing_key, version=version)
        if value is not self._missing_key:
            return value
        return await run_on_loop(self._get_or_make, (key, default, timeout, version), {})

    def _get_or_make(self, key: Any, default: Any, timeout: Any, version: int | None) -> Any:
        def get() -> Any:
            return self.get(key, self._missing_key, version=version)

        def make() -> Any:
            value = compute(default)
            self.set(key, value, timeout=timeout, version=version)
            return value

        option = self.config.stampede
        if option is not None and callable(default):
            made = self.make_and_validate_key(key, version=version)
            return Attempt(self, option, made, get, self._missing_key).run(make)
        value = compute(default)
        self.add(key, value, timeout=timeout, version=version)
        # Somebody else may have added another value meanwhile.
        return self.get(key, value, version=version)

    def take_lock(self, key: str, token: str, seconds: float) -> bool:
        """Take the lock under the made `key` unless somebody has it; return whether it was taken.

        Where this is interrupted, the lock is given back, should the server have granted it.
        """
        if (bridge := current_bridge()) is None:
            client: Any = self._cache.get_client(key, write=True)
            return bool(client.set(key, token, px=max(1, int(seconds * 1000)), nx=True))
        with self._given_back(bridge, key, token):
            return bool(await_(self._client.lock(key, token, seconds)))

    def give_lock(self, key: str, token: str) -> None:
        """Give back the lock, if it is still the one that was taken with `token`."""
        if (bridge := current_bridge()) is None:
            client: Any = self._cache.get_client(key, write=True)
            client.eval(UNLOCK, 1, key, token)
            return
        with self._given_back(bridge, key, token):
            await_(self._client.unlock(key, token))

    @contextmanager
    def _given_back(self, bridge: Bridge, key: str, token: str) -> Iterator[None]:
        """Give back the lock in a task of its own, where code inside is cancelled or closed.

        Else all others would wait until the lock expires.
        """
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit, BridgeClosed):
            spawn(bridge.loop, functools.partial(self._client.unlock, key, token))
            raise

    async def _loads(self, data: Any) -> Any:
        return await self.config.serializer.aloads(data)

    async def aclose(self, **kwargs: Any) -> None:
        """Close the connections that this loop has for the cache; the next command opens new ones.

        The end of the loop does the same by itself.
        """
        await self._client.aclose()


def _calling(name: str) -> Callable[..., Any]:
    """Return the `a*` twin for a subclass's own sync method."""

    async def method(self: BaseCache, *args: Any, **kwargs: Any) -> Any:
        return await run_on_loop(getattr(self, name), args, kwargs)

    method.__name__ = f"a{name}"
    return method
