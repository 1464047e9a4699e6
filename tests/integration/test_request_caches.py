"""Cached pages, fragments and sessions over requests: on the loop, with the caches that can."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import django
import pytest
from django.core.cache import caches
from django.core.cache.backends.base import BaseCache
from django.core.cache.backends.filebased import FileBasedCache
from django.core.cache.backends.locmem import LocMemCache
from django.core.management import call_command
from django.test import override_settings

from nuages import on_loop
from nuages.asgi import get_asgi_application
from nuages.db import aatomic
from nuages.db.backends.base.statistics import statistics
from tests.integration.asgi_tools import Exchange, cookie, exchange
from tests.integration.cache_site import SESSIONS, SITE, WHOLE_SITE
from tests.integration.cache_tools import prefix
from tests.integration.conftest import Counts, Run
from tests.library.models import Author

TABLE = "cache_of_the_tests"


@pytest.fixture(params=["redis", "locmem", "database"])
def cached(
    request: pytest.FixtureRequest, postgresql: dict[str, Any], valkey_url: str
) -> Iterator[str]:
    """Each cache that needs no thread, as the default one; gives its name."""
    entries: dict[str, dict[str, Any]] = {
        "redis": {"BACKEND": "nuages.cache.redis.RedisCache", "LOCATION": valkey_url},
        "locmem": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
        "database": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": TABLE},
    }
    entry = entries[request.param] | {"KEY_PREFIX": prefix()}
    with override_settings(CACHES={"default": entry}, **SITE):
        if request.param == "database":
            call_command("createcachetable")
        yield request.param
        if request.param == "database":
            caches["default"].clear()


async def ask(application: Any, path: str, **options: Any) -> Exchange:
    answer = await exchange(application, path, **options)
    assert answer.status == 200, answer
    return answer


@pytest.mark.parametrize(
    ("path", "query", "middleware"),
    [
        ("/decorated/", b"", []),
        ("/fragment/", b"key=1", []),
        ("/direct/", b"", []),
        ("/fragment/", b"key=2", WHOLE_SITE),
        ("/direct/", b"", WHOLE_SITE),
    ],
    ids=["cache_page", "fragment", "direct", "middleware", "middleware of an async view"],
)
def test_no_thread_is_used(
    cached: str, run: Run, threads: Counts, path: str, query: bytes, middleware: list[str]
) -> None:
    async def main() -> None:
        application = get_asgi_application()
        first = await ask(application, path, query=query)
        statistics.reset()
        threads.clear()
        for _ in range(3):
            assert (await ask(application, path, query=query)).text == first.text
        threads.assert_none()
        assert (statistics.blocked, statistics.worker) == (0, 0)
        assert (statistics.bridged > 0) == (cached == "database")

    with override_settings(MIDDLEWARE=middleware):
        run(main)


def test_a_page_of_a_sync_view_is_served_from_the_cache_without_the_view(
    cached: str, run: Run, threads: Counts
) -> None:
    """The view is in a thread; what the middleware finds in the cache is not."""

    async def main() -> None:
        application = get_asgi_application()
        first = await ask(application, "/page/")
        threads.clear()
        assert (await ask(application, "/page/")).text == first.text
        assert (await ask(application, "/page/", query=b"a=1")).text != first.text

    with override_settings(MIDDLEWARE=WHOLE_SITE):
        run(main)


@pytest.mark.parametrize("engine", ["cache", "cached_db"])
@pytest.mark.parametrize("path", ["/session/", "/sync-session/"])
def test_sessions(cached: str, run: Run, threads: Counts, engine: str, path: str) -> None:
    async def main() -> None:
        application = get_asgi_application()
        threads.clear()
        statistics.reset()
        key = ""
        for visit in range(4):
            headers = [cookie(sessionid=key)] if key else []
            answer = await ask(application, path, headers=headers)
            assert answer.text == str(visit)
            given = answer.header(b"set-cookie") or f"sessionid={key}".encode()
            key = given.decode().partition(";")[0].removeprefix("sessionid=")
        threads.assert_none()
        assert (statistics.blocked, statistics.worker) == (0, 0)

    with override_settings(
        MIDDLEWARE=[SESSIONS], SESSION_ENGINE=f"django.contrib.sessions.backends.{engine}"
    ):
        run(main)


def test_the_database_cache_has_one_query_for_many_keys(
    database: str, run: Run, django_assert_num_queries: Any
) -> None:
    """Stock Django 5.2 has one for each, each in a thread."""
    entry = {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": TABLE}

    async def main() -> None:
        cache = caches["default"]
        await cache.aset_many({"a": 1, "b": 2})
        statistics.reset()
        assert await cache.aget_many(["a", "b", "c"]) == {"a": 1, "b": 2}
        assert statistics.bridged + statistics.worker == 1
        # In the caller's transaction.
        with pytest.raises(LookupError):
            async with aatomic():
                await cache.aset("c", 3)
                assert await cache.aget("c") == 3
                raise LookupError
        assert await cache.aget("c") is None
        await cache.aclear()

    with override_settings(CACHES={"default": entry}):
        call_command("createcachetable")
        run(main)


class Where(BaseCache):
    """A user's cache with sync methods only: where they run, and in which transaction."""

    def __init__(self) -> None:
        super().__init__({})
        self.data: dict[str, Any] = {}
        self.threads: list[str] = []
        self.authors: list[int] = []

    def _note(self) -> None:
        self.threads.append(threading.current_thread().name)
        self.authors.append(Author.objects.count())

    def get(self, key: str, default: Any = None, version: Any = None) -> Any:
        self._note()
        return self.data.get(key, default)

    def set(self, key: str, value: Any, timeout: Any = None, version: Any = None) -> None:
        self._note()
        self.data[key] = value

    def get_many(self, keys: Any, version: Any = None) -> Any:
        self._note()
        return {key: self.data[key] for key in keys if key in self.data}


