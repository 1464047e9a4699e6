"""`manage.py shell`, as a process: code that is given to it, and its prompt on a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
from django.core.management import call_command
from django.core.management.commands import shell
from django.db import connections

from nuages.db import aatomic
from tests.integration.conftest import Run
from tests.integration.processes import Site, site_in
from tests.integration.test_process import sessions
from tests.library.models import Author


@pytest.fixture
def site(tmp_path: Path, database: str) -> Iterator[Site]:
    with site_in(tmp_path) as site:
        found = connections.settings["default"]
        names = ("ENGINE", "NAME", "HOST", "PORT", "USER", "PASSWORD")
        entry = {name: found[name] for name in names if name in found}
        site.settings(f"DATABASES = {{'default': {entry!r}}}")
        site.write("sitecustomize.py", "")  # it would read stdin, which is the shell's
        site.environment |= {"PYTHON_HISTORY": "/dev/null", "HOME": str(tmp_path), "TERM": "dumb"}
        site.environment.pop("PYTHONSTARTUP", None)
        yield site


def shell_of(site: Site, *arguments: str, text: str | None = None) -> tuple[int, str, str]:
    """Run `manage.py shell` to its end: code, stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "django", "shell", *arguments],
        env=site.environment,
        cwd=site.folder,
        input=text,
        # Nothing to read is not the end of what is read.
        stdin=site.keeping if text is None else None,
        capture_output=True,
        text=True,
        timeout=50,
    )
    return done.returncode, done.stdout, done.stderr


def no_session_left(database: str) -> None:
    if database == "postgresql":
        connections["default"].close()
        sessions(connections.settings["default"], 0)


AWAITING = """
async def add():
    await Author.objects.acreate(name="Frank")
await add()
print(await Author.objects.acount(), Author.objects.count(), Author.objects.get().mentor)
exec("import os")
print("DJANGO_ALLOW_ASYNC_UNSAFE" in os.environ)
"""


def test_given_code_may_await_and_query(site: Site, database: str) -> None:
    code, out, err = shell_of(site, "-v", "0", "-c", AWAITING)
    assert (code, out, err) == (0, "1 1 None\nFalse\n", "")
    no_session_left(database)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_piped_code_may_await(site: Site) -> None:
    code, out, err = shell_of(site, text=AWAITING)
    assert (code, err) == (0, "")
    assert "imported automatically" in out
    assert out.endswith("1 1 None\nFalse\n")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_code_that_does_not_await_runs_as_ever(site: Site) -> None:
    """Without a loop: so it may start one."""
    text = "import asyncio\nprint(Author.objects.count(), asyncio.run(Author.objects.acount()))"
    assert shell_of(site, "-v", "0", "-c", text) == (0, "0 0\n", "")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_an_error_shows_the_users_frames(site: Site) -> None:
    text = "def fail():\n    1/0\nawait Author.objects.acount()\nfail()"
    code, _, err = shell_of(site, "-v", "0", "-c", text)
    assert code == 1
    assert '  File "<string>", line 4, in <module>\n  File "<string>", line 2, in fail\n' in err
    assert "asyncio" not in err
    assert "bridge.py" not in err


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_projects_shell_keeps_its_imports_and_gets_await(site: Site) -> None:
    site.write("jobs/__init__.py", "")
    site.write(
        "jobs/management/commands/shell.py",
        """
        from django.core.management.commands import shell

        class Command(shell.Command):
            def get_auto_imports(self):
                return [*super().get_auto_imports(), "datetime.timedelta"]
        """,
    )
    # After "nuages": it provides no `shell` of its own that would come first.
    site.settings("INSTALLED_APPS += ['jobs']")
    text = "print(await Author.objects.acount(), timedelta(1))"
    code, out, _ = shell_of(site, "-v", "2", "-c", text)
    assert code == 0
    assert "from datetime import timedelta" in out
    assert out.endswith("0 1 day, 0:00:00\n")
    code, _, err = shell_of(site, "--no-imports", "-c", "await Author.objects.acount()")
    assert code == 1
    assert "name 'Author' is not defined" in err


class Prompt:
    """A shell on a terminal."""

    def __init__(self, site: Site, *arguments: str, prompt: str) -> None:
        self.prompt = prompt
        self.process = pexpect.spawn(
            sys.executable,
            ["-m", "django", "shell", *arguments],
            env=site.environment,
            cwd=str(site.folder),
            encoding="utf-8",
            timeout=30,
            dimensions=(24, 200),
        )

    def ask(self, line: str, *answers: str) -> None:
        """Type a line at the prompt and see the answers, in this order."""
        self.process.expect(self.prompt)
        self.process.sendline(line)
        self.see(*answers)

    def see(self, *answers: str) -> None:
        for answer in answers:
            self.process.expect_exact(answer)

    def interrupt(self, *answers: str) -> None:
        self.process.sendintr()
        self.see(*answers)

    def end(self) -> int | None:
        self.process.expect(pexpect.EOF)
        self.process.close()
        return self.process.exitstatus  # type: ignore[no-any-return]


