"""Large uploads: written by threads, whatever the view is, while the loop goes on."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django import forms
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.core.files.uploadedfile import TemporaryUploadedFile
from django.core.files.uploadhandler import MemoryFileUploadHandler, TemporaryFileUploadHandler
from django.http import HttpResponse
from django.test import override_settings
from django.urls import path
from django.views import View
from django.views.generic import FormView

from nuages import on_loop
from nuages.asgi import body, get_asgi_application
from nuages.bridge.threads import in_thread
from tests.integration.asgi_tools import Exchange
from tests.integration.conftest import Counts, Run
from tests.integration.pool_tools import Heartbeat

MEBIBYTE = 2**20
PIECE = bytes(range(256)) * 256
SIZE = 20 * MEBIBYTE
SUM = hashlib.sha256(PIECE * (SIZE // len(PIECE))).hexdigest()
BOUNDARY = b"boundary"
CONTENT_TYPE = (b"content-type", b"multipart/form-data; boundary=" + BOUNDARY)


def multipart(size: int) -> dict[str, Any]:
    """A form with a file of `size` bytes, for `Exchange`. Its pieces are one object."""
    head = (
        b"--" + BOUNDARY + b'\r\nContent-Disposition: form-data; name="title"\r\n\r\nScan\r\n'
        b"--" + BOUNDARY + b'\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n"
    )
    tail = b"\r\n--" + BOUNDARY + b"--\r\n"
    pieces = [PIECE] * (size // len(PIECE)) + [PIECE[: size % len(PIECE)]]
    length = len(head) + size + len(tail)
    return {
        "method": "POST",
        "headers": [CONTENT_TYPE, (b"content-length", str(length).encode())],
        "body": [head, *(piece for piece in pieces if piece), tail],
    }


def described(upload: Any) -> str:
    digest = hashlib.sha256()
    for chunk in upload.chunks():
        digest.update(chunk)
    return f"{type(upload).__name__} {upload.size} {digest.hexdigest()}"


async def in_coroutine(request: Any) -> HttpResponse:
    """A bare coroutine: the first access is a property's."""
    upload = request.FILES["file"]
    digest = hashlib.sha256()
    async for chunk in upload.achunks():
        digest.update(chunk)
    title = request.POST["title"]
    return HttpResponse(f"{title} {type(upload).__name__} {upload.size} {digest.hexdigest()}")


def in_sync(request: Any) -> HttpResponse:
    return HttpResponse(f"{request.POST['title']} {described(request.FILES['file'])}")


class AsyncClass(View):
    async def post(self, request: Any) -> HttpResponse:
        await asyncio.sleep(0)
        return await in_coroutine(request)


class ScanForm(forms.Form):
    title = forms.CharField()
    file = forms.FileField()


class ScanView(FormView):
    form_class = ScanForm

    def form_valid(self, form: Any) -> HttpResponse:
        upload = form.cleaned_data["file"]
        return HttpResponse(f"{form.cleaned_data['title']} {described(upload)}")


def stored(request: Any) -> HttpResponse:
    return HttpResponse(default_storage.save("a.bin", request.FILES["file"]))


async def astored(request: Any) -> HttpResponse:
    return HttpResponse(await default_storage.asave("a.bin", request.FILES["file"]))


class Quota(TemporaryFileUploadHandler):
    """A handler of the project, which a view sets."""


async def own_handlers(request: Any) -> HttpResponse:
    request.upload_handlers = [Quota(request)]
    return await in_coroutine(request)


async def unread(request: Any) -> HttpResponse:
    return HttpResponse("unread")


VIEWS: dict[str, Any] = {
    "coroutine": in_coroutine,
    "portal": on_loop(in_coroutine),
    "class": AsyncClass.as_view(),
    "sync": in_sync,
    "loop": on_loop(in_sync),
    "form": on_loop(ScanView.as_view()),
    "handlers": own_handlers,
}
urlpatterns = [
    *(path(f"{name}/", view) for name, view in VIEWS.items()),
    path("stored/", on_loop(stored)),
    path("astored/", astored),
    path("unread/", unread),
]


