"""What a client may try: headers, bodies, hosts, ranges, paths, keys."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import caches
from django.core.cache.backends.base import CacheKeyWarning
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.test import override_settings
from django.urls import path

from nuages.asgi import get_asgi_application
from nuages.http import afile_response
from nuages.management.requestlog import log
from tests.integration.asgi_tools import Exchange, exchange
from tests.integration.conftest import Run

FOLDER: dict[str, Path] = {}


async def meta(request: HttpRequest) -> HttpResponse:
    names = sorted(name for name in request.META if name.startswith(("HTTP_", "CONTENT_")))
    return HttpResponse("\n".join(f"{name}={request.META[name]}" for name in names))


async def body(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(len(request.body)))


async def form(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(len(request.POST)))


async def host(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.get_host() + request.build_absolute_uri("/x"))


async def file(request: HttpRequest) -> HttpResponseBase:
    return await afile_response(
        request,
        FOLDER["here"] / "file.txt",
        filename=request.GET.get("name", ""),
        as_attachment=True,
        content_type=request.GET.get("type"),
    )


class Site:
    """A URLconf."""

    urlpatterns = [
        path("meta/", meta),
        path("body/", body),
        path("form/", form),
        path("host/", host),
        path("file/", file),
    ]


@pytest.fixture(autouse=True)
def _site(tmp_path: Path, sqlite: dict[str, Any]) -> Any:
    (tmp_path / "file.txt").write_bytes(b"0123456789" * 1000)
    FOLDER["here"] = tmp_path
    with override_settings(
        ROOT_URLCONF=Site, ALLOWED_HOSTS=["site.test"], DATA_UPLOAD_MAX_MEMORY_SIZE=1000,
        MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    ):  # fmt: skip
        yield


def ask(run: Run, target: str, **options: Any) -> Exchange:
    async def main() -> Exchange:
        return await exchange(get_asgi_application(), target, **options)

    found: Exchange = run(main)
    return found


def test_a_header_with_an_underscore_is_not_that_of_the_proxy(run: Run) -> None:
    headers = [(b"x_forwarded_for", b"10.0.0.1"), (b"x-forwarded-for", b"192.0.2.1")]
    assert "HTTP_X_FORWARDED_FOR=192.0.2.1\n" in ask(run, "/meta/", headers=headers).text + "\n"
    assert "FORWARDED" not in ask(run, "/meta/", headers=headers[:1]).text


@pytest.mark.parametrize("given", [[b"5", b"7"], [b"5,7"], [b"-1"], [b"1e9"], [b"9" * 400], [b""]])
def test_a_strange_content_length_is_not_believed(run: Run, given: list[bytes]) -> None:
    headers = [(b"content-length", each) for each in given]
    answer = ask(run, "/body/", method="POST", headers=headers, body=[b"hello"])
    # Django makes an error of its own of what is no number; servers refuse it before.
    assert answer.text == "5" if answer.status == 200 else answer.status in (400, 500)


@pytest.mark.parametrize("target", ["/body/", "/form/"])
@pytest.mark.parametrize("length", [None, b"10", b"2000"])
@pytest.mark.parametrize("pieces", [1, 200])
def test_a_body_above_the_limit_is_refused_whatever_it_says_of_itself(
    run: Run, target: str, length: bytes | None, pieces: int
) -> None:
    headers = [(b"content-type", b"application/x-www-form-urlencoded")]
    if length is not None:
        headers.append((b"content-length", length))
    whole = b"a=" + b"x" * 1998
    size = len(whole) // pieces
    parts = [whole[i : i + size] for i in range(0, len(whole), size)]
    answer = ask(run, target, method="POST", headers=headers, body=parts)
    assert answer.status == 400


def test_too_many_fields_are_refused(run: Run) -> None:
    headers = [(b"content-type", b"application/x-www-form-urlencoded")]
    with override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=None, DATA_UPLOAD_MAX_NUMBER_FIELDS=50):
        many = b"&".join(b"a%d=1" % i for i in range(51))
        assert ask(run, "/form/", method="POST", headers=headers, body=[many]).status == 400


@pytest.mark.parametrize("name", [b"evil.test", b"site.test.evil.test", b"site.test:80@evil.test",
                                  b"site.test/..", b"site.test\x00", b""])  # fmt: skip
def test_a_host_that_is_not_allowed(run: Run, name: bytes) -> None:
    answer = ask(run, "/host/", host=name)
    assert answer.status == 400
    assert "evil" not in answer.text


def test_a_path_of_two_slashes_is_no_other_host(run: Run) -> None:
    with override_settings(APPEND_SLASH=True):
        answer = ask(run, "//evil.test/meta")
    assert answer.status == 404


@pytest.mark.parametrize("what", ["type", "name"])
@pytest.mark.parametrize("ranges", [None, b"bytes=0-1", b"bytes=0-1,5-6"])
def test_a_line_end_in_a_files_name_or_type_begins_no_header(
    run: Run, what: str, ranges: bytes | None
) -> None:
    """A name is encoded, a type refused."""
    headers = [] if ranges is None else [(b"range", ranges)]
    query = what.encode() + b"=text/html%0d%0aX-Evil:%201"
    answer = ask(run, "/file/", query=query, headers=headers)
    assert (answer.status == 500) is (what == "type")
    assert answer.header(b"x-evil") is None
    assert b"\nX-Evil" not in answer.content


def test_a_files_name_is_quoted(run: Run) -> None:
    answer = ask(run, "/file/", query=b"name=a%22;%20filename=%22b.exe")
    assert (
        answer.header(b"content-disposition") == b'attachment; filename="a\\"; filename=\\"b.exe"'
    )


@pytest.mark.parametrize(
    "header",
    [
        b"bytes=" + b",".join(b"%d-%d" % (i, i) for i in range(0, 3000, 2)),
        b"bytes=" + b",".join([b"0-"] * 1500),
        b"bytes=0-" + b"9" * 5000,
        b"bytes=" + b"," * 20000,
        b"bytes=" + b" " * 20000 + b"x",
    ],
)
def test_many_ranges_cost_no_more_than_the_file(run: Run, header: bytes) -> None:
    answer = ask(run, "/file/", headers=[(b"range", header)])
    assert answer.status in (200, 206)
    assert len(answer.content) <= 10_000


def test_ranges_that_overlap_are_sent_once(run: Run) -> None:
    answer = ask(run, "/file/", headers=[(b"range", b"bytes=" + b",".join([b"0-"] * 16))])
    assert (answer.status, len(answer.content)) == (206, 10_000)


def test_a_log_line_moves_no_cursor(caplog: pytest.LogCaptureFixture) -> None:
    """A path as some servers hand it on: with what a terminal would obey."""
    logger = logging.getLogger("django.server")
    logger.addHandler(caplog.handler)
    try:
        scope = {"method": "GET", "raw_path": b"/\x1b[2J\x9b31m\r\nfake/", "path": "/"}
        with caplog.at_level(logging.INFO, "django.server"):
            log(scope, 404, 0)
    finally:
        logger.removeHandler(caplog.handler)
    line = caplog.records[0].getMessage()
    assert line.isprintable()
    assert r"\x1b[2J\x9b31m\r\nfake" in line


def test_a_cache_key_is_no_command(run: Run, valkey_url: str) -> None:
    """What is sent has its length before it, so that nothing in a key or value ends it."""
    entry = {"BACKEND": "nuages.cache.redis.RedisCache", "LOCATION": valkey_url}
    evil = 'a"\r\nSET owned 1\r\n*1\r\n$8\r\nFLUSHALL\r\n'

    async def main() -> None:
        cache = caches["default"]
        await cache.aset("kept", 1)
        await cache.aset(evil, evil)
        assert await cache.aget(evil) == evil
        assert await cache.aget_many([evil, "kept"]) == {evil: evil, "kept": 1}
        assert await cache.aget("kept") == 1
        assert await cache.aget("owned") is None
        await cache.adelete_many([evil, "kept"])

    with override_settings(CACHES={"default": entry}), warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheKeyWarning)
        run(main)
