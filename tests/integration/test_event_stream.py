"""Event streams and files under a real uvicorn, with GZipMiddleware in front."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.both_loops

ROOT = Path(__file__).parents[2]
_migrated: bytes | None = None
"""The site's database as `migrate` made it, for the next test."""


@dataclass
class Site:
    """A running site: its address, its process and the file it serves."""

    url: str
    process: subprocess.Popen[str]
    file: Path

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, **options)


@pytest.fixture(params=["asyncio", "uvloop"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """uvicorn with the site of streams on a SQLite file."""
    application = "tests.integration.tiny_asgi:application"
    with served(tmp_path, application, request.param) as site:
        yield site


@contextlib.contextmanager
def served(tmp_path: Path, application: str, loop: str, *settings: str) -> Iterator[Site]:
    """Serve the site of streams; `settings` are more lines of its settings."""
    global _migrated
    database = tmp_path / "site.sqlite3"
    (tmp_path / "site_settings.py").write_text(
        textwrap.dedent(f"""
            from tests.settings import *
            ROOT_URLCONF = "tests.integration.stream_site"
            MIDDLEWARE = [
                "django.middleware.gzip.GZipMiddleware",
                "django.middleware.http.ConditionalGetMiddleware",
                "django.middleware.common.CommonMiddleware",
            ]
            DATABASES = {{"default": {{
                "ENGINE": "nuages.db.backends.sqlite3",
                "NAME": {str(database)!r},
                "OPTIONS": {{"pool": {{"max_size": 2}}}},
            }}}}
        """)
        + "\n".join(settings)
    )
    file = tmp_path / "numbers.txt"
    file.write_bytes(b"".join(b"%07d\n" % number for number in range(200_000)))
    environment = os.environ | {
        "DJANGO_SETTINGS_MODULE": "site_settings",
        "PYTHONPATH": os.pathsep.join(
            [str(tmp_path), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
        "PYTHONWARNINGS": "error",
        "STREAM_SITE_FILE": str(file),
    }
    if _migrated is None:
        command = ["migrate", "--run-syncdb", "--skip-checks", "--verbosity=0"]
        subprocess.run(
            [sys.executable, "-m", "django", *command],
            env=environment, cwd=tmp_path, check=True, timeout=50,
        )  # fmt: skip
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        _migrated = database.read_bytes()
    else:
        database.write_bytes(_migrated)
    # The socket listens already, so a request waits until the server takes it: no polling.
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "uvicorn", application),
                *("--fd", str(listener.fileno()), "--loop", loop),
            ],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=[listener.fileno()],
        )
    try:
        yield Site(url, process, file)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def stopped(site: Site) -> str:
    """Stop the site; return what it printed. It ends well, and by itself."""
    site.process.send_signal(signal.SIGTERM)
    output, _ = site.process.communicate(timeout=30)
    assert site.process.returncode in (0, -signal.SIGTERM), output
    assert "Warning" not in output, output
    return output


def test_a_browser_that_reconnects_goes_on_where_it_was(site: Site) -> None:
    with site.client() as http:
        answer = http.get("/count/3/", headers={"Accept-Encoding": "gzip"})
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["Cache-Control"] == "no-cache, no-store, no-transform"
        assert answer.headers["X-Accel-Buffering"] == "no"
        assert not {"content-length", "content-encoding", "etag"} & set(answer.headers)
        assert answer.text == "retry: 10\n\n" + "".join(
            f'event: count\nid: {n}\ndata: {{"n": {n}}}\n\n' for n in (1, 2, 3)
        )
        answer = http.get("/count/5/", headers={"Last-Event-ID": "3"})
        assert [line for line in answer.text.splitlines() if line.startswith("id")] == [
            "id: 4",
            "id: 5",
        ]
        answer = http.head("/silent/")  # would never end, were the source asked
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        # GZipMiddleware is at work, elsewhere.
        zipped = http.get("/tasks/", headers={"Accept-Encoding": "gzip"})
        assert "Accept-Encoding" in zipped.headers.get("Vary", "Accept-Encoding")
    assert "Traceback" not in stopped(site)


def test_heartbeats_and_a_client_that_goes_away(site: Site) -> None:
    with site.client() as http:
        before = http.get("/tasks/").json()["tasks"]
        for round_ in (1, 2):
            with http.stream("GET", "/silent/") as answer:
                chunks = answer.iter_raw()
                received = b""
                while received.count(b":\n\n") < 4:
                    received += next(chunks)
                assert not received.replace(b":\n\n", b"")
            # The response was closed before its end, and so was its connection.
            assert http.get(f"/noted/silent ended/{round_}/").text == "noted"
        with http.stream("GET", "/busy/") as answer:
            chunks = answer.iter_raw()
            for _ in range(10):
                next(chunks)
        assert http.get("/noted/busy ended/1/").text == "noted"
        # The streams' connections are closed and their requests are over: one is left, ours.
        tasks = http.get("/tasks/").json()["tasks"]
        while tasks > before:
            tasks = http.get("/tasks/").json()["tasks"]
    assert "Traceback" not in stopped(site)


def test_a_stop_ends_streams_and_awaits_their_finally(site: Site) -> None:
    async def main() -> None:
        async with (
            httpx.AsyncClient(base_url=site.url, timeout=30) as http,
            http.stream("GET", "/silent/") as silent,
            http.stream("GET", "/busy/") as busy,
        ):
            await http.get("/noted/silent began/1/")
            busy_chunks = busy.aiter_raw()
            await anext(busy_chunks)
            site.process.send_signal(signal.SIGTERM)

            async def rest(chunks: Any) -> bytes:
                # No error: the body has its end, as the protocol wants it.
                return b"".join([chunk async for chunk in chunks])

            ends = await asyncio.gather(rest(silent.aiter_raw()), rest(busy_chunks))
        assert not ends[0].replace(b":\n\n", b"")
        assert ends[1].endswith(b"\n\n")

    asyncio.run(main())
    output, _ = site.process.communicate(timeout=30)
    assert site.process.returncode in (0, -signal.SIGTERM), output
    assert "noted: silent ended" in output
    assert "noted: busy ended" in output
    assert "Traceback" not in output


def test_an_error_in_the_source_cuts_the_connection_and_is_logged(site: Site) -> None:
    with site.client() as http:
        received = b""
        with (
            http.stream("GET", "/broken/") as answer,
            pytest.raises(httpx.RemoteProtocolError, match="incomplete"),
        ):
            for chunk in answer.iter_raw():
                received += chunk
        assert received == b":\n\ndata: before\n\n"
        assert http.get("/count/1/").status_code == 200
    assert "ZeroDivisionError: in the source" in stopped(site)


def test_no_connection_is_held_between_events(site: Site) -> None:
    with site.client() as http:
        answer = http.get("/queries/")
        data = [
            json.loads(line.removeprefix("data: "))
            for line in answer.text.splitlines()
            if line.startswith("data: ")
        ]
        assert data[0::2] == [{"name": f"Ada {n}", "count": n + 1} for n in range(3)]
        assert data[1::2] == [{"used": [0]}] * 3
    assert "Traceback" not in stopped(site)


def test_many_streams_at_once(site: Site) -> None:
    """More than the pool has connections; each gets every event, ordinary requests go on."""

    async def main() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=site.url, timeout=30, limits=limits) as http:
            silent = [await http.send(http.build_request("GET", "/silent/"), stream=True)
                      for _ in range(50)]  # fmt: skip
            await http.get("/noted/silent began/50/")
            answers = await asyncio.gather(*(http.get("/count/20/") for _ in range(20)))
            assert all(answer.text.count("data: ") == 20 for answer in answers)
            assert (await http.get("/tasks/")).json()["used"] in ([], [0])
            for answer in silent:
                await answer.aclose()
            assert (await http.get("/noted/silent ended/50/")).text == "noted"

    asyncio.run(main())
    assert "Traceback" not in stopped(site)


