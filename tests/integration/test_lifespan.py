"""Start-up and shutdown hooks, with the lifespan protocol and without it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.http import HttpRequest, JsonResponse
from django.test import override_settings
from django.urls import path

from nuages.asgi import get_asgi_application, hooks, on_shutdown, on_startup
from nuages.bridge import tasks
from nuages.db.pool.pool import open_pools
from nuages.stopping import announce_stop, is_stopping, wait_for_stop
from tests.integration.asgi_client import Exchange, fetch, where
from tests.integration.conftest import Run
from tests.integration.test_asgi import LifespanOf
from tests.library.models import Author

pytestmark = pytest.mark.both_loops

log: list[str] = []
gates: dict[str, Any] = {}


async def state(request: Any) -> JsonResponse:
    """What the hooks gave; and a mark, which only this request's copy gets."""
    own = {key: value for key, value in request.state.items() if key != "shared"}
    request.state["mark"] = True
    if "shared" in request.state:
        request.state["shared"].append(request.path)
        own["shared"] = len(request.state["shared"])
    return JsonResponse(own)


async def slow(request: HttpRequest) -> JsonResponse:
    gates["begun"].set()
    try:
        await gates["go"].wait()
    except asyncio.CancelledError:
        log.append("request cancelled")
        raise
    log.append("request ended")
    return JsonResponse({})


urlpatterns = [path("state/", state), path("slow/", slow)]


@pytest.fixture(autouse=True)
def _site(sqlite: Any) -> Iterator[None]:
    log.clear()
    gates.clear()
    startup, shutdown = hooks.startup[:], hooks.shutdown[:]
    with override_settings(ROOT_URLCONF=__name__):
        yield
    hooks.startup[:], hooks.shutdown[:] = startup, shutdown


async def until_stopped() -> None:
    """Stop a late start-up's application, as its server's signal would."""
    announce_stop(asyncio.get_running_loop())
    while tasks._spawned:
        await asyncio.wait(list(tasks._spawned))


def test_every_kind_of_hook(run: Run) -> None:
    @on_startup
    async def generator() -> AsyncIterator[dict[str, Any]]:
        log.append("generator in")
        yield {"generator": 1, "shared": []}
        log.append("generator out")

    @on_startup
    @contextlib.asynccontextmanager
    async def manager() -> AsyncIterator[dict[str, Any]]:
        log.append("manager in")
        yield {"manager": 2}
        log.append("manager out")

    @on_startup
    async def coroutine() -> dict[str, Any]:
        await Author.objects.acreate(name="of the coroutine")
        return {"coroutine": 3}

    @on_startup
    def function() -> dict[str, Any]:
        return {"function": where(), "authors": Author.objects.count()}

    @on_startup
    def nothing() -> None:
        log.append("nothing")

    @on_shutdown
    def first() -> None:
        log.append(f"first {Author.objects.count()} {where()}")

    @on_shutdown
    async def second() -> None:
        log.append(f"second {await Author.objects.acount()}")

    async def main() -> None:
        log.clear()
        await Author.objects.all().adelete()
        application = get_asgi_application()
        lifespan = LifespanOf(application)
        assert (await lifespan.start())["type"] == "lifespan.startup.complete"
        assert log == ["generator in", "manager in", "nothing"]
        for number in (1, 2):
            answer = await fetch(application, "/state/")
            # The values are shared, the dict is the request's own: no mark of the other.
            expected = {"generator": 1, "manager": 2, "coroutine": 3, "function": "loop"}
            assert json.loads(answer.content) == expected | {"authors": 1, "shared": number}
        log.clear()
        assert (await lifespan.stop())["type"] == "lifespan.shutdown.complete"
        assert log == ["second 1", "first 1 loop", "manager out", "generator out"]
        assert open_pools() == []

    run(main)


