"""Clients of Redis for a cache, on the event loop: plain servers, a sentinel's service, a cluster.

The commands and their meaning are those of `django.core.cache.backends.redis`; `synchronous` has
their counterpart for code that runs in no bridge. Keys are made and values serialized by the
caller.

A command whose connection was lost after it was sent may have been carried out. Commands that may
safely be carried out twice are sent again; `add` and `incr` are not.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.cluster import LoadBalancingStrategy
from redis.exceptions import TimeoutError as RedisTimeoutError

from nuages.bridge.tasks import uncaught
from nuages.cache.config import Config
from nuages.cache.pool import LOST, PAUSES, LoopPool, SentinelLoopPool, pause, was_sent
from nuages.exceptions import CachePoolTimeout

T = TypeVar("T")

INCREMENT = """
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
redis.call('INCRBY', KEYS[1], ARGV[1])
return redis.call('GET', KEYS[1])
"""
"""Django asks EXISTS first; a key that expires in between would come back and never expire.

The answer is the text of the number: a script's integers are doubles, exact up to 2**53 only.
"""
UNLOCK = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


class LoopClient:
    """The servers of LOCATION: writes go to the first, reads to a random other one."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.flights: dict[str, asyncio.Event] = {}
        """Keys whose value a task of this loop is computing; see `nuages.cache.stampede`."""
        self._nodes: dict[int, Any] = {}

    def __repr__(self) -> str:
        kind, used = self.config.location.kind, [pool.stats() for pool in self.pools()]
        return f"<{type(self).__name__} {kind}: {used}>"

    def node(self, *, write: bool = False) -> Any:
        """Return redis-py's client for a command that writes, or one that does not."""
        count = self._count()
        index = 0 if write or count == 1 else random.randint(1, count - 1)  # noqa: S311 - a replica
        found = self._nodes.get(index)
        if found is None:
            found = self._nodes[index] = self._make(index)
        return found

    def pools(self) -> list[LoopPool]:
        """Return the pools that are open."""
        return [node.connection_pool for node in self._nodes.values()]

    def _count(self) -> int:
        return len(self.config.location.servers)

    def _make(self, index: int) -> Any:
        pool = LoopPool.from_url(
            self.config.location.servers[index],
            pool_timeout=self.config.pool_timeout,
            **_pool_options(self.config),
        )
        return Redis(connection_pool=pool)

    async def get(self, key: str) -> Any:
        """Return what is stored, or None."""
        pool = self.node().connection_pool
        return await self._again(lambda: pool.command("GET", key))

    async def get_many(self, keys: Sequence[str]) -> list[Any]:
        """Return what is stored under each key, or None in its place."""
        found: list[Any] = await self._again(lambda: self.node().mget(keys))
        return found

    async def has_key(self, key: str) -> bool:
        """Return whether something is stored."""
        return bool(await self._again(lambda: self.node().exists(key)))

    async def set(self, key: str, data: Any, timeout: int | None) -> None:
        """Store `data` for `timeout` seconds; None: for good, 0: not at all."""
        if timeout == 0:
            await self.delete_many([key])
        else:
            pool = self.node(write=True).connection_pool
            options = () if timeout is None else ("EX", timeout)
            await self._again(lambda: pool.command("SET", key, data, *options))

    async def set_many(self, data: Mapping[str, Any], timeout: int | None) -> None:
        """Store all of `data`, in one go."""
        if timeout == 0:
            await self.delete_many(list(data))
            return

        def send() -> Any:
            pipeline = self._pipeline()
            for key, value in data.items():
                pipeline.set(key, value, ex=timeout)
            return pipeline.execute()

        await self._again(send)

    async def add(self, key: str, data: Any, timeout: int | None) -> bool:
        """Store `data` unless something is stored; return whether `data` was. Atomic."""
        node = self.node(write=True)
        if timeout != 0:
            return bool(await self._once(lambda: node.set(key, data, ex=timeout, nx=True)))
        added = bool(await self._once(lambda: node.set(key, data, nx=True)))
        if added:
            await self.delete_many([key])
        return added

    async def touch(self, key: str, timeout: int | None) -> bool:
        """Give a key another timeout; return whether there is such a key."""
        node = self.node(write=True)
        if timeout is None:
            return bool(await self._again(lambda: node.persist(key)))
        return bool(await self._again(lambda: node.expire(key, timeout)))

    async def delete_many(self, keys: Sequence[str]) -> int:
        """Delete keys; return how many there were."""
        return int(await self._again(lambda: self.node(write=True).delete(*keys)))

    async def incr(self, key: str, delta: int) -> int | None:
        """Add to the integer under `key`; return the sum, None where there is no such key."""
        node = self.node(write=True)
        found = await self._once(lambda: node.eval(INCREMENT, 1, key, delta))
        return None if found is None else int(found)

    async def clear(self) -> bool:
        """Delete every key of the database, other applications' among them, as Django does."""
        return bool(await self._again(lambda: self.node(write=True).flushdb()))

    async def lock(self, key: str, token: str, seconds: float) -> bool:
        """Take the lock `key` for `seconds` unless somebody has it; return whether that worked."""
        node, limit = self.node(write=True), max(1, int(seconds * 1000))
        return bool(await self._once(lambda: node.set(key, token, px=limit, nx=True)))

    async def unlock(self, key: str, token: str) -> None:
        """Give back the lock, if it is still the one that was taken with `token`."""
        await self._once(lambda: self.node(write=True).eval(UNLOCK, 1, key, token))

    async def aclose(self) -> None:
        """Close every connection; the next command opens new ones."""
        for pool in self.pools():
            await pool.disconnect()

    def _pipeline(self) -> Any:
        return self.node(write=True).pipeline(transaction=True)

    async def _once(self, send: Callable[[], Awaitable[T]]) -> T:
        """Await a command that must not be sent twice."""
        return await uncaught(send())

    async def _again(self, send: Callable[[], Awaitable[T]]) -> T:
        """Await a command that may be sent again where its connection was lost."""
        lost = LOST
        if self.config.connection.get("retry_on_timeout"):
            lost = (*LOST, RedisTimeoutError)
        for seconds in PAUSES:
            try:
                return await uncaught(send())
            except lost as error:
                if not was_sent(error):
                    raise
                await pause(seconds)
        return await uncaught(send())


