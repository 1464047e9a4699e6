"""What holds a connection and is left early gives it back before the next statement.

`break`, `return`, an exception, a timeout: nothing that a finaliser does later, in whatever task,
touches the work that came after. The judge of what was committed is a second, plain connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction
from django.db.transaction import TransactionManagementError

from nuages import on_loop
from nuages.bridge import await_
from nuages.db import aatomic, acursor, aon_commit, detached, hold_connection
from nuages.exceptions import OpenBlock, ScopeEnded
from tests import judge
from tests.integration.conftest import Run
from tests.integration.scope_tools import pool_stats, until
from tests.library.models import Author

pytestmark = [pytest.mark.every_database, pytest.mark.every_loop]

Leave = Callable[[Callable[[], AsyncIterator[Any]]], Coroutine[Any, Any, None]]


async def by_break(make: Callable[[], AsyncIterator[Any]]) -> None:
    async for _ in make():
        break


async def by_return(make: Callable[[], AsyncIterator[Any]]) -> None:
    async for _ in make():
        return


async def by_exception(make: Callable[[], AsyncIterator[Any]]) -> None:
    with contextlib.suppress(ZeroDivisionError):
        async for _ in make():
            _ = 1 / 0


async def by_timeout(make: Callable[[], AsyncIterator[Any]]) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(None) as timeout:
            async for _ in make():
                timeout.reschedule(0)
                await asyncio.Event().wait()


async def by_dropping(make: Callable[[], AsyncIterator[Any]]) -> None:
    iterator = make()
    await anext(iterator)
    del iterator


async def by_two_in_a_row(make: Callable[[], AsyncIterator[Any]]) -> None:
    await by_break(make)
    await by_break(make)


async def in_a_cycle(make: Callable[[], AsyncIterator[Any]]) -> None:
    """Only the garbage collector finds it."""
    cycle: list[Any] = [make()]
    cycle.append(cycle)
    await anext(cycle[0])
    del cycle
    gc.collect()


LEAVES: list[Leave] = [
    by_break,
    by_return,
    by_exception,
    by_timeout,
    by_dropping,
    by_two_in_a_row,
    in_a_cycle,
]


def iterated() -> AsyncIterator[Any]:
    return Author.objects.filter(name__startswith="seed").aiterator(chunk_size=2)


def prefetched() -> AsyncIterator[Any]:
    return Author.objects.prefetch_related("books").aiterator(chunk_size=2)


async def with_cursor() -> AsyncIterator[Any]:
    async with acursor() as cursor:
        await cursor.execute("SELECT name FROM library_author")
        async for row in cursor:
            yield row


async def with_hold() -> AsyncIterator[Any]:
    async with hold_connection():
        yield await Author.objects.acount()
        yield None


async def with_block() -> AsyncIterator[Any]:
    async with aatomic():
        await Author.objects.acreate(name="of the generator")
        yield None
        yield None


async def nested_in_another() -> AsyncIterator[Any]:
    async for each in iterated():
        yield each


@on_loop
async def stepped() -> AsyncIterator[Any]:
    async for each in iterated():
        yield each


@on_loop
async def stepped_with_block() -> AsyncIterator[Any]:
    async with aatomic():
        await Author.objects.acreate(name="of the generator")
        yield None
        yield None


MAKERS = [
    iterated,
    prefetched,
    with_cursor,
    with_hold,
    with_block,
    nested_in_another,
    stepped,
    stepped_with_block,
]
SEEDS = [f"seed {number}" for number in range(9)]


async def seed() -> None:
    await Author.objects.abulk_create([Author(name=name) for name in SEEDS])


async def write_in_aatomic(done: list[str]) -> None:
    async with aatomic():
        await Author.objects.acreate(name="first")
        await aon_commit(lambda: done.append("hook"))
        await Author.objects.acreate(name="second")


async def write_in_atomic(done: list[str]) -> None:
    @on_loop
    def write() -> None:
        with transaction.atomic():
            Author.objects.create(name="first")
            transaction.on_commit(lambda: done.append("hook"))
            Author.objects.create(name="second")

    await write()


async def write_by_bulk(done: list[str]) -> None:
    await Author.objects.abulk_create([Author(name="first"), Author(name="second")])
    await aon_commit(lambda: done.append("hook"))


async def write_without_block(done: list[str]) -> None:
    await Author.objects.aget_or_create(name="first")
    await Author.objects.acreate(name="second")
    await aon_commit(lambda: done.append("hook"))


async def write_in_portal(done: list[str]) -> None:
    await on_loop(write_in_aatomic)(done)


WRITES = [
    write_in_atomic,
    write_by_bulk,
    write_without_block,
    write_in_portal,
]


@pytest.mark.parametrize(
    ("leave", "make", "write"),
    [
        *((leave, make, write_in_aatomic) for leave in LEAVES for make in MAKERS),
        *((by_break, make, write) for make in MAKERS for write in WRITES),
    ],
)
def test_what_comes_after_an_early_exit_is_there(
    database: str,
    run: Run,
    leave: Leave,
    make: Callable[[], AsyncIterator[Any]],
    write: Callable[[list[str]], Coroutine[Any, Any, None]],
) -> None:
    done: list[str] = []

    async def main() -> None:
        await seed()
        await leave(make)
        await write(done)
        assert judge.authors() == ["first", "second", *SEEDS]
        assert done == ["hook"]
        assert not connection.in_atomic_block
        await until(lambda: pool_stats()["used"] == 0)

    run(main)
    assert judge.authors() == ["first", "second", *SEEDS]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("leave", [by_break, in_a_cycle])
def test_an_early_exit_inside_of_a_request_and_in_one_chain_of_calls(
    database: str, run: Run, leave: Leave, make: Callable[[], AsyncIterator[Any]]
) -> None:
    """In a portal all is one chain of calls, whose lease the iteration had."""
    done: list[str] = []

    @on_loop
    async def main() -> None:
        await seed()
        await leave(make)
        await write_in_aatomic(done)
        assert judge.authors() == ["first", "second", *SEEDS]

    run(main)
    assert judge.authors() == ["first", "second", *SEEDS]
    assert done == ["hook"]


@pytest.mark.parametrize("make", [iterated, prefetched, with_cursor, with_hold, stepped])
def test_a_block_in_the_body_of_an_iteration_that_is_dropped_in_it(
    database: str, run: Run, make: Callable[[], AsyncIterator[Any]]
) -> None:
    """The block has the iteration's connection, and goes on to its end."""

    async def main() -> None:
        await seed()
        iterator = make()
        await anext(iterator)
        async with aatomic():
            await Author.objects.acreate(name="first")
            del iterator
            gc.collect()
            await asyncio.sleep(0)  # the loop's task that closes it comes
            await asyncio.sleep(0)
            await Author.objects.acreate(name="second")
        assert judge.authors() == ["first", "second", *SEEDS]
        await Author.objects.acreate(name="third")
        assert judge.authors() == ["first", "second", *SEEDS, "third"]
        await until(lambda: pool_stats()["used"] == 0)

    run(main)