def test_the_servers_own_state(run: Run) -> None:
    """A server that offers `state` copies it itself (ASGI, "Lifespan State")."""

    @on_startup
    def hook() -> dict[str, Any]:
        return {"value": 1}

    async def main() -> None:
        application = get_asgi_application()
        given: dict[str, Any] = {}
        to: asyncio.Queue[Any] = asyncio.Queue()
        sent: asyncio.Queue[Any] = asyncio.Queue()
        task = asyncio.create_task(
            application({"type": "lifespan", "state": given}, to.get, sent.put)
        )
        await to.put({"type": "lifespan.startup"})
        await sent.get()
        assert given == {"value": 1}
        answer = await fetch(application, "/state/", scope={"state": {"value": 7}})
        assert answer.content == b'{"value": 7}'
        await to.put({"type": "lifespan.shutdown"})
        assert (await sent.get())["type"] == "lifespan.shutdown.complete"
        await task

    run(main)


def _opened() -> None:
    @on_startup
    async def opened() -> AsyncIterator[None]:
        log.append("opened")
        yield
        log.append("left")


def test_a_failing_start_up_leaves_what_was_opened(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    _opened()

    @on_startup
    async def failing() -> None:
        raise ValueError("no start")

    @on_startup
    async def never() -> None:
        log.append("never")

    async def main() -> None:
        log.clear()
        lifespan = LifespanOf(get_asgi_application())
        message = await lifespan.start()
        await lifespan.task
        assert message["type"] == "lifespan.startup.failed"
        assert "ValueError: no start" in message["message"]
        assert "in failing" in message["message"]
        assert log == ["opened", "left"]

    run(main)
    assert "The start-up failed." in caplog.messages


@pytest.mark.parametrize("given", [1, "state", [("a", 1)]])
def test_a_hook_that_gives_something_wrong(run: Run, given: Any) -> None:
    @on_startup
    async def wrong() -> Any:
        return given

    async def main() -> None:
        lifespan = LifespanOf(get_asgi_application())
        message = await lifespan.start()
        await lifespan.task
        assert message["type"] == "lifespan.startup.failed"
        assert "it may give None or a dict" in message["message"]

    run(main)


def test_what_is_no_hook() -> None:
    with pytest.raises(TypeError, match=r"on_startup\(\) takes a function, not str"):
        on_startup("hook")  # type: ignore[type-var]
    with pytest.raises(TypeError, match=r"on_shutdown\(\) takes a function, not NoneType"):
        on_shutdown(None)  # type: ignore[type-var]


def test_a_shutdown_hook_that_fails_stops_no_other(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    _opened()

    @on_startup
    async def broken() -> AsyncIterator[None]:
        yield
        raise KeyError("of the generator")

    @on_shutdown
    def last() -> None:
        log.append("last")

    @on_shutdown
    def failing() -> None:
        raise ValueError("of the hook")

    async def main() -> None:
        log.clear()
        lifespan = LifespanOf(get_asgi_application())
        await lifespan.start()
        message = await lifespan.stop()
        assert message["type"] == "lifespan.shutdown.failed"
        assert "of the generator" in message["message"]
        assert "of the hook" in message["message"]
        # "left" comes after a yield without try: nothing was thrown into it.
        assert log == ["opened", "last", "left"]
        assert open_pools() == []

    run(main)
    assert caplog.messages.count("A shutdown hook failed.") == 2


def test_requests_in_flight_end_before_the_hooks(run: Run) -> None:
    _opened()

    async def main() -> None:
        log.clear()
        gates.update(begun=asyncio.Event(), go=asyncio.Event())
        application = get_asgi_application()
        lifespan = LifespanOf(application)
        await lifespan.start()
        exchange = Exchange(application, "/slow/").start()
        await gates["begun"].wait()
        assert not is_stopping()
        await lifespan.to.put({"type": "lifespan.shutdown"})
        await wait_for_stop()
        assert is_stopping()
        assert not lifespan.task.done()
        gates["go"].set()
        assert (await exchange.end()).status == 200
        assert (await lifespan.sent.get())["type"] == "lifespan.shutdown.complete"
        await lifespan.task
        assert log == ["opened", "request ended", "left"]

    run(main)


def test_requests_that_take_too_long_are_cancelled(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    _opened()

    async def main() -> None:
        log.clear()
        gates.update(begun=asyncio.Event(), go=asyncio.Event())
        application = get_asgi_application()
        lifespan = LifespanOf(application)
        await lifespan.start()
        exchange = Exchange(application, "/slow/").start()
        await gates["begun"].wait()
        assert (await lifespan.stop())["type"] == "lifespan.shutdown.complete"
        with pytest.raises(asyncio.CancelledError):
            await exchange.task
        assert log == ["opened", "request cancelled", "left"]

    with override_settings(NUAGES={"SHUTDOWN_TIMEOUT": 0.02}):
        run(main)
    assert "1 requests did not end within 0.02 s" in caplog.text


# Without the protocol


def test_a_late_start_runs_once_for_two_first_requests(run: Run) -> None:
    @on_startup
    async def slow_start() -> AsyncIterator[dict[str, Any]]:
        log.append("start")
        gates["begun"].set()
        await gates["go"].wait()
        yield {"value": 1}
        log.append("stop")

    async def main() -> None:
        log.clear()
        gates.update(begun=asyncio.Event(), go=asyncio.Event())
        application = get_asgi_application()
        exchanges = [Exchange(application, "/state/").start() for _ in range(2)]
        await gates["begun"].wait()
        assert not any(exchange.sent for exchange in exchanges)
        gates["go"].set()
        for exchange in exchanges:
            assert (await exchange.end()).content == b'{"value": 1}'
        assert (await fetch(application, "/state/")).status == 200
        assert log == ["start"]
        await until_stopped()
        assert log == ["start", "stop"]
        assert open_pools() == []

    run(main)


def test_a_late_start_that_fails_is_tried_again(run: Run) -> None:
    attempts: list[int] = []

    @on_startup
    async def hook() -> dict[str, Any]:
        attempts.append(1)
        await gates["go"].wait()
        if len(attempts) % 2:
            raise ValueError("not yet")
        return {"value": 1}

    async def main() -> None:
        attempts.clear()
        gates["go"] = asyncio.Event()
        application = get_asgi_application()
        exchanges = [Exchange(application, "/state/").start() for _ in range(2)]
        gates["go"].set()
        for exchange in exchanges:
            with pytest.raises(ValueError, match="not yet"):
                await exchange.task
        assert len(attempts) == 1
        assert (await fetch(application, "/state/")).content == b'{"value": 1}'
        assert len(attempts) == 2
        await until_stopped()

    run(main)


# The signal


SCRIPT = """
    import asyncio, os, signal, sys, threading
    import django
    from django.conf import settings
    settings.configure(INSTALLED_APPS=["nuages"], DATABASES={})
    django.setup()
    from nuages.asgi import get_asgi_application
    from nuages.stopping import is_stopping, wait_for_stop

    async def main(number):
        order = []
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()

        def of_the_server(*args):
            # Before: is_stopping() is still to come, the loop has been told.
            order.append("server")
            loop.call_soon_threadsafe(stopped.set)

        if sys.argv[1] == "signal":
            signal.signal(number, of_the_server)
        else:
            loop.add_signal_handler(number, of_the_server)
        to, sent = asyncio.Queue(), asyncio.Queue()
        task = asyncio.create_task(
            get_asgi_application()({"type": "lifespan"}, to.get, sent.put)
        )
        await to.put({"type": "lifespan.startup"})
        assert (await sent.get())["type"] == "lifespan.startup.complete"

        async def stream():
            await wait_for_stop()
            order.append("stream")

        waiting = asyncio.create_task(stream())
        await asyncio.sleep(0)
        assert not is_stopping()
        os.kill(os.getpid(), number)
        await stopped.wait()
        await waiting
        assert is_stopping()
        await to.put({"type": "lifespan.shutdown"})
        assert (await sent.get())["type"] == "lifespan.shutdown.complete"
        await task
        print(number.name, sorted(order))

    # One loop after another in one process.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        if sys.argv[2] == "uvloop":
            import uvloop
            factory = uvloop.new_event_loop
        else:
            factory = None
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main(number))
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("handler", ["signal", "add_signal_handler"])
def test_the_signal_releases_streams(handler: str, loop: str) -> None:
    """The server's own handler gets it too, however it was set."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(SCRIPT), handler, loop],
        env={**os.environ, "PYTHONPATH": str(root / "src")},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.stderr == ""
    both = "['server', 'stream']"
    assert done.stdout.splitlines() == [
        f"SIGTERM {both}",
        f"SIGINT {both}",
        f"SIGTERM {both}",
    ]
