"""Streams: closed at once, no connection between chunks, back-pressure, errors, transactions."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.signals import request_finished
from django.db import transaction
from django.http import FileResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import path

from nuages import on_loop
from nuages.asgi import disconnect, get_asgi_application
from nuages.bridge import current_bridge
from nuages.db import aatomic
from nuages.db.pool.pool import open_pools
from tests.integration.asgi_tools import Exchange, exchange
from tests.integration.conftest import Run
from tests.integration.pool_tools import Heartbeat
from tests.integration.scope_tools import rolled_back, until
from tests.library.models import Author

HERE = "tests.integration.test_streaming"
GZIP = "django.middleware.gzip.GZipMiddleware"
ACCEPTS_GZIP = [(b"accept-encoding", b"gzip")]


class Counting(StreamingHttpResponse):
    """Counts what must happen once."""

    closes = 0

    def close(self) -> None:
        self.closes += 1
        super().close()


class Site:
    """An application of one view, and what its requests did."""

    def __init__(self, view: Callable[..., Any], middleware: tuple[str, ...]) -> None:
        self.view = view
        self.middleware = middleware
        self.responses: list[Any] = []
        self.finished = 0

    def _count(self, **kwargs: Any) -> None:
        self.finished += 1

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Any]:
        urls = (path("", self.view),)
        with override_settings(ROOT_URLCONF=urls, MIDDLEWARE=self.middleware):
            request_finished.connect(self._count)
            try:
                yield get_asgi_application()
            finally:
                request_finished.disconnect(self._count)

    def assert_ended_once(self) -> None:
        assert self.finished == 1
        assert [response.closes for response in self.responses] == [1]
        assert used() == 0


def site(content: Callable[[], Any], kind: str = "async", middleware: Any = ()) -> Site:
    """A site whose view of that kind answers with a stream of `content()`."""

    def view(request: Any) -> Any:
        response = Counting(content(), content_type="text/plain")
        made.responses.append(response)
        return response

    async def async_view(request: Any) -> Any:
        return view(request)

    made = Site({"async": async_view, "loop": on_loop(view), "thread": view}[kind], middleware)
    return made


def used() -> int:
    """How many connections are in use."""
    return sum(pool.stats()["used"] for pool in open_pools())


async def wrapping_function(request: Any, get_response: Any) -> Any:
    response = await get_response(request)

    async def upper(content: Any) -> AsyncIterator[bytes]:
        async for part in content:
            yield part.upper()

    response.streaming_content = upper(response.streaming_content)
    return response


def wrapping(get_response: Any) -> Any:
    """A user's middleware, as it is written by hand."""

    async def middleware(request: Any) -> Any:
        return await wrapping_function(request, get_response)

    return middleware


wrapping.async_capable = True  # type: ignore[attr-defined]
wrapping.sync_capable = False  # type: ignore[attr-defined]


class WrappingClass:
    """The same as a class with `__iter__`-like iterators instead of generators."""

    async_capable = True
    sync_capable = False

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    async def __call__(self, request: Any) -> Any:
        response = await self.get_response(request)
        response.streaming_content = Passing(response.streaming_content)
        return response


class Passing:
    """An async iterator that is no generator."""

    def __init__(self, content: Any) -> None:
        self._content = aiter(content)

    def __aiter__(self) -> Passing:
        return self

    async def __anext__(self) -> bytes:
        return await anext(self._content)  # type: ignore[no-any-return]


def sync_wrapping(get_response: Any) -> Any:
    """A sync middleware, which runs in a thread, around an async stream."""

    def middleware(request: Any) -> Any:
        response = get_response(request)
        inner = response.streaming_content

        async def passed() -> AsyncIterator[bytes]:
            async for part in inner:
                yield part

        response.streaming_content = passed()
        return response

    return middleware


WRAPS = {
    "bare": (),
    "gzip": (GZIP,),
    "generator": (f"{HERE}.wrapping",),
    "iterator": (f"{HERE}.WrappingClass",),
    "thread": (f"{HERE}.sync_wrapping",),
    "many": (GZIP, f"{HERE}.wrapping", f"{HERE}.WrappingClass", f"{HERE}.sync_wrapping", GZIP),
}
every_wrap = pytest.mark.parametrize("middleware", WRAPS.values(), ids=WRAPS)