def test_a_block_in_a_block_of_a_generator_that_is_dropped_in_it(database: str, run: Run) -> None:
    """The outer block will never commit, so the inner one cannot."""

    async def main() -> None:
        iterator = with_block()
        await anext(iterator)
        with pytest.raises(ScopeEnded):
            async with aatomic():
                await Author.objects.acreate(name="first")
                del iterator
                gc.collect()
        assert judge.authors() == []
        async with aatomic():
            await Author.objects.acreate(name="second")
        assert judge.authors() == ["second"]
        await until(lambda: pool_stats()["used"] == 0)

    run(main)


@pytest.mark.parametrize("make", [iterated, with_cursor])
def test_tasks_of_a_block_in_the_body_of_an_iteration_are_in_the_block(
    database: str, run: Run, make: Callable[[], AsyncIterator[Any]]
) -> None:
    async def main() -> None:
        await seed()
        async for _ in make():
            with contextlib.suppress(ZeroDivisionError):
                async with aatomic():
                    await asyncio.gather(
                        Author.objects.acreate(name="one"), Author.objects.acreate(name="two")
                    )
                    _ = 1 / 0
            async with aatomic():
                await asyncio.gather(
                    Author.objects.acreate(name="first"), Author.objects.acreate(name="second")
                )
            break
        assert judge.authors() == ["first", "second", *SEEDS]

    run(main)


@pytest.mark.parametrize("in_task", [False, True])
def test_a_cursor_closed_in_a_block_that_was_opened_in_it(
    database: str, run: Run, in_task: bool
) -> None:
    async def main() -> None:
        cursor = acursor()
        await cursor.__aenter__()
        with pytest.raises((OpenBlock, ScopeEnded)):
            async with aatomic():
                await Author.objects.acreate(name="first")
                closing = cursor.__aexit__(None, None, None)
                with pytest.raises(OpenBlock):
                    await (asyncio.ensure_future(closing) if in_task else closing)
        assert judge.authors() == []
        await Author.objects.acreate(name="after")
        assert judge.authors() == ["after"]
        await until(lambda: pool_stats()["used"] == 0)

    run(main)


def test_an_iteration_kept_open_goes_on_after_a_block(database: str, run: Run) -> None:
    async def main() -> None:
        await seed()
        found = []
        async for author in iterated():
            found.append(author.name)
            async with aatomic():
                await Author.objects.acreate(name=f"after {author.name}")
        assert sorted(found) == SEEDS
        assert judge.authors() == [*(f"after {name}" for name in SEEDS), *SEEDS]

    run(main)


# Committing needs a connection


