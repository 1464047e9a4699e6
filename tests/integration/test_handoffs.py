"""Files, caches and sessions that block do so in a thread when they are used in a bridge."""

from __future__ import annotations

import asyncio
import gzip
import io
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.hashers import BasePasswordHasher, MD5PasswordHasher
from django.contrib.sessions.backends.base import SessionBase
from django.contrib.sessions.backends.file import SessionStore as FileStore
from django.core.cache.backends.base import BaseCache
from django.core.cache.backends.filebased import FileBasedCache
from django.core.cache.backends.locmem import LocMemCache
from django.core.files.base import ContentFile
from django.core.files.images import ImageFile, get_image_dimensions
from django.core.files.storage import FileSystemStorage, InMemoryStorage, Storage
from django.core.files.uploadedfile import SimpleUploadedFile
from django.forms import ImageField
from django.http import HttpResponse
from django.middleware.gzip import GZipMiddleware
from django.test import RequestFactory, override_settings
from PIL import Image

from nuages import on_loop
from nuages.seams.files import LARGE
from tests.integration.conftest import Counts, Run
from tests.integration.handoff_tools import LOOP, THREAD, WHERE, both_ways
from tests.library.models import Author


@pytest.fixture(autouse=True)
def _nothing_noted() -> None:
    WHERE.take()


# Files


class Noting(FileSystemStorage):
    def path(self, name: str) -> str:
        WHERE.note()
        return super().path(name)


@pytest.mark.parametrize(
    "method",
    [
        *("open", "exists", "size", "delete", "listdir", "save"),
        *("get_accessed_time", "get_created_time", "get_modified_time"),
    ],
)
def test_storages(run: Run, tmp_path: Path, method: str) -> None:
    storage = Noting(location=tmp_path)

    def use() -> None:
        (tmp_path / "file.txt").write_text("text")
        if method == "save":
            storage.save("other.txt", ContentFile(b"text"))
        elif method == "open":
            with storage.open("file.txt") as file:
                assert file.read() == b"text"
        elif method == "listdir":
            assert "file.txt" in storage.listdir("")[1]
        else:
            getattr(storage, method)("file.txt")

    both_ways(run, use)


def test_the_storage_in_memory_stays_on_the_loop(run: Run) -> None:
    storage = InMemoryStorage()

    @on_loop
    async def main() -> None:
        threads = threading.active_count()
        assert storage.open(storage.save("a", ContentFile(b"text"))).read() == b"text"
        assert threading.active_count() == threads

    run(main)


def picture(size: tuple[int, int]) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", size).save(written, "PNG")
    return written.getvalue()


class NotingFile(ContentFile):
    def read(self, *args: Any) -> bytes:
        WHERE.note()
        return self.file.read(*args)


