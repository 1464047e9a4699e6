"""A server as a real process: a socket that listens before it starts, its log, its end.

Nobody waits for readiness. Where the server takes a listening socket over, a client's connection
waits in that socket's queue until the server accepts it. granian opens its own socket: there a
bound socket of ours keeps the port free for it, and the line that it logs says when it listens.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.acceptance.servers.variants import Variant

ROOT = Path(__file__).parents[3]

NOISE = re.compile(
    r"Traceback|Exception in |Exception ignored|Error in ASGI|Unhandled|never awaited|"
    r"was destroyed but it is pending|: ResourceWarning|RuntimeWarning|took too long|"
    r"exception was never retrieved|^Internal Server Error:|"
    r"without completing|CRITICAL|\bERROR\b|\[error\]",
)
"""Lines that no server may log while it serves the tests."""


class Server:
    """A running server; made by `started`."""

    def __init__(self, variant: Variant, process: subprocess.Popen[str], port: int) -> None:
        self.variant = variant
        self.process = process
        self.port = port
        self.log: list[str] = []
        self.takes_over = any("{fd}" in argument for argument in variant.command)
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.log.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_for_line(self, pattern: str, timeout: float = 30) -> str:
        """Return the first line of the log with `pattern`; wait for it."""
        wanted = re.compile(pattern)

        def found() -> str | None:
            return next((line for line in self.log if wanted.search(line)), None)

        with self._changed:
            self._changed.wait_for(lambda: found() is not None or self._ended, timeout)
            line = found()
        assert line is not None, f"no line with {pattern!r} in:\n{self.text}"
        return line

    @property
    def text(self) -> str:
        return "\n".join(self.log)

    def client(self) -> httpx.Client:
        """A client that speaks the variant's version of HTTP."""
        return httpx.Client(**self._options())

    def async_client(self) -> httpx.AsyncClient:
        """The same for requests at once: an HTTP/2 connection of httpx's is one thread's."""
        return httpx.AsyncClient(**self._options())

    def _options(self) -> dict[str, Any]:
        http2 = self.variant.http == 2
        # A connection of each client's own: none of another test's keep-alive.
        own = {"base_url": self.url, "timeout": 30.0, "trust_env": False}
        return {"http1": not http2, "http2": http2, **own}

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = 30) -> int:
        """Wait until the server has ended and its log is complete; return its exit code."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.variant} did not end:\n{self.text}") from None
        self._reader.join(timeout)
        assert not self._reader.is_alive(), f"a child of {self.variant} still has its output"
        return self.process.returncode

    def assert_quiet(self, since: int = 0) -> None:
        """Assert that the log, from that line on, tells of no trouble."""
        lines = self.log[since:]
        known = self.variant.known_noise
        for number, line in enumerate(lines):
            if NOISE.search(line) and not (known and re.search(known, line)):
                trouble = "\n".join(lines[max(0, number - 3) : number + 60])
                raise AssertionError(f"{self.variant} logged {line!r}:\n{trouble}")

    def wait_until_it_listens(self) -> None:
        """Return when the server accepts connections; at once where it has our socket."""
        if not self.takes_over:
            # granian logs this and then listens: what is left is a moment, without an event.
            self.wait_for_line("Started worker-1")
            for _ in range(100_000):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                        return
            raise AssertionError(f"{self.variant} does not listen:\n{self.text}")


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill the server with its workers: they are a group of their own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


@contextmanager
def started(variant: Variant, environment: Mapping[str, str], home: Path) -> Iterator[Server]:
    """Start the server on the site; whatever of it is left at the end is killed."""
    keeper = socket.socket()
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    takes_over = any("{fd}" in argument for argument in variant.command)
    if not takes_over:
        # Linux lets granian's socket share the port, and gives connections to listeners only.
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    keeper.bind(("127.0.0.1", 0))
    if takes_over:
        keeper.listen(128)
    port = keeper.getsockname()[1]
    command = [part.format(fd=keeper.fileno(), port=port) for part in variant.command]
    process = subprocess.Popen(
        command,
        cwd=home,
        env=os.environ
        | {
            "DJANGO_SETTINGS_MODULE": "tests.acceptance.servers.site.settings",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
            "PYTHONUNBUFFERED": "1",
            # Every warning is logged, each time: `NOISE` finds those that matter.
            "PYTHONWARNINGS": "always",
        }
        | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        pass_fds=[keeper.fileno()] if takes_over else [],
        start_new_session=True,
    )
    if takes_over:
        keeper.close()  # else connections would go on waiting in it when the server is gone
    server = Server(variant, process, port)
    try:
        yield server
    finally:
        _kill(process)
        server._reader.join()
        assert process.stdout is not None
        process.stdout.close()
        keeper.close()
