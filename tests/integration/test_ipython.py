"""`%load_ext nuages.ipython`: in a shell, on a terminal, and in a real Jupyter kernel."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from jupyter_client.manager import AsyncKernelManager
from traitlets.config import Config

from nuages.bridge import core as bridge
from nuages.db import aatomic
from tests.integration.test_shell import Prompt, no_session_left, site  # noqa: F401
from tests.library.models import Author


@pytest.fixture
def ipython(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    """A shell as on a terminal: no loop runs around it."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    assert "DJANGO_ALLOW_ASYNC_UNSAFE" not in os.environ
    config = Config()
    config.HistoryManager.enabled = False
    shell: Any = InteractiveShell(config=config)
    shell.run_cell("%load_ext nuages.ipython").raise_error()
    shell.user_ns |= {"Author": Author, "aatomic": aatomic, "asyncio": asyncio}
    yield shell
    shell.loop_runner.__self__.close()
    assert not bridge._bridges
    InteractiveShell.clear_instance()


def value(shell: Any, cell: str) -> Any:
    """Run a cell and return what it shows."""
    result = shell.run_cell(cell)
    result.raise_error()
    return result.result


def test_cells_await_and_query(ipython: Any, database: str) -> None:
    assert value(ipython, "Author.objects.count()") == 0
    value(ipython, "frank = await Author.objects.acreate(name='Frank'); x = frank.mentor")
    assert value(ipython, "Author.objects.count(), await Author.objects.acount()") == (1, 1)
    # A transaction that is open from cell to cell.
    value(ipython, "block = aatomic(); await block.__aenter__()")
    value(ipython, "Author.objects.create(name='Ursula')")
    assert value(ipython, "await Author.objects.acount()") == 2
    value(ipython, "await block.__aexit__(ValueError, ValueError(), None)")
    assert value(ipython, "Author.objects.count()") == 1


def test_errors_are_as_ever(ipython: Any, sqlite: dict[str, Any], capsys: Any) -> None:
    result = ipython.run_cell("Author.objects.get(name='nobody')")
    assert isinstance(result.error_in_exec, Author.DoesNotExist)
    assert isinstance(ipython.run_cell("1 +").error_before_exec, SyntaxError)
    assert "not found" in str(ipython.run_cell("%nothing here").error_in_exec)
    assert value(ipython, "Author.objects.count()") == 0
    assert "DoesNotExist" in capsys.readouterr().out


def test_cells_run_cells_and_magics(ipython: Any, sqlite: dict[str, Any], tmp_path: Path) -> None:
    """`%run` and the like come back to `run_cell`, inside a cell."""
    script = tmp_path / "script.py"
    script.write_text("from tests.library.models import Author\nfound = Author.objects.count()\n")
    value(ipython, f"%run {script}")
    assert value(ipython, "found") == 0
    value(ipython, "get_ipython().run_cell('inner = Author.objects.count()').raise_error()")
    assert value(ipython, "inner") == 0


def test_it_can_be_unloaded(ipython: Any, sqlite: dict[str, Any]) -> None:
    loop = ipython.loop_runner.__self__
    value(ipython, "%unload_ext nuages.ipython")
    assert value(ipython, "import asyncio; asyncio._get_running_loop()") is None
    assert value(ipython, "await Author.objects.acount()") == 0
    value(ipython, "%load_ext nuages.ipython")
    assert value(ipython, "asyncio._get_running_loop()") is not None
    loop.close()


def test_autoawait_switches_it_off(ipython: Any, sqlite: dict[str, Any]) -> None:
    value(ipython, "%autoawait False")
    assert value(ipython, "asyncio._get_running_loop()") is None
    assert value(ipython, "Author.objects.count()") == 0


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_the_shell_command_loads_it(site: Any, database: str) -> None:  # noqa: F811
    site.environment |= {"IPYTHONDIR": str(site.folder / "ipython"), "NO_COLOR": "1"}
    site.environment["PYTHONWARNINGS"] = ""  # IPython's own
    prompt = Prompt(site, "-i", "ipython", "-v", "0", prompt=r"In \[\d+\]: ")
    try:
        prompt.ask("import asyncio, os; os.environ.get('DJANGO_ALLOW_ASYNC_UNSAFE', 'un' 'set')")
        prompt.see("'unset'")
        prompt.ask("await Author.objects.acreate(name='Frank')", "<Author: Frank>")
        prompt.ask("Author.objects.count(), await Author.objects.acount()", "(1, 1)")
        # It says so when it waits: one that computes is interrupted otherwise.
        prompt.ask("say = lambda: print('waits', end='!\\n')")
        prompt.ask(
            "asyncio.get_running_loop().call_soon(say); await asyncio.Event().wait()", "waits!"
        )
        prompt.interrupt("CancelledError")
        prompt.ask("print('still', end='!\\n')", "still!")
        prompt.ask("exit()")
        assert prompt.end() == 0
    finally:
        prompt.process.close(force=True)
    no_session_left(database)


