"""One module on one side, in a process of its own with a time limit.

Owns the outside of a test process: its folder, its databases, its environment, its end. A process
past its limit is killed with everything it started; what it had written until then counts.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.django_suite.databases import (
    REDIS_MODULES,
    SHIM,
    Server,
    names_for,
    settings_text,
    shim_text,
)
from tests.django_suite.outcomes import Ending, Event, ModuleRun, fold

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = "nuages_suite_settings"
LOG_TAIL = 10_000
# Before the kill, the process writes the stacks of its threads and greenlets into its log.
GRACE = 5.0

_NOT_INHERITED = ("DJANGO_SETTINGS_MODULE", "DJANGO_ALLOW_ASYNC_UNSAFE", "PYTHONWARNINGS")


@dataclass(frozen=True)
class Job:
    """One run to make."""

    side: str
    module: str
    number: int
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Workshop:
    """What all jobs of one call have in common."""

    suite: Path
    database: str
    server: Server | None
    time_limit: float
    package: Path
    redis_url: str | None = None
    """A Valkey of the call's own, without a database number."""
    plain: bool = False
    """Whether the loop's side runs outside a loop."""

    def run(self, job: Job) -> ModuleRun:
        """Run ``job`` and return what became of its tests."""
        began = time.monotonic()
        names = names_for(os.getpid(), job.number)
        with (
            tempfile.TemporaryDirectory(prefix="nuages-suite-") as folder,
            self._databases(names),
        ):
            run = self._run_in(Path(folder), job, names)
        run.seconds = time.monotonic() - began
        return run

    @contextmanager
    def _databases(self, names: tuple[str, str]) -> Iterator[None]:
        if self.server is None:
            yield
            return
        self.server.create(names)
        try:
            yield
        finally:
            self.server.drop(names)

    def _run_in(self, folder: Path, job: Job, names: tuple[str, str]) -> ModuleRun:
        events, log, description = folder / "events", folder / "log", folder / "job.json"
        redis = self.redis_url if job.module in REDIS_MODULES else None
        settings = settings_text(
            job.side, self.database, names, self.server, job.module, redis, job.number
        )
        (folder / f"{SETTINGS}.py").write_text(settings, encoding="utf-8")
        shim = folder / SHIM
        shim.mkdir()
        (shim / "__init__.py").touch()
        (shim / "base.py").write_text(shim_text(job.side, self.database), encoding="utf-8")
        description.write_text(
            json.dumps(
                {
                    "side": job.side,
                    "module": job.module,
                    "plain": self.plain,
                    "database": self.database,
                    "labels": job.labels,
                    "suite": str(self.suite),
                    "folder": str(folder),
                    "settings": SETTINGS,
                    "events": str(events),
                    "time_limit": self.time_limit,
                }
            ),
            encoding="utf-8",
        )
        command = [sys.executable, "-m", "tests.django_suite.launch", str(description)]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self._environment(folder, job.side),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                process.wait(self.time_limit)
                hung = False
            except subprocess.TimeoutExpired:
                hung = True
                if job.side == "loop":
                    process.send_signal(signal.SIGUSR1)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE)
            finally:
                _end(process)
        written = read_events(events)
        tail = log.read_bytes()[-LOG_TAIL:].decode("utf-8", "replace")
        if hung:
            ending = Ending.HUNG
        elif any(event["event"] == "finished" for event in written):
            ending = Ending.FINISHED
        else:
            ending = Ending.CRASHED
        return fold(written, ending, f"exit status {process.returncode}\n{tail}")

    def _environment(self, folder: Path, side: str) -> dict[str, str]:
        environment = {
            name: value for name, value in os.environ.items() if name not in _NOT_INHERITED
        }
        environment |= {"TMPDIR": str(folder), "PYTHONHASHSEED": "0"}
        if side == "loop":
            paths = [str(self.package), environment.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        return environment


def read_events(path: Path) -> list[Event]:
    """Return the events in ``path``; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and all that it started, and wait for it."""
    with suppress(ProcessLookupError):  # the whole group has ended by itself
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
