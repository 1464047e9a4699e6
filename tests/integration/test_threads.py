"""Threads: inside a scope they join it, outside they borrow."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import connection, transaction

from nuages import off_loop, on_loop
from nuages.db import aatomic, hold_connection
from nuages.db.transaction import request_connections
from tests import judge
from tests.integration.conftest import Run
from tests.integration.pool_tools import server
from tests.integration.scope_tools import (
    Failure,
    names,
    pool_stats,
    queued,
    rolled_back,
    until,
)
from tests.library.models import Author

pytestmark = [pytest.mark.every_database, pytest.mark.both_loops]


def create(name: str) -> Author:
    return Author.objects.create(name=name)


def create_atomically(name: str) -> None:
    """A nested block of several statements, as somebody's sync service function has it."""
    with transaction.atomic():
        create(f"{name}1")
        with transaction.atomic():
            create(f"{name}2")
        assert connection.in_atomic_block


async def in_sensitive_thread(function: Callable[..., Any], *args: Any) -> Any:
    return await sync_to_async(function)(*args)


async def in_any_thread(function: Callable[..., Any], *args: Any) -> Any:
    return await sync_to_async(function, thread_sensitive=False)(*args)


async def in_off_loop(function: Callable[..., Any], *args: Any) -> Any:
    return await on_loop(off_loop(function))(*args)


ways = pytest.mark.parametrize(
    "in_thread",
    [in_sensitive_thread, in_any_thread, asyncio.to_thread, in_off_loop],
    ids=["sensitive", "insensitive", "to_thread", "off_loop"],
)


# Inside a scope


@ways
@pytest.mark.parametrize("function", [create, create_atomically])
def test_a_thread_joins_the_transaction(
    database: str, run: Run, in_thread: Callable[..., Any], function: Callable[..., Any]
) -> None:
    idents: list[int] = []

    def work() -> None:
        idents.append(threading.get_ident())
        function("thread")

    async def main() -> None:
        async with asyncio.timeout(10):
            async with rolled_back():
                await Author.objects.acreate(name="task")
                await in_thread(work)
                assert await Author.objects.acount() >= 2
                assert pool_stats()["used"] == 1
            assert await names() == []
            async with aatomic():
                await in_thread(function, "thread")
                await Author.objects.acreate(name="task")
        expected = ["task", "thread"] if function is create else ["task", "thread1", "thread2"]
        assert await names() == expected
        assert pool_stats()["used"] == 0

    run(main)
    assert idents[0] != threading.get_ident()


@ways
def test_threads_and_tasks_take_turns(
    database: str, run: Run, in_thread: Callable[..., Any]
) -> None:
    """Nested blocks in threads and tasks of one transaction, gathered; one of each fails."""

    def thread(name: str) -> None:
        with transaction.atomic():
            create(f"{name} first")
            create(f"{name} second")
            if name == "t1":
                raise Failure

    async def task(name: str) -> None:
        async with aatomic():
            await Author.objects.acreate(name=f"{name} first")
            await Author.objects.acreate(name=f"{name} second")
            if name == "c1":
                raise Failure

    async def main() -> None:
        async with asyncio.timeout(20), aatomic():
            results = await asyncio.gather(
                *(in_thread(thread, f"t{i}") for i in range(3)),
                *(task(f"c{i}") for i in range(3)),
                return_exceptions=True,
            )
        failures = [type(result) for result in results if result is not None]
        assert failures == [Failure, Failure]
        expected = [f"{who} {which}" for who in ("c0", "c2", "t0", "t2")
                    for which in ("first", "second")]  # fmt: skip
        assert await names() == expected

    run(main)


@ways
def test_a_thread_waits_for_the_block_of_a_task(
    database: str, run: Run, in_thread: Callable[..., Any]
) -> None:
    async def nested(entered: asyncio.Event, go: asyncio.Event) -> None:
        async with aatomic():
            await Author.objects.acreate(name="nested")
            entered.set()
            await go.wait()
            raise Failure

    async def main() -> None:
        entered, go = asyncio.Event(), asyncio.Event()
        async with asyncio.timeout(10), aatomic():
            block = asyncio.create_task(nested(entered, go))
            await entered.wait()
            thread = asyncio.create_task(in_thread(create, "thread"))
            await until(lambda: queued() == 1)
            go.set()
            with pytest.raises(Failure):
                await block
            await thread
        assert await names() == ["thread"]

    run(main)


