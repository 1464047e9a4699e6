"""Cache clients on redis-py's sync client, for code in no bridge: WSGI, commands, threads.

For plain servers the client is Django's own `RedisCacheClient`; sentinels and clusters have theirs
here.
Django makes a cache object for each context, so its clients would open connections for each
request; here the pools of one configuration are shared by the process. redis-py's sync pools may
be used by many threads, and make new connections after a fork.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from django.core.cache.backends.redis import RedisCacheClient
from redis import RedisCluster, cluster, sentinel

from nuages.cache.config import Config

_shared: dict[Any, dict[Any, Any]] = {}
"""By configuration: the pools (or clients) that Django's client keeps in `_pools`."""
_lock = threading.Lock()


def pools_of(config: Config) -> dict[Any, Any]:
    """Return the process's pools for `config`."""
    with _lock:
        return _shared.setdefault(config.key, {})


class SentinelCacheClient(RedisCacheClient):
    """The master of a service that sentinels watch, and its replicas for reads if wanted."""

    config: Config
    _pools: dict[Any, Any]
    _serializer: Any

    def get_client(self, key: Any = None, *, write: bool = False) -> Any:
        """Return redis-py's client for a command that writes, or one that does not."""
        master = write or not self.config.read_from_replicas
        with _lock:
            if master not in self._pools:
                self._pools[master] = self._make(master)
            return self._pools[master]

    def _make(self, master: bool) -> Any:
        place, options = self.config.location, self._options()
        names = ("socket_", "ssl_") if place.tls else ("socket_",)
        kwargs = {n: v for n, v in self.config.connection.items() if n.startswith(names)}
        if place.tls:
            kwargs["ssl"] = options["ssl"] = True
        sentinels: Any = sentinel.Sentinel
        found = sentinels(place.hosts, sentinel_kwargs=kwargs | self.config.sentinel)
        chosen = found.master_for if master else found.slave_for
        return chosen(place.service, **options)

    def _options(self) -> dict[str, Any]:
        return self.config.connection | self.config.location.options


class ClusterCacheClient(SentinelCacheClient):
    """A cluster: many keys go to the nodes of their slots."""

    def get_client(self, key: Any = None, *, write: bool = False) -> Any:
        """Return redis-py's client, which finds the nodes by itself."""
        return super().get_client(key, write=True)

    def _make(self, master: bool) -> Any:
        place, options = self.config.location, self._options()
        if place.tls:
            options["ssl"] = True
        if self.config.read_from_replicas:
            options["load_balancing_strategy"] = cluster.LoadBalancingStrategy.ROUND_ROBIN
        node: Any = cluster.ClusterNode
        return RedisCluster(
            startup_nodes=[node(host, port) for host, port in place.hosts],
            **options,
        )

    def get_many(self, keys: Any) -> dict[Any, Any]:
        """Return the values of those `keys` that have one."""
        keys = list(keys)
        pipeline = self.get_client().pipeline()
        for key in keys:
            pipeline.get(key)
        return {
            key: self._serializer.loads(value)
            for key, value in zip(keys, pipeline.execute(), strict=True)
            if value is not None
        }

    def set_many(self, data: Mapping[Any, Any], timeout: Any) -> None:
        """Store all of `data` for `timeout` seconds; None: for good, 0: not at all."""
        pipeline = self.get_client(write=True).pipeline()
        for key, value in data.items():
            if timeout == 0:
                pipeline.delete(key)
            else:
                pipeline.set(key, self._serializer.dumps(value), ex=timeout)
        pipeline.execute()

    def delete_many(self, keys: Any) -> None:
        """Delete `keys`."""
        pipeline = self.get_client(write=True).pipeline()
        for key in keys:
            pipeline.delete(key)
        pipeline.execute()


def make_client(config: Config) -> RedisCacheClient:
    """Return a client for code that runs in no bridge."""
    kinds = {
        "servers": RedisCacheClient,
        "sentinel": SentinelCacheClient,
        "cluster": ClusterCacheClient,
    }
    options = config.connection | config.sync_only
    client: Any = kinds[config.location.kind](
        list(config.location.servers), serializer=None, **options
    )
    client.config = config
    client._serializer = config.serializer
    client._pools = pools_of(config)
    return client  # type: ignore[no-any-return]
