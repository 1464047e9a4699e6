"""The Redis cache means the same however it is called, and the same as Django's own."""

from __future__ import annotations

import asyncio
import pickle
import time
from typing import Any

import pytest
import redis
from django.core.cache import CacheKeyWarning, caches
from django.core.cache.backends.base import InvalidCacheBackendError
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from nuages import on_loop
from nuages.cache.loops import open_clients
from nuages.cache.redis import RedisCache
from nuages.cache.serializing import IN_THREAD, MARK
from tests.integration.cache_tools import WAYS, Call, ours, prefix, stock, tell
from tests.integration.conftest import Counts, Run
from tests.library.models import Author, Book

every_way = pytest.mark.parametrize("way", WAYS)


async def values(call: Call) -> None:
    assert await call("get", "a") is None
    assert await call("get", "a", 7) == 7
    for value in (0, -5, 10**30, True, None, "text", "5", b"\x00\xff", 1.5, {"a": [1, (2,)]}):
        await call("set", "a", value)
        found = await call("get", "a")
        assert found == value
        assert type(found) is type(value)
    assert await call("has_key", "a") is True
    assert await call("delete", "a") is True
    assert await call("delete", "a") is False
    assert await call("has_key", "a") is False


async def many(call: Call) -> None:
    assert await call("get_many", []) == {}
    assert await call("set_many", {}) == []
    await call("delete_many", [])
    data = {f"key{number}": number * "x" for number in range(50)}
    assert await call("set_many", data, timeout=100) == []
    assert await call("get_many", iter([*data, "missing"])) == data
    await call("delete_many", iter(["key0", "key1", "missing"]))
    assert await call("get_many", ["key0", "key1", "key2"]) == {"key2": "xx"}
    await call("set_many", {"key2": 1, "key3": 1}, timeout=0)
    assert await call("get_many", ["key2", "key3", "key4"]) == {"key4": "xxxx"}


async def numbers(call: Call) -> None:
    await call("set", "n", 41)
    assert await call("incr", "n") == 42
    assert await call("incr", "n", 8) == 50
    assert await call("decr", "n", 100) == -50
    assert await call("get", "n") == -50
    await call("set", "large", 2**60)
    assert await call("incr", "large") == 2**60 + 1
    for method in ("incr", "decr", "incr_version"):
        with pytest.raises(ValueError, match="missing"):
            await call(method, "missing")
    assert await call("has_key", "missing") is False
    await call("set", "word", "text")
    with pytest.raises(redis.ResponseError):
        await call("incr", "word")


async def added(call: Call) -> None:
    assert await call("add", "a", 1) is True
    assert await call("add", "a", 2) is False
    assert await call("get", "a") == 1
    assert await call("add", "b", 1, timeout=0) is True
    assert await call("has_key", "b") is False
    assert await call("add", "b", 1, timeout=None) is True
    assert await call("add", "b", 1, timeout=0) is False
    assert await call("get_or_set", "a", 3) == 1
    assert await call("get_or_set", "c", 3) == 3
    assert await call("get_or_set", "d", lambda: 4) == 4
    assert await call("get_or_set", "e", None) is None
    assert await call("get_or_set", "e", 1) is None


async def versions(call: Call) -> None:
    await call("set", "a", "one")
    await call("set", "a", "two", version=2)
    assert await call("get", "a", version=2) == "two"
    assert await call("delete", "a", version=2) is True
    assert await call("incr_version", "a") == 2
    assert await call("get", "a") is None
    assert await call("get", "a", version=2) == "one"
    assert await call("decr_version", "a", version=2) == 1
    assert await call("get", "a") == "one"


STORIES = [values, many, numbers, added, versions]


@every_way
@pytest.mark.parametrize("story", STORIES)
def test_what_the_methods_do(valkey_url: str, run: Run, way: str, story: Any) -> None:
    tell(run, way, ours(valkey_url), story)


