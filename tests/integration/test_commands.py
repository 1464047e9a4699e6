"""Async commands inside a process: where they run, what they join, what they print."""

from __future__ import annotations

import asyncio
import io
import threading
from contextvars import ContextVar
from typing import Any

import pytest
import uvloop
from asgiref.sync import sync_to_async
from django.core import management
from django.core.management import base, call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import connection, transaction
from django.test import override_settings
from django.utils import translation

from nuages import on_loop
from nuages.bridge import current_bridge
from nuages.db import aatomic
from nuages.exceptions import CommandInCoroutine
from nuages.management import AsyncBaseCommand, acall_command
from nuages.stopping import is_stopping
from tests.integration.conftest import Counts, Run
from tests.library.models import Author, Book

where: ContextVar[str] = ContextVar("where", default="nowhere")


class Add(AsyncBaseCommand):
    """Adds an author and says what it saw."""

    output_transaction = True

    def add_arguments(self, parser: base.CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument("--fail", action="store_true")

    async def handle(self, *args: Any, **options: Any) -> str:
        self.loop = asyncio.get_running_loop()
        self.task = asyncio.current_task()
        self.where = where.get()
        where.set("in the command")
        author = await Author.objects.acreate(name=options["name"])
        await Book.objects.acreate(title="Dune", author=author)
        book = Book.objects.get(author=author)  # implicit I/O
        if options["fail"]:
            raise CommandError(f"no {book.author.name}", returncode=7)
        return f"{book.author.name}: {await Author.objects.acount()}"


class Sync(BaseCommand):
    """A command as projects have it."""

    def handle(self, *args: Any, **options: Any) -> str:
        self.thread = threading.current_thread()
        self.bridged = current_bridge() is not None
        self.where = where.get()
        where.set("in the command")
        Author.objects.create(name="sync")
        return str(Author.objects.count())


def names() -> list[str]:
    return [author.name for author in Author.objects.order_by("pk")]


def test_sync_code_gets_a_loop_of_its_own(database: str) -> None:
    command, out = Add(), io.StringIO()
    assert call_command(command, "Frank", stdout=out) == "BEGIN;\nFrank: 1\nCOMMIT;"
    assert out.getvalue() == "BEGIN;\nFrank: 1\nCOMMIT;\n"
    assert isinstance(command.loop, uvloop.Loop)
    assert command.loop.is_closed()
    assert names() == ["Frank"]


def test_a_command_joins_the_transaction_of_sync_code(database: str) -> None:
    """As the commands that a TestCase calls must."""
    with transaction.atomic():
        Author.objects.create(name="outside")
        assert "Frank: 2" in call_command(Add(), "Frank", stdout=io.StringIO())
        assert names() == ["outside", "Frank"]
        transaction.set_rollback(True)
    assert names() == []


def test_an_error_is_raised_as_it_is(database: str) -> None:
    with pytest.raises(CommandError, match="no Frank") as raised:
        call_command(Add(), "Frank", fail=True)
    assert raised.value.returncode == 7


def test_in_async_code_it_is_part_of_the_caller(database: str, run: Run, threads: Counts) -> None:
    """Its task, loop, context and transaction; and no thread, on PostgreSQL."""

    async def main() -> None:
        command = Add()
        where.set("outside")
        with pytest.raises(ZeroDivisionError):
            async with aatomic():
                await Author.objects.acreate(name="outside")
                threads.clear()
                result = await acall_command(command, "Frank", stdout=io.StringIO())
                if database == "postgresql":
                    threads.assert_none()
                assert "Frank: 2" in result
                assert await Author.objects.acount() == 2
                raise ZeroDivisionError
        assert await Author.objects.acount() == 0
        assert command.task is asyncio.current_task()
        assert command.loop is asyncio.get_running_loop()
        assert (command.where, where.get()) == ("outside", "in the command")

    run(main)


def test_a_cancelled_caller_cancels_the_command(database: str, run: Run) -> None:
    class Wait(AsyncBaseCommand):
        async def handle(self, *args: Any, **options: Any) -> None:
            async with aatomic():
                await Author.objects.acreate(name="half")
                begun.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    assert await Author.objects.acount() == 1

    async def main() -> None:
        task = asyncio.create_task(acall_command(Wait()))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await Author.objects.acount() == 0

    begun = asyncio.Event()
    run(main)


@pytest.mark.parametrize("mode", ["thread", "loop"])
def test_a_sync_command_runs_where_sync_views_do(database: str, run: Run, mode: str) -> None:
    async def main() -> None:
        command = Sync()
        where.set("outside")
        with pytest.raises(ZeroDivisionError):
            async with aatomic():
                await Author.objects.acreate(name="outside")
                assert await acall_command(command, stdout=io.StringIO()) == "2"
                assert await Author.objects.acount() == 2
                raise ZeroDivisionError
        assert await Author.objects.acount() == 0
        assert (command.thread is threading.current_thread()) == (mode == "loop")
        assert command.bridged == (mode == "loop")
        assert (command.where, where.get()) == ("outside", "in the command")

    with override_settings(NUAGES={"SYNC_VIEWS": mode}):
        run(main)


def test_djangos_commands_run_on_the_loop(postgresql: dict[str, Any], run: Run, threads: Counts) -> None:  # fmt: skip  # noqa: E501
    async def main() -> None:
        await Author.objects.acreate(name="Frank")
        out = io.StringIO()
        threads.clear()
        await acall_command("dumpdata", "library.Author", stdout=out)
        threads.assert_none()
        assert '"name": "Frank"' in out.getvalue()

    run(main)


def test_djangos_command_that_blocks_gets_a_thread(database: str, run: Run, capsys: Any) -> None:
    """`shell` may wait for the keyboard; in a thread it shares the transaction, too."""
    code = (
        "import threading\n"
        "print(threading.current_thread() is threading.main_thread(), Author.objects.count())"
    )

    async def main() -> None:
        async with aatomic():
            await Author.objects.acreate(name="Frank")
            await acall_command("shell", command=code, verbosity=0)

    run(main)
    assert capsys.readouterr().out == "False 1\n"


def test_call_command_in_a_bridge_waits_there(database: str, run: Run) -> None:
    async def main() -> None:
        command = Add()
        async with aatomic():
            await on_loop(call_command)(command, "Frank", stdout=io.StringIO())
            assert await Author.objects.acount() == 1
        assert command.task is asyncio.current_task()

    run(main)


def test_call_command_in_a_thread_goes_to_the_threads_loop(database: str, run: Run) -> None:
    async def main() -> None:
        command = Add()
        async with aatomic():
            await Author.objects.acreate(name="outside")
            call = sync_to_async(call_command)
            assert "Frank: 2" in await call(command, "Frank", stdout=io.StringIO())
            assert await Author.objects.acount() == 2
        assert command.loop is asyncio.get_running_loop()

    run(main)


def test_call_command_in_a_coroutine_names_acall_command(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(CommandInCoroutine, match=r"await acall_command\('test_commands'"):
            call_command(Add(), "Frank")

    run(main)


def test_commands_are_found_by_name(run: Run) -> None:
    async def main() -> None:
        out = io.StringIO()
        await acall_command("check", tags=["caches"], stdout=out)
        assert "no issues" in out.getvalue()
        with pytest.raises(CommandError, match="Unknown command: 'nothing'"):
            await acall_command("nothing")
        with pytest.raises(TypeError, match="Unknown option"):
            await acall_command("check", wrong=True)

    run(main)


def test_a_sync_handle_is_an_error_unless_it_is_put_on_the_loop(database: str) -> None:
    class Wrong(AsyncBaseCommand):
        def handle(self, *args: Any, **options: Any) -> str:  # type: ignore[override]
            raise AssertionError("it must not run")

    class Right(AsyncBaseCommand):
        @on_loop
        def handle(self, *args: Any, **options: Any) -> str:
            assert current_bridge() is not None
            return f"{Author.objects.count()} authors"

    with pytest.raises(TypeError, match=r"coroutine function.*Wrong"):
        call_command(Wrong())
    assert call_command(Right(), stdout=io.StringIO()) == "0 authors"
    with pytest.raises(NotImplementedError, match="async handle"):
        call_command(AsyncBaseCommand())


def test_tasks_and_generators_end_with_the_command() -> None:
    ended = []

    async def generate() -> Any:
        try:
            yield 1
        finally:
            ended.append("generator")

    async def background(started: asyncio.Event) -> None:
        try:
            started.set()
            await asyncio.Event().wait()
        finally:
            ended.append("task")

    class Leave(AsyncBaseCommand):
        async def handle(self, *args: Any, **options: Any) -> None:
            assert not is_stopping()
            started = asyncio.Event()
            self.kept = asyncio.create_task(background(started)), generate()
            await started.wait()
            await anext(self.kept[1])

    call_command(Leave())
    assert ended == ["task", "generator"]


def test_no_translations_lasts_as_long_as_the_work() -> None:
    class Untranslated(AsyncBaseCommand):
        @base.no_translations
        async def handle(self, *args: Any, **options: Any) -> str:
            await asyncio.sleep(0)
            return str(translation.get_language())

    with translation.override("de"):
        assert call_command(Untranslated(), stdout=io.StringIO()) == "None"
        assert translation.get_language() == "de"

    async def main() -> None:
        with translation.override("de"):
            assert await acall_command(Untranslated(), stdout=io.StringIO()) == "None"
            assert translation.get_language() == "de"

    asyncio.run(main())


@pytest.mark.parametrize("verbosity", [0, 1])
def test_progress_goes_to_stderr_unless_it_is_to_be_quiet(verbosity: int) -> None:
    class Count(AsyncBaseCommand):
        async def handle(self, *args: Any, **options: Any) -> str:
            for _ in self.progress([1, 2, 3], description="Things", unit="things"):
                await asyncio.sleep(0)
            return "done"

    out, err = io.StringIO(), io.StringIO()
    call_command(Count(), stdout=out, stderr=err, verbosity=verbosity)
    assert out.getvalue() == "done\n"
    assert ("Things: 3 of 3 things" in err.getvalue()) == bool(verbosity)
    assert bool(err.getvalue()) == bool(verbosity)


def test_the_checks_use_no_connection_of_the_loop(database: str) -> None:
    """A caller's own connection stays open: only `manage.py` closes what its checks opened."""

    class Checked(Add):
        requires_system_checks = ["caches"]
        requires_migrations_checks = True

    connection.ensure_connection()
    call_command(Checked(), "Frank", skip_checks=False, stdout=io.StringIO())
    assert connection.connection is not None
    assert connection.is_usable()


def test_django_has_the_names_too() -> None:
    assert base.AsyncBaseCommand is AsyncBaseCommand  # type: ignore[attr-defined]
    assert management.acall_command is acall_command  # type: ignore[attr-defined]
