"""The Redis cache on a cluster, by sentinels, over TLS and Unix sockets: real servers each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from nuages import on_loop
from nuages.cache.loops import open_clients
from nuages.exceptions import CachePoolTimeout
from tests import redis_servers, services
from tests.integration.cache_tools import WAYS, Call, ours, prefix, tell
from tests.integration.conftest import Counts, Run
from tests.integration.pool_tools import cancelled
from tests.integration.test_redis_cache import added, many, numbers, values, versions

# What differs between the loops has tests with one server.
pytestmark = pytest.mark.parametrize("run", ["uvloop"], indirect=True)
every_way = pytest.mark.parametrize("way", WAYS)


async def everything(call: Call) -> None:
    for story in (values, many, numbers, added, versions):
        await story(call)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with redis_servers.cluster() as ports:
        yield "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports)


@every_way
def test_a_cluster(cluster: str, run: Run, threads: Counts, way: str) -> None:
    cache = ours(cluster)
    tell(run, way, cache, everything)
    if way in {"awaited", "in a bridge"}:
        threads.assert_none()

    async def clear(call: Call) -> None:
        await call("set_many", {f"k{number}": number for number in range(100)})
        assert await call("clear") is True
        assert await call("get_many", [f"k{number}" for number in range(100)]) == {}

    tell(run, way, cache, clear)


def test_a_cluster_has_room_for_many(cluster: str, run: Run, threads: Counts) -> None:
    """redis-py refuses what is more than `max_connections` of a node; here it waits."""
    cache = ours(cluster, max_connections=5)

    async def use(number: int) -> None:
        if number % 4:
            assert await cache.aget_many(["k1", "k2", "k3"]) == {"k1": 1, "k2": 2, "k3": 3}
        else:
            await cache.aset(f"n{number}", number)

    async def main() -> None:
        await cache.aset_many({f"k{number}": number for number in range(4)})
        await asyncio.gather(*(use(number) for number in range(300)))
        [client] = open_clients()
        nodes = client.node().get_nodes()
        assert len(nodes) == 3
        assert all(len(node._connections) <= 2 * 5 + 8 for node in nodes)

    run(main)
    threads.assert_none()


def test_cancellations_on_a_cluster(cluster: str, run: Run) -> None:
    cache = ours(cluster, max_connections=2)

    async def use(number: int) -> None:
        for _ in range(3):
            assert await cache.aget(f"k{number}") == number
            assert await cache.aget_many(["k1", f"k{number}"]) == {"k1": 1, f"k{number}": number}

    async def main() -> None:
        await cache.aset_many({f"k{number}": number for number in range(30)})
        tasks = [asyncio.create_task(use(number)) for number in range(30)]
        for turn, task in enumerate(tasks[::2]):
            asyncio.get_running_loop().call_later(turn / 500, task.cancel)
        for found in await asyncio.gather(*tasks, return_exceptions=True):
            assert found is None or isinstance(found, asyncio.CancelledError), found
        await use(7)

    run(main)


def test_a_cluster_that_is_busy_says_so(cluster: str, run: Run) -> None:
    cache = ours(cluster, max_connections=1, pool_timeout=0.05)

    async def main() -> None:
        await cache.aset("a", 1)
        [client] = open_clients()
        blocked = asyncio.create_task(client._once(lambda: asyncio.Event().wait()))
        await asyncio.sleep(0)
        with pytest.raises(CachePoolTimeout):
            await cache.aget("a")
        await cancelled(blocked)
        assert await cache.aget("a") == 1

    run(main)


@every_way
@pytest.mark.parametrize("replicas", [False, True], ids=["master", "replicas"])
def test_sentinels(watched: redis_servers.Watched, run: Run, way: str, replicas: bool) -> None:
    cache = ours(f"redis+sentinel://127.0.0.1:{watched.sentinel}/mymaster/3",
                 read_from_replicas=replicas)  # fmt: skip
    if not replicas:
        tell(run, way, cache, everything)

    async def where(call: Call) -> None:
        await call("set", "a", "written")
        with redis.Redis(port=watched.master, db=3) as master:
            assert master.exists(cache.make_key("a"))
            # WAIT is about the writes of its own connection, which come after the one before.
            master.set("written after", 1)
            assert master.execute_command("WAIT", 1, 5000) == 1
        with redis.Redis(port=watched.replica, db=3) as replica:
            found: Any = replica.info("commandstats")
            before = found.get("cmdstat_get", {}).get("calls", 0)
            assert await call("get", "a") == "written"
            found = replica.info("commandstats")
            assert found.get("cmdstat_get", {}).get("calls", 0) - before == int(replicas)

    tell(run, way, cache, where)


@pytest.fixture(scope="module")
def watched() -> Iterator[redis_servers.Watched]:
    with redis_servers.sentinel() as found:
        yield found


def test_the_sentinel_s_new_master_is_found(run: Run) -> None:
    with redis_servers.sentinel() as service:
        cache = ours(f"redis+sentinel://127.0.0.1:{service.sentinel}/mymaster")

        async def main() -> None:
            await cache.aset("a", 1)
            with redis.Redis(port=service.master) as master:
                # WAIT is for what its own connection wrote, and what was written before that.
                master.set("last", 1)
                assert master.execute_command("WAIT", 1, 20000) == 1
            await asyncio.to_thread(service.stop_master)
            deadline = asyncio.get_running_loop().time() + 20
            while True:
                try:
                    await cache.aset("b", 2)
                    break
                except redis.RedisError:
                    assert asyncio.get_running_loop().time() < deadline
            assert await cache.aget("a") == 1
            assert await on_loop(cache.get)("b") == 2
            with redis.Redis(port=service.replica) as master:
                assert master.exists(cache.make_key("b"))

        run(main)


@pytest.fixture(scope="module")
def secure() -> Iterator[redis_servers.Secure]:
    try:
        with redis_servers.tls() as found:
            yield found
    except services.NotInstalled as reason:
        pytest.skip(str(reason))


@every_way
def test_tls(secure: redis_servers.Secure, run: Run, way: str) -> None:
    url = f"rediss://localhost:{secure.port}/1"
    tell(run, way, ours(url, ssl_ca_certs=str(secure.authority)), values)
    tell(run, way, ours(f"{url}?ssl_ca_certs={secure.authority}"), values)

    async def refused(call: Call) -> None:
        with pytest.raises(redis.ConnectionError, match="certificate verify failed"):
            await call("get", "a")

    tell(run, way, ours(url, ssl_ca_certs=str(secure.other_authority)), refused)


@every_way
def test_a_socket_with_a_password(run: Run, way: str, socket: Path) -> None:
    tell(run, way, ours(f"unix://:s3cr%3Aet%2F@{socket}?db=2"), values)
    tell(run, way, ours(f"unix://{socket}", password="s3cr:et/", db=2), values)

    async def refused(call: Call) -> None:
        with pytest.raises(redis.ConnectionError, match="invalid username-password"):
            await call("get", "a")

    tell(run, way, ours(f"unix://:wrong@{socket}"), refused)


@pytest.fixture(scope="module")
def socket() -> Iterator[Path]:
    with redis_servers.socket() as path:
        yield path


def test_valkey_s_schemes(valkey_url: str, run: Run) -> None:
    tell(run, "awaited", ours(valkey_url.replace("redis:", "valkey:"), prefix()), values)
