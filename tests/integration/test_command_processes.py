"""Async commands as real processes: exit codes, and what is left after SIGINT and SIGTERM."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connections

from tests.integration.processes import Command, Site, site_in
from tests.integration.test_process import sessions
from tests.library.models import Author

COMMAND = """
    import asyncio
    import signal

    from django.core.management.base import CommandError
    from nuages.db import aatomic, acursor
    from nuages.management import AsyncBaseCommand
    from nuages.stopping import is_stopping, wait_for_stop
    from tests.library.models import Author

    class Command(AsyncBaseCommand):
        requires_migrations_checks = True

        def add_arguments(self, parser):
            parser.add_argument("what")

        async def handle(self, **options):
            await getattr(self, options["what"])()

        async def say(self, text):
            self.stdout.write(text)

        async def write(self):
            try:
                async with aatomic():
                    await Author.objects.acreate(name="half")
                    await self.say("ready")
                    await asyncio.Event().wait()
            finally:
                await Author.objects.acreate(name="finally")
                await self.say(f"stopping: {is_stopping()}")

        async def query(self):
            async with aatomic(), acursor() as cursor:
                await Author.objects.acreate(name="half")
                await self.say("ready")
                await cursor.execute("SELECT pg_sleep(600)")

        async def stubborn(self):
            try:
                await self.say("ready")
                await asyncio.Event().wait()
            finally:
                await self.say("cleaning")
                await asyncio.Event().wait()

        async def blocked(self):
            signal.raise_signal(signal.SIGINT)
            await self.say("goes on")
            signal.raise_signal(signal.SIGINT)
            await self.say("never")

        async def worker(self):
            await self.say("ready")
            await wait_for_stop()
            await self.say("in order")

        async def refuse(self):
            raise CommandError("refused", returncode=4)

        async def fail(self):
            raise ValueError("a bug")

        async def leave(self):
            try:
                async with aatomic():
                    await Author.objects.acreate(name="half")
                    raise SystemExit(9)
            finally:
                await self.say(f"left: {await Author.objects.acount()}")

        async def loop(self):
            await self.say(type(asyncio.get_running_loop()).__module__)
"""
WORKER = """
    from jobs.management.commands.job import Command as Job

    class Command(Job):
        stop_timeout = 600
"""


def entry() -> dict[str, Any]:
    """The test's database, for another process."""
    found = connections.settings["default"]
    names = ("ENGINE", "NAME", "HOST", "PORT", "USER", "PASSWORD")
    return {name: found[name] for name in names if name in found}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with site_in(tmp_path) as site:
        site.write("jobs/__init__.py", "")
        site.write("jobs/management/commands/job.py", COMMAND)
        site.write("jobs/management/commands/worker.py", WORKER)
        site.settings("INSTALLED_APPS += ['jobs']")
        yield site


@pytest.fixture
def on_database(site: Site, database: str) -> str:
    site.settings(f"DATABASES = {{'default': {entry()!r}}}")
    return database


def names() -> set[str]:
    return {author.name for author in Author.objects.all()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_rolls_back_cleans_up_and_closes(
    site: Site, on_database: str, number: int
) -> None:
    command = site.start("job", "write")
    command.wait_for("ready")
    code = command.end(number)
    # A shell says 130 of a process that SIGINT ended.
    assert code == (-signal.SIGINT if number == signal.SIGINT else 143), command.output
    assert "stopping: True" in command.output
    assert ("KeyboardInterrupt" in command.output) == (number == signal.SIGINT)
    assert number == signal.SIGINT or "Traceback" not in command.output
    assert "never awaited" not in command.output
    assert "Warning" not in command.output
    if on_database == "postgresql":
        connections["default"].close()
        sessions(connections.settings["default"], 0)
    assert names() == {"finally"}


def test_a_signal_cancels_the_statement_on_the_server(
    site: Site, postgresql: dict[str, Any]
) -> None:
    site.settings(f"DATABASES = {{'default': {entry()!r}}}")
    command = site.start("job", "query")
    command.wait_for("ready")
    assert command.end(signal.SIGTERM) == 143, command.output
    sessions(postgresql, 0)
    assert names() == set()


def test_a_second_signal_cuts_the_clean_up_short(site: Site) -> None:
    command = site.start("job", "stubborn", "--skip-checks")
    command.wait_for("ready")
    command.process.send_signal(signal.SIGINT)
    command.wait_for("cleaning")
    assert command.end(signal.SIGINT) == -signal.SIGINT


def test_a_second_signal_ends_code_that_does_not_await(site: Site) -> None:
    command = site.start("job", "blocked", "--skip-checks")
    assert command.end() == -signal.SIGINT
    assert command.output.startswith("goes on\nTraceback")
    assert "never" not in command.output.splitlines()


def test_a_command_may_end_in_order(site: Site) -> None:
    command = site.start("worker", "worker", "--skip-checks")
    command.wait_for("ready")
    assert command.end(signal.SIGTERM) == 0, command.output
    assert "in order" in command.output


def test_errors_have_djangos_exit_codes(site: Site) -> None:
    refused = site.start("job", "refuse", "--skip-checks")
    failed = site.start("job", "fail", "--skip-checks")
    told = site.start("job", "refuse", "--skip-checks", "--traceback", "--force-color")
    assert refused.end() == 4
    assert refused.output.splitlines() == ["CommandError: refused"]
    assert failed.end() == 1
    assert "ValueError: a bug" in failed.output
    assert told.end() == 1
    assert 'raise CommandError("refused", returncode=4)' in told.output


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_sys_exit_ends_in_order(site: Site, on_database: str) -> None:
    command = site.start("job", "leave", "--skip-checks")
    assert command.end() == 9, command.output
    assert command.output.splitlines()[-1] == "left: 0"
    assert "Traceback" not in command.output
    connections["default"].close()
    sessions(connections.settings["default"], 0)


def test_the_checks_run_first(site: Site) -> None:
    site.settings("STATICFILES_DIRS = 'wrong'")
    command = site.start("job", "loop")
    assert command.end() == 1
    assert "SystemCheckError" in command.output
    assert "uvloop" not in command.output


@pytest.mark.parametrize("there", [True, False])
def test_the_loop_is_uvloops_where_that_is_installed(site: Site, there: bool) -> None:
    if not there:
        with (site.folder / "sitecustomize.py").open("a") as file:
            file.write("\nimport sys\nsys.modules['uvloop'] = None\n")
    command = site.start("job", "loop", "--skip-checks")
    assert command.end() == 0, command.output
    assert command.output.strip() == ("uvloop" if there else "asyncio.unix_events")


def test_what_a_command_writes_is_read_though_nobody_looks() -> None:
    """A pipe that is full would stop it, and with it whoever waits for its answer."""
    code = "print('a line' * 200_000); print('the end')"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    command = Command(process)
    assert process.wait(30) == 0
    command.wait_for("the end")
    assert command.end() == 0
    assert len(command.output) > 1_000_000
