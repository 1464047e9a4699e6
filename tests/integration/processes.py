"""A site of its own folder, and the project's commands as real processes on it.

Readiness is what a process writes: `Command.wait_for()` reads until the text is there. Nothing
polls, and the tests' own time limit ends what hangs.
"""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

SETTINGS = """
    from tests.settings import *

    DEBUG = True
    ROOT_URLCONF = "site_urls"
    MIDDLEWARE = []
    INSTALLED_APPS = [
        "django.contrib.staticfiles",
        "django.contrib.contenttypes",
        "django.contrib.auth",
        "tests.library",
        "nuages",
    ]
    STATIC_URL = "static/"
    DATABASES = {"default": {
        "ENGINE": "nuages.db.backends.sqlite3",
        "NAME": %r,
        "OPTIONS": {"pool": {"min_size": 1}},
    }}
"""
URLS = """
    from tests.integration.served_site import urlpatterns
"""


KEEPER = """
    # However the tests end, the end of their pipe ends this process.
    import os
    import threading

    def end():
        os.read(0, 1)
        os._exit(70)

    threading.Thread(target=end, daemon=True).start()
"""


class Command:
    """A running command, and what it has written so far.

    A thread reads what it writes: it must not wait for whoever looks at that later, since a pipe
    that is full stops the command, in the middle of a request perhaps.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._read = ""
        self._start = 0
        self._reader = threading.Thread(target=self._pass_on, daemon=True)
        self._reader.start()

    def _pass_on(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    @property
    def output(self) -> str:
        """What it has written so far."""
        while not self._lines.empty() and self._take():
            pass
        return self._read

    def _take(self) -> bool:
        line = self._lines.get()
        if line is None:
            self._lines.put(None)  # for whoever asks again
            return False
        self._read += line
        return True

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Read until the pattern is somewhere in what was written (since `forget()`)."""
        goes_on = True
        while not (match := re.compile(pattern).search(self._read, self._start)):
            if not goes_on:
                raise AssertionError(f"{pattern!r} was not written, but:\n{self._read}")
            goes_on = self._take()
        return match

    def forget(self, match: re.Match[str]) -> None:
        """Have `wait_for()` look only at what was written after the match."""
        self._start = match.end()

    def url(self) -> str:
        """Wait until the command says where it listens."""
        return self.wait_for(r"(https?://[^ ]+)/")[1]

    def end(self, number: int | None = None, timeout: float = 30) -> int:
        """Send a signal, wait for the end, return the exit code."""
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(timeout)
        self.close(timeout)
        return code

    def close(self, timeout: float = 30) -> None:
        """Read the rest, which ends with the last process that can write."""
        self._reader.join(timeout)
        assert not self._reader.is_alive(), f"somebody still writes after:\n{self.output}"
        while self._take():
            pass
        assert self.process.stdout is not None
        self.process.stdout.close()


class Site:
    """A folder with settings and URLs, and an environment to run commands in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = [str(folder), os.environ.get("PYTHONPATH", ""), str(ROOT)]
        self.environment = os.environ | {
            "DJANGO_SETTINGS_MODULE": "site_settings",
            "PYTHONPATH": os.pathsep.join(path),
            "PYTHONWARNINGS": "error",
            "PYTHONUNBUFFERED": "1",
        }
        self.write("site_settings.py", SETTINGS % str(folder / "site.sqlite3"))
        self.write("site_urls.py", URLS)
        self.write("sitecustomize.py", KEEPER)
        self.keeping, self.kept = os.pipe()
        self.commands: list[Command] = []

    def write(self, name: str, text: str) -> Path:
        """Write a file of the site."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    def settings(self, text: str) -> None:
        """Add to the settings."""
        with (self.folder / "site_settings.py").open("a") as file:
            file.write(textwrap.dedent(text) + "\n")

    def migrate(self) -> None:
        """Make the tables."""
        done = self.start("migrate", "--run-syncdb", "--skip-checks", "-v", "0")
        assert done.end() == 0, done.output

    def start(self, *arguments: str, **options: Any) -> Command:
        """Start `manage.py` with these arguments, in a process group of its own."""
        process = subprocess.Popen(
            [sys.executable, "-m", "django", *arguments],
            env=self.environment,
            cwd=self.folder,
            stdin=self.keeping,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **options,
        )
        command = Command(process)
        self.commands.append(command)
        return command


@contextmanager
def site_in(folder: Path) -> Iterator[Site]:
    """A site whose commands, with all they started, end with the block."""
    site = Site(folder)
    try:
        yield site
    finally:
        for command in site.commands:
            if command.process.poll() is None:
                os.killpg(command.process.pid, signal.SIGKILL)
        # The end of all that they started, so that nobody has the other end of what is read.
        os.close(site.keeping)
        os.close(site.kept)
        for command in site.commands:
            command.process.wait()
            command.close()
            print(command.output)  # pytest shows it where the test failed