class Kernel:
    """A Jupyter kernel of its own process."""

    def __init__(self, manager: Any, client: Any) -> None:
        self.manager = manager
        self.client = client

    async def run(self, cell: str, interrupt_at: str | None = None) -> str:
        """Run a cell; return what it shows, and the last line of an error's traceback."""
        shown: list[str] = []

        interrupting: list[asyncio.Future[None]] = []

        def note(message: Any) -> None:
            content = message["content"]
            kind = message["msg_type"]
            if kind == "stream":
                shown.append(content["text"])
                if interrupt_at is not None and interrupt_at in content["text"]:
                    interrupting.append(asyncio.ensure_future(self.manager.interrupt_kernel()))
            elif kind == "execute_result":
                shown.append(content["data"]["text/plain"])
            elif kind == "error":
                shown.append(f"{content['ename']}: {content['evalue']}")

        await self.client.execute_interactive(cell, output_hook=note, timeout=30)
        await asyncio.gather(*interrupting)
        return "".join(shown).strip()


@pytest.fixture
async def kernel(site: Any) -> AsyncIterator[Kernel]:  # noqa: F811
    environment = site.environment | {
        "IPYTHONDIR": str(site.folder / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(site.folder / "jupyter"),
        "PYTHONWARNINGS": "",
    }
    manager = AsyncKernelManager(kernel_name="python3")
    manager.kernel_spec.argv[0] = sys.executable
    await manager.start_kernel(env=environment, cwd=str(site.folder))
    client = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=30)
        yield Kernel(manager, client)
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_a_notebook(kernel: Kernel) -> None:
    assert await kernel.run("import django, os; django.setup()") == ""
    assert await kernel.run("from tests.library.models import Author") == ""
    # As in stock Django, unless one allows what is unsafe.
    assert "SyncInCoroutine" in await kernel.run("Author.objects.count()")
    assert await kernel.run("%load_ext nuages.ipython") == ""
    assert await kernel.run("'DJANGO_ALLOW_ASYNC_UNSAFE' in os.environ") == "False"
    cell = (
        "frank = await Author.objects.acreate(name='Frank')\nAuthor.objects.count(), frank.mentor"
    )
    assert await kernel.run(cell) == "(1, None)"
    assert await kernel.run("Author.objects.get().name") == "'Frank'"
    assert "DoesNotExist" in await kernel.run("Author.objects.get(name='nobody')")
    assert "ZeroDivisionError" in await kernel.run("await Author.objects.acount()\n1/0")
    assert "SyntaxError" in await kernel.run("1 +")
    cell = (
        "from nuages.db import aatomic\nasync with aatomic():\n    Author.objects.all().delete()"
    )
    assert await kernel.run(cell + "\n    print(await Author.objects.acount())\n    1/0") == (
        "0\nZeroDivisionError: division by zero"
    )
    assert await kernel.run("Author.objects.count()") == "1"
    # Ctrl-C, or the kernel's stop button.
    cell = "print('computes', flush=True)\nwhile True: pass"
    assert await kernel.run(cell, interrupt_at="computes") == "computes\nKeyboardInterrupt:"
    cell = "print('waits', flush=True)\nawait __import__('asyncio').Event().wait()"
    shown = await kernel.run(cell, interrupt_at="waits")
    assert shown in ("waits\nCancelledError:", "waits\nKeyboardInterrupt:")
    # Tasks go on between cells, as ever.
    cell = (
        "import asyncio\nasync def tick():\n    await asyncio.sleep(0)\n    return Author.objects"
    )
    assert await kernel.run(cell + "\ntask = asyncio.create_task(tick())") == ""
    assert await kernel.run("(await task).count()") == "1"
