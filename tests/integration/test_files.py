"""The async twins of storages, files and file fields."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from django.contrib.staticfiles.storage import StaticFilesStorage
from django.core.files.base import ContentFile, File
from django.core.files.storage import FileSystemStorage, InMemoryStorage, Storage, default_storage
from django.core.files.uploadedfile import SimpleUploadedFile, TemporaryUploadedFile
from django.db import connection
from django.db.models import signals
from django.test import override_settings

from nuages.db import aatomic
from nuages.seams.storage import STORAGE
from tests.integration.conftest import Counts, Run
from tests.integration.handoff_tools import THREAD, WHERE
from tests.integration.pool_tools import Heartbeat
from tests.library.models import Scan


@pytest.fixture(autouse=True)
def _nothing_noted() -> None:
    WHERE.take()


class Noting(FileSystemStorage):
    """Notes where its files are found, and gives files that note where they are read."""

    def path(self, name: str) -> str:
        WHERE.note()
        return super().path(name)

    def _open(self, name: str, mode: str = "rb") -> Any:
        return NotingFile(open(self.path(name), mode))


class NotingFile(File):
    def read(self, *args: Any) -> Any:  # type: ignore[override]
        WHERE.note()
        return self.file.read(*args)

    def write(self, data: Any) -> Any:  # type: ignore[override]
        WHERE.note()
        return self.file.write(data)

    def close(self) -> None:
        if not self.closed:
            WHERE.note()
        super().close()


# Storages


def test_every_method_of_a_storage_has_its_twin(run: Run, tmp_path: Path) -> None:
    """All that Django documents but path() and the names that are only computed."""
    public = {
        name
        for name, _ in inspect.getmembers(Storage, inspect.isfunction)
        if not name.startswith(("_", "a"))
    }
    computed = {"path", "is_name_available", "get_valid_name", "get_alternative_name"}
    assert public - computed - {"generate_filename", "url"} == set(STORAGE)
    storage = Noting(location=tmp_path, base_url="/media/")

    async def main() -> None:
        assert await storage.asave("a/b.txt", ContentFile(b"text")) == "a/b.txt"
        assert await storage.aexists("a/b.txt")
        assert await storage.asize("a/b.txt") == 4
        assert await storage.alistdir("a") == ([], ["b.txt"])
        assert await storage.aget_available_name("a/b.txt") != "a/b.txt"
        assert await storage.aget_modified_time("a/b.txt") == storage.get_modified_time("a/b.txt")
        assert await storage.aget_created_time("a/b.txt")
        assert await storage.aget_accessed_time("a/b.txt")
        WHERE.take()
        async with await storage.aopen("a/b.txt") as file:
            assert await file.aread() == b"text"
        await storage.adelete("a/b.txt")
        assert not await storage.aexists("a/b.txt")
        assert WHERE.take() == THREAD
        with pytest.raises(FileNotFoundError):
            await storage.aopen("a/b.txt")

    run(main)


def test_url_is_computed_in_place_unless_it_may_look_something_up(
    run: Run, threads: Counts
) -> None:
    class Signing(FileSystemStorage):
        def url(self, name: Any) -> str:
            WHERE.note()
            return super().url(name)

    class Static(StaticFilesStorage):
        """Django's, without anything of its own."""

    async def main() -> None:
        assert await FileSystemStorage(base_url="/media/").aurl("a.txt") == "/media/a.txt"
        assert await InMemoryStorage(base_url="/media/").aurl("a.txt") == "/media/a.txt"
        assert await Static(base_url="/static/").aurl("a.txt") == "/static/a.txt"
        threads.assert_none()
        assert await Signing(base_url="/media/").aurl("a.txt") == "/media/a.txt"
        assert WHERE.take() == THREAD

    threads.clear()
    run(main)


