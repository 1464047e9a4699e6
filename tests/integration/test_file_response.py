"""Files as responses: conditional and range requests, byte for byte, and descriptors closed."""

# ruff: noqa: ASYNC240  the tests' own file access may block
from __future__ import annotations

import asyncio
import email.parser
import email.policy
import gc
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.http import Http404, HttpRequest
from django.middleware.gzip import GZipMiddleware
from django.middleware.http import ConditionalGetMiddleware
from django.test import AsyncRequestFactory, RequestFactory, override_settings
from django.urls import path as url_path
from django.utils.http import http_date
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nuages.asgi import get_asgi_application
from nuages.exceptions import FileTruncated
from nuages.http import afile_response
from nuages.http import file_body as file_bodies
from tests.integration.asgi_tools import Exchange
from tests.integration.conftest import Run

TEN_THOUSAND = bytes(number % 251 for number in range(10_000))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """10,000 bytes, as in the RFC's examples, an hour old."""
    path = tmp_path / "report.bin"
    path.write_bytes(TEN_THOUSAND)
    hour_ago = time.time() - 3600
    os.utime(path, (hour_ago, hour_ago))
    return path


@pytest.fixture(autouse=True)
def _no_file_left_open(tmp_path: Path) -> Iterator[None]:
    yield
    gc.collect()
    assert not open_files(tmp_path)