@pytest.mark.parametrize("story", STORIES[:1] + STORIES[2:])
def test_the_stories_are_true_of_djangos_own(valkey_url: str, run: Run, story: Any) -> None:
    tell(run, "plain", stock(valkey_url, prefix()), story)


@every_way
def test_timeouts(valkey_url: str, run: Run, way: str) -> None:
    cache = ours(valkey_url, TIMEOUT=1000)
    server = redis.Redis.from_url(valkey_url)

    def left(key: str) -> int:
        found: Any = server.ttl(cache.make_key(key))
        return int(found)

    async def main(call: Call) -> None:
        await call("set", "a", 1)
        assert 990 <= left("a") <= 1000
        await call("set", "a", 1, 100)
        assert 90 <= left("a") <= 100
        await call("incr", "a")
        assert 90 <= left("a") <= 100
        assert await call("touch", "a", 50) is True
        assert 40 <= left("a") <= 50
        assert await call("touch", "a") is True
        assert 990 <= left("a") <= 1000
        assert await call("touch", "a", None) is True
        assert left("a") == -1
        await call("set", "a", 1, None)
        assert left("a") == -1
        await call("set_many", {"a": 1, "b": 1}, None)
        assert (left("a"), left("b")) == (-1, -1)
        await call("set_many", {"a": 1, "b": 1}, 100)
        assert {left("a"), left("b")} <= set(range(90, 101))
        for nothing in (0, -5):
            await call("set", "a", 1)
            await call("set", "a", 2, nothing)
            assert await call("get", "a") is None
        assert await call("touch", "missing") is False
        await call("set", "a", 1)
        assert await call("touch", "a", 0) is True
        assert await call("get", "a") is None
        await call("add", "c", 1, 100)
        assert 90 <= left("c") <= 100

    tell(run, way, cache, main)
    server.close()


@every_way
def test_clear(run: Run, valkey_url: str, way: str) -> None:
    # A database of its own, since clear() empties it.
    cache = ours(valkey_url.removesuffix("/0"), db=9)

    async def main(call: Call) -> None:
        await call("set", "a", 1)
        assert await call("clear") is True
        assert await call("get", "a") is None

    tell(run, way, cache, main)


@every_way
def test_a_site_can_change_between_djangos_cache_and_ours(
    valkey_url: str, run: Run, way: str
) -> None:
    """Each reads what the other wrote, byte for byte the same."""
    name = prefix()
    mine, djangos = ours(valkey_url, name), stock(valkey_url, name)
    given = {"int": 5, "bool": True, "text": "x" * 5000, "none": None, "dict": {"a": 1}}
    server = redis.Redis.from_url(valkey_url)

    async def write(call: Call) -> None:
        await call("set_many", {f"{key}1": value for key, value in given.items()})
        for key, value in given.items():
            await call("set", f"{key}2", value)
            await call("add", f"{key}3", value)

    async def read(call: Call) -> None:
        assert await call("get_many", list(given)) == given
        assert await call("incr", "int") == 6

    tell(run, way, mine, write)
    for key, value in given.items():
        djangos.set(key, value)
        for number in "123":
            assert djangos.get(f"{key}{number}", "missing") == value
            stored = server.get(mine.make_key(f"{key}{number}"))
            assert stored == server.get(djangos.make_key(key))
    tell(run, way, mine, read)
    server.close()


class Reversing:
    """A serializer of the project's own."""

    def dumps(self, value: Any) -> bytes:
        return pickle.dumps(value)[::-1]

    def loads(self, data: bytes) -> Any:
        return pickle.loads(data[::-1])


def key_function(key: str, key_prefix: str, version: int) -> str:
    return f"{key_prefix}/{version}/{key}"


