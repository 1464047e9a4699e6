"""What is late, left or interrupted on a connection that others use as well.

Each was found by random programs (`tests/search`). The judge is a plain connection of its own.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, suppress
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.test import override_settings

from nuages import off_loop, on_loop
from nuages.db import aatomic, acursor, aon_commit, detached, hold_connection
from nuages.db.scopes.holder import keep_shared
from nuages.exceptions import BlockInterrupted, OpenBlock, ScopeEnded
from tests import judge
from tests.integration.conftest import Run
from tests.integration.pool_tools import options
from tests.integration.scope_tools import Failure, pool_stats, turns, until
from tests.library.models import Author

pytestmark = [pytest.mark.every_database, pytest.mark.every_loop]

# Long enough to be in flight when the next line runs; nothing waits for it to end.
SLOW = {
    "postgresql": "SELECT pg_sleep(0.3)",
    "mysql": "SELECT SLEEP(0.3)",
    "sqlite": (
        "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 2000000)"
        " SELECT max(i) FROM n"
    ),
}
SEEDS = [f"seed {number}" for number in range(9)]


async def seed() -> None:
    await Author.objects.abulk_create([Author(name=name) for name in SEEDS])


def seeded() -> Any:
    return Author.objects.filter(name__startswith="seed").order_by("name")


async def with_block() -> AsyncIterator[None]:
    async with aatomic():
        await Author.objects.acreate(name="of the generator")
        yield None
        yield None


async def with_hold() -> AsyncIterator[None]:
    async with hold_connection():
        await Author.objects.acount()
        yield None
        yield None


def test_a_savepoint_whose_rollback_was_cancelled_is_not_committed(
    database: str, run: Run
) -> None:
    """It waits for the connection, on which a task of the block is at work."""

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None

        async def work() -> None:
            async with acursor() as cursor:
                await cursor.execute(SLOW[database])

        with pytest.raises(BlockInterrupted):
            async with aatomic():
                await Author.objects.acreate(name="outer")
                with pytest.raises(asyncio.CancelledError):
                    async with aatomic():
                        await Author.objects.acreate(name="inner")
                        slow = asyncio.create_task(work())
                        await until(lambda: connection.connection.is_working())
                        asyncio.get_running_loop().call_soon(task.cancel)
                        raise Failure
                task.uncancel()
                await asyncio.wait([slow])
        slow.exception()
        async with aatomic():
            await Author.objects.acreate(name="after")

    run(main)
    assert judge.authors() == ["after"]


@pytest.mark.parametrize("outer", [acursor, hold_connection])
def test_a_thread_is_refused_when_its_block_in_a_pin_is_over(
    database: str, run: Run, outer: Callable[[], Any]
) -> None:
    """Its task was cancelled, and asgiref leaves the thread."""

    async def main() -> None:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        go, ended = threading.Event(), threading.Event()
        outcome: list[Any] = []

        def work() -> None:
            try:
                Author.objects.create(name="in time")
                loop.call_soon_threadsafe(task.cancel)
                assert go.wait(30)
                Author.objects.create(name="late")
            except BaseException as error:
                outcome.append(type(error))
                raise
            finally:
                ended.set()

        with pytest.raises(asyncio.CancelledError):
            async with outer(), aatomic():
                await sync_to_async(work, thread_sensitive=False)()
        task.uncancel()
        go.set()
        assert await asyncio.to_thread(ended.wait, 30)
        assert outcome == [ScopeEnded]

    run(main)
    assert judge.authors() == []


@pytest.mark.parametrize("outer", [acursor, hold_connection])
def test_a_task_is_refused_when_its_block_in_a_pin_is_over(
    database: str, run: Run, outer: Callable[[], Any]
) -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def outlives() -> None:
            await go.wait()
            with pytest.raises(ScopeEnded):
                await Author.objects.acreate(name="late")

        async with outer():
            async with aatomic():
                task = asyncio.create_task(outlives())
            go.set()
            await task

        async with outer(), aatomic():
            go.clear()
            task = asyncio.create_task(outlives())
        go.set()
        await task

    run(main)
    assert judge.authors() == []


def test_sync_code_reads_on_where_a_dropped_iteration_had_begun(database: str, run: Run) -> None:
    """Its cursor is on the connection of the iteration, which is collected meanwhile."""

    async def abandon() -> None:
        cycle: list[Any] = [seeded().values_list("name").aiterator(chunk_size=2)]
        cycle.append(cycle)
        await anext(cycle[0])

    @on_loop
    def read() -> list[str]:
        found = []
        for author in seeded().iterator(chunk_size=2):
            found.append(author.name)
            off_loop(gc.collect)()
        return found

    async def main() -> None:
        await seed()
        gc.disable()
        try:
            await abandon()
            assert await read() == SEEDS
        finally:
            gc.enable()

    run(main)


@pytest.mark.parametrize("generate", [with_block, with_hold])
def test_an_iteration_goes_on_when_a_generator_is_dropped_in_its_body(
    database: str, run: Run, generate: Callable[[], AsyncIterator[None]]
) -> None:
    async def main() -> None:
        await seed()
        found = []
        async for author in seeded().aiterator(chunk_size=2):
            async for _ in generate():
                break
            await turns(5)
            found.append(author.name)
        assert found == SEEDS

    run(main)
    assert judge.authors() == SEEDS


def test_tasks_of_a_consumer_go_on_when_a_hold_is_dropped(database: str, run: Run) -> None:
    async def main() -> None:
        for number in range(5):
            async for _ in with_hold():
                tasks = [
                    asyncio.create_task(Author.objects.acreate(name=f"{number} {name}"))
                    for name in "abcdefgh"
                ]
                await asyncio.sleep(0)
                break
            await asyncio.gather(*tasks)
            later = [
                asyncio.create_task(Author.objects.acreate(name=f"{number} {name}"))
                for name in "xyz"
            ]
            await asyncio.gather(*later)

    run(main)
    assert judge.authors() == [f"{number} {name}" for number in range(5) for name in "abcdefghxyz"]


def test_an_error_in_a_block_keeps_no_dropped_hold(database: str, run: Run) -> None:
    """Django keeps the error on the connection, and it the frames of who has dropped that."""

    async def main() -> None:
        await seed()

        async def fail() -> None:
            async for _ in with_hold():
                async with aatomic():
                    await Author.objects.acreate(name=SEEDS[0])

        with pytest.raises(IntegrityError):
            await fail()
        gc.collect()
        await until(lambda: pool_stats()["used"] == 0)

    run(main)


def test_a_hook_gets_a_connection_after_an_iteration_was_dropped_in_its_block(
    database: str, run: Run
) -> None:
    """The pool has one, which the committing task has still: holders do not wait for holders."""
    options(max_size=1, timeout=5)

    async def main() -> None:
        await seed()

        async def hook() -> None:
            await Author.objects.acreate(name="by a hook")

        async def work() -> None:
            async with aatomic():
                await aon_commit(hook)
                async for _ in seeded().aiterator(chunk_size=2):
                    return

        await work()

    run(main)
    assert judge.authors() == ["by a hook", *SEEDS]


def test_a_dropped_block_ends_nothing_of_whom_its_wrapper_serves_next(
    database: str, run: Run
) -> None:
    async def main() -> None:
        for number in range(20):

            async def work() -> None:
                async with aatomic():
                    async for _ in with_block():
                        raise Failure

            with pytest.raises(Failure):
                await work()
            await Author.objects.acreate(name=f"{number:02}")

    run(main)
    assert judge.authors() == [f"{number:02}" for number in range(20)]


def test_a_rollback_by_hand_on_a_connection_that_is_gone(database: str, run: Run) -> None:
    """It has happened; the error that the program is about to raise is not replaced."""

    @on_loop
    def work() -> None:
        transaction.set_autocommit(False)
        try:
            Author.objects.create(name="lost")
            connection.connection.terminate()
            raise Failure
        except BaseException:
            transaction.rollback()
            raise
        finally:
            transaction.set_autocommit(True)

    async def main() -> None:
        with pytest.raises(Failure):
            await work()
        await Author.objects.acreate(name="after")

    run(main)
    assert judge.authors() == ["after"]


def test_a_cursor_of_a_savepoint_that_was_rolled_back(database: str, run: Run) -> None:
    """Closed later, on PostgreSQL it would fail, and with it the transaction around it."""

    @on_loop
    def work() -> None:
        with transaction.atomic():
            Author.objects.create(name="kept")
            rows = None
            with suppress(Failure), transaction.atomic():
                rows = seeded().iterator(chunk_size=2)
                next(rows)
                raise Failure
            del rows
            Author.objects.create(name="kept, too")

    async def main() -> None:
        await seed()
        await work()

    run(main)
    assert judge.authors() == ["kept", "kept, too", *SEEDS]


def test_a_dropped_iteration_gives_its_connection_back_in_a_task_whose_hold_is_over(
    database: str, run: Run
) -> None:
    async def main() -> None:
        await seed()
        inside, go = asyncio.Event(), asyncio.Event()

        async def outlives() -> None:
            with suppress(Failure):
                async with detached():
                    async for _ in seeded().aiterator(chunk_size=2):
                        inside.set()
                        await go.wait()
                        raise Failure

        async with hold_connection():
            task = asyncio.create_task(outlives())
            await inside.wait()
        go.set()
        await task
        gc.collect()
        await until(lambda: pool_stats()["used"] == 0)

    run(main)


async def with_cursor() -> AsyncIterator[None]:
    async with acursor() as cursor:
        await cursor.execute("SELECT 1")
        yield None
        yield None


async def with_iteration() -> AsyncIterator[None]:
    async for _ in seeded().aiterator(chunk_size=2):
        yield None


async def read_by_iterator(turn: Callable[[], Awaitable[object]]) -> list[str]:
    found = []
    async for author in seeded().aiterator(chunk_size=2):
        await turn()
        found.append(author.name)
    return found


async def read_by_cursor(turn: Callable[[], Awaitable[object]]) -> list[str]:
    found = []
    async with acursor() as cursor:
        for name in SEEDS:
            await cursor.execute("SELECT name FROM library_author WHERE name = %s", [name])
            await turn()
            found += [name for (name,) in await cursor.fetchall()]
    return found


@pytest.mark.parametrize("read", [read_by_iterator, read_by_cursor])
@pytest.mark.parametrize("generate", [with_hold, with_cursor, with_iteration])
def test_a_reader_goes_on_when_what_it_began_in_is_dropped(
    database: str,
    run: Run,
    generate: Callable[[], AsyncIterator[None]],
    read: Callable[[Callable[[], Awaitable[object]]], Awaitable[list[str]]],
) -> None:
    """The holder's end comes between two steps, where the consumer is in no bridge."""

    async def main() -> None:
        await seed()
        holder: list[Any] = [generate()]
        await anext(holder[0])

        async def turn() -> None:
            holder.clear()
            await turns()
            await Author.objects.acount()

        assert await read(turn) == SEEDS

    run(main)


