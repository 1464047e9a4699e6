"""Coroutines that sync code runs by `async_to_sync` are on its own connection, as in stock."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from asgiref.sync import AsyncToSync, async_to_sync, sync_to_async
from django.core.handlers.wsgi import WSGIHandler
from django.db import connection, connections, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import RequestFactory, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import path

from nuages import on_loop
from nuages.db import aatomic, acursor, detached, hold_connection
from nuages.db.pool.pool import open_pools
from tests import judge
from tests.integration.conftest import close_thread_connection
from tests.integration.scope_tools import Failure
from tests.library.models import Author

pytestmark = pytest.mark.every_database


def seen() -> list[str]:
    """The committed names, as a connection that has nothing to do with ours sees them."""
    return judge.authors()


def session() -> object:
    """What tells one session of the server from another."""
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            # A temporary table is its connection's alone.
            cursor.execute("SELECT count(*) FROM sqlite_temp_master WHERE name = 'mine'")
        else:
            function = {"postgresql": "pg_backend_pid()", "mysql": "CONNECTION_ID()"}
            cursor.execute(f"SELECT {function[connection.vendor]}")
        return cursor.fetchone()[0]


async def asession() -> object:
    return await on_loop(session)()


def make_temporary_table() -> None:
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE mine (name varchar(100))")


@pytest.fixture(autouse=True)
def _fresh(database: str) -> Iterator[None]:
    yield
    if not connection.get_autocommit():
        transaction.rollback()
        transaction.set_autocommit(True)
    close_thread_connection()


def in_calling_thread(function: Callable[[], Any]) -> Any:
    return function()


def in_another_thread(function: Callable[[], Any]) -> Any:
    """In a plain thread, which closes its connection at the end."""

    def call() -> Any:
        try:
            return function()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(call).result()


places = pytest.mark.parametrize("in_thread", [in_calling_thread, in_another_thread])


@places
@pytest.mark.parametrize("first", [True, False], ids=["sync first", "async first"])
def test_sync_code_and_its_coroutines_are_one_session(
    database: str, in_thread: Callable[..., Any], first: bool
) -> None:
    async def work() -> list[object]:
        found = [await asession()]
        found += await asyncio.gather(*(asession() for _ in range(3)))
        found.append(await sync_to_async(session)())
        found.append(await sync_to_async(session, thread_sensitive=False)())
        async with hold_connection():
            found.append(await asession())
        async with aatomic():
            found += await asyncio.gather(asession(), asession())
        assert open_pools() == []
        return found

    def program() -> None:
        if first:
            make_temporary_table()
        else:
            async_to_sync(on_loop(make_temporary_table))()
        found = [session()]
        for _ in range(10):
            found += async_to_sync(work)()
        found.append(session())
        assert found == [found[0]] * len(found)
        if database == "sqlite":
            assert found[0] == 1

    in_thread(program)


@places
def test_a_write_goes_with_the_callers_transaction(
    database: str, in_thread: Callable[..., Any]
) -> None:
    """`set_autocommit(False)` opens no atomic block, and is a transaction all the same."""

    async def write(name: str) -> None:
        await Author.objects.acreate(name=name)
        await asyncio.gather(*(Author.objects.acreate(name=f"{name}{i}") for i in range(3)))
        async with aatomic():
            await Author.objects.acreate(name=f"{name} in a block")

    def program() -> None:
        transaction.set_autocommit(False)
        Author.objects.create(name="sync")
        async_to_sync(write)("rolled back")
        assert Author.objects.count() == 6
        assert seen() == []
        transaction.rollback()
        assert seen() == []
        async_to_sync(write)("x")
        assert seen() == []
        transaction.commit()
        assert seen() == ["x", "x in a block", "x0", "x1", "x2"]
        transaction.set_autocommit(True)
        async_to_sync(write)("y")
        assert len(seen()) == 10

    in_thread(program)


def test_a_coroutine_may_begin_what_the_caller_ends(database: str) -> None:
    """As in stock: autocommit, a temporary table, a block entered by hand."""

    async def begin() -> None:
        await on_loop(transaction.set_autocommit)(False)
        await Author.objects.acreate(name="lost")

    async def go_on() -> None:
        await Author.objects.acreate(name="kept")

    async_to_sync(begin)()
    assert not connection.get_autocommit()
    assert Author.objects.count() == 1
    transaction.rollback()
    async_to_sync(go_on)()
    assert seen() == []
    transaction.commit()
    transaction.set_autocommit(True)
    assert seen() == ["kept"]
    async_to_sync(on_loop(make_temporary_table))()
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM mine")
        assert cursor.fetchone() == (0,)


def test_a_block_may_be_entered_and_left_by_different_calls(database: str) -> None:
    for fails in (True, False):
        block = transaction.atomic()
        async_to_sync(on_loop(block.__enter__))()
        assert connection.in_atomic_block
        Author.objects.create(name=f"in it {fails}")
        assert seen() == []
        failure = Failure() if fails else None
        with pytest.raises(Failure) if fails else CaptureQueriesContext(connection):
            async_to_sync(on_loop(block.__exit__))(
                type(failure) if failure else None, failure, None
            )
            if failure is not None:
                raise failure
        assert not connection.in_atomic_block
    assert seen() == ["in it False"]
    with pytest.raises(Failure), transaction.atomic():
        inner = transaction.atomic()
        async_to_sync(on_loop(inner.__enter__))()
        Author.objects.create(name="inner")
        async_to_sync(on_loop(inner.__exit__))(None, None, None)
        raise Failure
    inner = transaction.atomic()
    async_to_sync(on_loop(inner.__enter__))()
    Author.objects.create(name="left by the thread")
    inner.__exit__(None, None, None)
    assert seen() == ["in it False", "left by the thread"]


def test_capture_and_execute_wrappers_of_the_caller_hold(database: str) -> None:
    """`execute_wrapper()`, Django's own way to forbid queries, and `CaptureQueriesContext`."""

    async def query() -> None:
        await Author.objects.acount()
        await asyncio.gather(*(Author.objects.acount() for _ in range(3)))
        await sync_to_async(Author.objects.count)()

    class Refused(Exception):
        pass

    def refuse(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        raise Refused

    for _ in range(2):  # what a coroutine began must not outlive it
        with CaptureQueriesContext(connection) as captured:
            async_to_sync(query)()
        assert len(captured) == 5
        with connection.execute_wrapper(refuse), pytest.raises(Refused):
            async_to_sync(query)()

        async def nested() -> int:
            with CaptureQueriesContext(connection) as inner:
                await query()
            return len(inner)

        assert async_to_sync(nested)() == 5
        with connection.execute_wrapper(refuse), pytest.raises(Refused):
            async_to_sync(nested)()
    with CaptureQueriesContext(connection) as captured:
        Author.objects.count()
    assert len(captured) == 1


def test_state_of_the_callers_connection(database: str) -> None:
    async def look_and_set(value: str) -> Any:
        before = connection.tenant  # type: ignore[attr-defined]
        assert await on_loop(lambda: connection.tenant)() == before  # type: ignore[attr-defined]
        connection.tenant = value  # type: ignore[attr-defined]
        return before

    connection.tenant = "sync"  # type: ignore[attr-defined]
    assert async_to_sync(look_and_set)("async") == "sync"
    assert connection.tenant == "async"  # type: ignore[attr-defined]


def test_on_commit(database: str) -> None:
    called: list[str] = []

    async def work() -> None:
        await on_loop(transaction.on_commit)(lambda: called.append("at once"))
        async with aatomic():
            await on_loop(transaction.on_commit)(lambda: called.append("after the block"))
            assert "after the block" not in called

    async_to_sync(work)()
    assert called == ["at once", "after the block"]
    called.clear()
    with transaction.atomic():
        transaction.on_commit(lambda: called.append("sync"))
        async_to_sync(work)()
        assert called == []
    assert called == ["sync", "at once", "after the block"]

    async def hook() -> None:
        called.append(str(await Author.objects.acount()))

    with transaction.atomic():
        Author.objects.create(name="x")
        transaction.on_commit(hook)
    assert called[3:] == ["1"]


def test_nested_calls(database: str) -> None:
    """`async_to_sync` in `sync_to_async` in `async_to_sync`: one session all the way down."""

    async def innermost() -> list[object]:
        await Author.objects.acreate(name="innermost")
        return [await asession()]

    def sync() -> list[object]:
        Author.objects.create(name="inner sync")
        return [session(), *async_to_sync(innermost)(), session()]

    async def outer() -> list[object]:
        return [await asession(), *await sync_to_async(sync)(), await asession()]

    make_temporary_table()
    transaction.set_autocommit(False)
    found = [session(), *async_to_sync(outer)()]
    assert found == [found[0]] * len(found)
    assert seen() == []
    transaction.rollback()
    transaction.set_autocommit(True)
    assert seen() == []
    async_to_sync(outer)()
    assert seen() == ["inner sync", "innermost"]


def test_exceptions_and_cancellations_inside(database: str) -> None:
    async def fail() -> None:
        await Author.objects.acreate(name="before")
        async with aatomic():
            await Author.objects.acreate(name="in a block")
            raise Failure

    async def cancelled() -> None:
        entered = asyncio.Event()

        async def block() -> None:
            async with aatomic():
                await Author.objects.acreate(name="cancelled")
                entered.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(block())
        await entered.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await Author.objects.acreate(name="after")

    async def itself() -> None:
        async with aatomic():
            await Author.objects.acreate(name="cancelled")
            asyncio.current_task().cancel()  # type: ignore[union-attr]
            await asyncio.sleep(0)

    make_temporary_table()
    before = session()
    with pytest.raises(Failure):
        async_to_sync(fail)()
    assert seen() == ["before"]
    async_to_sync(cancelled)()
    with pytest.raises(asyncio.CancelledError):
        async_to_sync(itself)()
    assert seen() == ["after", "before"]
    assert session() == before
    assert not connection.in_atomic_block
    assert connection.get_autocommit()


def test_a_failed_statement_in_the_callers_block(database: str) -> None:
    async def clash() -> None:
        with pytest.raises(Exception, match=r"(?i)unique|duplicate"):
            async with aatomic():
                await Author.objects.acreate(name="twice")

    with transaction.atomic():
        Author.objects.create(name="twice")
        async_to_sync(clash)()
        Author.objects.create(name="once")
    assert seen() == ["once", "twice"]


def test_detached_is_outside(database: str) -> None:
    """What is detached has a connection of the loop's pool, which ends with the call."""

    async def work() -> None:
        async with detached():
            assert await Author.objects.acount() == 0

    Author.objects.count()
    transaction.set_autocommit(False)
    if database != "sqlite":  # which has one writer
        Author.objects.create(name="not yet")
    async_to_sync(work)()
    transaction.rollback()
    transaction.set_autocommit(True)


def test_a_loop_of_its_own(database: str) -> None:
    make_temporary_table()
    before = session()
    assert AsyncToSync(asession, force_new_loop=True)() == before

    assert async_to_sync(asession)() == before


def test_every_thread_has_its_own(database: str) -> None:
    """Threads at once: each its own session, and its own transaction."""
    threads = 4
    together = threading.Barrier(threads)
    one_at_a_time = threading.Lock()

    async def write(name: str) -> object:
        await Author.objects.acreate(name=name)
        return await asession()

    def program(number: int) -> set[object]:
        try:
            make_temporary_table()
            found = {session()}
            together.wait(30)
            with one_at_a_time:  # SQLite has one writer
                transaction.set_autocommit(False)
                found.add(async_to_sync(write)(f"{number} lost"))
                transaction.rollback()
                found.add(async_to_sync(write)(f"{number} kept"))
                transaction.commit()
                transaction.set_autocommit(True)
            together.wait(30)
            return found | {session()}
        finally:
            connections.close_all()

    with ThreadPoolExecutor(threads) as executor:
        sessions = list(executor.map(program, range(threads)))
    assert [len(each) for each in sessions] == [1] * threads
    if database != "sqlite":
        assert len(set.union(*sessions)) == threads
    assert seen() == [f"{number} kept" for number in range(threads)]


def test_loops_that_programs_run_themselves_use_the_pool(database: str) -> None:
    async def main() -> int:
        assert await asession() != (1 if database == "sqlite" else mine)
        async with acursor() as cursor:
            await cursor.execute("SELECT 1")
        return len(open_pools())

    make_temporary_table()
    mine = session()
    assert asyncio.run(main()) == 1


def test_the_threads_connection_goes_on_blocking_afterwards(database: str) -> None:
    """What a coroutine opened serves the thread when the loop has ended."""

    async def work() -> None:
        await Author.objects.acreate(name="async")

    async def count() -> int:
        return await Author.objects.acount()

    async_to_sync(work)()
    for number in range(3):
        Author.objects.create(name=f"sync {number}")
        async_to_sync(count)()
    if database == "sqlite":
        assert connection.connection.worker is None
    with transaction.atomic():
        Author.objects.create(name="sync")
    assert len(seen()) == 5


# WSGI


def sync_middleware(get_response: Any) -> Any:
    def middleware(request: HttpRequest) -> HttpResponse:
        connection.tenant = request.GET["tenant"]  # type: ignore[attr-defined]
        make_temporary_table()
        request.session_before = session()  # type: ignore[attr-defined]
        return get_response(request)  # type: ignore[no-any-return]

    return middleware


def async_middleware(get_response: Any) -> Any:
    async def middleware(request: HttpRequest) -> HttpResponse:
        request.session_between = await asession()  # type: ignore[attr-defined]
        return await get_response(request)  # type: ignore[no-any-return]

    return middleware


async_middleware.async_capable = True  # type: ignore[attr-defined]
async_middleware.sync_capable = False  # type: ignore[attr-defined]


async def async_view(request: HttpRequest) -> JsonResponse:
    found = [
        request.session_before,  # type: ignore[attr-defined]
        request.session_between,  # type: ignore[attr-defined]
        await asession(),
        *await asyncio.gather(asession(), asession()),
    ]
    await Author.objects.acreate(name=f"of {connection.tenant}")  # type: ignore[attr-defined]
    return JsonResponse({"same": found == [found[0]] * len(found)})


urlpatterns = [path("async", async_view)]


def test_wsgi_with_async_view_and_middleware(database: str) -> None:
    answers: list[Any] = []
    with override_settings(
        ROOT_URLCONF=__name__,
        MIDDLEWARE=[f"{__name__}.sync_middleware", f"{__name__}.async_middleware"],
    ):
        handler = WSGIHandler()
        for tenant in ("blue", "green"):
            close_thread_connection()
            environ = RequestFactory().get("/async", {"tenant": tenant}).environ
            response = handler(environ, lambda *args: answers.append(args[0]))
            assert b"".join(response) == b'{"same": true}'
            response.close()  # type: ignore[attr-defined]
    assert answers == ["200 OK"] * 2
    assert seen() == ["of blue", "of green"]


def test_detached_code_has_the_state_of_the_callers_connection(database: str) -> None:
    """And nothing of it stays for what the thread runs next."""

    async def work() -> list[Any]:
        async with detached():
            found = [getattr(connection, "tenant", None)]
            found.append(await on_loop(lambda: getattr(connection, "tenant", None))())
            connection.other = "x"  # type: ignore[attr-defined]
        return found

    connection.tenant = "blue"  # type: ignore[attr-defined]
    assert async_to_sync(work)() == ["blue", "blue"]
    assert connection.other == "x"  # type: ignore[attr-defined]
    close_thread_connection()
    assert async_to_sync(work)() == [None, None]

    async def main() -> Any:
        return getattr(connection, "tenant", None), getattr(connection, "other", None)

    assert asyncio.run(main()) == (None, None)
