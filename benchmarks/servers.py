"""A subject's server process: started, asked, stopped."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.placement import on_cores
from benchmarks.subjects import Subject
from benchmarks.works import Work

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 30.0
"""Seconds for a server's first answer, for any other, and for its end."""


class SubjectError(Exception):
    """A subject does not start, or answers wrongly; the message says which and how."""


class Server:
    """A subject that serves on a port of loopback while the block lasts."""

    def __init__(self, subject: Subject, database_url: str, cores: frozenset[int]) -> None:
        self.subject = subject
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by __exit__)
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen(512)
            self.port: int = listening.getsockname()[1]
            with on_cores(cores):
                self.process = subprocess.Popen(
                    subject.command(listening.fileno()),
                    env={
                        **os.environ,
                        **subject.variables,
                        "BENCH_DATABASE_URL": database_url,
                    },
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=self.log,
                    stderr=subprocess.STDOUT,
                    pass_fds=[listening.fileno()],
                )
        # Ours is closed: if the process ends, its clients are told instead of kept waiting.

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.terminate()
        try:
            self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            if error is None:
                raise self._error(f"did not end within {TIMEOUT:.0f} s of SIGTERM") from None
        if error is None and self.process.returncode not in (0, -signal.SIGTERM):
            raise self._error(f"ended with status {self.process.returncode}")
        if error is None and (logged := self.logged()):
            raise SubjectError(f"{self.subject.name} logged while it was measured:\n{logged}")
        self.log.close()

    def url(self, work: Work) -> str:
        return f"http://127.0.0.1:{self.port}{self.subject.path(work)}"

    def check(self, work: Work) -> None:
        """Ask once; raises SubjectError unless the answer is the one that the work demands."""
        path = self.subject.path(work)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._error(f"did not answer GET {path}: {error!r}") from error
        finally:
            connection.close()
        if answer.status != 200:
            raise self._error(f"answered GET {path} with {answer.status}")
        if json.loads(body) != work.answer:
            raise self._error(f"answered GET {path} with {body!r}, not {work.answer!r}")

    def _error(self, what: str) -> SubjectError:
        return SubjectError(f"{self.subject.name} {what}. Its log:\n{self.logged() or '(empty)'}")

    def logged(self) -> str:
        """What the server wrote so far."""
        self.log.seek(0)
        return self.log.read().strip()
