"""off_loop and transactions: a thread shares the scope of the code that calls it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from django.db import connection, transaction

from nuages import off_loop, on_loop
from nuages.db import aatomic
from nuages.db.pool.pool import open_pools
from tests.integration.conftest import Run
from tests.library.models import Author

pytestmark = pytest.mark.both_loops


def names() -> list[str]:
    return sorted(Author.objects.values_list("name", flat=True))


def test_a_thread_sees_the_uncommitted_rows_of_its_caller_and_adds_to_them(
    database: str, run: Run
) -> None:
    @off_loop
    def in_thread() -> tuple[int, list[str]]:
        Author.objects.create(name="thread")
        return threading.get_ident(), names()

    def call() -> None:
        with transaction.atomic():
            Author.objects.create(name="caller")
            thread, found = in_thread()
            assert thread != threading.get_ident()
            assert found == ["caller", "thread"]
            assert names() == ["caller", "thread"]
            transaction.set_rollback(True)

    async def main() -> None:
        await on_loop(call)()
        assert await on_loop(names)() == []

    run(main)


def test_in_an_async_transaction_too(database: str, run: Run) -> None:
    async def main() -> None:
        async with aatomic():
            await Author.objects.acreate(name="caller")
            assert await on_loop(off_loop(names))() == ["caller"]
        assert await on_loop(off_loop(names))() == ["caller"]

    run(main)


def test_a_nested_block_in_the_thread_is_a_savepoint(database: str, run: Run) -> None:
    @off_loop
    def fails() -> None:
        with transaction.atomic():
            assert len(connection.savepoint_ids) == 1
            Author.objects.create(name="lost")
            raise ZeroDivisionError

    def call() -> None:
        with transaction.atomic():
            Author.objects.create(name="kept")
            with pytest.raises(ZeroDivisionError):
                fails()

    async def main() -> None:
        await on_loop(call)()
        assert await on_loop(names)() == ["kept"]

    run(main)


def test_outside_a_transaction_the_thread_borrows_and_gives_back(database: str, run: Run) -> None:
    @off_loop
    def in_thread() -> list[str]:
        return names()

    def call() -> None:
        Author.objects.create(name="caller")
        assert in_thread() == ["caller"]
        assert names() == ["caller"]

    async def main() -> None:
        await on_loop(call)()
        (pool,) = open_pools()
        assert pool.stats()["used"] == 0

    run(main)


def test_a_failed_statement_in_the_thread_is_the_transactions(database: str, run: Run) -> None:
    @off_loop
    def fails() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT no_such_column")

    async def main() -> None:
        with pytest.raises(Exception, match="no_such_column"):
            async with aatomic():
                await Author.objects.acreate(name="lost")
                await on_loop(fails)()
        assert await on_loop(names)() == []

    run(main)


def test_a_cancellation_waits_for_the_threads_statements_and_rolls_them_back(
    database: str, run: Run
) -> None:
    """What the thread does belongs to the transaction, so that must not end before it."""

    async def main() -> None:
        begun = asyncio.Event()
        release = threading.Event()
        loop = asyncio.get_running_loop()
        seen: list[Any] = []

        @off_loop
        def in_thread() -> None:
            loop.call_soon_threadsafe(begun.set)
            assert release.wait(30)
            Author.objects.create(name="thread")
            seen.append(names())

        async def work() -> None:
            async with aatomic():
                await Author.objects.acreate(name="caller")
                await on_loop(in_thread)()

        task = asyncio.ensure_future(work())
        await begun.wait()
        task.cancel()
        await asyncio.sleep(0)
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen == [["caller", "thread"]]
        assert await on_loop(names)() == []

    run(main)
