"""Files, caches and sessions that block do so in a thread when they are used in a bridge."""

from __future__ import annotations

import gzip
import io
import threading
from pathlib import Path
from typing import Any

import pytest
from django.contrib.sessions.backends.base import SessionBase
from django.contrib.sessions.backends.file import SessionStore as FileStore
from django.core.cache.backends.base import BaseCache
from django.core.cache.backends.filebased import FileBasedCache
from django.core.cache.backends.locmem import LocMemCache
from django.core.files.base import ContentFile
from django.core.files.images import ImageFile, get_image_dimensions
from django.core.files.storage import FileSystemStorage, InMemoryStorage
from django.core.files.uploadedfile import SimpleUploadedFile
from django.forms import ImageField
from django.http import HttpResponse
from django.middleware.gzip import GZipMiddleware
from django.test import RequestFactory, override_settings
from PIL import Image

from nuages import on_loop
from nuages.seams.files import LARGE
from tests.integration.conftest import Run
from tests.integration.handoff_tools import LOOP, THREAD, WHERE, both_ways


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