@pytest.mark.parametrize("first_to_end", [0, 1])
def test_two_iterations_of_one_task_end_in_any_order(
    database: str, run: Run, first_to_end: int
) -> None:
    """As where sorted rows are merged: the second has begun in the body of the first."""

    async def main() -> None:
        await seed()
        iterations = [seeded().aiterator(chunk_size=2) for _ in range(2)]
        found: list[list[str]] = [[], []]
        for iteration, names in zip(iterations, found, strict=True):
            names.append((await anext(iteration)).name)
        await iterations[first_to_end].aclose()
        await Author.objects.acount()
        other = 1 - first_to_end
        found[other] += [author.name async for author in iterations[other]]
        assert found[other] == SEEDS
        assert found[first_to_end] == SEEDS[:1]

    run(main)


@pytest.mark.parametrize("ends", ["dropped", "closed"])
@pytest.mark.parametrize("generate", [with_hold, with_cursor, with_iteration])
def test_a_hold_keeps_its_connection_when_what_it_began_in_ends(
    database: str, run: Run, generate: Callable[[], AsyncIterator[None]], ends: str
) -> None:
    identity = {
        "postgresql": "SELECT pg_backend_pid()",
        "mysql": "SELECT CONNECTION_ID()",
        "sqlite": "SELECT count(*) FROM temp.sqlite_master",
    }[connection.vendor]

    async def ask() -> Any:
        async with acursor() as cursor:
            return await (await cursor.execute(identity)).fetchone()

    async def main() -> None:
        await seed()
        holder: Any = [generate()]
        await anext(holder[0])
        async with hold_connection():
            async with acursor() as cursor:
                await cursor.execute("CREATE TEMPORARY TABLE of_the_hold (id integer)")
            before = await ask()
            if ends == "closed":
                await holder[0].aclose()
            holder.clear()
            await turns()
            # A task of the hold's is in it.
            assert await asyncio.create_task(ask()) == before
            async with aatomic():
                await Author.objects.acreate(name="in the hold")
                assert await ask() == before
        await until(lambda: pool_stats()["used"] == 0)

    run(main)
    assert judge.authors() == sorted([*SEEDS, "in the hold"])