def test_the_storage_in_memory_takes_no_thread(run: Run, threads: Counts) -> None:
    async def main() -> None:
        storage = InMemoryStorage()
        name = await storage.asave("a.txt", ContentFile(b"one\ntwo\n"))
        async with await storage.aopen(name) as file:
            assert await file.aread(3) == b"one"
            assert [line async for line in file] == [b"one\n", b"two\n"]
            assert [chunk async for chunk in file.achunks(5)] == [b"one\nt", b"wo\n"]
            assert await file.asize() == 8
        async with await storage.aopen(name, "wb") as file:
            await file.awrite(b"three")
        assert await storage.aexists(name)
        await storage.adelete(name)

    threads.clear()
    run(main)
    threads.assert_none()


def test_a_storage_with_twins_of_its_own_keeps_them(run: Run) -> None:
    class Native(InMemoryStorage):
        async def asave(self, name: Any, content: Any, max_length: Any = None) -> str:
            return "its own"

    assert run(Native().asave, "a.txt", ContentFile(b"")) == "its own"


def test_the_default_storage(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        name = await default_storage.asave("a.txt", ContentFile(b"text"))
        async with await default_storage.aopen(name) as file:
            assert await file.aread() == b"text"

    with override_settings(MEDIA_ROOT=str(tmp_path)):
        run(main)
    assert (tmp_path / "a.txt").read_bytes() == b"text"


# Files


def test_an_open_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    lines = [f"line {number}\r\n".encode() for number in range(1200)] + [b"the end"]

    async def main() -> None:
        async with NotingFile(path.open("wb")) as file:
            assert await file.awrite(b"".join(lines)) == len(b"".join(lines))
        async with NotingFile(path.open("rb")) as file:
            assert await file.aread(6) == b"line 0"
            assert await file.asize() == path.stat().st_size
            assert b"".join([chunk async for chunk in file.achunks(999)]) == b"".join(lines)
            assert [line async for line in file] == lines
            async for line in file:
                assert line == lines[0]
                break
        assert file.closed
        assert WHERE.take() == THREAD

    run(main)


def test_files_in_memory_are_read_in_place(run: Run, threads: Counts, tmp_path: Path) -> None:
    async def main() -> None:
        for file in (
            ContentFile(b"text"),
            SimpleUploadedFile("a", b"text"),
            File(BytesIO(b"text")),
        ):
            assert await file.aread() == b"text"
            assert [chunk async for chunk in file.achunks()] == [b"text"]
        assert await ContentFile("text").aread() == "text"
        await ContentFile(b"").aclose()
        threads.assert_none()
        with override_settings(FILE_UPLOAD_TEMP_DIR=str(tmp_path)):
            upload = TemporaryUploadedFile("a", "text/plain", 4, None)
        await upload.awrite(b"text")
        assert threads.submitted
        assert [chunk async for chunk in upload.achunks()] == [b"text"]
        await upload.aclose()

    threads.clear()
    run(main)
    assert list(tmp_path.iterdir()) == []


class Gate:
    """Content whose reader waits in its thread until it may go on."""

    def __init__(self) -> None:
        self.reading = threading.Event()
        self.go = threading.Event()

    def chunks(self) -> Iterator[bytes]:
        yield b"first "
        self.reading.set()
        assert self.go.wait(20)
        yield b"second"


async def event(flag: threading.Event) -> None:
    while not flag.is_set():  # noqa: ASYNC110 - another thread's
        await asyncio.sleep(0.001)


def test_the_loop_goes_on_while_a_file_is_written(run: Run, tmp_path: Path) -> None:
    storage = FileSystemStorage(location=tmp_path)
    content: Any = Gate()

    async def main() -> None:
        async with Heartbeat() as heart:
            task = asyncio.create_task(storage.asave("a.txt", content))
            await event(content.reading)
            await heart.more(50)
            assert not task.done()
            content.go.set()
            assert await task == "a.txt"

    run(main)


def test_a_cancelled_save_ends_its_file_first(run: Run, tmp_path: Path) -> None:
    """A thread cannot be stopped: so the file is whole, never half, when the caller goes on."""
    storage = FileSystemStorage(location=tmp_path)
    content: Any = Gate()

    async def main() -> None:
        task = asyncio.create_task(storage.asave("a.txt", content))
        await event(content.reading)
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        content.go.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)
    assert (tmp_path / "a.txt").read_bytes() == b"first second"


# File fields


