"""The pool under load, under cancellation, and with sessions that die."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import os
import random
import socket
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import psycopg
import pymysql  # type: ignore[import-untyped]
import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError, OperationalError, connection, connections, transaction
from django.db.utils import load_backend

from nuages import on_loop
from nuages.db import aatomic, acursor, detached, hold_connection
from nuages.db.backends.mysql.transport import Transport
from nuages.db.backends.sqlite3.connection import gate_of
from nuages.db.pool.pool import open_pools
from nuages.db.prefill import warm_pools
from nuages.exceptions import OutcomeUnknown, PoolTimeout, TooManyWaiting
from tests.integration.conftest import Run
from tests.integration.pool_tools import (
    Heartbeat,
    assert_whole,
    backend,
    cancelled,
    fetch,
    occupied,
    options,
    proxy_before,
    ran_in_a_context,
    server,
    the_pool,
)
from tests.integration.scope_tools import until
from tests.library.models import Author, Book, Novel
from tests.services import free_port

pytestmark = [pytest.mark.every_database, pytest.mark.both_loops]


@pytest.mark.parametrize("where", ["bridge", "thread"])
def test_a_session_that_dies_on_its_way_to_who_waits_is_replaced(
    database: str, run: Run, where: str
) -> None:
    """The one who has it gives it back, and it is gone before the other wakes."""
    options(max_size=1)

    async def write() -> None:
        async with aatomic():
            await Author.objects.acreate(name="waiting")

    def write_in_thread() -> None:
        with transaction.atomic():
            Author.objects.create(name="waiting")

    async def main() -> None:
        outside = contextvars.copy_context()
        async with aatomic():
            await Author.objects.acount()
            raw = connection.connection
            in_thread = sync_to_async(write_in_thread, thread_sensitive=False)
            work = write() if where == "bridge" else in_thread()
            waiting = asyncio.create_task(work, context=outside)
            await until(lambda: the_pool().waiting() == 1)
        assert the_pool().waiting() == 0
        raw.terminate()
        async with asyncio.timeout(20):
            await waiting
        assert await Author.objects.acount() == 1
        assert_whole(the_pool())

    run(main)


def test_an_idle_connection_keeps_nothing_of_the_context_it_was_opened_in(
    database: str, run: Run
) -> None:
    """It outlives the request that opened it, and its timers too."""
    options(min_size=0, max_size=3)

    async def request() -> None:
        async with aatomic():
            await Author.objects.acreate(name="someone")
            async with detached():
                await Author.objects.acount()

    async def main() -> None:
        is_kept = await ran_in_a_context(request)
        await until(lambda: the_pool().stats()["idle"] == 2)
        await asyncio.sleep(0)  # the end of that task is what woke this one, and still at hand
        assert not is_kept()

    run(main)


def pair_with(
    descriptor: int, opened: contextlib.ExitStack
) -> tuple[socket.socket, socket.socket]:
    """Open pairs of sockets until one has `descriptor`, which is free; return that one first."""
    ends: list[socket.socket] = []
    while descriptor not in [end.fileno() for end in ends]:
        ends += [opened.enter_context(end) for end in socket.socketpair()]
        ends[-2].setblocking(False)
        ends[-1].setblocking(False)
    index = [end.fileno() for end in ends].index(descriptor)
    return ends[index], ends[index ^ 1]


def test_a_task_that_outlives_a_block_keeps_nothing_of_the_error_that_ended_it(
    database: str, run: Run
) -> None:
    """Django notes it on the connection, which the task's context leads to."""

    async def main() -> None:
        over = asyncio.Event()
        errors: list[weakref.ref[BaseException]] = []
        left: list[asyncio.Task[Any]] = []

        async def request() -> None:
            try:
                async with aatomic():
                    left.append(asyncio.create_task(over.wait()))
                    author = await Author.objects.acreate(name="one")
                    await Author.objects.acreate(pk=author.pk, name="the same")
            except IntegrityError as error:
                errors.append(weakref.ref(error))

        await asyncio.create_task(request())
        await asyncio.sleep(0)  # the end of that task is what woke this one, and still at hand
        gc.collect()
        assert errors[0]() is None
        over.set()
        await left[0]

    run(main)