class SentinelClient(LoopClient):
    """The service that sentinels watch: its master, and its replicas for reads if wanted."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._sentinel: Any = None

    def _count(self) -> int:
        return 2 if self.config.read_from_replicas else 1

    def _make(self, index: int) -> Any:
        place, options = self.config.location, _pool_options(self.config)
        if self._sentinel is None:
            self._sentinel = self._watchers()
        pool = SentinelLoopPool(
            place.service,
            self._sentinel,
            is_master=index == 0,
            ssl=place.tls,
            pool_timeout=self.config.pool_timeout,
            **(options | _without_pool(place.options)),
        )
        return Redis(connection_pool=pool)

    def _watchers(self) -> Any:
        place, timeout = self.config.location, self.config.pool_timeout
        made: Any = Sentinel
        found = made([])
        kwargs = {n: v for n, v in self.config.connection.items() if n.startswith("socket_")}
        if place.tls:
            kwargs["connection_class"] = SSLConnection
            kwargs |= {n: v for n, v in self.config.connection.items() if n.startswith("ssl_")}
        kwargs |= self.config.sentinel
        for host, port in place.hosts:
            pool = LoopPool(
                host=host, port=port, pool_timeout=timeout, max_connections=8, **kwargs
            )
            found.sentinels.append(Redis(connection_pool=pool))
        return found

    async def aclose(self) -> None:
        """Close every connection; the next command opens new ones."""
        await super().aclose()
        for watcher in [] if self._sentinel is None else self._sentinel.sentinels:
            await watcher.connection_pool.disconnect()


class ClusterClient(LoopClient):
    """A cluster: many keys go to the nodes of their slots, each node's share in one go."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        # A node refuses connections past its limit, so the waiting is done here.
        self._places = asyncio.Semaphore(config.max_connections)

    def _count(self) -> int:
        return 1

    def _make(self, index: int) -> Any:
        place, options = self.config.location, _pool_options(self.config)
        # redis-py asks the nodes for the topology over separate connections.
        options["max_connections"] = 2 * self.config.max_connections + 8
        options.pop("retry")
        options |= _without_pool(place.options)
        if place.tls:
            options["ssl"] = True
        nodes = [ClusterNode(host, port) for host, port in place.hosts]
        if self.config.read_from_replicas:
            options["load_balancing_strategy"] = LoadBalancingStrategy.ROUND_ROBIN
        return RedisCluster(startup_nodes=nodes, **options)

    def pools(self) -> list[LoopPool]:
        """None of ours: redis-py keeps the connections of each node."""
        return []

    async def get(self, key: str) -> Any:
        """Return what is stored, or None."""
        return await self._again(lambda: self.node().get(key))

    async def set(self, key: str, data: Any, timeout: int | None) -> None:
        """Store `data` for `timeout` seconds; None: for good, 0: not at all."""
        if timeout == 0:
            await self.delete_many([key])
        else:
            await self._again(lambda: self.node().set(key, data, ex=timeout))

    async def get_many(self, keys: Sequence[str]) -> list[Any]:
        """Return what is stored under each key, or None in its place."""

        def send() -> Any:
            pipeline = self._pipeline()
            for key in keys:
                pipeline.get(key)
            return pipeline.execute()

        found: list[Any] = await self._again(send)
        return found

    async def delete_many(self, keys: Sequence[str]) -> int:
        """Delete keys; return how many there were."""

        def send() -> Any:
            pipeline = self._pipeline()
            for key in keys:
                pipeline.delete(key)
            return pipeline.execute()

        return sum(await self._again(send))

    async def aclose(self) -> None:
        """Close every connection; the next command opens new ones."""
        for cluster in self._nodes.values():
            await cluster.aclose()

    def _pipeline(self) -> Any:
        return self.node().pipeline()

    async def _once(self, send: Callable[[], Awaitable[T]]) -> T:
        await self._enter()
        try:
            return await send()
        finally:
            self._places.release()

    async def _again(self, send: Callable[[], Awaitable[T]]) -> T:
        return await self._once(lambda: super(ClusterClient, self)._again(send))

    async def _enter(self) -> None:
        try:
            async with asyncio.timeout(self.config.pool_timeout):
                await self._places.acquire()
        except TimeoutError:
            raise CachePoolTimeout(
                timeout=self.config.pool_timeout, max_connections=self.config.max_connections
            ) from None


def make_client(config: Config) -> LoopClient:
    """Return a new client for the kind of LOCATION that `config` has."""
    kinds = {"servers": LoopClient, "sentinel": SentinelClient, "cluster": ClusterClient}
    return kinds[config.location.kind](config)


def _pool_options(config: Config) -> dict[str, Any]:
    """Return the options of redis-py's asyncio connections, without retries of their own."""
    options = {
        n: v for n, v in config.connection.items() if n not in {"retry", "retry_on_timeout"}
    }
    options.pop("retry_on_error", None)
    return options | {
        "max_connections": config.max_connections,
        "retry": Retry(NoBackoff(), 0),
    }


def _without_pool(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "max_connections"}


def check_options(config: Config) -> None:
    """Make a connection, without connecting it, so that wrong options are found (TypeError)."""
    options = _pool_options(config)
    options.pop("max_connections")
    if config.location.kind == "servers":
        for url in config.location.servers:
            pool: Any = ConnectionPool.from_url(url, **options)
            pool.make_connection()
    else:
        made = SSLConnection if config.location.tls else Connection
        made(**(options | _without_pool(config.location.options)))