def test_a_cache_of_the_users_is_in_a_thread_and_in_the_transaction(
    database: str, run: Run
) -> None:
    cache = Where()

    async def main() -> None:
        async with aatomic():
            await Author.objects.acreate(name="Ursula")
            await cache.aset("a", 1)
            assert await cache.aget("a") == 1
            # Once for all keys, as in Django 6.1.
            assert await cache.aget_many(["a", "b", "c"]) == {"a": 1}
            assert await cache.ahas_key("a")
            await on_loop(cache.set)("b", 1)

    run(main)
    assert len(cache.threads) == 5
    assert threading.main_thread().name not in cache.threads
    assert cache.authors == [1] * 5


@pytest.mark.skipif(django.VERSION >= (6, 1), reason="Django itself calls get_many() there")
def test_what_a_user_made_of_aget_stays(run: Run) -> None:
    class Own(Where):
        async def aget(self, key: str, default: Any = None, version: Any = None) -> Any:
            return f"own {key}"

    async def main() -> None:
        assert await Own().aget_many(["a"]) == {"a": "own a"}

    run(main)


def test_files_are_one_thread_for_each_call(run: Run, threads: Counts, tmp_path: Path) -> None:
    cache = FileBasedCache(str(tmp_path), {})

    async def main() -> None:
        await cache.aset_many({"a": 1, "b": 2})
        threads.clear()
        assert await cache.aget_many(["a", "b"]) == {"a": 1, "b": 2}
        assert await cache.aget("a") == 1
        assert len([s for s in threads.submitted if s.startswith("ThreadPool")]) == 2

    run(main)


def test_local_memory_needs_neither_thread_nor_bridge(run: Run, threads: Counts) -> None:
    cache = LocMemCache(prefix(), {})

    async def main() -> None:
        await asyncio.gather(*(cache.aset(f"k{n}", n) for n in range(100)))
        assert await cache.aget_many(["k1", "k2"]) == {"k1": 1, "k2": 2}
        assert await cache.aincr("k1") == 2
        assert await cache.aget_or_set("new", lambda: 5) == 5
        assert await cache.aincr_version("new") == 2
        assert await cache.adelete("k2") is True
        assert await cache.atouch("k3", 5) is True
        await cache.aclear()
        assert not await cache.ahas_key("k1")

    run(main)
    threads.assert_none()
