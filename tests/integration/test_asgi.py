"""The ASGI application: http and lifespan, in-process and under a real uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from nuages import seams
from nuages.asgi import get_asgi_application
from nuages.asgi.handler import ASGIHandler
from nuages.db.pool.pool import open_pools
from tests.integration.conftest import Run, use
from tests.integration.scope_tools import until

pytestmark = pytest.mark.both_loops


@pytest.fixture(autouse=True)
def _site() -> Iterator[None]:
    with override_settings(ROOT_URLCONF="tests.integration.tiny_site", ALLOWED_HOSTS=["*"]):
        yield


def client(application: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(application, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://site.test")


class LifespanOf:
    """Plays the server's part of the lifespan protocol."""

    def __init__(self, application: Any) -> None:
        self.application = application
        self.to: asyncio.Queue[Any] = asyncio.Queue()
        self.sent: asyncio.Queue[Any] = asyncio.Queue()

    async def start(self) -> Any:
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}}
        self.task = asyncio.create_task(self.application(scope, self.to.get, self.sent.put))
        await self.to.put({"type": "lifespan.startup"})
        return await self.sent.get()

    async def stop(self) -> Any:
        await self.to.put({"type": "lifespan.shutdown"})
        message = await self.sent.get()
        await self.task
        return message


@contextlib.asynccontextmanager
async def running(application: Any) -> AsyncIterator[httpx.AsyncClient]:
    lifespan = LifespanOf(application)
    assert (await lifespan.start())["type"] == "lifespan.startup.complete"
    async with client(application) as http:
        yield http
    assert (await lifespan.stop())["type"] == "lifespan.shutdown.complete"


def test_lifespan_warms_and_closes_the_pools(postgresql: dict[str, Any], run: Run) -> None:
    async def main() -> None:
        async with running(get_asgi_application()) as http:
            (pool,) = open_pools()
            assert (pool.stats()["size"], pool.stats()["idle"]) == (3, 3)
            assert (await http.get("/count/")).json() == {"count": 0, "used": [0]}
            assert pool.stats()["opened"] == 3  # the request opened none
        assert pool.closed
        assert open_pools() == []

    entry = {k: v for k, v in postgresql.items() if k != "TEST"}
    use(entry | {"OPTIONS": {"pool": {"min_size": 3}}})
    run(main)


def test_without_min_size_nothing_is_opened(database: str, run: Run) -> None:
    async def main() -> None:
        async with running(get_asgi_application()):
            assert open_pools() == []

    run(main)


def test_a_failing_start_up_reports_its_traceback(postgresql: dict[str, Any], run: Run) -> None:
    async def main() -> None:
        lifespan = LifespanOf(get_asgi_application())
        message = await lifespan.start()
        assert message["type"] == "lifespan.startup.failed"
        assert "Traceback" in message["message"]
        assert "OperationalError" in message["message"]
        assert "refused" in message["message"]
        await lifespan.task

    entry = {k: v for k, v in postgresql.items() if k != "TEST"}
    use(entry | {"PORT": "1", "OPTIONS": {"pool": {"min_size": 2}}})
    run(main)


def test_a_wrong_pool_option_fails_the_start_up(postgresql: dict[str, Any], run: Run) -> None:
    async def main() -> None:
        message = await LifespanOf(get_asgi_application()).start()
        assert message["type"] == "lifespan.startup.failed"
        assert "max_sise" in message["message"]

    entry = {k: v for k, v in postgresql.items() if k != "TEST"}
    use(entry | {"OPTIONS": {"pool": {"max_sise": 2}}})
    run(main)


def test_requests_of_every_kind(database: str, run: Run) -> None:
    async def main() -> None:
        async with client(get_asgi_application()) as http:
            made = await http.post("/add/", data={"name": "Ada"})
            assert made.status_code == 200
            assert (await http.get("/count/")).json()["count"] == 1
            assert (await http.get("/loop/")).json() == {"count": 1, "main": True}
            assert (await http.get("/sync/")).json() == {
                "count": 1,
                "main": False,
                "role": "lease",
            }
            assert (await http.get("/stream/")).text == "Ada\n"
            assert (await http.get("/nowhere/")).status_code == 404
            (pool,) = open_pools()
            assert pool.stats()["used"] == 0
            pool.close()

    run(main)


def test_a_sync_views_thread_borrows_and_gives_back(postgresql: dict[str, Any], run: Run) -> None:
    async def main() -> None:
        async with client(get_asgi_application()) as http:
            answers = await asyncio.gather(*(http.get("/sync/") for _ in range(20)))
            assert {answer.status_code for answer in answers} == {200}
            (pool,) = open_pools()
            assert pool.stats()["used"] == 0
            assert pool.stats()["size"] <= 2
            pool.close()

    entry = {k: v for k, v in postgresql.items() if k != "TEST"}
    use(entry | {"OPTIONS": {"pool": {"max_size": 2}}})
    run(main)


