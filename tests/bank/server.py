"""The process that serves the site; its socket is the parent's, so that it can be restarted."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PATIENCE = 40.0
"""Seconds that a server gets to stop by itself."""


class Site:
    """uvicorn with uvloop, as for the soak. Clients that connect meanwhile wait in the socket."""

    def __init__(self, log: Any) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self._listener.getsockname()[1]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.crashes: list[str] = []
        """How processes ended that were not told to, or not so."""

    def start(self) -> None:
        """Start a process."""
        environment = os.environ | {
            "DJANGO_SETTINGS_MODULE": "tests.bank.settings",
            "PYTHONFAULTHANDLER": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        descriptor = self._listener.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.soak.serve", str(descriptor)],
            env=environment,
            pass_fds=[descriptor],
            stdout=self._log,
            stderr=self._log,
        )

    async def stop(self, number: signal.Signals) -> None:
        """End the process by that signal, and note where it ends by something else."""
        assert self._process is not None
        process, self._process = self._process, None
        process.send_signal(number)
        try:
            code = await asyncio.to_thread(process.wait, PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            self.crashes.append(f"the server did not stop {PATIENCE:g} s after {number.name}")
            return
        if code not in (0, -number):
            self.crashes.append(f"the server ended with {code}, told to by {number.name}")

    def check(self) -> None:
        """Start a new process where one has ended by itself, and note it."""
        if self._process is not None and (code := self._process.poll()) is not None:
            self.crashes.append(f"the server ended by itself, with {code}")
            self.start()

    def close(self) -> None:
        """End what is left of it."""
        self._listener.close()
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