@every_way
@pytest.mark.parametrize("serializer", [f"{__name__}.Reversing", Reversing, Reversing()])
def test_a_serializer_and_keys_of_the_projects_own(
    valkey_url: str, run: Run, way: str, serializer: Any
) -> None:
    name = prefix()
    params = {"KEY_PREFIX": name, "VERSION": 3, "KEY_FUNCTION": key_function}
    cache = RedisCache(valkey_url, params | {"OPTIONS": {"serializer": serializer}})

    async def main(call: Call) -> None:
        await call("set", "a", [1])
        assert await call("get", "a") == [1]
        assert await call("get_many", ["a"]) == {"a": [1]}

    tell(run, way, cache, main)
    with redis.Redis.from_url(valkey_url) as server:
        assert server.get(f"{name}/3/a") == pickle.dumps([1])[::-1]


@every_way
@pytest.mark.parametrize("size", [5000, 2 * IN_THREAD])
def test_compression(valkey_url: str, run: Run, way: str, size: int) -> None:
    """Long values are shorter in Redis; short ones and old ones are as they were."""
    name = prefix()
    cache = ours(valkey_url, name, compress={"min_size": 1000, "level": 9})
    before = ours(valkey_url, name)
    random = bytes(range(256)) * 4
    before.set("old", "x" * size)

    async def main(call: Call) -> None:
        assert await call("get", "old") == "x" * size
        await call("set", "long", "x" * size)
        await call("set_many", {"many": "y" * size, "int": 5, "short": "z"})
        await call("add", "added", "x" * size)
        await call("set", "hard", random)
        assert await call("get", "long") == "x" * size
        found = await call("get_many", ["many", "int", "short", "hard"])
        assert found == {"many": "y" * size, "int": 5, "short": "z", "hard": random}
        assert await call("incr", "int") == 6

    tell(run, way, cache, main)
    with redis.Redis.from_url(valkey_url) as server:
        for key in ("long", "many", "added"):
            stored: Any = server.get(cache.make_key(key))
            assert stored.startswith(MARK)
            assert len(stored) < size / 20
        assert server.get(cache.make_key("int")) == b"6"
        assert server.get(cache.make_key("short")) == pickle.dumps("z", pickle.HIGHEST_PROTOCOL)