async def with_savepoint() -> AsyncIterator[None]:
    async with aatomic():
        yield None


@pytest.mark.parametrize("fails", [False, True])
def test_a_block_goes_on_to_its_end_when_a_dropped_one_in_it_is_closed(
    database: str, run: Run, fails: bool
) -> None:
    """No statement comes between; the loop's task closes the generator during the block's end."""

    async def main() -> None:
        for number in range(10):
            async with hold_connection():
                with suppress(Failure):
                    async with aatomic():
                        await Author.objects.acreate(name=f"{number} inside")
                        async for _ in with_savepoint():
                            break
                        if fails:
                            raise Failure
                await Author.objects.acreate(name=f"{number} after")

    run(main)
    there = ("after",) if fails else ("after", "inside")
    assert judge.authors() == [f"{number} {name}" for number in range(10) for name in there]


@pytest.mark.parametrize("leave", ["drop", "end"])
@pytest.mark.parametrize("generate", [with_cursor, with_iteration, with_hold])
def test_sync_code_reads_on_when_what_a_coroutine_in_it_opened_ends(
    database: str, run: Run, generate: Callable[[], AsyncIterator[None]], leave: str
) -> None:
    """They share a connection: the coroutine is called by `async_to_sync`."""

    async def use() -> None:
        async for _ in generate():
            if leave == "drop":
                break
        await turns()

    @on_loop
    def read() -> list[str]:
        found = []
        for author in seeded().iterator(chunk_size=2):
            found.append(author.name)
            async_to_sync(use)()
            assert Author.objects.count() == len(SEEDS)
        return found

    async def main() -> None:
        await seed()
        assert await read() == SEEDS

    run(main)


