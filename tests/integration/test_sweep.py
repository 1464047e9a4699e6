"""Every operation is cancelled at every one of its suspensions, once and twice.

After each of them the pool is whole, the server has no session of ours at work or in a
transaction, no task or greenlet is left, the data is that of before or of after, and what was told
to have succeeded is there. A cancelled commit may be either: it is told as cancelled, and may be
committed.

`NUAGES_SWEEP_POINTS` bounds the suspensions that are tried (0: all). `make sweep` tries them all
and prints counts.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.cache.backends.db import DatabaseCache
from django.db import connections, transaction
from django.db.models import F

from nuages import off_loop, on_loop
from nuages.db import aatomic, acursor, aon_commit, detached, hold_connection
from nuages.db.transaction import request_connections
from tests.integration import mysql_tools
from tests.integration.conftest import CACHE_TABLE, Run
from tests.integration.freed import no_cycles
from tests.integration.pool_tools import assert_whole, options, server, the_pool
from tests.integration.scope_tools import Failure
from tests.integration.sweep_tools import (
    LOOPS,
    POINTS,
    TIMES,
    TIMINGS,
    Counted,
    Cut,
    Operation,
    settled,
)
from tests.library.models import Author, Book, Novel, Tag

pytestmark = pytest.mark.every_database

BEFORE: Any = {
    "authors": [("Ann", None), ("Zoe", "Ann")],
    "books": [("Air", 1), ("Earth", 1)],
    "tags": [("Air", "old")],
    "cached": {"a": "old"},
}
CACHE = DatabaseCache(CACHE_TABLE, {})


# The operations


async def get() -> None:
    await Author.objects.aget(name="Ann")


async def lists() -> None:
    await Author.objects.alist()
    await Author.objects.acount()


async def iterate() -> None:
    async for author in Author.objects.all():
        await author.books.acount()


async def iterate_on_a_cursor() -> None:
    async for author in Author.objects.aiterator(chunk_size=1):
        await author.books.acount()


async def prefetch() -> None:
    await Author.objects.aprefetch_related("books__tags").alist()


async def gathered_reads() -> None:
    await asyncio.gather(*(Author.objects.acount() for _ in range(3)))


async def relation() -> None:
    book = await Book.objects.aget(title="Air")
    await book.aauthor


async def save() -> None:
    await Author(name="New").asave()


async def save_inherited() -> None:
    ann = await Author.objects.aget(name="Ann")
    await Novel(title="Fire", author=ann, genre="g").asave()


async def delete_with_cascade() -> None:
    ann = await Author.objects.aget(name="Ann")
    await ann.adelete()


async def update() -> None:
    await Book.objects.aupdate(copies=F("copies") + 1)


async def bulk_create() -> None:
    await Tag.objects.abulk_create([Tag(name=f"t{n}") for n in range(6)], batch_size=2)
    await Author.objects.abulk_create([Author(name=f"b{n}") for n in range(6)], batch_size=2)


async def bulk_update() -> None:
    books = await Book.objects.alist()
    for book in books:
        book.copies = 7
    await Book.objects.abulk_update(books, ["copies"], batch_size=1)


async def get_or_create() -> None:
    await Author.objects.aget_or_create(name="New")


async def update_or_create() -> None:
    ann = await Author.objects.aget(name="Ann")
    await Author.objects.aupdate_or_create(name="Zoe", defaults={"mentor": None})
    await Author.objects.aget(pk=ann.pk)


async def set_many_to_many() -> None:
    book = await Book.objects.aget(title="Air")
    tag = await Tag.objects.acreate(name="new")
    await book.tags.aset([tag])


async def block() -> None:
    async with aatomic():
        ann = await Author.objects.acreate(name="New")
        await Book.objects.acreate(title="Fire", author=ann)


async def nested_blocks() -> None:
    async with aatomic():
        ann = await Author.objects.acreate(name="New")
        try:
            async with aatomic():
                await Author.objects.acreate(name="Gone")
                raise Failure
        except Failure:
            pass
        async with aatomic(durable=False):
            await Book.objects.acreate(title="Fire", author=ann)


async def rolled_back() -> None:
    try:
        async with aatomic():
            await Author.objects.acreate(name="Gone")
            raise Failure
    except Failure:
        pass


async def gathered_writes() -> None:
    async with aatomic():
        await asyncio.gather(*(Author.objects.acreate(name=f"g{n}") for n in range(3)))


async def locked_rows() -> None:
    async with aatomic():
        ann = await Author.objects.select_for_update().aget(name="Ann")
        ann.name = "Anna"
        await ann.asave(update_fields=["name"])


async def hook_after_commit() -> None:
    async def hook() -> None:
        await Author.objects.acreate(name="Hook")

    async with aatomic():
        await Author.objects.acreate(name="New")
        await aon_commit(hook)


async def sync_function() -> None:
    def work() -> None:
        with transaction.atomic():
            author = Author.objects.create(name="New")
            try:
                with transaction.atomic():
                    Author.objects.create(name="Gone")
                    raise Failure
            except Failure:
                pass
            author.books.create(title="Fire")

    await on_loop(work)()


async def threads_in_a_block() -> None:
    def work() -> None:
        author = Author.objects.create(name="New")
        off_loop(lambda: Author.objects.create(name="Off", mentor=author))()

    async with aatomic():
        await on_loop(work)()
        await sync_to_async(Author.objects.create)(name="Thread")


async def detached_write() -> None:
    async with aatomic():
        await Author.objects.acount()
        async with detached():
            await Author.objects.acount()
        await Author.objects.acreate(name="New")


async def hold() -> None:
    async with hold_connection() as connection:
        if connection.vendor == "postgresql":
            async with acursor() as cursor:
                await cursor.execute("SET work_mem = '5MB'")
        await Author.objects.acount()
        async with aatomic():
            await Author.objects.acreate(name="New")


async def request() -> None:
    async with request_connections():
        await Author.objects.acount()
        async with aatomic():
            await Author.objects.acreate(name="New")
        await Author.objects.acount()


async def raw_sql() -> None:
    async with acursor() as cursor:
        await cursor.execute("SELECT name FROM library_author ORDER BY name")
        await cursor.fetchone()
        await cursor.execute("UPDATE library_book SET copies = copies + 1")


async def copy() -> None:
    def work(cursor: Any) -> None:
        with cursor.copy("COPY library_tag (name) FROM STDIN") as rows:
            for number in range(3):
                rows.write_row([f"c{number}"])

    async with acursor() as cursor:
        await cursor.run(work)
        await cursor.execute("UPDATE library_book SET copies = 9")


async def wait_for_a_connection() -> None:
    async with asyncio.TaskGroup() as others:
        for _ in range(4):
            others.create_task(Author.objects.acount())
        await asyncio.sleep(0)
        await Author.objects.acount()


async def database_cache() -> None:
    await CACHE.aset("a", "new")
    await CACHE.aget_many(["a", "b"])
    await CACHE.adelete("b")


def authors(*names: str) -> Any:
    return {**BEFORE, "authors": sorted([*BEFORE["authors"], *((name, None) for name in names)])}


OPERATIONS = [
    Operation("get", get),
    Operation("get, and connect", get, cold=True),
    Operation("list and count", lists),
    Operation("async for", iterate),
    Operation("aiterator", iterate_on_a_cursor),
    Operation("prefetch", prefetch),
    Operation("gathered reads", gathered_reads),
    Operation("relation", relation),
    Operation("save", save),
    Operation("save, and connect", save, cold=True),
    Operation("save with inheritance", save_inherited),
    Operation("delete with cascade", delete_with_cascade),
    Operation("update", update),
    Operation("bulk create", bulk_create),
    Operation("bulk update", bulk_update),
    Operation("get or create", get_or_create),
    Operation("update or create", update_or_create),
    # Three operations, each a transaction of its own.
    Operation("set many-to-many", set_many_to_many),
    Operation("block", block),
    Operation("block, and connect", block, cold=True),
    Operation("nested blocks", nested_blocks),
    Operation("rollback", rolled_back),
    Operation("gathered writes", gathered_writes),
    Operation("locked rows", locked_rows),
    Operation("hook after commit", hook_after_commit, between=(authors("New"),)),
    Operation("sync function", sync_function),
    Operation("threads in a block", threads_in_a_block),
    Operation("detached", detached_write),
    Operation("hold", hold),
    Operation("request", request),
    Operation("raw SQL", raw_sql),
    Operation("COPY", copy, databases=("postgresql",)),
    Operation("database cache", database_cache),
    Operation("wait for a connection", wait_for_a_connection),
]


# The sweep


@transaction.atomic
def reset() -> None:
    Novel.objects.all().delete()
    Book.objects.all().delete()
    Author.objects.all().delete()
    Tag.objects.all().delete()
    ann = Author.objects.create(name="Ann")
    Author.objects.create(name="Zoe", mentor=ann)
    air, _ = (Book.objects.create(title=title, author=ann, copies=1) for title in ("Air", "Earth"))
    air.tags.add(Tag.objects.create(name="old"))
    CACHE.clear()
    CACHE.set("a", "old")


def snapshot() -> Any:
    return {
        "authors": sorted(Author.objects.values_list("name", "mentor__name")),
        "books": sorted(Book.objects.values_list("title", "copies")),
        "tags": sorted(Book.tags.through.objects.values_list("book__title", "tag__name")),
        "cached": CACHE.get_many(["a", "b"]),
    }


@asynccontextmanager
async def observed(database: str) -> AsyncIterator[Callable[[], Any]]:
    """Give a function that waits until the database has nothing of ours open."""
    async with AsyncExitStack() as stack:
        if database == "postgresql":
            pg = await stack.enter_async_context(server())
            yield pg.until_idle
            return
        if database == "mysql":
            observer = stack.enter_context(mysql_tools.server())

            async def nothing_open() -> None:
                await observer.until_idle()
                await observer.until_none_open()

            yield nothing_open
            return
        path = connections.settings["default"]["NAME"]

        def is_locked() -> bool:
            with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
                try:
                    other.execute("BEGIN EXCLUSIVE")
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                        raise
                    return True
                other.execute("ROLLBACK")
                return False

        async def nobody_writes() -> None:
            # A connection that a worker thread closes has the file for itself for a moment.
            async with asyncio.timeout(10):
                while is_locked():  # noqa: ASYNC110
                    await asyncio.sleep(0)

        yield nobody_writes


async def sweep(operation: Operation, database: str, counted: Counted) -> None:
    """Cut the operation at each of its suspensions, and check what is left each time."""
    async with observed(database) as until_idle:
        await on_loop(reset)()
        assert await on_loop(snapshot)() == BEFORE
        await operation.run()
        after = await on_loop(snapshot)()
        legal = [BEFORE, after, *operation.between]
        for times, timing in itertools.product(TIMES, TIMINGS):
            for point in itertools.count(1) if POINTS == 0 else range(1, POINTS + 1):
                await on_loop(reset)()
                if operation.cold:
                    the_pool().clear()
                    await settled()
                where = f"{operation} at {point}, {times} times, {timing}"
                cut = Cut(operation.run(), range(point, point + times), timing)
                with no_cycles(where):
                    task = asyncio.create_task(cut.run())
                    await asyncio.wait([task])
                    await settled()
                assert_whole(the_pool())
                await until_idle()
                left = await on_loop(snapshot)()
                if not cut.cancelled:
                    await task
                    assert left == after, where
                    break
                assert task.cancelled(), f"{where}: ended with {task}"
                assert left in legal, where
                counted.points += 1
                counted.committed += left == after != BEFORE


@pytest.fixture(scope="module")
def counts() -> Iterator[dict[str, Counted]]:
    """What was swept on each database; printed at the end."""
    found: dict[str, Counted] = {}
    yield found
    for database, counted in found.items():
        print(f"\n{database}: {counted}", end="")


@pytest.fixture
def small_pool(database: str) -> Iterator[None]:
    options(max_size=3)
    yield
    options()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("run", LOOPS, indirect=True)
@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_whatever_is_cancelled_leaves_everything_whole(
    operation: Operation,
    database: str,
    small_pool: None,
    run: Run,
    counts: dict[str, Counted],
) -> None:
    if database not in operation.databases:
        return
    counted = counts.setdefault(database, Counted())
    run(sweep, operation, database, counted)
    counted.operations.add(operation.name)
    assert counted.points
