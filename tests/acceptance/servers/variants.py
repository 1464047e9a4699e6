"""The servers: how each one is started, what it offers, and what it cannot do.

`LIMITS` is the only place that says why a test is left out for a server. Each entry was read in
the source of the version named, and docs/servers.md tells users the same.
"""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass

PYTHON = (sys.executable, "-m")
APPLICATION = "tests.acceptance.servers.site.asgi:application"

GRACE = 2
"""Seconds that each server gives to open requests when it is told to stop."""


@dataclass(frozen=True)
class Variant:
    """One way to run the site."""

    name: str
    server: str
    command: tuple[str, ...]
    """Arguments; `{fd}` stands for the listening socket's descriptor, `{port}` for its port."""
    http: int = 1
    """The HTTP version that its clients speak."""
    lifespan: bool = True
    pathsend: bool = False
    """Whether it sends files by itself (`http.response.pathsend`)."""
    loop: str = "uvloop"
    """The module of the event loop's class: "asyncio" or "uvloop"."""
    stopped: tuple[int, ...] = (0,)
    """The exit codes after SIGTERM."""
    failed_start: int = 1
    """The exit code after a start-up that failed."""
    stopping: str | None = None
    """What the serving process logs when it begins to stop; None: nothing."""
    known_noise: str | None = None
    """The server's own trouble, which has nothing to do with the application: a pattern."""

    def __str__(self) -> str:
        return self.name


def _uvicorn(lifespan: str, loop: str) -> Variant:
    return Variant(
        f"uvicorn-{lifespan}-{loop}",
        "uvicorn",
        (
            *(*PYTHON, "uvicorn", APPLICATION, "--fd", "{fd}", "--lifespan", lifespan),
            *("--loop", loop, "--timeout-graceful-shutdown", str(GRACE)),
        ),
        lifespan=lifespan != "off",
        loop=loop,
        # uvicorn raises the signal again when it is done, for whoever waits for it.
        stopped=(-signal.SIGTERM,),
        stopping="Shutting down",
        failed_start=3,
    )


def _hypercorn(http: int, loop: str, workers: int) -> Variant:
    return Variant(
        f"hypercorn-http{http}-{loop}",
        "hypercorn",
        (
            *(*PYTHON, "hypercorn", APPLICATION, "--bind", "fd://{fd}", "--worker-class", loop),
            *("--workers", str(workers), "--graceful-timeout", str(GRACE)),
            *("--access-logfile", "-"),
        ),
        http=http,
        loop=loop,
        # With worker processes the exit code is lost (run.py: _join_exited is called twice).
        failed_start=0 if workers else 1,
    )


def _granian(http: int) -> Variant:
    return Variant(
        f"granian-http{http}",
        "granian",
        (
            *(*PYTHON, "granian", APPLICATION, "--interface", "asgi", "--http", str(http)),
            *("--port", "{port}", "--workers-kill-timeout", str(GRACE), "--access-log"),
        ),
        http=http,
        pathsend=True,
        stopping="Stopping worker-1",
    )


def _gunicorn(worker: str, worker_class: str, stopping: str) -> Variant:
    return Variant(
        f"gunicorn-{worker}",
        "gunicorn",
        (
            *(*PYTHON, "gunicorn", APPLICATION, "--bind", "fd://{fd}", "-k", worker_class),
            *("--graceful-timeout", str(GRACE), "--access-logfile", "-", "--no-control-socket"),
        ),
        # The socket that was handed over is wrapped twice and closed by the garbage collector,
        # as is the worker's heartbeat file.
        known_noise=(
            r"/gunicorn/arbiter\.py:\d+: ResourceWarning: unclosed <socket"
            r"|^sys:1: ResourceWarning: unclosed file <_io\.FileIO"
        ),
        failed_start=3,
        stopping=stopping,
    )


VARIANTS = [
    _uvicorn("on", "asyncio"),
    _uvicorn("auto", "uvloop"),
    _uvicorn("off", "asyncio"),
    _hypercorn(1, "asyncio", workers=1),
    _hypercorn(2, "uvloop", workers=0),
    _granian(1),
    _granian(2),
    _gunicorn("asgi", "asgi", "Worker shutting down"),
    _gunicorn("uvicorn", "uvicorn_worker.UvicornWorker", "Shutting down"),
    Variant(
        "daphne",
        "daphne",
        (*PYTHON, "daphne", "--fd", "{fd}", "--access-log", "-", APPLICATION),
        lifespan=False,
        loop="asyncio",
    ),
]

H2_CLIENT = (
    "the server announces the end with GOAWAY and goes on with open streams (RFC 9113, 6.8), but "
    "the tests' client, h2, takes that for the end of the connection"
)

LIMITS: dict[tuple[str, str], str] = {
    # The server has it, the protocol has not.
    ("http1", "stream reset"): "the test is about HTTP/2's own streams",
    ("http2", "http/1.1"): "the test is about HTTP/1.1's own framing",
    # uvicorn 0.54
    ("uvicorn-off-asyncio", "lifespan"): "it is switched off",
    ("uvicorn-off-asyncio", "forced end"): (
        "past the grace it cancels what is left (server.py, shutdown) and ends the loop, which "
        "cancels again, cleanup and all; with lifespan the shutdown waits for it"
    ),
    # hypercorn 0.18
    ("hypercorn-http1-asyncio", "stop notice"): (
        "its master tells worker processes through an event that they poll, and the application "
        "after the grace (asyncio/run.py); with --workers 0 the signal itself is seen"
    ),
    ("hypercorn-http2-uvloop", "forced end"): (
        "past the grace it cancels the connection's task group and then starts a task in it "
        "(asyncio/task_group.py, tcp_server.py): RuntimeError, exit code 1"
    ),
    ("hypercorn-http2-uvloop", "back-pressure"): (
        "a closed flow control window makes StreamBuffer.pop(0) wake the sender it should hold "
        "(protocol/h2.py)"
    ),
    # granian 2.8
    ("granian", "forced end"): "it waits for open requests, and kills where a timeout is set",
    ("granian-http2", "drain"): H2_CLIENT,
    ("granian-http2", "stop notice"): H2_CLIENT,
    # gunicorn 27
    ("gunicorn", "forced end"): (
        "the arbiter kills the worker when the worker's own grace ends (arbiter.py, stop)"
    ),
    # daphne 4.2
    ("daphne", "lifespan"): "it has none (django/daphne, issue 264)",
    ("daphne", "drain"): "it cancels what is in flight (server.py, kill_all_applications)",
    ("daphne", "back-pressure"): (
        "every chunk goes to Twisted's transport, which buffers without a bound "
        "(http_protocol.py, handle_reply)"
    ),
}
"""(server or variant, ability) -> why it cannot be asked for there."""

if sys.version_info >= (3, 12):
    LIMITS["hypercorn-http1-asyncio", "forced end"] = (
        "asyncio's Server.wait_closed() waits for open connections since Python 3.12, and "
        "hypercorn 0.18 calls it before the grace begins (asyncio/run.py)"
    )


def limit(variant: Variant, ability: str) -> str | None:
    """Return why `variant` lacks `ability`, or None where it has it."""
    for name in (variant.name, variant.server, f"http{variant.http}"):
        if (name, ability) in LIMITS:
            return f"{name}: {LIMITS[name, ability]}"
    return None