def test_an_error_in_a_view_gives_its_connection_back(database: str, run: Run) -> None:
    async def main() -> None:
        async with client(get_asgi_application()) as http:
            assert (await http.get("/broken/")).status_code == 500
            assert (await http.get("/count/")).json()["count"] == 1
            (pool,) = open_pools()
            assert pool.stats()["used"] == 0
            pool.close()

    run(main)


def test_atomic_requests_roll_back_a_failing_async_view(
    postgresql: dict[str, Any], run: Run
) -> None:
    """Stock Django refuses ATOMIC_REQUESTS for async views."""

    async def main() -> None:
        async with client(get_asgi_application()) as http:
            assert (await http.post("/add/", data={"name": "Ada"})).status_code == 200
            assert (await http.get("/broken/")).status_code == 500
            assert (await http.get("/count/")).json()["count"] == 1
            assert (await http.get("/sync/")).json()["count"] == 1
            (pool,) = open_pools()
            assert pool.stats()["used"] == 0
            pool.close()

    entry = {k: v for k, v in postgresql.items() if k != "TEST"}
    use(entry | {"ATOMIC_REQUESTS": True})
    run(main)


def test_connection_per_request(database: str, run: Run) -> None:
    async def main() -> None:
        async with client(get_asgi_application()) as http:
            for path in ("/count/", "/sync/", "/loop/", "/stream/"):
                assert (await http.get(path)).status_code == 200
            (pool,) = open_pools()
            # What a request held is reset before it is idle.
            await until(lambda: pool.stats()["used"] == 0)
            pool.close()

    with override_settings(NUAGES={"CONNECTION_PER": "request"}):
        run(main)


def test_the_handler_refuses_to_run_without_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    from nuages.seams import installation

    monkeypatch.setattr(installation, "_installed", False)
    monkeypatch.setattr(installation, "_problems", ["django.db:x does not exist"])
    assert not seams.installed()
    with pytest.raises(ImproperlyConfigured, match=r"django\.db:x does not exist"):
        ASGIHandler()


# A real server


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Any]:
    """Start uvicorn on the tiny site with a SQLite file; gives a function of its arguments."""
    processes: list[subprocess.Popen[str]] = []
    (tmp_path / "site_settings.py").write_text(
        textwrap.dedent(f"""
            from tests.settings import *
            ROOT_URLCONF = "tests.integration.tiny_site"
            DATABASES = {{"default": {{
                "ENGINE": "nuages.db.backends.sqlite3",
                "NAME": {str(tmp_path / "site.sqlite3")!r},
                "OPTIONS": {{"pool": {{"min_size": 2}}}},
            }}}}
        """)
    )
    root = Path(__file__).parents[2]
    environment = os.environ | {
        "DJANGO_SETTINGS_MODULE": "site_settings",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)]),
        "PYTHONWARNINGS": "error",
        # A test changes the settings: a file of the same size and second would not be read again.
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    subprocess.run(
        [sys.executable, "-m", "django", "migrate", "--run-syncdb", "--skip-checks", "-v", "0"],
        env=environment, cwd=tmp_path, check=True, timeout=50,
    )  # fmt: skip

    def start(*arguments: str) -> tuple[subprocess.Popen[str], str]:
        listener = socket.create_server(("127.0.0.1", 0))
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "uvicorn", "tests.integration.tiny_asgi:application"),
                *("--fd", str(listener.fileno()), "--log-level", "info", *arguments),
            ],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=[listener.fileno()],
        )
        processes.append(process)
        # The socket listens already, so a request waits until the server takes it: no polling.
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.close()
        return process, url

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("lifespan", ["on", "off", "auto"])
def test_uvicorn_serves_and_stops_on_sigterm(site: Any, lifespan: str, loop: str) -> None:
    process, url = site("--lifespan", lifespan, "--loop", loop)
    with httpx.Client(base_url=url, timeout=30) as http:
        assert http.get("/count/").json()["count"] == 0
        assert http.post("/add/", data={"name": "Ada"}).status_code == 200
        assert http.get("/loop/").json() == {"count": 1, "main": True}
        assert http.get("/sync/").json()["count"] == 1
        assert http.get("/stream/").text == "Ada\n"
        states = json.loads(http.get("/pools/").text)
        assert states["default"]["used"] == 0
        if lifespan != "off":
            assert states["default"]["size"] >= 2
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode in (0, -signal.SIGTERM), output
    assert "Traceback" not in output
    assert "Warning" not in output
    assert ("Application shutdown complete" in output) == (lifespan != "off")


def test_uvicorn_does_not_start_where_start_up_fails(site: Any, tmp_path: Path) -> None:
    settings = tmp_path / "site_settings.py"
    settings.write_text(settings.read_text().replace('"min_size"', '"min_sise"'))
    process, _ = site("--lifespan", "on")
    output, _ = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "min_sise" in output
    assert "Application startup failed" in output