@pytest.mark.parametrize("ends", ["normally", "dropped"])
@pytest.mark.parametrize("around", [with_cursor, with_iteration])
def test_a_hold_in_an_iteration_ends_as_any_other(
    database: str, run: Run, around: Callable[[], AsyncIterator[None]], ends: str
) -> None:
    """Its tasks use the connection, the iteration's: their statements in flight are waited for."""

    async def late() -> None:
        async with acursor() as cursor:
            await cursor.execute(SLOW[database])
        await Author.objects.acreate(name="late")

    async def hold() -> AsyncIterator[None]:
        async with hold_connection():
            yield None

    async def main() -> None:
        await seed()
        async with aclosing(around()) as opened:
            await anext(opened)
            async for _ in hold():
                task = asyncio.create_task(late())
                raw = connection.scope.wrapper.connection
                await until(raw.is_working)
                if ends == "dropped":
                    break
            if ends == "normally":
                # The hold is over: a task that is started now is outside.
                await asyncio.create_task(Author.objects.acreate(name="outside"))
        if ends == "normally":
            with pytest.raises(ScopeEnded):
                await task
        else:
            # Its next statement comes before the hold's end, or after it and is refused.
            with suppress(ScopeEnded):
                await task

    run(main)
    there = set(judge.authors())
    assert there - {"late"} == {*SEEDS, *(["outside"] if ends == "normally" else [])}
    assert "late" not in there or ends == "dropped"


@pytest.mark.parametrize("generate", [with_hold, with_cursor, with_iteration])
def test_a_holder_is_dropped_as_a_cursor_is_about_to_share_its_connection(
    database: str, run: Run, generate: Callable[[], AsyncIterator[None]], monkeypatch: Any
) -> None:
    """As by a collection, which may come between any two lines."""
    generators: list[Any] = []

    def dropping(*args: Any) -> Any:
        generators.clear()
        return keep_shared(*args)

    async def main() -> None:
        await seed()
        generators.append(generate())
        await anext(generators[0])
        async with acursor() as cursor:
            for name in SEEDS:
                await cursor.execute("SELECT name FROM library_author WHERE name = %s", [name])
                assert await cursor.fetchone() == (name,)
                await Author.objects.acount()
        await until(lambda: pool_stats()["used"] == 0)

    monkeypatch.setattr("nuages.db.cursor.keep_shared", dropping)
    run(main)


def test_a_hold_whose_connection_is_lost_in_one_within_it_says_so(database: str, run: Run) -> None:
    """Its session is gone: no statement goes to another one."""

    async def main() -> None:
        async with hold_connection() as wrapper:
            async with hold_connection() as inner:
                assert inner is wrapper
                await Author.objects.acreate(name="before")
                wrapper.connection.terminate()
                with pytest.raises(DatabaseError):
                    await Author.objects.acount()
            with pytest.raises(DatabaseError):
                await Author.objects.acreate(name="not there")
        await Author.objects.acreate(name="after")
        await until(lambda: pool_stats()["used"] == 0)

    run(main)
    assert judge.authors() == ["after", "before"]