@contextlib.contextmanager
def halted(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Let the loop of another thread do nothing."""
    halts, goes_on = threading.Event(), threading.Event()

    def halt() -> None:
        halts.set()
        assert goes_on.wait(20)

    loop.call_soon_threadsafe(halt)
    assert halts.wait(20)
    try:
        yield
    finally:
        goes_on.set()


def test_a_connection_that_a_thread_loses_does_not_touch_the_next_socket_of_its_number(
    postgresql: dict[str, Any], run: Run
) -> None:
    """libpq closes its socket by itself, in the thread, while the loop still watches it."""

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def lose(opened: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
            descriptor = connection.connection.pgconn.socket
            # Or the loop would be told of the end before this thread.
            with halted(loop), connection.cursor() as cursor:
                with pytest.raises(OperationalError):
                    cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
                return pair_with(descriptor, opened)

        with contextlib.ExitStack() as opened:
            with contextlib.suppress(OperationalError):
                async with aatomic():
                    await Author.objects.acount()
                    here, there = await sync_to_async(lose)(opened)
                    receiving = asyncio.create_task(loop.sock_recv(here, 1))
                    await asyncio.sleep(0)
            there.send(b"x")
            async with asyncio.timeout(20):
                assert await receiving == b"x"

    run(main)


def test_a_connection_that_a_thread_loses_leaves_the_loop_in_the_loops_thread(
    mysql: dict[str, Any], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyMySQL closes it at once; a loop is for its own thread alone."""
    closing: list[int] = []
    close = Transport.close

    def noted(transport: Transport) -> None:
        closing.append(threading.get_ident())
        close(transport)

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def lose() -> None:
            with halted(loop):
                assert connection.connection._sock.loop is loop
                for statement in ("KILL CONNECTION_ID()", "SELECT 1"):
                    with connection.cursor() as cursor, pytest.raises(OperationalError):
                        cursor.execute(statement)

        with contextlib.suppress(OperationalError):
            async with aatomic():
                await Author.objects.acount()
                monkeypatch.setattr(Transport, "close", noted)
                await sync_to_async(lose)()
                await until(lambda: bool(closing))
        assert set(closing) == {threading.get_ident()}

    run(main)


@pytest.mark.parametrize("database", ["postgresql", "mysql"], indirect=True)
def test_a_connection_that_is_closed_while_it_sends_leaves_its_descriptor_usable(
    database: str, run: Run
) -> None:
    """What was registered for a closed descriptor would be for the next socket of that number."""
    entry = connections.settings["default"]

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with proxy_before(dict(entry)) as proxy:
            entry.update(HOST="127.0.0.1", PORT=str(proxy.port))
            async with hold_connection():
                await Author.objects.acount()
                raw: Any = connection.connection
                sender = raw._watched if database == "postgresql" else raw._sock._watched
                descriptor = sender._fd
                proxy.stall("to_server")
                sending = asyncio.create_task(fetch("SELECT length(%s)", "x" * 12_000_000))
                await until(lambda: sender._writing is not None)
                raw.terminate()
                with pytest.raises(OperationalError):
                    await sending
            with contextlib.ExitStack() as opened:
                here, there = pair_with(descriptor, opened)
                async with asyncio.timeout(20):
                    for _ in range(2):
                        receiving = asyncio.create_task(loop.sock_recv(here, 1))
                        await asyncio.sleep(0)
                        there.send(b"x")
                        assert await receiving == b"x"

    run(main)


def test_500_tasks_at_once_are_all_served_by_5_connections(
    postgresql: dict[str, Any], run: Run
) -> None:
    options(max_size=5)

    async def main() -> None:
        order: list[int] = []

        async def work(number: int) -> int:
            async with aatomic():
                author = await Author.objects.acreate(name=f"author {number}")
                order.append(number)
            return await Author.objects.filter(pk=author.pk).acount()

        async with server() as pg:
            counts = await asyncio.gather(*(work(number) for number in range(500)))
            assert counts == [1] * 500
            assert await Author.objects.acount() == 500
            assert await pg.sessions() == 5
            await pg.until_idle()
        assert sorted(order) == list(range(500))
        assert_whole(the_pool())
        assert the_pool().stats()["opened"] == 5

    run(main)


def test_tasks_are_served_in_the_order_in_which_they_came(
    postgresql: dict[str, Any], run: Run
) -> None:
    options(max_size=1)

    async def main() -> None:
        served: list[int] = []

        async def work(number: int) -> None:
            async with acursor():
                served.append(number)

        async with occupied():
            tasks = []
            for number in range(50):
                tasks.append(asyncio.create_task(work(number)))
                await until(lambda: the_pool().stats()["waiting"] == len(tasks))
        await asyncio.gather(*tasks)
        assert served == list(range(50))

    run(main)


@pytest.mark.timeout(300)  # a busy machine takes long; the limit is for a hang
@pytest.mark.parametrize("seed", [1, 2])
def test_500_tasks_cancelled_at_random_points_leave_a_whole_pool(
    postgresql: dict[str, Any], run: Run, seed: int
) -> None:
    options(max_size=5, timeout=600)  # however slow the machine is
    chance = random.Random(seed)

    async def work(number: int) -> None:
        async with aatomic():
            author = await Author.objects.acreate(name=f"author {number}")
            async with aatomic():
                await Book.objects.acreate(title="one", author=author)
            await Novel.objects.acreate(title="two", author=author, genre="none")
        await fetch("SELECT pg_sleep(0.01)")
        await Author.objects.filter(pk=author.pk).acount()

    async def main() -> None:
        tasks = [asyncio.create_task(work(number)) for number in range(500)]
        victims = list(tasks)
        chance.shuffle(victims)
        for victim in victims:
            for _ in range(chance.randrange(12)):
                await asyncio.sleep(0)
            victim.cancel()
            if chance.random() < 0.2:
                victim.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        strange = [o for o in outcomes if o is not None and type(o) is not asyncio.CancelledError]
        assert strange == []
        assert any(isinstance(o, asyncio.CancelledError) for o in outcomes)
        async with server() as pg:
            await pg.until_idle()
            await until(lambda: the_pool().stats()["used"] == 0)
            assert_whole(the_pool())
            await pg.until_sessions(the_pool().stats()["size"])
        written = await Author.objects.acount()
        for author in await Author.objects.prefetch_related("books").alist():
            assert sorted(book.title for book in author.books.all()) == ["one", "two"]
        assert await Novel.objects.acount() == written
        after = [work(1000 + number) for number in range(50)]
        await asyncio.gather(*after)
        assert await Author.objects.acount() == written + 50
        assert_whole(the_pool())

    run(main)


def test_a_request_cancelled_in_the_queue_loses_nobody_a_place(
    postgresql: dict[str, Any], run: Run
) -> None:
    options(max_size=1)

    async def main() -> None:
        async with occupied():
            first = asyncio.create_task(backend())
            await until(lambda: the_pool().stats()["waiting"] == 1)
            second = asyncio.create_task(backend())
            await until(lambda: the_pool().stats()["waiting"] == 2)
            await cancelled(first)
            assert the_pool().stats()["waiting"] == 1
        await second
        assert_whole(the_pool())

    run(main)


@pytest.mark.parametrize("dead", [False, True])
def test_a_session_handed_to_a_task_that_is_cancelled_at_that_moment_goes_on(
    postgresql: dict[str, Any], run: Run, dead: bool
) -> None:
    """The hand-over and the cancellation fall into one iteration of the loop."""
    options(max_size=1)

    async def main() -> None:
        held = asyncio.Event()
        release = asyncio.Event()

        async def hold() -> None:
            async with aatomic():
                wrapper = connections["default"]
                held.set()
                await release.wait()
            assert request.done()
            assert not request.cancelled()
            first.cancel()
            if dead:
                request.result().raw.terminate()
            assert wrapper.connection is None

        holder = asyncio.create_task(hold())
        await held.wait()
        first = asyncio.create_task(backend())
        await until(lambda: the_pool().stats()["waiting"] == 1)
        second = asyncio.create_task(backend())
        await until(lambda: the_pool().stats()["waiting"] == 2)
        request = the_pool()._queue[0]
        release.set()
        await holder
        await second
        with pytest.raises(asyncio.CancelledError):
            await first
        assert first.cancelled()
        assert_whole(the_pool())

    run(main)


def test_too_few_connections_end_in_an_error_that_shows_the_counts(
    postgresql: dict[str, Any], run: Run
) -> None:
    options(max_size=1, timeout=0.05)

    async def main() -> None:
        async with occupied():
            with pytest.raises(PoolTimeout) as caught:
                await backend()
        message = str(caught.value)
        assert "'default'" in message
        assert "0.05 s" in message
        assert "used=1" in message
        assert "max_size" in message
        assert isinstance(caught.value, OperationalError)
        await backend()
        assert_whole(the_pool())

    run(main)


def test_one_too_many_waiting_is_refused_at_once(postgresql: dict[str, Any], run: Run) -> None:
    options(max_size=1, max_waiting=2)

    async def main() -> None:
        async with occupied():
            waiting = [asyncio.create_task(backend()) for _ in range(2)]
            await until(lambda: the_pool().stats()["waiting"] == 2)
            with pytest.raises(TooManyWaiting):
                await backend()
            await cancelled(waiting.pop())
            waiting.append(asyncio.create_task(backend()))
            await until(lambda: the_pool().stats()["waiting"] == 2)
        await asyncio.gather(*waiting)
        assert_whole(the_pool())

    run(main)


def test_warming_opens_min_size_connections_at_once(postgresql: dict[str, Any], run: Run) -> None:
    options(min_size=3, max_size=4)

    async def main() -> None:
        async with server() as pg:
            await warm_pools()
            assert await pg.sessions() == 3
            assert the_pool().stats()["idle"] == 3
            await asyncio.gather(*(backend() for _ in range(3)))
            assert the_pool().stats()["opened"] == 3
            assert repr(the_pool()).startswith(
                "<Pool 'default': size=3, idle=3, used=0, waiting=0"
            )

    run(main)


def test_warming_that_is_cancelled_keeps_no_connection(
    postgresql: dict[str, Any], run: Run
) -> None:
    options(min_size=2, max_size=2)

    async def main() -> None:
        async with occupied():
            # One opens its connection and waits for the other, which waits for the hold's.
            task = asyncio.create_task(warm_pools())
            await until(lambda: the_pool().opened == 2 and the_pool().waiting() == 1)
            await cancelled(task)
            assert the_pool().stats()["used"] == 1
        await until(lambda: the_pool().stats()["used"] == 0)

    run(main)


def test_an_old_connection_is_closed_when_it_comes_back(
    postgresql: dict[str, Any], run: Run
) -> None:
    options(max_lifetime=0)

    async def main() -> None:
        assert await backend() != await backend()
        async with server() as pg:
            await pg.until_sessions(0)

    run(main)


def test_con_max_age_is_the_greatest_age(postgresql: dict[str, Any], run: Run) -> None:
    postgresql["CONN_MAX_AGE"] = 12

    async def main() -> None:
        await backend()
        assert the_pool().options.max_lifetime == 12

    run(main)


def test_unused_connections_above_min_size_are_closed(
    postgresql: dict[str, Any], run: Run
) -> None:
    options(min_size=1, max_size=4, max_idle=0.02)

    async def main() -> None:
        async with server() as pg:

            async def one(barrier: asyncio.Barrier) -> None:
                async with acursor():
                    await barrier.wait()

            barrier = asyncio.Barrier(4)
            await asyncio.gather(*(one(barrier) for _ in range(4)))
            await pg.until_sessions(1)
            assert the_pool().stats()["size"] == 1

    run(main)


def test_pool_false_keeps_no_connection(postgresql: dict[str, Any], run: Run) -> None:
    postgresql["OPTIONS"]["pool"] = False

    async def main() -> None:
        await backend()
        async with server() as pg:
            await pg.until_sessions(0)

    run(main)


def test_a_health_check_finds_a_connection_that_only_looks_alive(
    postgresql: dict[str, Any], run: Run
) -> None:
    """The socket is fine, the session in it is not: `is_usable()` is asked before each use."""
    postgresql["CONN_HEALTH_CHECKS"] = True
    options(max_size=1)

    async def main() -> None:
        checked = []
        first = await backend()
        wrapper_class = load_backend(postgresql["ENGINE"]).DatabaseWrapper
        usable = wrapper_class.is_usable

        def is_usable(self: Any) -> bool:
            checked.append(self.connection)
            return len(checked) > 1 and usable(self)

        wrapper_class.is_usable = is_usable
        try:
            second = await backend()
            assert first != second
            assert await backend() == second
        finally:
            wrapper_class.is_usable = usable
        assert len(checked) == 2
        assert_whole(the_pool())

    run(main)


def test_an_idle_connection_that_the_server_closes_is_dropped_unasked(
    postgresql: dict[str, Any], run: Run
) -> None:
    async def main() -> None:
        async with server() as pg:
            pid = await backend()
            assert the_pool().stats()["size"] == 1
            await pg.kill(pid)
            await until(lambda: the_pool().stats()["size"] == 0)
            assert await backend() != pid

    run(main)


def test_a_closed_connection_is_noticed_at_check_out_without_a_round_trip(
    postgresql: dict[str, Any], run: Run
) -> None:
    """Where the loop had no time to see the server's good-bye, the check-out sees it."""
    import psycopg

    async def main() -> None:
        pid = await backend()
        entry = connections.settings["default"]
        with psycopg.connect(
            host=entry["HOST"], port=entry["PORT"] or None, user=entry["USER"],
            password=entry["PASSWORD"], dbname=entry["NAME"], autocommit=True,
        ) as client:  # fmt: skip
            client.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
            assert the_pool().stats()["idle"] == 1
            assert await backend() != pid

    run(main)


def test_a_connection_killed_during_a_query_is_replaced(
    postgresql: dict[str, Any], run: Run
) -> None:
    async def main() -> None:
        async with server() as pg:
            task = asyncio.create_task(fetch("SELECT pg_sleep(60)"))
            await pg.until_running("pg_sleep")
            pid = await pg.value(
                "SELECT pid FROM pg_stat_activity WHERE query LIKE '%%pg_sleep(60)' LIMIT 1"
            )
            await pg.kill(pid)
            with pytest.raises(OperationalError):
                await task
            assert_whole(the_pool())
            assert await backend() != pid

    run(main)


def test_a_transaction_on_a_killed_connection_ends_with_the_original_error(
    postgresql: dict[str, Any], run: Run
) -> None:
    """Its end sends nothing and opens no connection."""

    class Oops(Exception):
        pass

    async def main() -> None:
        async with server() as pg:
            for nested in (False, True):
                await backend()
                opened = the_pool().stats()["opened"]
                with pytest.raises(Oops):
                    async with aatomic():
                        await Author.objects.acreate(name="Nobody")
                        pid = await backend()
                        if nested:
                            with pytest.raises(OperationalError):
                                async with aatomic():
                                    await pg.kill(pid)
                                    await Author.objects.acount()
                        else:
                            await pg.kill(pid)
                            with pytest.raises(OperationalError):
                                await Author.objects.acount()
                        raise Oops
                assert the_pool().stats()["opened"] == opened
                assert_whole(the_pool())
            assert await Author.objects.acount() == 0

    run(main)


def test_a_commit_on_a_killed_connection_is_an_error_and_runs_no_hook(
    postgresql: dict[str, Any], run: Run
) -> None:
    from nuages.db import aon_commit

    async def main() -> None:
        ran: list[int] = []
        async with server() as pg:
            with pytest.raises(OperationalError):
                async with aatomic():
                    await Author.objects.acreate(name="Nobody")
                    await aon_commit(lambda: ran.append(1))
                    await pg.kill(await backend())
            assert ran == []
            assert await Author.objects.acount() == 0
            assert_whole(the_pool())

    run(main)


def test_a_server_restart_is_survived(postgresql: dict[str, Any], run: Run) -> None:
    """As seen from a client: every session ends at once, idle and busy ones."""
    options(max_size=5)

    async def main() -> None:
        async with server() as pg:
            await asyncio.gather(*(backend() for _ in range(5)))
            busy = [asyncio.create_task(fetch("SELECT pg_sleep(60)")) for _ in range(2)]
            await pg.until_running("pg_sleep", 2)
            await pg.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            outcomes = await asyncio.gather(*busy, return_exceptions=True)
            assert all(isinstance(outcome, OperationalError) for outcome in outcomes)
            await until(lambda: the_pool().stats()["size"] == 0)
            await asyncio.gather(*(backend() for _ in range(20)))
            assert_whole(the_pool())

    run(main)


# aiterator


def _fill(count: int) -> None:
    author = Author.objects.create(name="Ursula")
    Book.objects.bulk_create(
        [Book(title=f"book {number:03}", author=author) for number in range(count)]
    )


def test_an_aiterator_keeps_one_connection_that_its_body_uses(
    postgresql: dict[str, Any], run: Run
) -> None:
    _fill(20)
    options(max_size=1)

    async def main() -> None:
        pool = None
        pids = set()
        seen = 0
        async for book in Book.objects.order_by("title").aiterator(chunk_size=5):
            pool = pool or the_pool()
            assert pool.stats()["used"] == 1
            await book.asave()
            pids.add(await backend())
            seen += 1
        assert seen == 20
        assert len(pids) == 1
        assert_whole(the_pool())

    run(main)


@pytest.mark.parametrize("method", ["values", "values_list", "plain", "prefetch"])
def test_every_kind_of_aiterator_reuses_its_connection(
    postgresql: dict[str, Any], run: Run, method: str
) -> None:
    _fill(20)
    options(max_size=1)
    books = {
        "values": lambda: Book.objects.values("title"),
        "values_list": lambda: Book.objects.values_list("title", flat=True),
        "plain": lambda: Book.objects.all(),
        "prefetch": lambda: Book.objects.prefetch_related("tags", "author"),
    }[method]

    async def main() -> None:
        seen = [item async for item in books().order_by("title").aiterator(chunk_size=7)]
        assert len(seen) == 20
        assert_whole(the_pool())
        async with aatomic():
            seen = [item async for item in books().order_by("title").aiterator(chunk_size=7)]
            assert len(seen) == 20
        assert_whole(the_pool())

    run(main)


@pytest.mark.parametrize("end", ["exhaustion", "aclose", "break", "error"])
def test_an_aiterator_gives_its_connection_back(
    postgresql: dict[str, Any], run: Run, end: str
) -> None:
    _fill(20)
    options(max_size=1)

    async def main() -> None:
        iterator = Book.objects.aiterator(chunk_size=5)
        if end == "exhaustion":
            assert len([book async for book in iterator]) == 20
        elif end == "aclose":
            await anext(iterator)
            assert the_pool().stats()["used"] == 1
            await iterator.aclose()
        elif end == "error":
            with pytest.raises(ZeroDivisionError):
                async for _ in iterator:
                    raise ZeroDivisionError
        else:
            async for _ in iterator:
                break
        del iterator
        async with server() as pg:
            await pg.until_idle()
            assert await backend()
            assert await fetch("SELECT count(*) FROM pg_cursors") == 0
        await until(lambda: the_pool().stats()["used"] == 0)
        assert_whole(the_pool())

    run(main)


def test_a_gather_in_the_body_of_an_aiterator_takes_other_connections(
    postgresql: dict[str, Any], run: Run
) -> None:
    _fill(20)
    options(max_size=4)

    async def main() -> None:
        async for _ in Book.objects.aiterator(chunk_size=5):
            mine = await backend()
            barrier = asyncio.Barrier(3)

            async def one(barrier: asyncio.Barrier = barrier) -> int:
                async with acursor() as cursor:
                    await barrier.wait()
                    await cursor.execute("SELECT pg_backend_pid()")
                    return int((await cursor.fetchone())[0])

            others = await asyncio.gather(one(), one(), one())
            assert len({mine, *others}) == 4
            break

    run(main)


def test_ten_aiterators_with_queries_in_their_bodies_fit_a_pool_of_ten(
    postgresql: dict[str, Any], run: Run
) -> None:
    _fill(20)
    options(max_size=10, timeout=10)

    async def main() -> None:
        barrier = asyncio.Barrier(10)

        async def walk() -> int:
            seen = 0
            async for book in Book.objects.prefetch_related("tags").aiterator(chunk_size=5):
                if seen == 0:
                    await barrier.wait()
                seen += await Book.objects.filter(pk=book.pk).acount()
            return seen

        assert await asyncio.gather(*(walk() for _ in range(10))) == [20] * 10
        assert the_pool().stats()["opened"] == 10
        assert_whole(the_pool())

    run(main)


# The loop goes on


def test_the_loop_runs_while_a_task_waits_for_a_connection(
    postgresql: dict[str, Any], run: Run
) -> None:
    options(max_size=1)

    async def main() -> None:
        async with occupied(), Heartbeat() as heart:
            waiting = asyncio.create_task(backend())
            await until(lambda: the_pool().stats()["waiting"] == 1)
            await heart.more()
        await waiting

    run(main)


def test_a_pool_is_made_anew_when_the_settings_change(
    postgresql: dict[str, Any], run: Run
) -> None:
    async def main() -> None:
        await backend()
        before = the_pool()
        postgresql["PORT"] = str(postgresql["PORT"] or 5432)
        connections["default"].settings_dict["PORT"] = int(postgresql["PORT"])
        await backend()
        assert before.closed
        assert the_pool() is not before
        assert len(open_pools()) == 1

    run(main)


@pytest.mark.parametrize("database", ["postgresql", "mysql"], indirect=True)
def test_what_follows_on_a_lost_connection_is_an_operational_error(
    database: str, run: Run
) -> None:
    def lost() -> None:
        number = (
            connection.connection.pgconn.socket
            if database == "postgresql"
            else connection.connection._sock.sock.fileno()
        )
        with socket.socket(fileno=os.dup(number)) as other:
            other.shutdown(socket.SHUT_RDWR)
        for _ in range(2):
            with pytest.raises(OperationalError), connection.cursor() as cursor:
                cursor.execute("SELECT 1")
        with pytest.raises(OperationalError), transaction.atomic():
            pass
        with pytest.raises(OperationalError):
            connection.set_autocommit(False)

    async def main() -> None:
        async with hold_connection():
            await fetch("SELECT 1")
            await on_loop(lost)()
        assert await fetch("SELECT 1") == 1
        assert_whole(the_pool())

    run(main)


@pytest.mark.parametrize("database", ["postgresql", "mysql"], indirect=True)
def test_the_outcome_of_a_threads_commit_may_be_unknown(database: str, run: Run) -> None:
    """A sync view's, say."""

    def work() -> None:
        with transaction.atomic():
            Author.objects.create(name="Ursula")

    async def main() -> None:
        entry = connections.settings["default"]
        async with proxy_before(dict(entry)) as proxy:
            entry.update(HOST="127.0.0.1", PORT=str(proxy.port))
            proxy.stall("to_server", at=b"\3COMMIT" if database == "mysql" else b"COMMIT\0")
            task = asyncio.create_task(sync_to_async(work)())
            await proxy.until_kept()
            proxy.cut()
            with pytest.raises(OutcomeUnknown):
                await task
            await until(lambda: the_pool().size == 0)
            assert_whole(the_pool())

    run(main)


# A server that is away


def test_opening_is_tried_again_while_the_server_refuses(
    postgresql: dict[str, Any], run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    options(reconnect_timeout=30, max_size=1)

    async def main() -> None:
        proxy = proxy_before(dict(postgresql), listen=free_port())
        postgresql.update(HOST="127.0.0.1", PORT=str(proxy.port))
        with caplog.at_level(logging.INFO, "nuages.pool"):
            task = asyncio.create_task(fetch("SELECT 1"))
            await until(lambda: "is away" in caplog.text or task.done())
            second = asyncio.create_task(fetch("SELECT 2"))
            async with proxy:
                assert await task == 1
                assert await second == 2
                assert_whole(the_pool())
                the_pool().close()

    run(main)


@pytest.mark.parametrize("reset", [False, True])
def test_a_login_that_breaks_off_is_tried_again(
    postgresql: dict[str, Any], run: Run, reset: bool
) -> None:
    """As behind a load balancer whose server is away."""
    options(reconnect_timeout=30)

    async def main() -> None:
        async with proxy_before(dict(postgresql)) as proxy:
            postgresql.update(HOST="127.0.0.1", PORT=str(proxy.port))
            proxy.stall("to_client")
            task = asyncio.create_task(fetch("SELECT 1"))
            await proxy.until_kept()
            proxy.cut(reset=reset)
            proxy.resume()
            assert await task == 1
            the_pool().close()

    run(main)


def test_a_server_that_stays_away_is_an_error_at_the_timeout(
    postgresql: dict[str, Any], run: Run
) -> None:
    options(reconnect_timeout=0.05)

    async def main() -> None:
        postgresql.update(HOST="127.0.0.1", PORT=str(free_port()))
        with pytest.raises(OperationalError, match="refused"):
            await fetch("SELECT 1")
        assert the_pool().stats()["size"] == 0

    run(main)


def test_waiting_for_a_server_can_be_cancelled(
    postgresql: dict[str, Any], run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    options(reconnect_timeout=1000)

    async def main() -> None:
        postgresql.update(HOST="127.0.0.1", PORT=str(free_port()))
        with caplog.at_level(logging.INFO, "nuages.pool"):
            task = asyncio.create_task(fetch("SELECT 1"))
            await until(lambda: "is away" in caplog.text or task.done())
            await cancelled(task)
        assert the_pool().stats()["size"] == 0

    run(main)


def test_a_server_that_says_no_is_not_asked_again(postgresql: dict[str, Any], run: Run) -> None:
    options(reconnect_timeout=1000)

    async def main() -> None:
        postgresql["NAME"] = "there_is_no_such_database"
        with pytest.raises(OperationalError, match="does not exist"):
            await fetch("SELECT 1")

    run(main)


@pytest.mark.parametrize(
    ("text", "away"),
    [
        ("FATAL:  the database system is starting up", True),
        ("FATAL:  the database system is not yet accepting connections", True),
        ('server at "127.0.0.1", port 5432 failed: Connection refused', True),
        ('server on socket "/tmp/.s.PGSQL.5432" failed: No such file or directory', True),
        ('FATAL:  password authentication failed for user "joe"', False),
        ('could not read certificate file "x": No such file or directory', False),
        ("FATAL:  sorry, too many clients already", True),
        ('FATAL:  too many connections for role "joe"', True),
        ("failed: server closed the connection unexpectedly", True),
        ("failed to resolve host 'db': [Errno -3] Temporary failure in name resolution", True),
        ("failed to resolve host 'db': [Errno -2] Name or service not known", False),
        ('FATAL:  database "x" does not exist', False),
    ],
)
def test_which_failures_are_tried_again(postgresql: dict[str, Any], text: str, away: bool) -> None:
    assert connections["default"].is_away(OperationalError(text)) is away


@pytest.mark.parametrize(
    ("database", "cause", "ends"),
    [
        ("postgresql", psycopg.errors.AdminShutdown(), True),
        ("postgresql", psycopg.errors.CrashShutdown(), True),
        ("postgresql", psycopg.errors.ConnectionFailure(), True),
        ("postgresql", psycopg.errors.SerializationFailure(), False),
        ("mysql", pymysql.err.OperationalError(1927, "Connection was killed"), True),
        ("mysql", pymysql.err.OperationalError(1053, "Server shutdown in progress"), True),
        ("mysql", pymysql.err.OperationalError(1213, "Deadlock found"), False),
    ],
    indirect=["database"],
)
def test_which_failures_end_the_session(database: str, cause: Exception, ends: bool) -> None:
    """Told before the connection is seen to be closed, with COMMIT they leave the outcome open."""
    with pytest.raises(OperationalError) as caught, connections["default"].wrap_database_errors:
        raise cause
    assert connections["default"].ends_session(caught.value) is ends


# Statement timeout

LONG = {
    "postgresql": "SELECT pg_sleep(60)",
    "mysql": "SELECT SLEEP(60)",
    "sqlite": (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    ),
}

TIMEOUT = "due to statement timeout|max_statement_time exceeded|maximum statement execution time"


def test_a_statement_ends_at_its_timeout(database: str, run: Run) -> None:
    connections.settings["default"]["OPTIONS"]["statement_timeout"] = 0.05

    async def main() -> None:
        with pytest.raises(OperationalError, match=TIMEOUT):
            await fetch(LONG[database])
        assert await fetch("SELECT 1") == 1
        with pytest.raises(OperationalError, match=TIMEOUT):
            async with aatomic():
                await Author.objects.acreate(name="Nobody")
                await fetch(LONG[database])
        assert await Author.objects.acount() == 0
        assert_whole(the_pool())

    run(main)


def test_a_statement_ends_at_its_timeout_outside_loops_too(database: str) -> None:
    connections.settings["default"]["OPTIONS"]["statement_timeout"] = 0.05
    with connections["default"].cursor() as cursor:
        with pytest.raises(OperationalError, match=TIMEOUT):
            cursor.execute(LONG[database])
            cursor.fetchone()
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)


def test_a_wrong_statement_timeout_is_named(database: str, run: Run) -> None:
    connections.settings["default"]["OPTIONS"]["statement_timeout"] = "soon"

    async def main() -> None:
        with pytest.raises(ImproperlyConfigured, match="statement_timeout"):
            await fetch("SELECT 1")

    run(main)


# Writers of SQLite


def test_writers_of_one_process_are_served_in_order(sqlite: dict[str, Any], run: Run) -> None:
    async def main() -> None:
        served: list[int] = []

        async def write(number: int) -> None:
            async with aatomic():
                served.append(number)
                await Author.objects.acreate(name=str(number))

        async with aatomic():
            await Author.objects.acreate(name="first")
            async with detached():
                tasks = []
                gate = gate_of(str(sqlite["NAME"]))
                for number in range(8):
                    tasks.append(asyncio.create_task(write(number)))
                    await until(lambda: len(gate._queue) == len(tasks))
        await asyncio.gather(*tasks)
        assert served == list(range(8))
        assert await Author.objects.acount() == 9

    run(main)


def test_the_loop_goes_on_while_another_process_holds_the_write_lock(
    sqlite: dict[str, Any], run: Run
) -> None:
    sqlite["OPTIONS"]["timeout"] = 0.2
    other = sqlite3.connect(sqlite["NAME"], isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    async def main() -> None:
        async with Heartbeat() as heart:
            before = heart.beats
            with pytest.raises(OperationalError, match="database is locked"):
                await Author.objects.acreate(name="Nobody")
            assert heart.beats > before + 20
            waiting = asyncio.create_task(Author.objects.acreate(name="Ursula"))
            await heart.more(5)
            other.execute("ROLLBACK")
            await waiting
        assert_whole(the_pool())

    try:
        run(main)
    finally:
        other.close()
