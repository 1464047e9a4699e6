"""A cursor of `connection.cursor()` that is kept while the code awaits: its connection stays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from django.db import DatabaseError, InterfaceError, connection, transaction

from nuages import on_loop
from nuages.bridge import await_
from tests.integration.conftest import Run
from tests.integration.pool_tools import assert_whole, options, the_pool
from tests.integration.scope_tools import until
from tests.library.models import Author

pytestmark = pytest.mark.every_database

STATE = {
    "postgresql": ("SET application_name = 'mine'", "SHOW application_name"),
    "mysql": ("SET @mine = 'mine'", "SELECT @mine"),
    "sqlite": ("CREATE TEMPORARY TABLE mine AS SELECT 'mine' AS x", "SELECT x FROM mine"),
}


def used() -> int:
    return the_pool().stats()["used"]


Pause = Callable[[], None]


def between_transactions(cursor: Any, pause: Pause, way: tuple[str, str]) -> None:
    cursor.execute("SELECT 1")
    assert cursor.fetchone() == (1,)
    with transaction.atomic():
        pause()
    pause()
    cursor.execute("SELECT 2")
    assert cursor.fetchone() == (2,)


def with_state(cursor: Any, pause: Pause, way: tuple[str, str]) -> None:
    cursor.execute(way[0])
    pause()
    cursor.execute(way[1])
    assert cursor.fetchone() == ("mine",)


@pytest.mark.parametrize("use", [between_transactions, with_state])
def test_nobody_else_gets_its_connection(
    database: str, run: Run, use: Any, caplog: pytest.LogCaptureFixture
) -> None:
    options(max_size=1)
    Author.objects.create(name="Ann")

    async def main() -> None:
        paused, go_on = asyncio.Event(), asyncio.Event()

        def pause() -> None:
            paused.set()
            await_(go_on.wait())

        @on_loop
        def mine() -> None:
            with connection.cursor() as cursor:
                use(cursor, pause, STATE[database])

        task = asyncio.create_task(mine())
        await paused.wait()
        other = asyncio.create_task(Author.objects.acount())
        await until(lambda: the_pool().stats()["waiting"] == 1)
        go_on.set()
        await task
        assert await other == 1
        assert_whole(the_pool())

    run(main)


def test_in_a_portal_too(database: str, run: Run) -> None:
    options(max_size=1)

    @on_loop
    async def main() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            await asyncio.sleep(0)
            assert used() == 1
            cursor.execute("SELECT 2")
        await asyncio.sleep(0)
        assert used() == 0

    run(main)


def test_closed_or_forgotten_it_keeps_nothing(database: str, run: Run) -> None:
    @on_loop
    async def main() -> None:
        cursor: Any = connection.cursor()
        cursor.execute("SELECT 1")
        cursor.close()
        await asyncio.sleep(0)
        assert used() == 0
        for _ in range(40):
            connection.cursor().execute("SELECT 1")
        await asyncio.sleep(0)
        assert used() == 0

    run(main)


def test_after_the_call_that_made_it_it_is_closed(database: str, run: Run) -> None:
    kept: Any = None

    @on_loop
    def first() -> None:
        nonlocal kept
        kept = connection.cursor()
        kept.execute("SELECT 1")

    async def main() -> None:
        await first()
        assert used() == 0
        with pytest.raises(
            (DatabaseError, InterfaceError), match=r"(?i)cursor.*closed|closed cur"
        ):
            await on_loop(kept.execute)("SELECT 2")
        kept.close()

    run(main)


def test_an_iteration_whose_rows_are_here_keeps_nothing(mysql: dict[str, Any], run: Run) -> None:
    """MySQL's rows have all come; SQLite and PostgreSQL keep theirs in the connection."""
    Author.objects.create(name="Ann")
    Author.objects.create(name="Zoe")

    @on_loop
    async def main() -> None:
        rows = Author.objects.order_by("name").iterator(chunk_size=1)
        assert next(rows).name == "Ann"
        await asyncio.sleep(0)
        assert used() == 0
        assert [one.name for one in rows] == ["Zoe"]

    run(main)