def test_a_large_value_is_compressed_in_a_thread(
    valkey_url: str, run: Run, threads: Counts
) -> None:
    cache = ours(valkey_url, compress=True)

    async def main() -> None:
        for size, used in ((IN_THREAD // 2, 0), (2 * IN_THREAD, 1)):
            threads.clear()
            await cache.aset("a", "x" * size)
            assert len([s for s in threads.submitted if s.startswith("Thread")]) == used
            assert await cache.aget("a") == "x" * size

    run(main)


def test_what_queries_when_it_is_pickled(
    valkey_url: str, database: str, run: Run, threads: Counts
) -> None:
    """A lazy queryset, by the a* methods and by sync ones in a bridge."""
    cache = ours(valkey_url)

    async def main() -> None:
        author = await Author.objects.acreate(name="Ursula")
        await Book.objects.acreate(title="one", author=author)
        threads.clear()
        await cache.aset("a", Book.objects.all())
        assert [book.title for book in await cache.aget("a")] == ["one"]

        @on_loop
        def sync() -> None:
            cache.set("b", Book.objects.all())
            assert [book.author_id for book in cache.get("b")] == [author.pk]
            assert cache.get_or_set("c", lambda: Book.objects.count()) == 1

        await sync()
        assert await cache.aget_or_set("d", lambda: Book.objects.count()) == 1
        assert await cache.aget_or_set("e", Book.objects.acount) == 1
        if database == "postgresql":
            threads.assert_none()

    run(main)


def test_an_async_default_cannot_be_awaited_in_sync_code(valkey_url: str) -> None:
    async def value() -> int:
        return 1

    with pytest.raises(TypeError, match="aget_or_set"):
        ours(valkey_url).get_or_set("a", value)


def test_several_servers_are_written_and_read_as_by_django(run: Run, valkey_url: str) -> None:
    """Writes go to the first, reads to the others: here databases of one server."""
    base, name = valkey_url.removesuffix("/0"), prefix()
    cache = ours(f"{base}/0;{base}/1,{base}/2", name)
    replica = [ours(f"{base}/{number}", name) for number in (1, 2)]

    async def main(call: Call) -> None:
        await call("set", "a", 1)
        assert await call("get", "a") is None
        for each in replica:
            await each.aset("a", 2)
        assert await call("get", "a") == 2
        assert await call("get_many", ["a"]) == {"a": 2}
        assert await call("incr", "a") == 2
        assert await call("delete", "a") is True
        assert await call("has_key", "a") is True

    tell(run, "awaited", cache, main)


def test_a_subclass_that_overrides_a_sync_method_alone(valkey_url: str, run: Run) -> None:
    class Counting(RedisCache):
        gets = 0

        def get(self, *args: Any, **kwargs: Any) -> Any:
            self.gets += 1
            return super().get(*args, **kwargs)

    cache = Counting(valkey_url, {"KEY_PREFIX": prefix()})

    async def main() -> None:
        await cache.aset("a", 1)
        assert await cache.aget("a") == 1
        assert await on_loop(cache.get)("a") == 1

    run(main)
    assert cache.gets == 2


def test_keys_are_validated_as_ever(valkey_url: str, run: Run) -> None:
    async def main() -> None:
        with pytest.warns(CacheKeyWarning, match="memcached"):
            await ours(valkey_url).aget("a key")

    run(main)


def test_the_caches_of_the_settings_share_their_connections(valkey_url: str, run: Run) -> None:
    """Django makes a cache for each context; the pool is one."""
    entry = {"BACKEND": "nuages.cache.redis.RedisCache", "LOCATION": valkey_url}

    async def main() -> None:
        async def use() -> int:
            await caches["default"].aset("a", 1)
            return id(caches["default"])

        tasks = [asyncio.create_task(use()) for _ in range(3)]
        made = await asyncio.gather(*tasks)
        assert len(set(made)) == 3
        assert len(open_clients()) == 1
        await caches["default"].aclose()
        assert await caches["default"].aget("a") == 1

    with override_settings(CACHES={"default": entry}):
        run(main)


def test_a_sync_call_in_a_coroutine_blocks_as_with_djangos(valkey_url: str, run: Run) -> None:
    cache = ours(valkey_url)

    async def main() -> None:
        cache.set("a", 1)
        assert cache.get("a") == 1
        assert open_clients() == []

    run(main)


@pytest.mark.parametrize(
    "options",
    [
        {"compress": "yes"},
        {"compress": {"min_size": -1}},
        {"compress": {"level": 10}},
        {"compress": {"size": 1}},
        {"stampede": 5},
        {"stampede": {"lock": 0}},
        {"stampede": {"wait": "long"}},
        {"pool_timeout": 0},
        {"max_connections": 0},
        {"max_connections": "9"},
        {"read_from_replicas": "no"},
        {"read_from_replicas": True},
        {"sentinel": {"password": "x"}},
    ],
)
def test_wrong_options_say_which(valkey_url: str, options: dict[str, Any]) -> None:
    with pytest.raises(ImproperlyConfigured, match=next(iter(options))):
        ours(valkey_url, **options)


def test_a_wrong_location_is_named_where_the_cache_is_made() -> None:
    entry = {"BACKEND": "nuages.cache.redis.RedisCache", "LOCATION": "localhost:6379"}
    with (
        override_settings(CACHES={"default": entry}),
        pytest.raises(ImproperlyConfigured, match=r"redis://host:6379/0") as caught,
    ):
        caches["default"].get("a")
    assert not isinstance(caught.value, InvalidCacheBackendError)


def test_an_expired_value_is_gone(valkey_url: str, run: Run) -> None:
    cache = ours(valkey_url)

    async def main() -> None:
        await cache.aset("a", 1, 1)
        assert await cache.aget("a") == 1
        deadline = time.monotonic() + 10
        while await cache.aget("a") is not None:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)

    run(main)
