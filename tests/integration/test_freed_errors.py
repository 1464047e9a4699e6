"""Errors that come through us are freed with the last reference to them (`freed.py`).

`test_sweep.py` asks the same of cancellations, at every suspension of every operation.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import DatabaseError, IntegrityError, connection, transaction

from nuages import off_loop, on_loop
from nuages.bridge import await_
from nuages.bridge.tasks import to_its_end
from nuages.db import aatomic, acursor, aon_commit, hold_connection
from nuages.exceptions import HookFailed
from tests.integration.conftest import Run
from tests.integration.freed import no_cycles
from tests.integration.scope_tools import Failure
from tests.integration.sweep_tools import TIMINGS, Cut, Timing, settled
from tests.library.models import Author

pytestmark = [pytest.mark.every_database, pytest.mark.every_loop]


async def of_the_database() -> None:
    async with acursor() as cursor:
        await cursor.execute("SELECT nothing FROM nowhere")


async def of_a_unique_row() -> None:
    author = await Author.objects.acreate(name="Ann")
    await Author.objects.acreate(pk=author.pk, name="Zoe")


async def not_found() -> None:
    await Author.objects.aget(name="nobody")


async def in_a_block() -> None:
    async with aatomic():
        await of_the_database()


async def in_a_savepoint() -> None:
    async with aatomic(), aatomic():
        await of_a_unique_row()


async def in_a_hold() -> None:
    async with hold_connection():
        await of_the_database()


async def in_sync_code() -> None:
    def work() -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT nothing FROM nowhere")

    await on_loop(work)()


async def in_a_hook() -> None:
    async with aatomic():
        await aon_commit(of_the_database)


async def in_an_iteration() -> None:
    async for _ in Author.objects.extra(select={"n": "nothing"}).aiterator():
        pass


async def fails() -> None:
    await asyncio.sleep(0)
    raise Failure


async def awaited_by_sync_code() -> None:
    await on_loop(lambda: await_(fails()))()


async def called_by_sync_code() -> None:
    await on_loop(lambda: async_to_sync(fails)())()


async def in_a_portal() -> None:
    await on_loop(fails)()


async def in_a_task() -> None:
    await to_its_end(fails())


FAILING: list[tuple[Callable[[], Awaitable[None]], type[Exception]]] = [
    (of_the_database, DatabaseError),
    (of_a_unique_row, IntegrityError),
    (not_found, Author.DoesNotExist),
    (in_a_block, DatabaseError),
    (in_a_savepoint, IntegrityError),
    (in_a_hold, DatabaseError),
    (in_sync_code, DatabaseError),
    (in_a_hook, HookFailed),
    (in_an_iteration, DatabaseError),
    (awaited_by_sync_code, Failure),
    (called_by_sync_code, Failure),
    (in_a_portal, Failure),
    (in_a_task, Failure),
]


@pytest.mark.parametrize("as_a_task", [False, True])
@pytest.mark.parametrize(("fail", "error"), FAILING, ids=lambda each: each.__name__)
def test_an_error(
    fail: Callable[[], Awaitable[None]],
    error: type[Exception],
    as_a_task: bool,
    database: str,
    run: Run,
) -> None:
    async def attempt() -> None:
        try:
            await fail()
        except error:
            return
        raise AssertionError("nothing failed")

    async def main() -> None:
        await attempt()  # what is set up once
        with no_cycles():
            if as_a_task:
                task = asyncio.ensure_future(fail())
                await asyncio.wait([task])
                assert isinstance(task.exception(), error)
                del task
            else:
                await attempt()
            await settled()

    run(main)


async def holding() -> AsyncIterator[int]:
    async with hold_connection():
        yield 1
        yield 2


async def in_a_transaction() -> None:
    async with aatomic():
        await Author.objects.aupdate(mentor=None)


async def in_a_thread() -> None:
    await sync_to_async(Author.objects.count, thread_sensitive=False)()


async def off_the_loop() -> None:
    await on_loop(off_loop(Author.objects.count))()


BODIES = [in_a_transaction, in_a_thread, off_the_loop]


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("body", BODIES, ids=lambda each: each.__name__)
def test_a_generator_whose_consumer_is_cancelled_is_dropped_at_once(
    body: Callable[[], Awaitable[None]], timing: Timing, database: str, run: Run
) -> None:
    """Tasks that are started after it are not in its hold, whenever somebody collects garbage."""

    async def consume(point: int) -> bool:
        generators: list[weakref.ref[Any]] = []

        async def iterate() -> None:
            generator = holding()
            generators.append(weakref.ref(generator))
            async for _ in generator:
                del generator
                await cut.run()
                break

        cut = Cut(body(), [point], timing)
        with suppress(asyncio.CancelledError):
            await iterate()
        while asyncio.current_task().uncancel():  # type: ignore[union-attr]
            pass
        assert generators[0]() is None, (point, timing)
        await settled()
        return bool(cut.cancelled)

    async def main() -> None:
        await body()
        gc.disable()
        try:
            point = 1
            while await consume(point):
                point += 1
        finally:
            gc.enable()
        assert point > 1

    run(main)