@ways
def test_a_thread_uses_the_held_connection(
    postgresql: dict[str, Any], run: Run, in_thread: Callable[..., Any]
) -> None:
    def pid() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            return int(cursor.fetchone()[0])

    async def main() -> None:
        async with hold_connection():
            pids = await asyncio.gather(*(in_thread(pid) for _ in range(5)), on_loop(pid)())
        assert len(set(pids)) == 1

    run(main)


@ways
@pytest.mark.parametrize("share", [hold_connection, request_connections])
def test_a_thread_may_connect_what_it_shares(
    database: str, run: Run, in_thread: Callable[..., Any], share: Callable[[], Any]
) -> None:
    """A hold's connection was closed, or a request's not used yet; a thread is the next."""

    async def main() -> None:
        async with asyncio.timeout(20):
            async with share():
                for function in (create, create_atomically):
                    await on_loop(lambda: connection.close())()
                    await in_thread(function, "first")
                    await Author.objects.acreate(name="then")
                    await asyncio.gather(
                        Author.objects.acreate(name="task"), in_thread(function, "thread")
                    )
                    assert await Author.objects.acount() == (4 if function is create else 6)
                    assert pool_stats()["used"] == pool_stats()["size"] == 1
                    if database == "sqlite":
                        # Without a worker it would block the loop, and nobody would close it.
                        assert connection.connection.worker is not None
                    await Author.objects.all().adelete()
            await until(lambda: pool_stats()["used"] == 0)

    run(main)


@ways
def test_a_thread_may_connect_again_in_manual_mode(
    database: str, run: Run, in_thread: Callable[..., Any]
) -> None:
    """As in Django, the new connection is in autocommit."""

    async def main() -> None:
        await on_loop(transaction.set_autocommit)(False)
        await Author.objects.acreate(name="lost")
        await on_loop(lambda: connection.close())()
        await in_thread(create, "thread")
        await Author.objects.acreate(name="task")
        if database == "sqlite":
            assert connection.connection.worker is not None
        await on_loop(transaction.set_autocommit)(True)
        assert pool_stats()["used"] == 0
        assert await names() == ["task", "thread"]

    run(main)


def test_a_thread_in_a_scope_goes_back_to_the_loop(database: str, run: Run) -> None:
    """async_to_sync in a thread that sync_to_async runs: the coroutine is in the transaction."""

    async def inner() -> None:
        await Author.objects.acreate(name="inner")
        async with aatomic():
            await Author.objects.acreate(name="inner block")

    async def innermost() -> None:
        await Author.objects.acreate(name="innermost")

    def thread() -> None:
        create("thread")
        async_to_sync(inner)()
        with transaction.atomic():
            create("thread block")
            async_to_sync(innermost)()

    async def main() -> None:
        async with asyncio.timeout(10):
            async with rolled_back():
                await sync_to_async(thread)()
                assert await Author.objects.acount() == 5
            assert await names() == []
            assert pool_stats()["used"] == 0
            # Without a scope around it, the thread's own block is one.
            await sync_to_async(thread)()
        assert len(await names()) == 5
        assert pool_stats()["used"] == 0

    run(main)


# Outside a scope


@pytest.mark.parametrize("sensitive", [True, False])
def test_threads_outside_a_scope_borrow_and_give_back(
    database: str, run: Run, sensitive: bool
) -> None:
    async def main() -> None:
        call = sync_to_async(create, thread_sensitive=sensitive)
        async with asyncio.timeout(30):
            await asyncio.gather(*(call(f"{i}") for i in range(50)))
        await until(lambda: pool_stats()["used"] == 0)
        assert pool_stats()["size"] <= pool_stats()["max_size"]
        assert await Author.objects.acount() == 50

    run(main)


