"""Threads of sync code have a connection while they work, and not between two statements.

`meet` is a barrier of more threads than the pool has connections: only where each has let its
connection go are all of them there at once.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import random
import signal
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import DatabaseError, connection, transaction
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path

from nuages import off_loop, on_loop
from nuages.asgi.handler import ASGIHandler
from nuages.db import aatomic
from nuages.exceptions import PoolClosed
from tests.integration.asgi_tools import exchange
from tests.integration.conftest import Run
from tests.integration.pool_tools import assert_whole, cancelled, committed, options, the_pool
from tests.integration.scope_tools import Failure, names, pool_stats, until
from tests.library.models import Author

pytestmark = [pytest.mark.every_database, pytest.mark.both_loops]

PARTIES = 30
PATIENCE = 20.0
"""Seconds after which a thread counts as hanging. No test waits for it to pass."""


@contextmanager
def executor(size: int = PARTIES) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(size) as threads:
        yield threads


async def in_threads(function: Callable[..., Any], *calls: Any) -> list[Any]:
    """Call `function` with each of `calls`, each in a thread of its own, at the same time."""
    with executor(len(calls)) as threads:
        call = sync_to_async(function, thread_sensitive=False, executor=threads)
        results = await asyncio.gather(*map(call, calls), return_exceptions=True)
    # Leaving the executor waits for its threads, and blocks the loop that they may need.
    if failures := [result for result in results if isinstance(result, BaseException)]:
        raise BaseExceptionGroup("threads failed", failures)
    return results


def value(sql: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        (found,) = cursor.fetchone()
    return found


SESSION = {
    "postgresql": "SELECT pg_backend_pid()",
    "mysql": "SELECT CONNECTION_ID()",
}


def session() -> Any:
    """What the server calls the connection; SQLite has no server."""
    if connection.vendor == "sqlite":
        with connection.cursor():
            return id(connection.connection)
    return value(SESSION[connection.vendor])


# What a thread does before it waits for something else


def query() -> None:
    Author.objects.count()


def several() -> None:
    query()
    list(Author.objects.all())
    Author.objects.first()
    Author.objects.filter(name="nobody").exists()


def write() -> None:
    Author.objects.create(name=uuid.uuid4().hex)


def commit() -> None:
    with transaction.atomic():
        write()


def commit_nothing() -> None:
    with transaction.atomic():
        pass


def roll_back() -> None:
    with suppress(Failure), transaction.atomic():
        query()
        raise Failure


def nested_blocks() -> None:
    with transaction.atomic():
        write()
        with suppress(Failure), transaction.atomic():
            raise Failure


def manual_mode() -> None:
    transaction.set_autocommit(False)
    query()
    transaction.commit()
    transaction.set_autocommit(True)


def cursors_in_cursors() -> None:
    with connection.cursor() as outer:
        outer.execute("SELECT 1")
        with connection.cursor() as inner:
            inner.execute("SELECT 2")
            query()
        assert outer.fetchone() == (1,)


def iterate() -> None:
    for _ in Author.objects.iterator(chunk_size=10):
        pass


def break_off() -> None:
    rows = Author.objects.iterator(chunk_size=10)
    next(rows)
    rows.close()


def fail() -> None:
    with suppress(DatabaseError), connection.cursor() as cursor:
        cursor.execute("SELECT nonsense FROM nowhere")


def reconnect() -> None:
    query()
    connection.close()
    query()


async def count() -> int:
    return await Author.objects.acount()


def ask_a_coroutine() -> None:
    query()
    assert async_to_sync(count)() >= 250
    query()


BEGINNINGS = [
    query,
    several,
    write,
    commit,
    commit_nothing,
    roll_back,
    nested_blocks,
    manual_mode,
    cursors_in_cursors,
    iterate,
    break_off,
    fail,
    reconnect,
    ask_a_coroutine,
]


@pytest.fixture
def rows(database: str) -> None:
    """More rows than a cursor brings at once."""
    Author.objects.bulk_create(Author(name=f"row {i}") for i in range(250))


@pytest.mark.parametrize("begin", BEGINNINGS, ids=[each.__name__ for each in BEGINNINGS])
def test_threads_that_do_something_else_hold_no_connection(
    database: str, rows: None, run: Run, begin: Callable[[], None]
) -> None:
    options(max_size=2, timeout=PATIENCE)
    parties = 6

    async def main() -> None:
        meet = threading.Barrier(parties)

        def work(tag: int) -> int:
            begin()
            meet.wait(timeout=PATIENCE)
            return int(value(f"SELECT {tag}"))

        assert await in_threads(work, *range(parties)) == list(range(parties))
        await until(lambda: pool_stats()["used"] == 0)
        assert_whole(the_pool())

    run(main)


def test_30_threads_are_past_their_query_with_a_pool_of_ten(database: str, run: Run) -> None:
    async def main() -> None:
        meet = threading.Barrier(PARTIES)

        def work(tag: int) -> int:
            query()
            meet.wait(timeout=PATIENCE)
            return int(value(f"SELECT {tag}"))

        assert await in_threads(work, *range(PARTIES)) == list(range(PARTIES))
        assert pool_stats()["max_size"] == 10
        await until(lambda: pool_stats()["used"] == 0)
        assert_whole(the_pool())

    run(main)


def test_off_loop_threads_hold_none_either(database: str, run: Run) -> None:
    options(max_size=1, timeout=PATIENCE)

    async def main() -> None:
        meet = threading.Barrier(2)

        def work(tag: int) -> int:
            query()
            meet.wait(timeout=PATIENCE)
            return int(value(f"SELECT {tag}"))

        calls = (on_loop(lambda tag=tag: off_loop(work)(tag))() for tag in range(2))
        assert await asyncio.gather(*calls) == [0, 1]
        await until(lambda: pool_stats()["used"] == 0)

    run(main)


# Under the ASGI handler

_meeting: list[threading.Barrier] = []


def sync_view(request: HttpRequest) -> HttpResponse:
    query()
    _meeting[0].wait(timeout=PATIENCE)
    return HttpResponse(str(value(f"SELECT {int(request.GET['tag'])}")))


urlpatterns = [path("sync/", sync_view)]


@override_settings(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], MIDDLEWARE=[])
def test_30_sync_views_are_past_their_query_with_a_pool_of_ten(database: str, run: Run) -> None:
    async def main() -> None:
        application = ASGIHandler()
        _meeting[:] = [threading.Barrier(PARTIES)]
        answers = await asyncio.gather(
            *(
                exchange(application, "/sync/", query=f"tag={tag}".encode())
                for tag in range(PARTIES)
            )
        )
        assert [answer.text for answer in answers] == [str(tag) for tag in range(PARTIES)]
        await until(lambda: pool_stats()["used"] == 0)
        assert_whole(the_pool())

    run(main)


# What keeps its connection


@contextmanager
def in_transaction() -> Iterator[None]:
    with transaction.atomic():
        query()
        yield


@contextmanager
def in_manual_mode() -> Iterator[None]:
    transaction.set_autocommit(False)
    query()
    yield
    transaction.rollback()
    transaction.set_autocommit(True)


@contextmanager
def with_open_cursor() -> Iterator[None]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        yield
        assert cursor.fetchone() == (1,)


@contextmanager
def with_drivers_connection() -> Iterator[None]:
    """Taken from the wrapper between two statements: until the next one ends it is kept."""
    query()
    raw = connection.connection
    yield
    cursor = raw.cursor()
    cursor.execute("SELECT 1")
    assert cursor.fetchone() == (1,)
    cursor.close()


@contextmanager
def connected_beforehand() -> Iterator[None]:
    connection.ensure_connection()
    yield


STATE = {
    "postgresql": "SELECT pg_advisory_lock(77)",
    "mysql": "SELECT GET_LOCK('mine', 0)",
    "sqlite": "CREATE TEMP TABLE mine (id)",
}


@contextmanager
def with_session_state() -> Iterator[None]:
    """An advisory lock, a temporary table: what a sync view of stock Django may count on."""
    with connection.cursor() as cursor:
        cursor.execute(STATE[connection.vendor])
    yield
    if connection.vendor == "postgresql":
        assert value("SELECT pg_advisory_unlock(77)") is True
    elif connection.vendor == "mysql":
        assert value("SELECT RELEASE_LOCK('mine')") == 1
    else:
        assert value("SELECT count(*) FROM mine") == 0


KEEPING = [
    in_transaction,
    in_manual_mode,
    with_open_cursor,
    with_drivers_connection,
    connected_beforehand,
    with_session_state,
]


@pytest.mark.filterwarnings("ignore:.*session state:RuntimeWarning")
@pytest.mark.parametrize("keep", KEEPING, ids=[each.__name__ for each in KEEPING])
def test_what_keeps_a_connection_keeps_it(
    database: str, run: Run, keep: Callable[[], Any]
) -> None:
    options(max_size=1, timeout=PATIENCE)

    async def main() -> None:
        go = threading.Event()
        reached = asyncio.Event()
        loop = asyncio.get_running_loop()

        def work() -> None:
            with keep():
                loop.call_soon_threadsafe(reached.set)
                assert go.wait(PATIENCE)

        task = asyncio.create_task(sync_to_async(work, thread_sensitive=False)())
        await reached.wait()
        other = asyncio.create_task(Author.objects.acount())
        await until(lambda: pool_stats()["waiting"] == 1)
        await asyncio.sleep(0)
        assert not other.done()
        assert pool_stats()["used"] == 1
        go.set()
        await asyncio.gather(task, other)
        await until(lambda: pool_stats()["used"] == 0)

    run(main)


def test_a_thread_alone_goes_on_with_its_connection(database: str, run: Run) -> None:
    """Nobody else wants it: no statement of the thread costs a way over the loop."""

    async def main() -> None:
        def work() -> set[Any]:
            return {session() for _ in range(20)}

        assert len(await sync_to_async(work)()) == 1
        assert pool_stats()["requests"] == 1

    run(main)


def test_a_connection_that_was_taken_is_handed_on_clean(
    postgresql: dict[str, Any], run: Run
) -> None:
    """As at any give-back: unused by its thread, watched by the loop, and closed if it died."""
    options(max_size=1, timeout=PATIENCE)

    async def main() -> None:
        go = threading.Event()
        pids: list[int] = []
        reached = asyncio.Event()
        loop = asyncio.get_running_loop()

        def work() -> None:
            pids.append(session())
            loop.call_soon_threadsafe(reached.set)
            assert go.wait(PATIENCE)
            pids.append(session())

        task = asyncio.create_task(sync_to_async(work, thread_sensitive=False)())
        await reached.wait()
        assert committed(f"SELECT pg_terminate_backend({pids[0]}, 10000)") == [True]
        assert await Author.objects.acount() == 0
        assert pool_stats()["opened"] == 2
        go.set()
        await task
        assert pids[1] != pids[0]
        assert pool_stats()["opened"] == 2

    run(main)


# Under load


def test_answers_are_ones_own_while_connections_change_hands(
    database: str, rows: None, run: Run
) -> None:
    """Threads and tasks, some cancelled, on a pool of three: each judges what it is told."""
    options(max_size=3, timeout=60)
    threads, rounds = 8, 25

    async def main() -> None:
        done = threading.Event()

        def statement(tag: int, chance: random.Random) -> None:
            kind = chance.randrange(6)
            if kind == 0:
                with transaction.atomic():
                    first = session()
                    assert value(f"SELECT {tag}") == tag
                    assert session() == first
            elif kind == 1:
                name = f"t{tag}"
                Author.objects.create(name=name)
                assert Author.objects.filter(name=name).count() == 1
            elif kind == 2:
                found = Author.objects.filter(name__startswith="row ").iterator(chunk_size=10)
                assert len({author.pk for author in found}) == 250
            elif kind == 3:
                with suppress(Failure), transaction.atomic():
                    Author.objects.create(name=f"never {tag}")
                    raise Failure
            else:
                assert value(f"SELECT {tag}") == tag
            if chance.random() < 0.05:
                gc.collect()

        def work(number: int) -> None:
            chance = random.Random(number)
            for step in range(rounds):
                statement(number * 1000 + step, chance)

        async def task(number: int) -> None:
            tag = 1_000_000 + number
            while not done.is_set():
                tag += 100

                def ask(tag: int = tag) -> Any:
                    return value(f"SELECT {tag}")

                asking = asyncio.create_task(on_loop(ask)())
                if tag % 300 == 0:
                    await asyncio.sleep(0)
                    asking.cancel()
                    with suppress(asyncio.CancelledError):
                        await asking
                else:
                    assert await asking == tag
                async with aatomic():
                    assert await on_loop(ask)() == tag

        tasks = [asyncio.create_task(task(number)) for number in range(4)]
        try:
            await in_threads(work, *range(threads))
        finally:
            done.set()
            await asyncio.gather(*tasks)
        await until(lambda: pool_stats()["used"] == 0)
        assert pool_stats()["size"] <= 3
        assert_whole(the_pool())

    run(main)
    assert committed("SELECT count(*) FROM library_author WHERE name LIKE 'never%'") == [0]


def test_who_is_cancelled_while_a_connection_comes_leaves_it_whole(
    database: str, run: Run
) -> None:
    """The task was handed what a thread let go, and is gone before it could use it."""
    options(max_size=1, timeout=PATIENCE)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(20):
            reached, go = asyncio.Event(), threading.Event()

            def work(reached: asyncio.Event = reached, go: threading.Event = go) -> int:
                with connection.cursor() as cursor:
                    cursor.execute("SELECT 1")
                    loop.call_soon_threadsafe(reached.set)
                    assert go.wait(PATIENCE)
                return int(value("SELECT 5"))

            call = asyncio.create_task(sync_to_async(work, thread_sensitive=False)())
            await reached.wait()
            waiting = asyncio.create_task(Author.objects.acount())
            await until(lambda: pool_stats()["waiting"] == 1)
            go.set()
            await until(lambda: pool_stats()["waiting"] == 0)
            await cancelled(waiting)
            assert await call == 5
        await until(lambda: pool_stats()["used"] == 0)
        assert_whole(the_pool())

    run(main)


def test_threads_that_end_while_others_wait(database: str, run: Run) -> None:
    options(max_size=2, timeout=60)

    async def main() -> None:
        await asyncio.gather(
            *(in_threads(lambda tag: value(f"SELECT {tag}"), *range(8)) for _ in range(4)),
            *(Author.objects.acount() for _ in range(50)),
        )
        await until(lambda: pool_stats()["used"] == 0)
        assert_whole(the_pool())

    run(main)


# Ends


@pytest.mark.parametrize("taken", [False, True])
def test_a_loop_that_ends_while_a_thread_does_something_else(database: str, taken: bool) -> None:
    """What the thread has it goes on with; for another connection there is no loop any more."""
    options(max_size=1, timeout=PATIENCE)
    go, ended = threading.Event(), threading.Event()
    outcome: list[Any] = []

    async def main() -> None:
        reached = asyncio.Event()
        loop = asyncio.get_running_loop()

        def work() -> None:
            try:
                query()
                loop.call_soon_threadsafe(reached.set)
                assert go.wait(PATIENCE)
                outcome.append(value("SELECT 7"))
            except PoolClosed as error:
                outcome.append(error)
            finally:
                ended.set()

        threads.submit(_in_chain, loop, work)
        await reached.wait()
        if taken:
            await Author.objects.acount()

    with executor(1) as threads:
        asyncio.run(main())
        go.set()
        assert ended.wait(PATIENCE)
    assert [type(each) for each in outcome] == [PoolClosed if taken else int]


def _in_chain(loop: asyncio.AbstractEventLoop, function: Callable[[], Any]) -> None:
    from nuages.db.scopes.chain import thread_chain

    with thread_chain(loop):
        function()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_child_has_none_of_what_rests(database: str, run: Run) -> None:
    """It opens connections of its own, and the parent's thread goes on with its one."""

    async def main() -> None:
        go = threading.Event()
        reached = asyncio.Event()
        loop = asyncio.get_running_loop()

        def work() -> list[Any]:
            sessions = [session()]
            loop.call_soon_threadsafe(reached.set)
            assert go.wait(PATIENCE)
            return [*sessions, session()]

        task = asyncio.create_task(sync_to_async(work, thread_sensitive=False)())
        await reached.wait()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads, and a fork
            child = os.fork()
        if child == 0:
            _answer_in_child()
        _, status = await asyncio.to_thread(functools.partial(os.waitpid, child, 0))
        assert os.waitstatus_to_exitcode(status) == 0
        go.set()
        first, second = await task
        assert first == second

    run(main)


def _answer_in_child() -> None:
    signal.alarm(int(PATIENCE))
    code = 1
    try:
        asyncio._set_running_loop(None)

        async def count() -> int:
            return len(await names())

        code = asyncio.run(count())
    finally:
        os._exit(code)