class Source:
    """An async stream that waits for ever after its first part, and says how it ended."""

    def __init__(self) -> None:
        self.waits = asyncio.Event()
        self.ended_by: type[BaseException] | None = None
        self.begun = self.cleaned = False

    async def __call__(self) -> AsyncIterator[bytes]:
        self.begun = True
        try:
            yield b"first " * 100
            self.waits.set()
            await asyncio.Event().wait()
        except BaseException as error:
            self.ended_by = type(error)
            raise
        finally:
            await asyncio.sleep(0)
            await Author.objects.acreate(name="cleaned up")
            self.cleaned = True


@every_wrap
def test_a_disconnect_closes_a_stream_that_waits(
    postgresql: dict[str, Any], run: Run, middleware: Any
) -> None:
    async def main() -> None:
        source = Source()
        made = site(source, "async", middleware)
        with made() as application:
            playing = Exchange(application, headers=ACCEPTS_GZIP)
            task = asyncio.create_task(playing())
            await source.waits.wait()
            playing.disconnect()
            await task
        assert source.ended_by is asyncio.CancelledError
        assert source.cleaned
        assert await Author.objects.acount() == 1
        made.assert_ended_once()

    run(main)


@every_wrap
def test_a_disconnect_closes_a_stream_whose_part_is_being_sent(
    postgresql: dict[str, Any], run: Run, middleware: Any
) -> None:
    async def main() -> None:
        source = Source()
        made = site(source, "async", middleware)

        async def stuck(number: int, message: Any) -> None:
            if source.begun:  # compressed, the first part is a header and needs none of it
                playing.disconnect()
                await asyncio.Event().wait()

        with made() as application:
            playing = Exchange(application, headers=ACCEPTS_GZIP, on_send=stuck)
            await playing()
        assert source.ended_by is GeneratorExit
        assert source.cleaned
        assert await Author.objects.acount() == 1
        made.assert_ended_once()

    run(main)