@pytest.fixture
def media(tmp_path: Path, database: str) -> Iterator[Path]:
    with override_settings(
        MEDIA_ROOT=str(tmp_path),
        STORAGES={"default": {"BACKEND": f"{__name__}.Noting"}},
    ):
        yield tmp_path


def test_a_file_field(run: Run, media: Path) -> None:
    async def main() -> None:
        scan = Scan()
        await scan.file.asave("a.txt", ContentFile(b"text"))
        assert scan.pk
        again = await Scan.objects.aget()
        WHERE.take()
        async with await again.file.aopen() as file:
            assert await file.aread() == b"text"
            assert [chunk async for chunk in file.achunks()] == [b"text"]
            await file.aopen()
            assert await file.aread(2) == b"te"
        assert again.file.closed
        assert await again.file.asize() == 4
        again = await Scan.objects.aget()
        assert await again.file.aread() == b"text"
        await again.file.aclose()
        await again.file.adelete(save=False)
        assert WHERE.take() == THREAD
        assert not again.file
        assert (await Scan.objects.aget()).file == "a.txt"

    run(main)
    assert list(media.iterdir()) == []


def test_the_instance_is_saved_on_the_loop_in_the_callers_transaction(
    run: Run, media: Path
) -> None:
    atomic: list[bool] = []

    def saved(**kwargs: Any) -> None:
        atomic.append(connection.in_atomic_block)
        assert threading.current_thread() is threading.main_thread()

    async def main() -> None:
        try:
            async with aatomic():
                await Scan().file.asave("a.txt", ContentFile(b"text"))
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        assert await Scan.objects.acount() == 0
        # A file that was assigned is stored when the instance is saved.
        scan = Scan(file=SimpleUploadedFile("b.txt", b"text"))
        WHERE.take()
        await scan.asave()
        assert WHERE.take() == THREAD
        assert scan.file.name == "b.txt"

    signals.post_save.connect(saved, sender=Scan)
    try:
        run(main)
    finally:
        signals.post_save.disconnect(saved, sender=Scan)
    assert atomic[0]
    assert (media / "a.txt").exists()  # files are in no transaction, as ever


def test_a_file_field_of_a_storage_in_memory(run: Run, threads: Counts, postgresql: Any) -> None:
    async def main() -> None:
        scan = Scan()
        await scan.file.asave("a.txt", ContentFile(b"text"))
        again = await Scan.objects.aget()
        async with await again.file.aopen() as file:
            assert await file.aread() == b"text"
        await again.file.adelete()
        assert WHERE.take() == set()

    memory = {"default": {"BACKEND": "django.core.files.storage.InMemoryStorage"}}
    with override_settings(STORAGES=memory):
        threads.clear()
        run(main)
        threads.assert_none()


def test_templates_may_not_change_files() -> None:
    from django.template import Context, Engine

    scan = Scan(file="a.txt")
    text = "{{ scan.file.asave }}{{ scan.file.adelete }}{{ scan.file.aopen }}"
    assert Engine().from_string(text).render(Context({"scan": scan})) == ""
    assert Engine().from_string("{{ scan.file.name }}").render(Context({"scan": scan})) == "a.txt"


class Remote(FileSystemStorage):
    """Its files are in memory until they are closed; how large one is, the server knows."""

    def _open(self, name: str, mode: str = "rb") -> Any:
        return RemoteFile(BytesIO(b"text"), name)

    def size(self, name: str) -> int:
        WHERE.note()
        return 4


class RemoteFile(File):
    def close(self) -> None:
        if not self.closed:
            WHERE.note()
        super().close()


def test_files_of_others_wait_though_they_are_in_memory(sqlite: dict[str, Any], run: Run) -> None:
    storage = Remote()

    async def main() -> None:
        async with await storage.aopen("a.txt") as file:
            assert await file.aread() == b"text"
        assert WHERE.take() == THREAD
        scan = Scan(file="a.txt")
        scan.file.storage = storage
        await scan.file.aopen()
        assert WHERE.take() == set()
        assert await scan.file.asize() == 4
        assert WHERE.take() == THREAD
        await scan.file.aclose()
        assert WHERE.take() == THREAD

    run(main)