def test_a_cursor_goes_on_when_a_hold_in_it_ended_before_its_block(
    database: str, run: Run
) -> None:
    """The block is rolled back, and the code around the hold is told."""

    async def main() -> None:
        async with acursor():
            with pytest.raises(OpenBlock):
                async with AsyncExitStack() as hold:
                    await hold.enter_async_context(hold_connection())
                    async with aatomic():
                        await Author.objects.acreate(name="rolled back")
                        await hold.aclose()
            async with aatomic():
                await Author.objects.acreate(name="after")
        await until(lambda: pool_stats()["used"] == 0)

    run(main)
    assert judge.authors() == ["after"]


@pytest.mark.parametrize("around", [with_cursor, with_iteration])
def test_a_hold_in_an_iteration_is_cancelled_as_it_ends(
    database: str, run: Run, around: Callable[[], AsyncIterator[None]]
) -> None:
    """It waits for a task's statement; what it is in goes on, and gives the connection back."""

    async def slow() -> None:
        async with acursor() as cursor:
            await cursor.execute(SLOW[database])

    async def work(ending: asyncio.Event) -> None:
        async with aclosing(around()) as opened:
            await anext(opened)
            async with hold_connection() as wrapper:
                late = asyncio.create_task(slow())
                await until(lambda: wrapper.connection.is_working())
                ending.set()
            pytest.fail("not cancelled")
        await late

    async def main() -> None:
        await seed()
        ending = asyncio.Event()
        task = asyncio.create_task(work(ending))
        await ending.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: pool_stats()["used"] == 0)

    run(main)


@pytest.mark.parametrize("generate", [with_hold, with_cursor, with_iteration])
def test_hooks_run_where_a_block_goes_on_with_what_was_dropped(
    database: str, run: Run, generate: Callable[[], AsyncIterator[None]]
) -> None:
    async def main() -> None:
        await seed()
        ran: list[str] = []
        holder: list[Any] = [generate()]
        await anext(holder[0])
        async with aatomic():
            await Author.objects.acreate(name="committed")
            await aon_commit(lambda: ran.append("first"))
            await asyncio.create_task(aon_commit(lambda: ran.append("of a task")))
            holder.clear()
            await turns()
            await aon_commit(lambda: ran.append("last"))
        assert ran == ["first", "of a task", "last"]
        await until(lambda: pool_stats()["used"] == 0)

    run(main)
    assert "committed" in judge.authors()


def test_a_late_task_that_is_cancelled_as_its_savepoint_ends(database: str, run: Run) -> None:
    """The savepoint's end waits for the task's statement; the block around it is healthy."""

    async def slow() -> None:
        async with acursor() as cursor:
            await cursor.execute(SLOW[database])

    async def main() -> None:
        async with aatomic():
            await Author.objects.acreate(name="before")
            scope = connection.scope
            # PostgreSQL cannot go on in a transaction whose statement was cancelled.
            with suppress(DatabaseError):
                async with aatomic():
                    late = asyncio.create_task(slow())
                    await until(lambda: scope.wrapper.connection.is_working())

                    async def cancel() -> None:
                        await until(lambda: scope.blocks[-1].ender is not None)
                        late.cancel()

                    cancelling = asyncio.create_task(cancel())
            await cancelling
            await asyncio.wait([late])
            await Author.objects.acreate(name="after")

    run(main)
    assert judge.authors() == ["after", "before"]


def test_code_goes_on_with_another_connection_where_its_own_was_closed(
    database: str, run: Run
) -> None:
    """A second cancellation closes one; what awaits something else has let it go by then."""

    async def body() -> None:
        for _ in range(3):
            assert Author.objects.count() == 0
            connection.connection.terminate()
            await asyncio.sleep(0)
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            connection.connection.terminate()
        await asyncio.sleep(0)
        assert Author.objects.count() == 0

    async def main() -> None:
        await on_loop(body)()
        assert pool_stats()["used"] == 0

    run(main)


def test_a_call_goes_on_where_its_hold_is_dropped_between_two_statements(
    database: str, run: Run
) -> None:
    """It has the turn; asking for one as if from outside, it would wait for itself."""

    def work() -> list[Any]:
        with connection.cursor() as cursor:
            cursor.execute(SLOW[database])
            cursor.execute("SELECT 7")
            return list(cursor.fetchall())

    async def main() -> None:
        generator = with_hold()
        await anext(generator)
        raw = connection.scope.wrapper.connection
        task = asyncio.create_task(on_loop(work)())
        await until(raw.is_working)
        del generator
        assert [row[0] for row in await task] == [7]
        await until(lambda: pool_stats()["used"] == 0)

    with override_settings(NUAGES={"SCOPE_TIMEOUT": 20}):
        run(main)