@pytest.fixture
def prompt(site: Site) -> Iterator[Prompt]:
    site.write(".pythonrc.py", "from nuages.db import aatomic\nimport asyncio\n1/0\n")
    prompt = Prompt(site, "-i", "python", "-v", "0", prompt=">>> ")
    yield prompt
    prompt.process.close(force=True)


def test_the_prompt(prompt: Prompt, database: str) -> None:
    prompt.see("ZeroDivisionError", "(AsyncConsole)")
    # One transaction, whoever is in it, from one input to the next.
    prompt.ask("block = aatomic(); await block.__aenter__()")
    prompt.ask("await Author.objects.acreate(name='Frank')", "<Author: Frank>")
    prompt.ask("Author.objects.first()", "\n<Author: Frank>")
    prompt.ask("await block.__aexit__(ValueError, ValueError(), None)")
    prompt.ask("Author.objects.count(), await Author.objects.acount()", "(0, 0)")
    prompt.ask("from django.db import transaction")
    prompt.ask("with transaction.atomic():")
    prompt.prompt = r"\.\.\. "
    prompt.ask("    Author.objects.create(name='Frank')")
    prompt.ask("    await asyncio.sleep(0)")
    prompt.ask("    1/0")
    prompt.ask("", "<Author: Frank>", '  File "<console>", line 4, in <module>\r\nZeroDivision')
    prompt.prompt = ">>> "
    prompt.ask("Author.objects.count()", "\n0\r\n")
    # Ctrl-C, where it waits, where it computes, and while a line is typed.
    prompt.ask("print('waits', end='!\\n'); await asyncio.Event().wait()", "waits!")
    prompt.interrupt("KeyboardInterrupt")
    prompt.ask("for _ in iter(lambda: print('computes', end='!\\n') or 0, 1): pass")
    prompt.process.sendline("")
    prompt.see("computes!")
    prompt.interrupt("KeyboardInterrupt")
    prompt.process.expect(">>> ")
    # Ctrl-L has it shown again by readline, which is reading then: the echo is the terminal's.
    prompt.process.send("half a line\x0c")
    prompt.see(">>> half a line")
    prompt.interrupt("KeyboardInterrupt")
    prompt.ask("raise SystemExit(3)")
    assert prompt.end() == 3
    no_session_left(database)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_tasks_go_on_while_the_prompt_waits(prompt: Prompt) -> None:
    prompt.ask("async def tick():")
    prompt.prompt = r"\.\.\. "
    prompt.ask("    for _ in range(100): await asyncio.sleep(0)")
    prompt.ask("    print('tick', end='!\\n'); await asyncio.Event().wait()")
    prompt.ask("")
    prompt.prompt = ">>> "
    prompt.ask("task = asyncio.create_task(tick())", ">>> ", "tick!")
    # It is typed, seen and run as ever.
    prompt.process.sendline("print('typed', end='!\\n')")
    prompt.see("print('typed', end='!\\n')", "\ntyped!")
    prompt.process.expect(">>> ")
    prompt.interrupt("KeyboardInterrupt")
    prompt.ask("task.cancel()", "True")
    prompt.ask("await asyncio.wait([task])", "{<Task cancelled")
    prompt.ask("exit()")
    assert prompt.end() == 0


def test_the_shell_called_on_the_loop_is_part_of_it(database: str, run: Run, capsys: Any) -> None:
    """As call_command("shell", command=...) in code that runs through on_loop."""
    from nuages import on_loop

    async def main() -> None:
        async with aatomic():
            await Author.objects.acreate(name="Frank")
            text = "print(await Author.objects.acount())"
            await on_loop(call_command)("shell", command=text, verbosity=0)

    run(main)
    assert capsys.readouterr().out == "1\n"


def test_djangos_module_does_not_lend_its_exec(capsys: Any) -> None:
    """Code gets that module's globals, as ever, but not what we put there."""
    assert shell.exec.__module__ == "nuages.seams.shell"  # type: ignore[attr-defined]
    text = "import builtins; print(exec is builtins.exec, 'select' in globals())"
    call_command("shell", command=text, verbosity=0)
    assert capsys.readouterr().out == "True True\n"
    assert os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE") is None
