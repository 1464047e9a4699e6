"""Queries are captured by context: over many leases, and not those of others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.db import connection, reset_queries
from django.test import TransactionTestCase
from django.test.utils import CaptureQueriesContext, override_settings

from nuages import on_loop
from nuages.db import aatomic
from tests.integration.conftest import Run
from tests.integration.scope_tools import pool_stats, statements
from tests.library.models import Author, Book

pytestmark = pytest.mark.every_database


async def _three_kinds_of_query(name: str) -> None:
    """One insert, and reads in a task, a gather, a bridged function and a transaction."""
    author = await Author.objects.acreate(name=name)
    await asyncio.gather(*(Author.objects.acount() for _ in range(3)))
    await asyncio.create_task(Author.objects.acount())
    await on_loop(lambda: list(author.books.all()))()
    async with aatomic():
        await asyncio.gather(*(Book.objects.acount() for _ in range(2)))


def _without_transaction_control(queries: list[dict[str, str]]) -> list[str]:
    return [q["sql"] for q in queries if not q["sql"].startswith(("BEGIN", "COMMIT", "ROLLBACK"))]


def test_queries_of_gathered_leases_are_captured(database: str, run: Run) -> None:
    async def main() -> None:
        with CaptureQueriesContext(connection) as captured:
            await _three_kinds_of_query("captured")
        sql = _without_transaction_control(captured.captured_queries)
        assert [statement.split()[0] for statement in sql] == ["INSERT"] + ["SELECT"] * 7
        await _three_kinds_of_query("not captured")
        assert len(_without_transaction_control(captured.captured_queries)) == 8

    run(main)


def test_captures_of_concurrent_tasks_are_apart(database: str, run: Run) -> None:
    """Each task's own context: on one shared wrapper they would count each other's."""

    async def count(number: int, everybody: asyncio.Barrier) -> int:
        with CaptureQueriesContext(connection) as captured:
            await everybody.wait()
            for _ in range(number):
                await Author.objects.acount()
            await everybody.wait()
        return len(captured)

    async def main() -> None:
        everybody = asyncio.Barrier(4)
        counts = await asyncio.gather(*(count(number, everybody) for number in range(4)))
        assert counts == [0, 1, 2, 3]

    run(main)


def test_assert_num_queries(postgresql: dict[str, Any], run: Run) -> None:
    case = TransactionTestCase()

    async def main() -> None:
        with case.assertNumQueries(8 + 2):  # with BEGIN and COMMIT
            await _three_kinds_of_query("counted")
        async with aatomic():
            with case.assertNumQueries(3):
                await asyncio.gather(*(Author.objects.acount() for _ in range(3)))
        wrong = pytest.raises(AssertionError, match="1 queries executed, 2 expected")
        with wrong, case.assertNumQueries(2):
            await Author.objects.acount()

    run(main)


def test_queries_are_logged_with_debug(database: str, run: Run) -> None:
    async def main() -> None:
        with override_settings(DEBUG=True):
            reset_queries()
            await asyncio.gather(*(Author.objects.acount() for _ in range(3)))
            # A task's own context began its log: read where it was written.
            await Author.objects.acount()
            assert len(connection.queries) >= 1

    run(main)


def test_execute_wrapper_reaches_every_lease_and_thread(database: str, run: Run) -> None:
    async def main() -> None:
        with statements() as sent:
            await asyncio.gather(*(Author.objects.acount() for _ in range(3)))
            await asyncio.to_thread(lambda: None)
            async with aatomic():
                await Author.objects.acount()
                await asyncio.to_thread(Author.objects.count)
        await Author.objects.acount()
        assert sum(sql.startswith("SELECT") for sql in sent) == 5

    run(main)


def test_an_execute_wrapper_may_refuse(database: str, run: Run) -> None:
    def refuse(*args: Any) -> Any:
        raise PermissionError("no queries here")

    async def main() -> None:
        with connection.execute_wrapper(refuse):
            for query in (Author.objects.acount, on_loop(Author.objects.count)):
                with pytest.raises(PermissionError):
                    await query()
            results = await asyncio.gather(
                *(Author.objects.acount() for _ in range(2)), return_exceptions=True
            )
            assert [type(result) for result in results] == [PermissionError] * 2
        assert await Author.objects.acount() == 0
        assert pool_stats()["used"] == 0

    run(main)