@every_wrap
def test_a_failing_send_closes_a_stream_whatever_receive_says(
    postgresql: dict[str, Any], run: Run, middleware: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may tell of the disconnect in both: the cleanup is not interrupted for that."""
    monkeypatch.setattr(disconnect, "PATIENCE", 0)

    async def main() -> None:
        source = Source()
        made = site(source, "async", middleware)

        async def leave(number: int, message: Any) -> None:
            if source.begun:
                await asyncio.sleep(0)
                playing.disconnect()

        with made() as application:
            playing = Exchange(application, headers=ACCEPTS_GZIP, on_send=leave, raises=True)
            await playing()
        assert source.cleaned
        assert await Author.objects.acount() == 1
        made.assert_ended_once()

    run(main)


def test_uploads_of_a_request_whose_client_leaves_are_closed(
    sqlite: dict[str, Any], run: Run
) -> None:
    files: list[Any] = []

    async def main() -> None:
        waits = asyncio.Event()

        async def view(request: Any) -> None:
            files.extend(request.FILES.values())
            waits.set()
            await asyncio.Event().wait()

        body = b"--b\r\nContent-Disposition: form-data; name=f; filename=f\r\n\r\nx\r\n--b--\r\n"
        headers = [
            (b"content-type", b"multipart/form-data; boundary=b"),
            (b"content-length", str(len(body)).encode()),
        ]
        handlers = ["django.core.files.uploadhandler.TemporaryFileUploadHandler"]
        with Site(view, ())() as application, override_settings(FILE_UPLOAD_HANDLERS=handlers):
            playing = Exchange(application, method="POST", headers=headers, body=[body])
            task = asyncio.create_task(playing())
            await waits.wait()
            playing.disconnect()
            await task
        assert [file.closed for file in files] == [True]

    run(main)
    assert not Path(files[0].temporary_file_path()).exists()


@pytest.mark.parametrize("raises", [False, True], ids=["drops", "raises"])
@pytest.mark.parametrize("kind", ["async", "loop", "thread"])
def test_an_endless_stream_ends_with_its_client(
    sqlite: dict[str, Any], run: Run, kind: str, raises: bool
) -> None:
    """Though it never waits for anything but `send`, which does not wait either."""

    async def main() -> None:
        ended: list[str] = []

        async def endless() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"more"
            finally:
                ended.append("closed")

        def endless_sync() -> Iterator[bytes]:
            try:
                while True:
                    yield b"more"
            finally:
                ended.append("closed")

        def leave(number: int, message: Any) -> None:
            if number == 5:
                playing.disconnect()

        made = site(endless if kind == "async" else endless_sync, kind)
        with made() as application:
            playing = Exchange(application, on_send=leave, raises=raises)
            await playing()
        assert ended == ["closed"]
        assert not playing.complete
        made.assert_ended_once()

    run(main)


class Place:
    """Where the steps of a stream ran."""

    def __init__(self) -> None:
        self.steps: list[Any] = []

    def note(self) -> None:
        self.steps.append((threading.get_ident(), current_bridge()))


@pytest.mark.parametrize("kind", ["loop", "thread"])
@pytest.mark.parametrize("middleware", [(), (GZIP,)], ids=["bare", "gzip"])
def test_a_sync_stream_runs_where_its_view_ran(
    database: str, run: Run, kind: str, middleware: Any
) -> None:
    """On the loop in one bridge, or in the request's thread; part for part, and closed there."""

    async def main() -> None:
        place = Place()
        sent_before: list[int] = []

        def content() -> Iterator[bytes]:
            place.note()
            return parts()

        def parts() -> Iterator[bytes]:
            try:
                for number in range(4):
                    place.note()
                    sent_before.append(len(playing.parts))
                    assert Author.objects.count() == 0
                    yield f"{number}".encode() * 300
            finally:
                place.note()

        made = site(content, kind, middleware)
        with made() as application:
            playing = Exchange(application, headers=ACCEPTS_GZIP)
            await playing()
        # gzip begins with its header, and keeps what it has not flushed.
        assert sent_before == ([0, 1, 2, 3] if not middleware else sorted(sent_before))
        whole = gzip.decompress(playing.content) if middleware else playing.content
        assert whole == b"".join(f"{n}".encode() * 300 for n in range(4))
        (thread,) = {thread for thread, _ in place.steps}
        assert (thread == threading.get_ident()) == (kind == "loop")
        bridges = {bridge for _, bridge in place.steps[1:]}
        assert len(bridges) == 1
        assert (None in bridges) == (kind == "thread")
        made.assert_ended_once()

    run(main)


@pytest.mark.parametrize("kind", ["loop", "thread"])
def test_a_disconnect_closes_a_sync_stream_where_it_ran(
    database: str, run: Run, kind: str
) -> None:
    async def main() -> None:
        threads: list[int] = []

        def content() -> Iterator[bytes]:
            try:
                threads.append(threading.get_ident())
                yield b"first"
                yield b"never asked for"
                raise AssertionError
            finally:
                threads.append(threading.get_ident())
                Author.objects.create(name="cleaned up")

        async def stuck(number: int, message: Any) -> None:
            if number == 1:
                playing.disconnect()
                await asyncio.Event().wait()

        made = site(content, kind)
        with made() as application:
            playing = Exchange(application, on_send=stuck)
            await playing()
        assert len(threads) == 2
        assert len(set(threads)) == 1
        assert await Author.objects.acount() == 1
        made.assert_ended_once()

    run(main)


async def authors(count: int = 6) -> str:
    """Make so many authors; return their names, in order."""
    made = [Author(name=f"{n:03}" if count > 10 else f"{n}") for n in range(count)]
    await Author.objects.abulk_create(made)
    return "".join(author.name for author in made)


MANY = 250
"""More rows than SQLite brings along with a statement, so that the cursor stays open."""


async def counted_async() -> AsyncIterator[str]:
    for number in range(4):
        author = await Author.objects.aget(name=str(number))
        yield author.name


def counted_sync() -> Iterator[str]:
    for number in range(4):
        yield Author.objects.get(name=str(number)).name


@pytest.mark.parametrize(
    ("kind", "content"),
    [("async", counted_async), ("loop", counted_sync), ("thread", counted_sync)],
)
def test_no_connection_is_held_between_parts(
    database: str, run: Run, kind: str, content: Any
) -> None:
    async def main() -> None:
        await authors()
        held: list[int] = []

        async def count(number: int, message: Any) -> None:
            await asyncio.sleep(0)
            held.append(used())

        made = site(content, kind)
        with made() as application:
            playing = await exchange(application, on_send=count)
        assert playing.text == "0123"
        assert len(held) == 6
        if kind == "thread":
            # A thread keeps what it borrowed until its call ends.
            assert max(held) <= 1
        else:
            assert held == [0] * 6
        made.assert_ended_once()

    run(main)


async def iterated_async() -> AsyncIterator[str]:
    yield "begin "
    async for author in Author.objects.order_by("name").aiterator(chunk_size=2):
        yield author.name
    yield " end"


def iterated_sync() -> Iterator[str]:
    yield "begin "
    for author in Author.objects.order_by("name").iterator(chunk_size=2):
        yield author.name
    yield " end"


@pytest.mark.parametrize(("kind", "content"), [("async", iterated_async), ("loop", iterated_sync)])
def test_an_open_iterator_pins_one_connection_until_it_is_exhausted(
    database: str, run: Run, kind: str, content: Any
) -> None:
    async def main() -> None:
        names = await authors(MANY)
        held: list[int] = []
        made = site(content, kind)
        with made() as application:
            playing = await exchange(application, on_send=lambda n, m: held.append(used()))
        assert playing.text == f"begin {names} end"
        # start, "begin"; the names; "end", the final message
        assert held[:2] == [0, 0]
        assert held[2:100] == [1] * 98
        assert held[-2:] == [0, 0]
        made.assert_ended_once()

    run(main)


@pytest.mark.parametrize(("kind", "content"), [("async", iterated_async), ("loop", iterated_sync)])
def test_an_open_iterator_lets_go_when_the_client_does(
    database: str, run: Run, kind: str, content: Any
) -> None:
    async def main() -> None:
        await authors(MANY)

        async def stuck(number: int, message: Any) -> None:
            if number == 3:
                assert used() == 1
                playing.disconnect()
                await asyncio.Event().wait()

        made = site(content, kind)
        with made() as application:
            playing = Exchange(application, on_send=stuck)
            await playing()
        # Closing the stream drops what it iterates; the drop is closed by the loop.
        await until(lambda: used() == 0)
        made.assert_ended_once()

    run(main)


@pytest.mark.parametrize(("kind", "content"), [("async", iterated_async), ("loop", iterated_sync)])
def test_an_open_iterator_sees_nothing_of_others_transactions(
    database: str, run: Run, kind: str, content: Any
) -> None:
    """Its connection is nobody else's meanwhile: an uncommitted row would turn up."""

    async def main() -> None:
        names = await authors(MANY)
        written, seen = asyncio.Event(), asyncio.Event()

        async def write() -> None:
            async with rolled_back():
                await Author.objects.acreate(name="200, uncommitted")
                written.set()
                await seen.wait()

        writing: list[asyncio.Task[None]] = []

        async def hook(number: int, message: Any) -> None:
            if number == 5:
                writing.append(asyncio.create_task(write()))
                await written.wait()

        made = site(content, kind)
        with made() as application:
            playing = await exchange(application, on_send=hook)
        seen.set()
        await writing[0]
        assert playing.text == f"begin {names} end"
        made.assert_ended_once()

    run(main)


def test_an_abandoned_iterator_lets_go(database: str, run: Run) -> None:
    async def main() -> None:
        await authors(MANY)
        held: list[int] = []

        async def content() -> AsyncIterator[str]:
            async for author in Author.objects.order_by("name").aiterator(chunk_size=2):
                yield author.name
                held.append(used())
                break
            await until(lambda: used() == 0)
            held.append(used())
            yield str(await Author.objects.acount())

        made = site(content)
        with made() as application:
            playing = await exchange(application)
        assert playing.text == "000250"
        assert held == [1, 0]
        made.assert_ended_once()

    run(main)


@pytest.mark.parametrize("kind", ["async", "loop", "thread"])
@pytest.mark.parametrize("middleware", [(), (GZIP,)], ids=["bare", "gzip"])
def test_a_stream_does_not_advance_while_send_waits(
    sqlite: dict[str, Any], run: Run, kind: str, middleware: Any
) -> None:
    async def main() -> None:
        steps: list[int] = []

        async def parts() -> AsyncIterator[bytes]:
            for number in range(10):
                steps.append(number)
                yield os.urandom(100_000)

        def parts_sync() -> Iterator[bytes]:
            for number in range(10):
                steps.append(number)
                yield os.urandom(100_000)

        sending, go_on = asyncio.Event(), asyncio.Event()

        async def slow(number: int, message: Any) -> None:
            if number == 3:
                sending.set()
                await go_on.wait()

        made = site(parts if kind == "async" else parts_sync, kind, middleware)
        with made() as application:
            task = asyncio.create_task(exchange(application, headers=ACCEPTS_GZIP, on_send=slow))
            async with Heartbeat() as heart:
                await sending.wait()
                before = len(steps)
                assert before <= 4  # one more is in gzip's buffer
                await heart.more(100)
                assert len(steps) == before
                go_on.set()
                await task
        assert len(steps) == 10
        made.assert_ended_once()

    run(main)


@pytest.mark.parametrize("kind", ["async", "loop", "thread"])
@pytest.mark.parametrize("first", [True, False], ids=["at the first part", "later"])
def test_an_error_in_a_stream_reaches_the_server(
    sqlite: dict[str, Any], run: Run, kind: str, first: bool
) -> None:
    """The answer has begun, so that all the server can do is to cut it."""

    async def main() -> None:
        ended: list[str] = []

        async def parts() -> AsyncIterator[bytes]:
            try:
                if not first:
                    yield b"part"
                raise ZeroDivisionError
            finally:
                ended.append("closed")

        def parts_sync() -> Iterator[bytes]:
            try:
                if not first:
                    yield b"part"
                raise ZeroDivisionError
            finally:
                ended.append("closed")

        made = site(parts if kind == "async" else parts_sync, kind)
        with made() as application:
            playing = Exchange(application)
            with pytest.raises(ZeroDivisionError):
                await playing()
        assert not playing.complete
        assert playing.parts == ([] if first else [b"part"])
        assert ended == ["closed"]
        made.assert_ended_once()

    run(main)


@pytest.mark.parametrize("kind", ["async", "loop", "thread"])
def test_an_empty_stream(sqlite: dict[str, Any], run: Run, kind: str) -> None:
    async def nothing() -> AsyncIterator[bytes]:
        return
        yield b""

    async def main() -> None:
        made = site(nothing if kind == "async" else lambda: iter(()), kind)
        with made() as application:
            playing = await exchange(application)
        assert playing.status == 200
        assert [m["type"] for m in playing.sent] == ["http.response.start", "http.response.body"]
        made.assert_ended_once()

    run(main)


@pytest.mark.parametrize("kind", ["async", "loop", "thread"])
def test_large_and_empty_parts(sqlite: dict[str, Any], run: Run, kind: str) -> None:
    sizes = [0, 1, 2**16, 2**16 + 1, 0, 300_000]

    async def parts() -> AsyncIterator[bytes]:
        for size in sizes:
            yield b"x" * size

    async def main() -> None:
        made = site(parts if kind == "async" else lambda: (b"x" * n for n in sizes), kind)
        with made() as application:
            playing = await exchange(application)
        assert len(playing.content) == sum(sizes)
        assert max(len(part) for part in playing.parts) <= 2**16
        made.assert_ended_once()

    run(main)


class OwnIteration(Counting):
    """Overrides how it is iterated, as some libraries do."""

    cleaned = False

    async def __aiter__(self) -> AsyncIterator[bytes]:  # type: ignore[override]
        try:
            for number in range(3):
                await asyncio.sleep(0)
                yield f"{number}".encode()
        finally:
            await asyncio.sleep(0)
            self.cleaned = True


@pytest.mark.parametrize("content", [list, counted_async], ids=["sync", "async"])
@pytest.mark.parametrize("leaves", [False, True])
def test_a_response_that_overrides_aiter(
    sqlite: dict[str, Any], run: Run, content: Any, leaves: bool
) -> None:
    async def main() -> None:
        async def view(request: Any) -> Any:
            response = OwnIteration(content())
            made.responses.append(response)
            return response

        async def stuck(number: int, message: Any) -> None:
            if leaves and number == 2:
                playing.disconnect()
                await asyncio.Event().wait()

        made = Site(view, ())
        with made() as application:
            playing = Exchange(application, on_send=stuck)
            await playing()
        assert playing.text == ("01" if leaves else "012")
        assert made.responses[0].cleaned
        made.assert_ended_once()

    run(main)


class NotedFile(io.FileIO):
    """Notes in which threads it is read."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self.threads: set[int] = set()

    def read(self, size: int | None = -1, /) -> Any:
        self.threads.add(threading.get_ident())
        return super().read(-1 if size is None else size)


class CountingFile(FileResponse):
    closes = 0

    def close(self) -> None:
        self.closes += 1
        super().close()


@pytest.mark.parametrize("kind", ["async", "loop", "thread"])
@pytest.mark.parametrize("offered", [False, True], ids=["stream", "pathsend"])
@pytest.mark.parametrize("leaves", [False, True])
def test_djangos_file_response(
    sqlite: dict[str, Any], run: Run, tmp_path: Path, kind: str, offered: bool, leaves: bool
) -> None:
    """It is streamed, whatever the server offers: only a response with `pathsend` is not."""
    file = tmp_path / "file.bin"
    file.write_bytes(b"0123456789" * 30_000)

    async def main() -> None:
        opened: list[Any] = []

        def view(request: Any) -> Any:
            opened.append(NotedFile(file))
            response = CountingFile(opened[0])
            made.responses.append(response)
            return response

        async def async_view(request: Any) -> Any:
            return view(request)

        async def stuck(number: int, message: Any) -> None:
            if leaves and number == 2:
                playing.disconnect()
                await asyncio.Event().wait()

        made = Site({"async": async_view, "loop": on_loop(view), "thread": view}[kind], ())
        extensions = {"http.response.pathsend": {}} if offered else {}
        with made() as application:
            playing = Exchange(application, extensions=extensions, on_send=stuck)
            await playing()
        if not leaves:
            assert playing.content == file.read_bytes()
            assert playing.header(b"content-length") == b"300000"
        assert opened[0].closed
        # A disk may block, so that no view's file is read on the loop.
        assert opened[0].threads
        assert threading.get_ident() not in opened[0].threads
        made.assert_ended_once()

    run(main)


@pytest.mark.parametrize("offered", [False, True], ids=["stream", "pathsend"])
def test_a_response_that_names_a_file(
    sqlite: dict[str, Any], run: Run, tmp_path: Path, offered: bool
) -> None:
    async def main() -> None:
        cleaned: list[str] = []

        async def parts() -> AsyncIterator[bytes]:
            try:
                yield b"the content"
            finally:
                cleaned.append("closed")

        async def view(request: Any) -> Any:
            response = Counting(parts())
            response.pathsend = str(tmp_path / "file")  # type: ignore[attr-defined]
            made.responses.append(response)
            return response

        made = Site(view, ())
        extensions = {"http.response.pathsend": {}} if offered else {}
        with made() as application:
            playing = await exchange(application, extensions=extensions)
        if offered:
            named = {"type": "http.response.pathsend", "path": str(tmp_path / "file")}
            assert playing.sent[1:] == [named]
        else:
            assert playing.content == b"the content"
            assert cleaned == ["closed"]
        made.assert_ended_once()

    run(main)


def _transactions(fails: bool) -> dict[str, Callable[[], Any]]:
    async def in_aatomic() -> AsyncIterator[str]:
        async with aatomic():
            await Author.objects.acreate(name="one")
            yield "one"
            await Author.objects.acreate(name="two")
            yield "two"
            if fails:
                raise ZeroDivisionError

    def in_atomic() -> Iterator[str]:
        with transaction.atomic():
            Author.objects.create(name="one")
            yield "one"
            Author.objects.create(name="two")
            yield "two"
            if fails:
                raise ZeroDivisionError

    return {"async": in_aatomic, "loop": in_atomic, "thread": in_atomic}


@pytest.mark.parametrize("kind", ["async", "loop", "thread"])
@pytest.mark.parametrize("end", ["exhausted", "disconnect", "error"])
def test_a_transaction_in_a_stream(database: str, run: Run, kind: str, end: str) -> None:
    """Committed when the stream is exhausted; rolled back by a disconnect or an error."""

    async def main() -> None:
        held: list[int] = []

        async def hook(number: int, message: Any) -> None:
            held.append(used())
            if end == "disconnect" and number == 2:
                playing.disconnect()
                await asyncio.Event().wait()

        made = site(_transactions(end == "error")[kind], kind)
        with made() as application:
            playing = Exchange(application, on_send=hook)
            if end == "error":
                with pytest.raises(ZeroDivisionError):
                    await playing()
            else:
                await playing()
        assert held[:3] == [0, 1, 1]
        if end == "exhausted":
            assert playing.text == "onetwo"
            assert (kind == "thread") or held[3] == 0
        assert await Author.objects.acount() == (2 if end == "exhausted" else 0)
        made.assert_ended_once()

    run(main)