def test_a_block_whose_connection_is_gone_does_not_end_as_committed(
    database: str, run: Run
) -> None:
    done: list[str] = []

    async def main() -> None:
        @on_loop
        def lose() -> None:
            raw, connection.connection = connection.connection, None
            raw.terminate()

        with pytest.raises(OperationalError):
            async with aatomic():
                await Author.objects.acreate(name="lost")
                await aon_commit(lambda: done.append("hook"))
                await lose()
        assert done == []
        assert judge.authors() == []
        await Author.objects.acreate(name="after")

    run(main)
    assert judge.authors() == ["after"]


def test_a_block_in_which_a_swallowed_timeout_ended_a_statement_does_not_end_as_committed(
    postgresql: dict[str, Any], run: Run
) -> None:
    async def main() -> None:
        with pytest.raises(TransactionManagementError):
            async with aatomic():
                await Author.objects.acreate(name="lost")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None) as timeout, acursor() as cursor:
                        timeout.reschedule(asyncio.get_running_loop().time() + 0.05)
                        await cursor.execute("SELECT pg_sleep(30)")
        assert judge.authors() == []

    run(main)


# Entered in another task


@pytest.mark.parametrize("make", [aatomic, hold_connection])
def test_a_block_entered_in_another_task_does_not_end_as_if_its_body_had_been_in_it(
    database: str, run: Run, make: Callable[[], Any]
) -> None:
    async def main() -> None:
        with pytest.raises(TransactionManagementError, match="task"):
            async with contextlib.AsyncExitStack() as stack:
                await asyncio.create_task(stack.enter_async_context(make()))
        await Author.objects.acreate(name="after")
        assert judge.authors() == ["after"]
        assert not connection.in_atomic_block
        await until(lambda: pool_stats()["used"] == 0)

    run(main)


def test_a_block_entered_in_another_task_rolls_back_what_was_in_it(
    database: str, run: Run
) -> None:
    async def main() -> None:
        block = aatomic()

        async def begin() -> None:
            await block.__aenter__()
            await Author.objects.acreate(name="inside")

        await asyncio.create_task(begin())
        with pytest.raises(TransactionManagementError, match="task"):
            await block.__aexit__(None, None, None)
        assert judge.authors() == []

    run(main)


@pytest.mark.parametrize("database", ["postgresql", "mysql"], indirect=True)
def test_blocks_entered_by_gather(database: str, run: Run) -> None:
    """Not on SQLite, where two write transactions of one file wait for each other."""

    async def main() -> None:
        one, two = aatomic(), aatomic()
        await asyncio.gather(one.__aenter__(), two.__aenter__())
        async with detached():
            await Author.objects.acreate(name="beside")
        for block in (two, one):
            with pytest.raises(TransactionManagementError, match="task"):
                await block.__aexit__(None, None, None)
        assert judge.authors() == ["beside"]

    run(main)


# Tasks that open a block as the one around them ends


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("turns", range(6))
def test_a_late_block_of_a_task_does_not_fail_the_transaction(
    database: str, run: Run, turns: int, fails: bool
) -> None:
    """Started in a nested block, it begins its own as that one ends."""
    outcomes: list[BaseException | None] = []

    async def late() -> None:
        try:
            async with aatomic():
                await Author.objects.acreate(name="late")
        except BaseException as error:
            outcomes.append(error)
        else:
            outcomes.append(None)

    async def main() -> None:
        async with aatomic():
            await Author.objects.acreate(name="first")
            with contextlib.suppress(ZeroDivisionError, OpenBlock):
                async with aatomic():
                    task = asyncio.create_task(late())
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    if fails:
                        _ = 1 / 0
            await task
            await Author.objects.acreate(name="second")
        (outcome,) = outcomes
        assert outcome is None or isinstance(outcome, ScopeEnded), outcome
        found = judge.authors()
        assert found == (["first", "second"] if outcome or fails else ["first", "late", "second"])
        await until(lambda: pool_stats()["used"] == 0)

    run(main)


@pytest.mark.parametrize("turns", range(6))
def test_a_late_sync_block_of_a_task_does_not_fail_the_transaction(
    database: str, run: Run, turns: int
) -> None:
    outcomes: list[BaseException | None] = []

    @on_loop
    def late() -> None:
        try:
            with transaction.atomic():
                Author.objects.create(name="late")
                await_(asyncio.sleep(0))
        except Exception as error:
            outcomes.append(error)
        else:
            outcomes.append(None)

    async def main() -> None:
        async with aatomic():
            await Author.objects.acreate(name="first")
            with contextlib.suppress(OpenBlock):
                async with aatomic():
                    tasks = [asyncio.create_task(late())]
                    for _ in range(turns):
                        await asyncio.sleep(0)
            await asyncio.gather(*tasks)
            await Author.objects.acreate(name="second")
        (outcome,) = outcomes
        assert outcome is None or isinstance(outcome, ScopeEnded), outcome
        assert judge.authors() == ["first", *(["late"] if outcome is None else []), "second"]

    run(main)
