"""`acursor`: raw SQL on one connection for the length of a block."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.db import DataError, IntegrityError, ProgrammingError, connection
from django.db.utils import Error, OperationalError

from nuages import on_loop
from nuages.db import aatomic, acursor
from tests.integration.conftest import Run
from tests.library.models import Author

pytestmark = [pytest.mark.every_database, pytest.mark.both_loops]

SYNTAX_ERRORS = (ProgrammingError, OperationalError)


def test_execute_and_fetch(database: str, run: Run) -> None:
    async def main() -> None:
        for name in "abcde":
            await Author.objects.acreate(name=name)
        async with acursor() as cursor:
            sql = "SELECT name FROM library_author WHERE name > %s ORDER BY name"
            assert await cursor.execute(sql, ["a"]) is cursor
            assert cursor.description[0][0] == "name"
            assert await cursor.fetchone() == ("b",)
            assert await cursor.fetchmany(2) == [("c",), ("d",)]
            assert await cursor.fetchmany() == [("e",)]
            assert await cursor.fetchone() is None
            assert await cursor.fetchall() == []
            await cursor.execute(sql, ("c",))
            assert [row async for row in cursor] == [("d",), ("e",)]
            await cursor.execute("SELECT 1")
            assert await cursor.fetchall() == [(1,)]
            await cursor.execute("UPDATE library_author SET name = REPLACE(name, %s, 'z')", ["a"])
            assert cursor.rowcount == 5

    run(main)


def test_parameters(database: str, run: Run) -> None:
    async def main() -> None:
        async with acursor() as cursor:
            await cursor.execute("SELECT %(a)s, %(b)s, %(a)s", {"a": "x", "b": "y"})
            assert await cursor.fetchone() == ("x", "y", "x")
            await cursor.execute("SELECT '%%', %s", ["x"])
            assert await cursor.fetchone() == ("%", "x")
            await cursor.execute("SELECT '%'")  # no parameters, no placeholders
            assert await cursor.fetchone() == ("%",)

    run(main)


def test_executemany_takes_a_generator(database: str, run: Run) -> None:
    async def main() -> None:
        async with acursor() as cursor:
            await cursor.executemany(
                "INSERT INTO library_author (name) VALUES (%s)", ((name,) for name in "xyz")
            )
        assert await Author.objects.acount() == 3

    run(main)


def test_a_long_result_is_iterated_to_its_end(database: str, run: Run) -> None:
    sql = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 250) "
        "SELECT i FROM n ORDER BY i"
    )

    async def main() -> None:
        async with acursor() as cursor:
            await cursor.execute(sql)
            assert [i async for (i,) in cursor] == list(range(1, 251))
            await cursor.execute(sql)
            async for (i,) in cursor:
                if i == 120:
                    break
            # Rows come a hundred at a time: what was fetched and not iterated over is gone.
            assert (await cursor.fetchone())[0] > 120

    run(main)


def test_errors_are_djangos_and_the_cursor_goes_on(database: str, run: Run) -> None:
    async def main() -> None:
        await Author.objects.acreate(name="one")
        async with acursor() as cursor:
            with pytest.raises(SYNTAX_ERRORS):
                await cursor.execute("SELEKT 1")
            with pytest.raises(IntegrityError):
                await cursor.execute("INSERT INTO library_author (name) VALUES (%s)", ["one"])
            with pytest.raises((Error, DataError)):
                await cursor.execute("SELECT no_such_column FROM library_author")
            await cursor.execute("SELECT 1")
            assert await cursor.fetchone() == (1,)

    run(main)


def test_in_a_transaction_it_is_the_transactions(database: str, run: Run) -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            async with aatomic():
                async with acursor() as cursor:
                    await cursor.execute("INSERT INTO library_author (name) VALUES ('gone')")
                    assert await Author.objects.aget(name="gone")
                assert await Author.objects.acount() == 1
                raise ZeroDivisionError
        assert await Author.objects.acount() == 0
        async with acursor() as cursor:
            async with aatomic():
                await cursor.execute("INSERT INTO library_author (name) VALUES ('kept')")
                await Author.objects.acreate(name="too")
            await cursor.execute("SELECT COUNT(*) FROM library_author")
            assert await cursor.fetchone() == (2,)

    run(main)


def test_it_holds_one_connection_for_its_block(postgresql: Any, run: Run) -> None:
    async def main() -> None:
        async with acursor() as cursor:
            await cursor.execute("SELECT pg_backend_pid()")
            (pid,) = await cursor.fetchone()
            await asyncio.sleep(0)
            await cursor.execute("SELECT pg_backend_pid()")
            assert (await cursor.fetchone())[0] == pid
            async with acursor() as second:
                await second.execute("SELECT pg_backend_pid()")
                assert (await second.fetchone())[0] == pid
            assert await on_loop(lambda: connection.connection.info.backend_pid)() == pid
            # Session state lasts as long as the block.
            await cursor.execute("CREATE TEMPORARY TABLE mine (x int)")
            await asyncio.sleep(0)
            await cursor.execute("SELECT COUNT(*) FROM mine")
            assert await cursor.fetchone() == (0,)

            other = asyncio.create_task(pid_of_a_task())
            assert await other != pid

    async def pid_of_a_task() -> int:
        async with acursor() as cursor:
            await cursor.execute("SELECT pg_backend_pid()")
            pid: int = (await cursor.fetchone())[0]
            return pid

    run(main)


def test_callproc(postgresql: Any, run: Run) -> None:
    async def main() -> None:
        async with aatomic(), acursor() as cursor:
            await cursor.execute(
                "CREATE FUNCTION twice(x int) RETURNS int LANGUAGE sql AS 'SELECT $1 * 2'"
            )
            await cursor.callproc("twice", [21])
            assert await cursor.fetchone() == (42,)
            await cursor.execute("DROP FUNCTION twice(int)")

    run(main)


def test_copy_in_and_out_through_run(postgresql: Any, run: Run) -> None:
    def copy_in(cursor: Any, names: list[str]) -> None:
        with cursor.copy("COPY library_author (name) FROM STDIN") as copy:
            for name in names:
                copy.write_row((name,))

    def copy_out(cursor: Any) -> bytes:
        with cursor.copy("COPY (SELECT name FROM library_author ORDER BY name) TO STDOUT") as copy:
            return b"".join(copy)

    async def main() -> None:
        names = [f"{number:05}" for number in range(2000)]
        async with acursor() as cursor:
            await cursor.run(copy_in, names)
            assert await Author.objects.acount() == 2000
            data = await cursor.run(copy_out)
        assert bytes(data).decode().split() == names

    run(main)


def test_it_must_be_entered(database: str, run: Run) -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match="async with"):
            await acursor().execute("SELECT 1")
        with pytest.raises(TypeError, match="async with"):
            await acursor().run(print)
        with pytest.raises(AttributeError, match="async with"):
            acursor().rowcount  # noqa: B018
        cursor = acursor()
        async with cursor:
            await cursor.execute("SELECT 1")
        with pytest.raises(Exception, match="closed"):
            await cursor.execute("SELECT 1")

    run(main)


def test_an_error_in_the_block_gives_the_connection_back(database: str, run: Run) -> None:
    async def main() -> None:
        for _ in range(20):  # more than the pool has
            with pytest.raises(SYNTAX_ERRORS):
                async with acursor() as cursor:
                    await cursor.execute("SELEKT 1")

    run(main)


def test_ten_at_once(database: str, run: Run) -> None:
    async def one(number: int) -> int:
        async with acursor() as cursor:
            await cursor.execute("SELECT %s", [number])
            found: int = (await cursor.fetchone())[0]
            return found

    async def main() -> None:
        assert sorted(map(int, await asyncio.gather(*map(one, range(10))))) == list(range(10))

    run(main)
