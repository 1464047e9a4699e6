"""What a process does around its loops: one after another, forks, no lifespan, its end."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import psycopg
import pytest
import uvloop
from asgiref.sync import sync_to_async
from django.db import connections
from django.test import override_settings

from nuages.asgi import get_asgi_application
from nuages.db import acursor
from nuages.db.pool import pool as pools
from tests.integration.conftest import Run
from tests.integration.pool_tools import OURS, backend, fetch, options, server
from tests.library.models import Author

ROOT = Path(__file__).parents[2]


def sessions(entry: dict[str, Any], wanted: int) -> None:
    """Poll the server, from outside of any loop, until we have `wanted` sessions."""
    with psycopg.connect(
        host=entry["HOST"],
        port=entry["PORT"] or None,
        user=entry["USER"],
        password=entry["PASSWORD"],
        dbname=entry["NAME"],
        autocommit=True,
    ) as client:
        found = None
        for _ in range(5000):
            (found,) = client.execute(f"SELECT count(*) {OURS}").fetchone() or (None,)
            if found == wanted:
                return
        raise AssertionError(f"{found} sessions, not {wanted}")


async def _use() -> int:
    await asyncio.gather(*(backend() for _ in range(3)))
    return await Author.objects.acount()


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_loops_one_after_another_leave_no_connection(
    postgresql: dict[str, Any], factory: Any
) -> None:
    for _ in range(3):
        with asyncio.Runner(loop_factory=factory) as runner:
            assert runner.run(_use()) == 0
        sessions(postgresql, 0)


def test_a_thread_that_queries_first_leaves_no_connection(
    postgresql: dict[str, Any], run: Run
) -> None:
    """The pool is the loop's, whoever asks for it first."""

    async def main() -> None:
        assert await sync_to_async(Author.objects.count)() == 0

    run(main)
    sessions(postgresql, 0)


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_loop_closed_without_goodbye_is_cleaned_up_at_the_next_use(
    postgresql: dict[str, Any], factory: Any
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop = factory()
        loop.run_until_complete(_use())
        loop.close()
        assert len([pool for pool in pools._pools.get(loop, {}).values()]) == 1
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(_use())
        sessions(postgresql, 0)
        del loop, runner
        gc.collect()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_child_opens_connections_of_its_own(postgresql: dict[str, Any], run: Run) -> None:
    options(max_size=2)

    async def main() -> None:
        before = {await backend()}
        async with server() as pg:
            read, write = os.pipe()
            child = os.fork()
            if child == 0:
                _in_child(write)
            os.close(write)
            with os.fdopen(read) as pipe:
                answer = json.loads(pipe.read() or "{}")
            _, status = os.waitpid(child, 0)  # noqa: ASYNC222
            assert answer.get("error") is None, answer
            assert status == 0
            assert answer["pid"] not in before
            assert answer["count"] == 1
            # The parent's connection works, and is the same one.
            assert await backend() in before
            await pg.until_sessions(1)

    Author.objects.create(name="Ursula")
    connections["default"].close()
    run(main)


def _end_in_time() -> None:
    """In a forked child: never outlive the tests, whatever hangs."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the parent's is pytest's
    signal.alarm(20)


def _in_child(write: int) -> None:
    answer: dict[str, Any] = {}
    _end_in_time()
    try:
        warnings.simplefilter("error")

        async def work() -> None:
            answer["pid"] = await backend()
            answer["count"] = await Author.objects.acount()

        asyncio.run(work())
        gc.collect()
    except BaseException as error:
        answer["error"] = repr(error)
    os.write(write, json.dumps(answer).encode())
    os._exit(0 if "error" not in answer else 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_child_of_a_process_with_sqlite(sqlite: dict[str, Any], run: Run) -> None:
    Author.objects.create(name="Ursula")

    async def main() -> None:
        assert await Author.objects.acount() == 1
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            _end_in_time()
            answer: dict[str, Any] = {}
            try:

                async def work() -> None:
                    answer["count"] = await Author.objects.acount()
                    await Author.objects.acreate(name="Child")

                asyncio.run(work())
            except BaseException as error:
                answer["error"] = repr(error)
            os.write(write, json.dumps(answer).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            answer = json.loads(pipe.read() or "{}")
        os.waitpid(child, 0)  # noqa: ASYNC222
        assert answer == {"count": 1}
        assert await Author.objects.acount() == 2

    run(main)


@override_settings(ROOT_URLCONF="tests.integration.test_process")
def test_an_application_without_lifespan(postgresql: dict[str, Any], run: Run) -> None:
    application = get_asgi_application()

    async def main() -> None:
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET",
            "path": "/count/", "raw_path": b"/count/", "query_string": b"", "root_path": "",
            "scheme": "http", "headers": [], "server": ("testserver", 80), "client": None,
        }  # fmt: skip
        sent: list[dict[str, Any]] = []
        finished = asyncio.Event()
        requests = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> dict[str, Any]:
            if requests:
                return requests.pop()
            await finished.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await application(scope, receive, send)
        assert [message.get("body") for message in sent][1:] == [b"0"]

    run(main)
    sessions(postgresql, 0)


async def count(request: Any) -> Any:
    from django.http import HttpResponse

    return HttpResponse(str(await Author.objects.acount()))


def _urls() -> list[Any]:
    from django.urls import path

    return [path("count/", count)]


urlpatterns = _urls()

SCRIPT = """
import asyncio, json, sys
import django
from django.conf import settings
settings.configure(
    DATABASES={"default": json.loads(sys.argv[1])},
    INSTALLED_APPS=["django.contrib.contenttypes", "nuages"],
    USE_TZ=True,
)
django.setup()
from django.db import connection
from nuages.db import acursor

async def main():
    async with acursor() as cursor:
        await cursor.execute("SELECT 1")
        print((await cursor.fetchone())[0], flush=True)

"""
ENDINGS = {
    "run": "asyncio.run(main())",
    "twice": "asyncio.run(main()); asyncio.run(main())",
    "open pool": "loop = asyncio.new_event_loop(); loop.run_until_complete(main())",
    "closed loop": (
        "loop = asyncio.new_event_loop(); loop.run_until_complete(main()); loop.close()"
    ),
    "exit inside": "async def leave():\n    await main()\n    sys.exit(0)\nasyncio.run(leave())",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_process_ends_without_noise(database: str, ending: str) -> None:
    entry = {
        key: connections.settings["default"][key]
        for key in ("ENGINE", "NAME", "HOST", "PORT", "USER", "PASSWORD")
    }
    command = [sys.executable, "-X", "dev", "-W", "error"]
    done = subprocess.run(
        [*command, "-c", SCRIPT + ENDINGS[ending], json.dumps(entry)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=50,
    )
    # asyncio itself says so of a loop that nobody closed.
    noise = [
        line
        for line in done.stderr.splitlines()
        if ending != "open pool" or "connection" in line.lower() or "nuages" in line
    ]
    assert noise == []
    assert done.returncode == 0
    assert done.stdout.split()[0] == "1"


def test_a_database_in_memory_outlives_its_loops(sqlite: dict[str, Any]) -> None:
    """It is one connection: of the thread that migrates first, and of every loop after it."""
    from django.core.management import call_command

    sqlite["NAME"] = ":memory:"
    connections["default"].settings_dict["NAME"] = ":memory:"
    options(max_idle=0, max_lifetime=0)
    try:
        call_command("migrate", run_syncdb=True, verbosity=0)
        Author.objects.create(name="Sync")

        async def add(name: str) -> list[str]:
            await Author.objects.acreate(name=name)
            await asyncio.gather(*(fetch("SELECT 1") for _ in range(5)))
            return [author.name async for author in Author.objects.order_by("pk")]

        assert asyncio.run(add("first")) == ["Sync", "first"]
        assert asyncio.run(add("second")) == ["Sync", "first", "second"]
        assert Author.objects.count() == 3
    finally:
        _forget_memory()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_child_has_a_copy_of_a_database_in_memory(sqlite: dict[str, Any]) -> None:
    """Its worker is a thread of the parent: the child needs one of its own."""
    connections["default"].settings_dict["NAME"] = ":memory:"

    async def create() -> int:
        async with acursor() as cursor:
            await cursor.execute("CREATE TABLE IF NOT EXISTS t (x)")
            await cursor.execute("INSERT INTO t VALUES (1)")
        return int(await fetch("SELECT count(*) FROM t"))

    try:
        assert asyncio.run(create()) == 1
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            _end_in_time()
            try:
                answer = str(asyncio.run(create()))
            except BaseException as error:
                answer = repr(error)
            os.write(write, answer.encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            assert pipe.read() == "2"
        os.waitpid(child, 0)
        assert asyncio.run(create()) == 2
    finally:
        _forget_memory()


def _forget_memory() -> None:
    from nuages.db.backends.sqlite3 import base

    for key in list(base._in_memory):
        connection = base._in_memory.pop(key)
        while connection.is_alive():
            connection.close()  # of one user after the other