def open_files(directory: Path) -> list[str]:
    """The files below `directory` that this process has open."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")
        except FileNotFoundError:  # the listing's own
            continue
        if target.startswith(str(directory)):
            found.append(target)
    return found


def asks(method: str = "GET", /, **headers: str) -> HttpRequest:
    factory = AsyncRequestFactory()
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return factory.generic(method, "/file/", headers=fields)


async def content(response: Any) -> bytes:
    """Read a response to its end, as a server does."""
    if not response.streaming:
        return bytes(response.content)
    try:
        return b"".join([chunk async for chunk in response])
    finally:
        response.close()


async def answer(request: HttpRequest, path: Path, **options: Any) -> tuple[Any, bytes]:
    response = await afile_response(request, path, **options)
    return response, await content(response)


def in_loop(function: Callable[..., Any]) -> Callable[..., None]:
    """Run an async test by `run`, on each kind of loop."""

    def test(run: Run, path: Path) -> None:
        run(function, path)

    test.__name__, test.__doc__ = function.__name__, function.__doc__
    return test


@in_loop
async def test_the_whole_file(path: Path) -> None:
    response, body = await answer(asks(), path)
    assert body == TEN_THOUSAND
    assert response.status_code == 200
    assert dict(response.items()) == {
        "ETag": f'"{path.stat().st_mtime_ns:x}-{10_000:x}"',
        "Last-Modified": http_date(int(path.stat().st_mtime)),
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
        "Content-Disposition": 'inline; filename="report.bin"',
        "Content-Length": "10000",
    }
    assert response.pathsend == str(path)


@in_loop
async def test_head_has_the_headers_and_no_content(path: Path) -> None:
    get, _ = await answer(asks(), path)
    head, body = await answer(asks("HEAD", Range="bytes=0-9"), path)
    assert (head.status_code, body) == (200, b"")
    assert dict(head.items()) == dict(get.items())
    assert head.pathsend is None


@pytest.mark.parametrize(
    ("name", "options", "content_type", "disposition"),
    [
        ("page.html", {}, "text/html", 'inline; filename="page.html"'),
        ("logs.tar.gz", {}, "application/gzip", 'inline; filename="logs.tar.gz"'),
        ("data.json.br", {}, "application/x-brotli", 'inline; filename="data.json.br"'),
        ("data.xz", {}, "application/x-xz", 'inline; filename="data.xz"'),
        ("unknown", {}, "application/octet-stream", 'inline; filename="unknown"'),
        ("a.txt", {"as_attachment": True}, "text/plain", 'attachment; filename="a.txt"'),
        (
            "a.txt",
            {"as_attachment": True, "filename": "Übersicht.pdf"},
            "application/pdf",
            "attachment; filename*=utf-8''%C3%9Cbersicht.pdf",
        ),
        ("a.txt", {"content_type": "text/x"}, "text/x", 'inline; filename="a.txt"'),
        ("a.txt", {"filename": "../b.csv"}, "text/csv", 'inline; filename="b.csv"'),
    ],
)
def test_name_and_type_are_as_in_djangos_file_response(
    run: Run,
    tmp_path: Path,
    name: str,
    options: dict[str, Any],
    content_type: str,
    disposition: str,
) -> None:
    from django.http import FileResponse

    async def main() -> None:
        (tmp_path / name).write_bytes(b"x")
        response, _ = await answer(asks(), tmp_path / name, **options)
        assert response["Content-Type"] == content_type
        assert response["Content-Disposition"] == disposition
        stock = FileResponse((tmp_path / name).open("rb"), **options)
        for header in ("Content-Type", "Content-Disposition", "Content-Length"):
            assert response[header] == stock[header]
        stock.close()

    run(main)


# Preconditions (RFC 9110, 13)

OLD, NEW = http_date(1_000_000_000), http_date(time.time() + 10_000)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If_Match": "*"}, 200),
        ({"If_Match": "{etag}"}, 200),
        ({"If_Match": '"other", {etag}'}, 200),
        ({"If_Match": '"other"'}, 412),
        ({"If_Match": "W/{etag}"}, 412),  # compared strongly
        ({"If_Unmodified_Since": OLD}, 412),
        ({"If_Unmodified_Since": "{modified}"}, 200),
        ({"If_Match": "{etag}", "If_Unmodified_Since": OLD}, 200),  # ignored beside If-Match
        ({"If_None_Match": "{etag}"}, 304),
        ({"If_None_Match": "W/{etag}"}, 304),  # compared weakly
        ({"If_None_Match": "*"}, 304),
        ({"If_None_Match": '"other"'}, 200),
        ({"If_Modified_Since": "{modified}"}, 304),
        ({"If_Modified_Since": NEW}, 304),
        ({"If_Modified_Since": OLD}, 200),
        ({"If_Modified_Since": "yesterday"}, 200),
        ({"If_None_Match": '"other"', "If_Modified_Since": NEW}, 200),
        ({"If_Match": '"other"', "If_None_Match": "{etag}"}, 412),  # in this order
        ({"If_None_Match": "{etag}", "Range": "bytes=0-9"}, 304),
        ({"If_Match": "{etag}", "Range": "bytes=0-9"}, 206),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_preconditions(
    run: Run, path: Path, method: str, headers: dict[str, str], status: int
) -> None:
    async def main() -> None:
        plain, _ = await answer(asks(), path)
        etag, modified = plain["ETag"], plain["Last-Modified"]
        filled = {
            name: value.format(etag=etag, modified=modified) for name, value in headers.items()
        }
        response, body = await answer(asks(method, **filled), path)
        assert response.status_code == (200 if (method, status) == ("HEAD", 206) else status)
        if status in (304, 412):
            assert body == b""
        if status == 304:
            assert (response["ETag"], response["Last-Modified"]) == (etag, modified)

    run(main)


@in_loop
async def test_an_unsafe_method_gets_the_file_whatever_it_says(path: Path) -> None:
    for headers in ({"Range": "bytes=0-9"}, {"If_None_Match": "*"}, {"If_Match": '"other"'}):
        response, body = await answer(asks("POST", **headers), path)
        assert (response.status_code, body) == (200, TEN_THOUSAND)


# Ranges (RFC 9110, 14)


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("bytes=0-499", 0, 500),
        ("bytes=500-999", 500, 1000),
        ("bytes=-500", 9500, 10_000),
        ("bytes=9500-", 9500, 10_000),
        ("bytes=500-600,601-999", 500, 1000),
    ],
)
def test_one_range(run: Run, path: Path, header: str, start: int, stop: int) -> None:
    async def main() -> None:
        response, body = await answer(asks(Range=header), path)
        assert response.status_code == 206
        assert body == TEN_THOUSAND[start:stop]
        assert response["Content-Range"] == f"bytes {start}-{stop - 1}/10000"
        assert response["Content-Length"] == str(stop - start)
        assert response["Content-Type"] == "application/octet-stream"
        assert response["ETag"]
        assert response.pathsend is None

    run(main)


def parts_of(response: Any, body: bytes) -> list[tuple[str, str, bytes]]:
    """Type, range and content of each part, read by the email package."""
    head = f"Content-Type: {response['Content-Type']}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    assert message.is_multipart()
    assert not message.defects
    return [
        (part.get_content_type(), part["Content-Range"], part.get_payload(decode=True))
        for part in message.iter_parts()  # type: ignore[attr-defined]
    ]


@in_loop
async def test_several_ranges(path: Path) -> None:
    path.write_bytes(b"".join(b"%04d\n" % number for number in range(2000)))
    data = path.read_bytes()
    response, body = await answer(asks(Range="bytes=0-0,-1,500-999"), path)
    assert response.status_code == 206
    assert int(response["Content-Length"]) == len(body)
    assert response["Content-Type"].startswith("multipart/byteranges; boundary=")
    assert "Content-Range" not in response
    assert parts_of(response, body) == [
        ("application/octet-stream", "bytes 0-0/10000", data[:1]),
        ("application/octet-stream", "bytes 9999-9999/10000", data[-1:]),
        ("application/octet-stream", "bytes 500-999/10000", data[500:1000]),
    ]


@in_loop
async def test_ranges_that_cannot_be_satisfied(path: Path) -> None:
    for header in ("bytes=10000-", "bytes=-0", "bytes=20000-20001,30000-"):
        response, body = await answer(asks(Range=header), path)
        assert (response.status_code, body) == (416, b"")
        assert response["Content-Range"] == "bytes */10000"


@in_loop
async def test_what_is_no_range_gets_the_whole_file(path: Path) -> None:
    many = "bytes=" + ",".join(f"{n * 2}-{n * 2}" for n in range(100))
    for header in ("bytes=5-1", "items=0-9", "bytes=x", many):
        response, body = await answer(asks(Range=header), path)
        assert (response.status_code, body) == (200, TEN_THOUSAND)


@in_loop
async def test_overlapping_ranges_are_no_amplification(path: Path) -> None:
    header = "bytes=" + ",".join(["0-"] * 16)
    response, body = await answer(asks(Range=header), path)
    assert (response.status_code, body) == (206, TEN_THOUSAND)


@in_loop
async def test_if_range(path: Path) -> None:
    plain, _ = await answer(asks(), path)
    for condition, status in (
        (plain["ETag"], 206),
        (plain["Last-Modified"], 206),
        ('"other"', 200),
        ("W/" + plain["ETag"], 200),
        (OLD, 200),
        ("rubbish", 200),
    ):
        response, _ = await answer(asks(Range="bytes=0-9", If_Range=condition), path)
        assert response.status_code == status, condition
    # Without a range it says nothing.
    response, _ = await answer(asks(If_Range='"other"'), path)
    assert response.status_code == 200
    # Not even that the range is outside.
    response, _ = await answer(asks(Range="bytes=10000-", If_Range='"other"'), path)
    assert response.status_code == 200


@in_loop
async def test_an_empty_file(path: Path) -> None:
    path.write_bytes(b"")
    for headers, status in (({}, 200), ({"Range": "bytes=-5"}, 200), ({"Range": "bytes=0-"}, 416)):
        response, body = await answer(asks(**headers), path)
        assert (response.status_code, body) == (status, b"")


RANGES = st.lists(
    st.tuples(st.integers(0, 3000), st.integers(0, 3000)).map(sorted), min_size=1, max_size=6
)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    data=st.binary(max_size=2500), ranges=RANGES, chunk_size=st.sampled_from([1, 7, 100, 2**18])
)
def test_any_ranges_byte_for_byte(
    tmp_path: Path, data: bytes, ranges: list[list[int]], chunk_size: int
) -> None:
    path = tmp_path / "any.bin"
    path.write_bytes(data)
    header = "bytes=" + ",".join(f"{first}-{last}" for first, last in ranges)

    async def main() -> tuple[Any, bytes]:
        return await answer(asks(Range=header), path, chunk_size=chunk_size)

    response, body = asyncio.run(main())
    wanted = {byte for first, last in ranges for byte in range(first, last + 1)}
    wanted &= set(range(len(data)))
    if response.status_code == 416:
        assert not wanted
        return
    assert response.status_code == 206
    assert int(response["Content-Length"]) == len(body)
    if "Content-Range" in response:
        parts = [("", response["Content-Range"], body)]
    else:
        # As bytes: the email package would read line ends in the content its own way.
        boundary = response["Content-Type"].rpartition("=")[2].encode()
        pieces = body.removeprefix(b"--" + boundary).split(b"\r\n--" + boundary)
        assert pieces.pop() == b"--\r\n"
        parts = []
        for piece in pieces:
            head, _, inner = piece.partition(b"\r\n\r\n")
            named = dict(line.split(": ") for line in head.decode().strip().split("\r\n"))
            parts.append((named["Content-Type"], named["Content-Range"], inner))
    sent: set[int] = set()
    for _, content_range, inner in parts:
        place, _, size = content_range.removeprefix("bytes ").partition("/")
        first, last = map(int, place.split("-"))
        assert int(size) == len(data)
        assert inner == data[first : last + 1]
        assert not sent & set(range(first, last + 1))
        sent |= set(range(first, last + 1))
    assert sent == wanted


# Reading and closing


def test_hops(run: Run, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file is one trip to a thread; a large one a trip for each chunk."""
    from nuages.http import files

    hops = []

    async def counted(function: Any, *args: Any) -> Any:
        hops.append(function)
        return await in_thread(function, *args)

    in_thread = file_bodies.in_thread
    monkeypatch.setattr(files, "in_thread", counted)
    monkeypatch.setattr(file_bodies, "in_thread", counted)

    async def main() -> None:
        for chunk_size, expected in ((10_000, 1), (9_999, 2), (1_000, 10)):
            hops.clear()
            _, body = await answer(asks(), path, chunk_size=chunk_size)
            assert body == TEN_THOUSAND
            assert len(hops) == expected

    run(main)