def test_files(site: Site) -> None:
    whole = site.file.read_bytes()
    with site.client(headers={"Accept-Encoding": "gzip"}) as http:
        answer = http.get("/file/")
        assert answer.content == whole
        assert answer.headers["Content-Length"] == str(len(whole))
        assert answer.headers["Content-Disposition"] == 'attachment; filename="numbers.txt"'
        assert "Content-Encoding" not in answer.headers
        etag = answer.headers["ETag"]

        head = http.head("/file/")
        assert (head.content, head.headers["Content-Length"]) == (b"", str(len(whole)))
        assert http.get("/file/", headers={"If-None-Match": etag}).status_code == 304
        assert http.get("/file/", headers={"If-Match": '"other"'}).status_code == 412

        resumed = http.get("/file/", headers={"Range": "bytes=1000000-", "If-Range": etag})
        assert (resumed.status_code, resumed.content) == (206, whole[1_000_000:])
        outside = http.get("/file/", headers={"Range": "bytes=99999999-"})
        assert outside.status_code == 416
        assert outside.headers["Content-Range"] == f"bytes */{len(whole)}"
        several = http.get("/file/", headers={"Range": "bytes=0-7,-8"})
        assert several.headers["Content-Type"].startswith("multipart/byteranges")
        assert b"\r\n\r\n0000000\n\r\n--" in several.content
        assert b"\r\n\r\n0199999\n\r\n--" in several.content
    assert "Traceback" not in stopped(site)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_download_that_is_given_up_leaves_no_file_open(site: Site) -> None:
    with site.file.open("ab") as file:
        file.truncate(200_000_000)  # more than the sockets' buffers take

    def is_open() -> bool:
        targets = []
        for entry in Path(f"/proc/{site.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                targets.append(os.readlink(entry))
        return str(site.file) in targets

    with site.client() as http:
        with http.stream("GET", "/file/") as answer:
            chunks = answer.iter_raw()  # kept: dropped, it would close the response
            next(chunks)
            assert is_open()
        while is_open():  # each turn is a request to the server, which has to see the end first
            http.get("/tasks/")
    assert "Traceback" not in stopped(site)


def test_a_file_that_shrinks_while_it_is_sent_cuts_the_connection(site: Site) -> None:
    with site.file.open("ab") as file:
        file.truncate(200_000_000)
    with site.client() as http:
        with http.stream("GET", "/file/") as answer:
            chunks = answer.iter_raw()
            next(chunks)
            os.truncate(site.file, 0)
            with pytest.raises(httpx.RemoteProtocolError, match="without sending complete"):
                for _ in chunks:
                    pass
        assert http.get("/tasks/").status_code == 200
    assert "FileTruncated" in stopped(site)


def test_under_django_without_nuages(tmp_path: Path) -> None:
    """The handler is Django's: the responses do what they can without ours."""
    (tmp_path / "stock_asgi.py").write_text(
        "from django.core.asgi import get_asgi_application\napplication = get_asgi_application()\n"
    )
    settings = [
        "INSTALLED_APPS.remove('nuages')",
        "DATABASES['default'] |= {'ENGINE': 'django.db.backends.sqlite3', 'OPTIONS': {}}",
    ]
    with (
        served(tmp_path, "stock_asgi:application", "uvloop", *settings) as site,
        site.client() as http,
    ):
        answer = http.get("/count/5/", headers={"Last-Event-ID": "3", "Accept-Encoding": "gzip"})
        assert answer.text.count("data: ") == 2
        with http.stream("GET", "/silent/") as silent:
            chunks = silent.iter_raw()
            assert b":" in next(chunks)
            http.get("/noted/silent began/1/")
        assert http.get("/noted/silent ended/1/").text == "noted"
        assert http.get("/file/").content == site.file.read_bytes()
        assert "Traceback" not in stopped(site)


def test_under_wsgi(tmp_path: Path) -> None:
    (tmp_path / "wsgi_settings.py").write_text(
        "from tests.settings import *\nROOT_URLCONF = 'tests.integration.stream_site'\n"
    )
    file = tmp_path / "file.txt"
    file.write_text("content\n" * 100_000)
    code = """
        import sys, wsgiref.simple_server, wsgiref.util, wsgiref.handlers, io, os
        from django.core.wsgi import get_wsgi_application
        application = get_wsgi_application()

        def ask(path, **headers):
            out = io.BytesIO()
            environ = {"PATH_INFO": path, "REQUEST_METHOD": "GET"} | headers
            wsgiref.util.setup_testing_defaults(environ)
            handler = wsgiref.handlers.SimpleHandler(io.BytesIO(), out, sys.stderr, environ)
            handler.run(application)
            head, _, body = out.getvalue().partition(b"\\r\\n\\r\\n")
            return head.split()[1], body

        assert ask("/file/") == (b"200", open(os.environ["STREAM_SITE_FILE"], "rb").read())
        assert ask("/file/", HTTP_RANGE="bytes=0-6") == (b"206", b"content")
        status, body = ask("/count/3/")
        assert status == b"500", (status, body)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env=os.environ
        | {
            "DJANGO_SETTINGS_MODULE": "wsgi_settings",
            "PYTHONPATH": os.pathsep.join(
                [str(tmp_path), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
            "STREAM_SITE_FILE": str(file),
        },
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    assert "EventStreamNeedsASGI: An EventStream was iterated by sync code" in done.stderr