def test_a_pool_of_two_serves_many_threads(postgresql: dict[str, Any], run: Run) -> None:
    postgresql["OPTIONS"] = {"pool": {"max_size": 2}}

    async def main() -> None:
        call = sync_to_async(create_atomically, thread_sensitive=False)
        async with asyncio.timeout(30), server() as pg:
            await asyncio.gather(*(call(f"{i}-") for i in range(20)))
            await until(lambda: pool_stats()["used"] == 0)
            await pg.until_idle()
            await pg.until_sessions(pool_stats()["size"])
        assert pool_stats()["size"] <= 2
        assert await Author.objects.acount() == 40

    run(main)


def test_a_thread_that_fails_gives_back(database: str, run: Run) -> None:
    def fail(where: str) -> None:
        with transaction.atomic():
            create("never")
            raise Failure

    async def main() -> None:
        for sensitive in (True, False):
            for _ in range(3):
                with pytest.raises(Failure):
                    await sync_to_async(fail, thread_sensitive=sensitive)("thread")
        await until(lambda: pool_stats()["used"] == 0)
        assert await names() == []

    run(main)


def test_a_plain_thread_uses_djangos_own_wrapper(database: str, run: Run) -> None:
    """A `threading.Thread` has an empty context: its connection is its own, and it closes it."""
    seen: dict[str, Any] = {}

    def work(name: str) -> None:
        create(name)
        seen["role"] = connection.role
        seen["in_atomic_block"] = connection.in_atomic_block
        connection.close()

    async def main() -> None:
        thread = threading.Thread(target=work, args=("outside",))
        thread.start()
        await asyncio.get_running_loop().run_in_executor(None, thread.join)
        assert seen == {"role": "plain", "in_atomic_block": False}
        async with aatomic():
            assert await Author.objects.acount() == 1
            thread = threading.Thread(target=work, args=("beside the transaction",))
            if database != "sqlite":  # SQLite's one writer is the transaction
                thread.start()
                await asyncio.get_running_loop().run_in_executor(None, thread.join)
                assert seen == {"role": "plain", "in_atomic_block": False}
        assert await names() == ["beside the transaction", "outside"][database == "sqlite" :]

    run(main)


# Wrappers kept by user code


def test_a_wrapper_captured_before_an_await_works_after_it(database: str, run: Run) -> None:
    """Its connection has gone back meanwhile; it takes one again, and only one."""

    @on_loop
    async def portal() -> None:
        from django.db import connections

        wrapper = connections["default"]
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT 1")
            assert cursor.fetchone() == (1,)
        await asyncio.sleep(0)
        assert pool_stats()["used"] == 0
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT 2")
            assert cursor.fetchone() == (2,)
            assert Author.objects.count() == 0
            assert pool_stats()["used"] == 1
        await asyncio.sleep(0)
        with transaction.atomic():
            create("one")
            assert connections["default"].in_atomic_block
        async with aatomic():
            await Author.objects.acreate(name="two")
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM library_author")
            assert cursor.fetchone() == (2,)

    async def main() -> None:
        await portal()
        assert pool_stats()["used"] == 0
        assert pool_stats()["size"] == 1

    run(main)


def test_a_thread_that_was_left_keeps_its_transaction_to_itself(database: str, run: Run) -> None:
    """asgiref copies a thread's context back as soon as its caller is cancelled."""
    entered, go, ended = threading.Event(), threading.Event(), threading.Event()

    async def main() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def work() -> None:
            try:
                with transaction.atomic():
                    Author.objects.create(name="thread")
                    entered.set()
                    loop.call_soon_threadsafe(task.cancel)
                    assert go.wait(30)
                    raise Failure
            finally:
                ended.set()

        with pytest.raises(asyncio.CancelledError):
            await sync_to_async(work, thread_sensitive=False)()
        task.uncancel()
        assert entered.is_set()
        assert not connection.in_atomic_block
        if database == "sqlite":
            # It has the file's write lock.
            go.set()
        await Author.objects.acreate(name="task")
        assert "task" in judge.authors()
        go.set()
        assert await asyncio.to_thread(ended.wait, 30)

    run(main)
    assert judge.authors() == ["task"]