@pytest.fixture(autouse=True)
def _site(sqlite: Any, tmp_path: Path) -> Iterator[None]:
    (tmp_path / "temporary").mkdir()
    (tmp_path / "media").mkdir()
    with override_settings(
        ROOT_URLCONF=__name__,
        MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
        FILE_UPLOAD_TEMP_DIR=str(tmp_path / "temporary"),
        FILE_UPLOAD_MAX_MEMORY_SIZE=MEBIBYTE // 4,
        MEDIA_ROOT=str(tmp_path / "media"),
    ):
        yield


class Writers:
    """Notes the threads that write, read and remove uploads; the first write waits for `go`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.threads: dict[str, set[str]] = {}
        self.writing = threading.Event()
        self.go = threading.Event()
        self.spy(monkeypatch, "body", body._Spilled, "write")
        self.spy(monkeypatch, "rewound", body._Spilled, "rewind")
        self.spy(monkeypatch, "parsed", TemporaryFileUploadHandler, "receive_data_chunk", True)
        self.spy(monkeypatch, "removed", TemporaryUploadedFile, "close")

    def spy(
        self, monkeypatch: pytest.MonkeyPatch, kind: str, owner: Any, name: str, gate: bool = False
    ) -> None:
        original = getattr(owner, name)

        def spied(*args: Any, **kwargs: Any) -> Any:
            self.threads.setdefault(kind, set()).add(threading.current_thread().name)
            if gate:
                self.writing.set()
                assert self.go.wait(20)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, spied)

    async def begun(self) -> None:
        while not self.writing.is_set():  # noqa: ASYNC110 - another thread's
            await asyncio.sleep(0.001)


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> Writers:
    return Writers(monkeypatch)


@pytest.mark.parametrize("view", VIEWS)
def test_a_large_upload_is_written_by_threads(
    run: Run, writers: Writers, tmp_path: Path, view: str
) -> None:
    size = 2 * MEBIBYTE
    expected = hashlib.sha256(PIECE * (size // len(PIECE))).hexdigest()

    async def main() -> None:
        exchange = Exchange(get_asgi_application(), f"/{view}/", **multipart(size))
        async with Heartbeat() as heart:
            task = asyncio.create_task(exchange())
            await writers.begun()
            await heart.more(50)  # while the first write waits
            assert not task.done()
            writers.go.set()
            await task
        assert exchange.text == f"Scan TemporaryUploadedFile {size} {expected}"

    run(main)
    assert set(writers.threads) == {"body", "rewound", "parsed", "removed"}
    for kind, names in writers.threads.items():
        assert threading.main_thread().name not in names, kind
    assert list((tmp_path / "temporary").iterdir()) == []


def test_its_memory_is_bounded(writers: Writers) -> None:
    """20 MiB pass through less than a quarter of that."""
    writers.go.set()
    options = multipart(SIZE)

    async def main() -> tuple[str, int]:
        application = get_asgi_application()
        await Exchange(application, "/coroutine/", **multipart(MEBIBYTE))()
        tracemalloc.start()
        try:
            exchange = await Exchange(application, "/coroutine/", **options)()
            return exchange.text, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    text, peak = asyncio.run(main())
    assert text == f"Scan TemporaryUploadedFile {SIZE} {SUM}"
    assert peak < SIZE / 4


@pytest.mark.parametrize("view", ["stored", "astored"])
def test_it_is_stored_by_a_thread(
    run: Run, writers: Writers, tmp_path: Path, view: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.core.files.storage import filesystem

    writers.go.set()
    writers.spy(monkeypatch, "moved", filesystem, "file_move_safe")
    run(Exchange(get_asgi_application(), f"/{view}/", **multipart(MEBIBYTE)).__call__)
    assert (tmp_path / "media" / "a.bin").stat().st_size == MEBIBYTE
    assert threading.main_thread().name not in writers.threads["moved"]
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_small_upload_takes_no_thread(run: Run, writers: Writers, threads: Counts) -> None:
    async def main() -> None:
        exchange = await Exchange(get_asgi_application(), "/coroutine/", **small())()
        assert exchange.text.startswith("Scan InMemoryUploadedFile 1000 ")

    threads.clear()
    run(main)
    threads.assert_none()
    assert writers.threads == {}


def small() -> dict[str, Any]:
    options = multipart(1000)
    return options | {"body": [b"".join(options["body"])]}


@pytest.mark.parametrize(
    "changed",
    [
        {"FILE_UPLOAD_MAX_MEMORY_SIZE": 500},
        {
            "FILE_UPLOAD_HANDLERS": [
                "django.core.files.uploadhandler.TemporaryFileUploadHandler",
            ]
        },
    ],
)
def test_a_small_upload_that_goes_to_a_file_is_written_by_a_thread(
    run: Run, writers: Writers, changed: dict[str, Any]
) -> None:
    writers.go.set()

    async def main() -> None:
        exchange = await Exchange(get_asgi_application(), "/coroutine/", **small())()
        assert exchange.text.startswith("Scan TemporaryUploadedFile 1000 ")

    with override_settings(**changed):
        run(main)
    assert threading.main_thread().name not in writers.threads["parsed"]


def test_a_view_that_looks_at_nothing_parses_nothing(run: Run, writers: Writers) -> None:
    async def main() -> None:
        options = multipart(MEBIBYTE)
        assert (await Exchange(get_asgi_application(), "/unread/", **options)()).text == "unread"

    run(main)
    assert "parsed" not in writers.threads


@pytest.mark.parametrize("gone", ["reading", "writing"])
def test_a_client_that_goes_away_leaves_no_file(
    run: Run, writers: Writers, tmp_path: Path, gone: str
) -> None:
    async def main() -> None:
        options = multipart(2 * MEBIBYTE)
        if gone == "reading":
            writers.go.set()

            def leave(number: int) -> None:
                if number == 20:
                    exchange.disconnect()

            exchange = Exchange(get_asgi_application(), "/loop/", on_receive=leave, **options)
            await exchange()
            assert exchange.sent == []
            return
        exchange = Exchange(get_asgi_application(), "/loop/", **options)
        task = asyncio.create_task(exchange())
        await writers.begun()
        exchange.disconnect()
        await asyncio.sleep(0)
        writers.go.set()
        await task

    run(main)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_body_whose_reader_is_cancelled_is_removed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when that happens while its file is made, whose handle nobody else has then."""
    made: list[Any] = []
    writing, go = threading.Event(), threading.Event()
    write: Callable[..., None] = body._Spilled.write

    def slowly(self: Any, data: bytes) -> None:
        write(self, data)
        made.append(self.file)
        writing.set()
        assert go.wait(20)

    monkeypatch.setattr(body._Spilled, "write", slowly)

    async def receive() -> Any:
        return {"type": "http.request", "body": PIECE, "more_body": True}

    async def main() -> None:
        task = asyncio.create_task(body.read_body(receive))
        while not writing.is_set():  # noqa: ASYNC110 - another thread's
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.sleep(0)
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)
    assert made[0].closed
    assert len(made) == 1


def test_the_threads_are_those_of_the_default_executor(run: Run, tmp_path: Path) -> None:
    """So they are bounded: `set_default_executor()` says by how many."""
    from concurrent.futures import ThreadPoolExecutor

    names: list[str] = []

    async def main() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2, "ours"))
        await in_thread(lambda: names.append(threading.current_thread().name))
        stores = (default_storage.asave("a.txt", ContentFile(b"a")) for _ in range(20))
        assert len(set(await asyncio.gather(*stores))) == 20

    run(main)
    assert names[0].startswith("ours")


def test_memory_handlers_are_those_of_django() -> None:
    """Only that one is known to keep small files in memory."""
    from nuages.asgi import request

    module, _, name = request._MEMORY.rpartition(".")
    assert (module, name) == (MemoryFileUploadHandler.__module__, MemoryFileUploadHandler.__name__)