def test_pictures(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    data = picture((3, 5))
    assert both_ways(run, lambda: get_image_dimensions(NotingFile(data))) == (3, 5)

    def of_image_file() -> Any:
        return ImageFile(NotingFile(data)).height

    assert both_ways(run, of_image_file) == 5

    monkeypatch.setattr(Image, "open", WHERE.spy(Image.open))

    def of_a_form() -> Any:
        file = SimpleUploadedFile("a.png", data, "image/png")
        return ImageField().clean(file).image.size

    assert both_ways(run, of_a_form) == (3, 5)


@pytest.mark.parametrize(("size", "inside"), [(LARGE, THREAD), (LARGE - 1, LOOP)])
def test_gzip(run: Run, size: int, inside: set[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "django.utils.text.gzip_compress", WHERE.spy(lambda data, **kwargs: gzip.compress(data))
    )
    middleware = GZipMiddleware(lambda request: HttpResponse())

    def use() -> bytes:
        request = RequestFactory().get("/", headers={"Accept-Encoding": "gzip"})
        return middleware.process_response(request, HttpResponse(b"x" * size)).content

    assert gzip.decompress(both_ways(run, use, inside)) == b"x" * size


# Caches and sessions


class OwnCache(BaseCache):
    """A user's cache, of which only get() and set() are its own."""

    def __init__(self) -> None:
        super().__init__({})
        self.data: dict[str, Any] = {}

    def get(self, key: str, default: Any = None, version: int | None = None) -> Any:
        WHERE.note()
        return self.data.get(key, default)

    def set(self, key: str, value: Any, timeout: Any = None, version: Any = None) -> None:
        WHERE.note()
        self.data[key] = value


def use_cache(cache: BaseCache) -> None:
    cache.set("a", 1)
    assert cache.get("a") == 1
    assert "a" in cache
    assert cache.get_or_set("a", 2) == 1
    assert cache.incr("a") == 2
    assert cache.get_many(["a", "b"]) == {"a": 2}


def test_caches_of_users(run: Run) -> None:
    cache = OwnCache()
    both_ways(run, lambda: use_cache(cache))


def test_the_cache_in_files(run: Run, tmp_path: Path) -> None:
    class Noted(FileBasedCache):
        def _key_to_file(self, key: str, version: int | None = None) -> str:
            WHERE.note()
            return super()._key_to_file(key, version)  # type: ignore[misc, no-any-return]

    cache = Noted(str(tmp_path), {})
    both_ways(run, lambda: use_cache(cache))


def test_the_cache_in_memory_stays_on_the_loop(run: Run) -> None:
    class Noted(LocMemCache):
        def make_key(self, key: Any, version: int | None = None) -> str:
            WHERE.note()
            return super().make_key(key, version)

    cache = Noted("handoffs", {})
    both_ways(run, lambda: cache.get("a"), LOOP)


class NotingSession(FileStore):
    def _key_to_file(self, session_key: str | None = None) -> str:
        WHERE.note()
        return super()._key_to_file(session_key)  # type: ignore[misc, no-any-return]


class OwnSession(SessionBase):
    data: dict[str, Any] = {}

    def load(self) -> Any:
        WHERE.note()
        return self.data

    def create(self) -> None:
        WHERE.note()
        self._session_key = "x" * 32

    def save(self, must_create: bool = False) -> None:
        WHERE.note()
        self.data.update(self._get_session())

    def exists(self, session_key: str | None = None) -> bool:
        WHERE.note()
        return False

    def delete(self, session_key: str | None = None) -> None:
        WHERE.note()


@pytest.mark.parametrize("engine", [NotingSession, OwnSession])
def test_sessions_in_files_and_of_users(run: Run, tmp_path: Path, engine: Any) -> None:
    def use() -> None:
        session = engine()
        session.create()
        session["cart"] = 3
        session.save()
        assert engine(session.session_key)["cart"] == 3
        session.cycle_key()
        session.flush()

    with override_settings(SESSION_FILE_PATH=str(tmp_path)):
        try:
            both_ways(run, use)
        finally:
            if "_storage_path" in vars(NotingSession):
                del NotingSession._storage_path


def test_the_async_methods_of_file_sessions(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        session = NotingSession()
        await session.acreate()
        await session.aset("cart", 3)
        await session.asave()
        again = NotingSession(session.session_key)
        assert await again.aget("cart") == 3
        assert await again.aexists(again.session_key)
        await again.aflush()
        assert WHERE.take() == THREAD

    with override_settings(SESSION_FILE_PATH=str(tmp_path)):
        run(main)
    del NotingSession._storage_path


# Classes that stand between


class Keys(BaseCache):
    def make_key(self, key: Any, version: Any = None) -> str:
        return f"tenant-{super().make_key(key, version)}"


class Tenant(Keys, LocMemCache):
    """The mixin is of the family too, and inherits from its base what the other defines."""


class NotedTenant(Keys, FileBasedCache):
    def _key_to_file(self, key: Any, version: Any = None) -> Any:
        WHERE.note()
        return super()._key_to_file(key, version)  # type: ignore[misc]


class Counting:
    """A mixin that is of no family."""

    def get(self, *args: Any, **kwargs: Any) -> Any:
        WHERE.note()
        return super().get(*args, **kwargs)  # type: ignore[misc]


class Counted(Counting, Keys, LocMemCache):
    pass


class Named(Storage):
    def get_valid_name(self, name: str) -> str:
        return super().get_valid_name(name).lower()


class NamedFiles(Named, Noting):
    pass


class Prefixed(BasePasswordHasher):
    algorithm = "prefixed"


class PrefixedMD5(Prefixed, MD5PasswordHasher):
    pass


class Signed(SessionBase):
    pass


class SignedFiles(Signed, FileStore):
    pass


def test_a_mixin_of_the_family_hides_nothing(run: Run, tmp_path: Path) -> None:
    def memory() -> None:
        cache = Tenant("mixin", {})
        cache.set("a", 1)
        assert cache.get("a") == 1
        assert cache.get_many(["a", "b"]) == {"a": 1}

    memory()
    run(on_loop(memory))

    def files() -> None:
        cache = NotedTenant(str(tmp_path / "cache"), {})
        cache.set("a", 1)
        assert cache.get("a") == 1
        assert cache.add("a", 2) is False

    both_ways(run, files)

    def counted() -> None:
        assert Counted("mixin", {}).get("missing") is None

    both_ways(run, counted)

    storage = NamedFiles(location=tmp_path)

    def store() -> None:
        name = storage.save("Some.TXT", ContentFile(b"text"))
        assert storage.exists(name)
        with storage.open(name) as file:
            assert file.read() == b"text"
        storage.delete(name)

    both_ways(run, store)

    def others() -> None:
        hasher = PrefixedMD5()
        assert hasher.verify("secret", hasher.encode("secret", "salt"))
        assert not SignedFiles().exists("a" * 32)

    with override_settings(SESSION_FILE_PATH=str(tmp_path)):
        others()
        run(on_loop(others))


def test_coroutines_of_a_mixin_of_the_family(run: Run, threads: Counts) -> None:
    cache = Tenant("mixin coroutines", {})

    async def main() -> None:
        await cache.aset("a", 1)
        assert await cache.aget("a") == 1
        assert await cache.aincr("a") == 2

    threads.clear()
    run(main)
    threads.assert_none()


# Caches whose objects are for one thread at a time


class Wire(BaseCache):
    """What is asked for and what is answered go over one wire."""

    def __init__(self) -> None:
        super().__init__({})
        self.wire: Any = None
        self.entered, self.go_on = asyncio.Event(), threading.Event()
        self.loop: asyncio.AbstractEventLoop

    def get(self, key: Any, default: Any = None, version: Any = None) -> str:
        self.wire = key
        self.loop.call_soon_threadsafe(self.entered.set)
        assert self.go_on.wait(30)
        return f"value of {self.wire}"

    def set(self, key: Any, *args: Any, **kwargs: Any) -> None:
        # Code of the cache that awaits, and uses the cache in turn.
        assert async_to_sync(self.aget)(key) == f"value of {key}"


def test_tasks_that_share_a_cache_object_take_turns(run: Run, threads: Counts) -> None:
    cache = Wire()

    async def main() -> None:
        cache.loop = asyncio.get_running_loop()
        asked = [asyncio.create_task(cache.aget(n)) for n in range(3)]
        await cache.entered.wait()
        for _ in range(50):
            await asyncio.sleep(0)  # turns of the loop: the others go as far as they can
        assert len(threads.submitted) == 1, threads.submitted
        cache.go_on.set()
        assert await asyncio.gather(*asked) == [f"value of {n}" for n in range(3)]

    threads.clear()
    run(main)


def test_one_that_gives_up_its_turn_holds_nobody_up(run: Run) -> None:
    cache = Wire()

    async def main() -> None:
        cache.loop = asyncio.get_running_loop()
        first, second, third = (asyncio.create_task(cache.aget(n)) for n in range(3))
        await cache.entered.wait()
        second.cancel()
        first.cancel()
        cache.go_on.set()
        assert await third == "value of 2"
        with pytest.raises(asyncio.CancelledError):
            await first
        with pytest.raises(asyncio.CancelledError):
            await second

    run(main)


def test_a_cache_that_awaits_itself_needs_no_turn(run: Run) -> None:
    cache = Wire()
    cache.go_on.set()

    async def main() -> None:
        cache.loop = asyncio.get_running_loop()
        await asyncio.gather(cache.aset("a", 1), cache.aset("b", 1))

    run(main)


@pytest.mark.parametrize("kind", ["locmem", "file"])
def test_what_is_set_on_a_cache_in_the_place_of_a_method_is_called(
    run: Run, tmp_path: Path, kind: str
) -> None:
    """A mock, or what measures a method and calls it."""
    cache: Any = LocMemCache("set", {}) if kind == "locmem" else FileBasedCache(str(tmp_path), {})
    calls: list[Any] = []

    def measured(method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(args[0])
            return method(*args, **kwargs)

        return call

    cache.get, cache.set = measured(cache.get), measured(cache.set)
    cache.touch = mock.Mock(return_value=True)

    async def main() -> None:
        await cache.aset("a", 1)
        assert await asyncio.gather(cache.aget("a"), cache.aget("b", 2)) == [1, 2]
        assert await cache.atouch("c")

    run(main)
    assert calls == ["a", "a", "b"]
    assert [call.args[0] for call in cache.touch.call_args_list] == ["c"]


class Added(FileBasedCache):
    def make_key(self, key: Any, version: Any = None) -> str:
        return str(key)


class Overridden(FileBasedCache):
    def get(self, *args: Any, **kwargs: Any) -> Any:
        return super().get(*args, **kwargs)


@pytest.mark.parametrize("cls", [FileBasedCache, Added, Overridden])
def test_only_caches_known_to_bear_threads_are_used_by_several(cls: Any) -> None:
    from nuages.seams.cache import _bears_threads

    assert _bears_threads(cls("/nowhere", {})) is (cls is not Overridden)


def test_a_value_that_queries_while_it_is_pickled(database: str, run: Run) -> None:
    """Local memory pickles a queryset, which is fetched for it."""
    Author.objects.create(name="Ann")
    cache = LocMemCache("pickled", {})
    cache.clear()  # what it has is the process's

    async def main() -> None:
        authors = Author.objects.all
        await cache.aset("a", authors())
        assert await cache.aadd("b", authors())
        await cache.aset_many({"c": authors()})
        assert [one.name for one in await cache.aget_or_set("d", authors())] == ["Ann"]
        for key in "abcd":
            assert [one.name for one in await cache.aget(key)] == ["Ann"]

    run(main)