@in_loop
async def test_a_small_file_is_closed_before_it_is_sent(path: Path) -> None:
    response = await afile_response(asks(), path)
    assert not open_files(path.parent)
    assert await content(response) == TEN_THOUSAND


@in_loop
async def test_closed_on_disconnect_wherever_it_is(path: Path) -> None:
    for chunks in range(4):
        response = await afile_response(asks(), path, chunk_size=1000)
        stream = aiter(response)
        for _ in range(chunks):
            await anext(stream)
        assert open_files(path.parent)
        await stream.aclose()
        assert not open_files(path.parent)
        assert [chunk async for chunk in stream] == []
        response.close()


@in_loop
async def test_closed_when_it_is_never_iterated(path: Path) -> None:
    response: Any = await afile_response(asks(), path, chunk_size=1000)
    assert open_files(path.parent)
    response.close()
    assert not open_files(path.parent)


def test_closed_when_cancelled_while_it_is_opened(
    run: Run, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nuages.http import files

    async def main() -> None:
        loop = asyncio.get_running_loop()
        opened = asyncio.Event()

        def respond(*args: Any) -> Any:
            response = stock(*args)
            assert open_files(path.parent)
            loop.call_soon_threadsafe(opened.set)
            return response

        stock = files._respond
        monkeypatch.setattr(files, "_respond", respond)
        task = asyncio.create_task(afile_response(asks(), path, chunk_size=1000))
        await opened.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not open_files(path.parent)
        monkeypatch.undo()

    run(main)


@in_loop
async def test_closed_when_cancelled_while_it_is_read(path: Path) -> None:
    response = await afile_response(asks(), path, chunk_size=1000)
    stream = aiter(response)
    await anext(stream)
    task = asyncio.create_task(anext(stream))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not open_files(path.parent)


@in_loop
async def test_a_file_that_shrinks_ends_with_an_error(path: Path) -> None:
    response = await afile_response(asks(), path, chunk_size=1000)
    stream = aiter(response)
    await anext(stream)
    path.write_bytes(TEN_THOUSAND[:1500])
    with pytest.raises(FileTruncated, match=r"report\.bin.*became shorter"):
        await anext(stream)
    assert not open_files(path.parent)


@in_loop
async def test_a_file_that_grows_is_sent_as_long_as_promised(path: Path) -> None:
    response = await afile_response(asks(), path, chunk_size=1000)
    with path.open("ab") as file:
        file.write(b"more")
    assert await content(response) == TEN_THOUSAND


@in_loop
async def test_a_file_that_is_replaced_is_sent_as_it_was(path: Path) -> None:
    response = await afile_response(asks(), path, chunk_size=1000)
    other = path.with_name("other")
    other.write_bytes(b"other")
    other.rename(path)
    assert await content(response) == TEN_THOUSAND


@in_loop
async def test_what_is_no_file_is_not_found(path: Path) -> None:
    os.mkfifo(path.parent / "pipe")
    (path.parent / "loop").symlink_to("loop")
    for wrong in (path.parent, path.parent / "missing", path / "below", path.parent / "pipe",
                  path.parent / "loop", f"{path}\0", path.parent / ("x" * 300)):  # fmt: skip
        with pytest.raises(Http404, match=r"is not a file|does not exist|cannot be a file's name"):
            await afile_response(asks(), wrong)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
@in_loop
async def test_a_file_that_may_not_be_read_is_an_error(path: Path) -> None:
    path.chmod(0)
    with pytest.raises(PermissionError):
        await afile_response(asks(), path)


async def test_a_wrong_chunk_size(path: Path) -> None:
    with pytest.raises(ValueError, match="bytes from 1, not 0"):
        await afile_response(asks(), path, chunk_size=0)


# Around it


@in_loop
async def test_the_server_that_sends_paths_gets_no_bytes_read(path: Path) -> None:
    request = asks()
    request.scope["extensions"] = {"http.response.pathsend": {}}
    response: Any = await afile_response(request, path)
    assert response.pathsend == str(path)
    assert response.direct_content.body.ahead == b""
    response.close()
    # A range is not the whole file.
    request = asks(Range="bytes=0-9")
    request.scope["extensions"] = {"http.response.pathsend": {}}
    response, body = await answer(request, path)
    assert (response.pathsend, body) == (None, TEN_THOUSAND[:10])


@in_loop
async def test_a_relative_path_is_sent_as_absolute(path: Path) -> None:
    response: Any = await afile_response(asks(), os.path.relpath(path))
    assert response.pathsend == str(path)
    response.close()


@in_loop
async def test_djangos_middleware_changes_nothing(path: Path) -> None:
    for headers, status in (({}, 200), ({"Range": "bytes=0-9"}, 206)):
        request = asks(Accept_Encoding="gzip", **headers)
        response: Any = await afile_response(request, path)
        before = dict(response.items())
        for middleware in (GZipMiddleware, ConditionalGetMiddleware):
            instance = middleware(lambda request: response)  # noqa: B023
            assert instance.process_response(request, response) is response
        assert dict(response.items()) == before
        assert response.status_code == status
        assert await content(response) == TEN_THOUSAND[: 10 if status == 206 else None]


@in_loop
async def test_what_a_middleware_wraps_is_not_sent_by_path(path: Path) -> None:
    response: Any = await afile_response(asks(), path, chunk_size=1000)

    async def reversed_(content: Any) -> Any:
        async for chunk in content:
            yield chunk[::-1]

    response.streaming_content = reversed_(response.streaming_content)
    assert response.pathsend is None
    stream = aiter(response)
    assert await anext(stream) == TEN_THOUSAND[999::-1]
    await stream.aclose()
    assert not open_files(path.parent)
    response.close()


@in_loop
async def test_under_wsgi_it_is_read_by_the_requests_thread(path: Path) -> None:
    factory = RequestFactory()
    response: Any = await afile_response(factory.get("/"), path, chunk_size=3000)
    assert not response.is_async
    assert b"".join(response) == TEN_THOUSAND
    response.close()
    request = factory.get("/", headers={"Range": "bytes=-10"})
    response = await afile_response(request, path)
    assert response.getvalue() == TEN_THOUSAND[-10:]
    response.close()


async def file(request: HttpRequest) -> Any:
    return await afile_response(request, os.environ["FILE_OF_THE_TEST"], chunk_size=1000)


urlpatterns = [url_path("file/", file)]


@pytest.mark.parametrize("offered", [True, False])
def test_the_handler_sends_the_path_where_the_server_offers_it(
    run: Run, path: Path, monkeypatch: pytest.MonkeyPatch, offered: bool
) -> None:
    monkeypatch.setenv("FILE_OF_THE_TEST", str(path))
    extensions: dict[str, Any] = {"http.response.pathsend": {}} if offered else {}

    async def sent(**options: Any) -> list[Any]:
        application = get_asgi_application()
        exchange = Exchange(application, "/file/", extensions=extensions, **options)
        await exchange()
        assert not open_files(path.parent)
        return exchange.sent

    async def main() -> None:
        start, *rest = await sent()
        assert start["status"] == 200
        if offered:
            assert rest == [{"type": "http.response.pathsend", "path": str(path)}]
        else:
            assert b"".join(message.get("body", b"") for message in rest) == TEN_THOUSAND
        start, *rest = await sent(headers=[(b"range", b"bytes=0-9")])
        assert start["status"] == 206
        assert (
            b"".join(message["body"] for message in rest if "body" in message)
            == (TEN_THOUSAND[:10])
        )
        start, *rest = await sent(method="HEAD")
        assert not any(message.get("body") for message in rest)

    with override_settings(ROOT_URLCONF=__name__):
        run(main)
