"""Interleavings of tasks in one transaction, and of many leases in one pool."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.db.models.signals import m2m_changed, post_save

from nuages import on_loop
from nuages.db import aatomic
from tests.integration.conftest import Run
from tests.integration.scope_tools import (
    Failure,
    names,
    pool_stats,
    queued,
    receiving,
    rolled_back,
    statements,
    until,
)
from tests.library.models import Author, Book, Novel, Tag

pytestmark = [pytest.mark.every_database, pytest.mark.both_loops]

# Receivers that query


def test_ten_saves_with_an_async_receiver_that_queries_fit_a_pool_of_ten(
    database: str, run: Run
) -> None:
    """All ten are in the receiver at once: had each kept its lease, none could query."""
    counts: list[int] = []

    async def main() -> None:
        everybody = asyncio.Barrier(10)

        async def count(instance: Author, **kwargs: Any) -> None:
            await everybody.wait()
            counts.append(await Author.objects.filter(name=instance.name).acount())

        with receiving(post_save, count, Author):
            async with asyncio.timeout(20):
                await asyncio.gather(*(Author(name=f"{i}").asave() for i in range(10)))
        assert pool_stats()["max_size"] == 10
        assert pool_stats()["used"] == 0
        assert pool_stats()["size"] <= 10

    run(main)
    assert counts == [1] * 10


def test_ten_transactions_with_an_async_receiver_that_queries_fit_a_pool_of_ten(
    postgresql: dict[str, Any], run: Run
) -> None:
    """`m2m_changed` is sent inside Django's own transaction; the receiver joins it."""
    counts: list[int] = []

    async def main() -> None:
        author = await Author.objects.acreate(name="Jorge")
        tags = [await Tag.objects.acreate(name=f"{i}") for i in range(10)]
        books = [await Book.objects.acreate(title=f"{i}", author=author) for i in range(10)]
        everybody = asyncio.Barrier(10)

        async def count(instance: Book, action: str, **kwargs: Any) -> None:
            if action == "post_add":
                await everybody.wait()
                counts.append(await instance.tags.acount())

        with receiving(m2m_changed, count, Book.tags.through):
            async with asyncio.timeout(20):
                await asyncio.gather(*(book.tags.aadd(*tags[:3]) for book in books))
        assert pool_stats()["used"] == 0
        assert pool_stats()["size"] == 10

    run(main)
    assert counts == [3] * 10


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_receiver_that_queries_from_save_joins_the_transaction(
    database: str, run: Run, kind: str
) -> None:
    """It queries while its sender is in a call of the scope: it does not wait for itself."""
    seen: list[int] = []

    def sync_receiver(instance: Author, **kwargs: Any) -> None:
        seen.append(Author.objects.count())
        if instance.name == "first":
            Author.objects.create(name="by the receiver")

    async def async_receiver(instance: Author, **kwargs: Any) -> None:
        seen.append(await Author.objects.acount())
        if instance.name == "first":
            await Author.objects.acreate(name="by the receiver")

    receiver = sync_receiver if kind == "sync" else async_receiver

    async def main() -> None:
        with receiving(post_save, receiver, Author):
            async with asyncio.timeout(20):
                async with rolled_back():
                    await Author(name="first").asave()
                    assert await names() == []
                assert await names() == []
                async with aatomic():
                    await asyncio.gather(Author(name="first").asave(), Author(name="b").asave())
        assert await names() == ["b", "by the receiver", "first"]

    run(main)
    assert seen[:2] == [1, 2]
    assert max(seen) == 3


def test_async_receivers_in_an_inner_transaction_of_a_save(database: str, run: Run) -> None:
    """`m2m_changed` comes while Django's nested block is open: its receivers take turns in it."""
    actions: list[tuple[str, int]] = []

    async def count(instance: Book, action: str, **kwargs: Any) -> None:
        actions.append((action, await instance.tags.acount()))

    async def count_too(instance: Book, action: str, **kwargs: Any) -> None:
        async with aatomic():
            actions.append((action, await instance.tags.acount()))

    async def main() -> None:
        author = await Author.objects.acreate(name="Italo")
        through = Book.tags.through
        async with asyncio.timeout(20):
            with (
                receiving(m2m_changed, count, through),
                receiving(m2m_changed, count_too, through),
            ):
                async with aatomic():
                    book = await Novel.objects.acreate(title="T", author=author, genre="g")
                    tag = await Tag.objects.acreate(name="tag")
                    await book.tags.aadd(tag)
        assert sorted(set(actions)) == [("post_add", 1), ("pre_add", 0)]
        assert len(actions) == 4

    run(main)


# Gathers and portals in a transaction


def test_gathered_saves_in_a_transaction_share_its_fate(database: str, run: Run) -> None:
    async def main() -> None:
        async with rolled_back():
            await asyncio.gather(*(Author.objects.acreate(name=f"{i}") for i in range(5)))
            assert await Author.objects.acount() == 5
        assert await names() == []
        async with aatomic():
            await asyncio.gather(*(Author.objects.acreate(name=f"{i}") for i in range(5)))
            assert pool_stats()["used"] == 1
        assert await names() == ["0", "1", "2", "3", "4"]
        assert pool_stats()["used"] == 0

    run(main)


def test_a_portal_in_a_scope_gathers(database: str, run: Run) -> None:
    @on_loop
    async def portal(prefix: str) -> list[str]:
        author = Author.objects.create(name=f"{prefix} sync")
        books = await asyncio.gather(
            *(Book.objects.acreate(title=f"{prefix} {i}", author=author) for i in range(3))
        )
        async with aatomic():
            await Author.objects.acreate(name=f"{prefix} nested")
        return [Book.objects.get(pk=book.pk).author.name for book in books]

    async def main() -> None:
        async with asyncio.timeout(20):
            async with rolled_back():
                assert await portal("a") == ["a sync"] * 3
            assert await names() == []
            async with aatomic():
                await asyncio.gather(portal("b"), portal("c"))
        assert await names() == ["b nested", "b sync", "c nested", "c sync"]
        assert await Book.objects.acount() == 6

    run(main)


@pytest.mark.parametrize("outer", [False, True])
def test_a_sync_atomic_in_a_portal_that_gathers_and_fails_rolls_everything_back(
    database: str, run: Run, outer: bool
) -> None:
    @on_loop
    async def portal() -> None:
        with transaction.atomic():
            Author.objects.create(name="one")
            await asyncio.gather(*(Author.objects.acreate(name=f"{i}") for i in range(3)))
            assert Author.objects.count() == 4 + outer
            raise Failure

    async def main() -> None:
        async with asyncio.timeout(20):
            if not outer:
                with pytest.raises(Failure):
                    await portal()
            else:
                async with aatomic():
                    await Author.objects.acreate(name="kept")
                    with pytest.raises(Failure):
                        await portal()
        assert await names() == ["kept"] * outer
        assert pool_stats()["used"] == 0

    run(main)


def test_bridged_sync_functions_in_a_transaction_take_turns(database: str, run: Run) -> None:
    """`atomic` in sync functions on the loop: savepoints of two tasks nest, one after another."""

    def save(name: str) -> None:
        with transaction.atomic():
            Author.objects.create(name=f"{name}1")
            Author.objects.create(name=f"{name}2")

    async def main() -> None:
        async with aatomic():
            with statements() as sent:
                await asyncio.gather(*(on_loop(save)(name) for name in "abc"))
        assert _shape(sent) == ["SAVEPOINT", "INSERT", "INSERT", "RELEASE"] * 3

    run(main)


# Concurrent nested blocks


def _shape(sent: list[str]) -> list[str]:
    """The kinds of statement, without reads and SQLite's BEGIN (PostgreSQL's is psycopg's)."""
    return [sql.split()[0] for sql in sent if not sql.startswith(("SELECT", "BEGIN"))]


def test_concurrent_nested_blocks_of_which_one_fails_keep_the_others(
    database: str, run: Run
) -> None:
    async def nested(name: str, go: asyncio.Event) -> None:
        async with aatomic():
            await Author.objects.acreate(name=f"{name} first")
            await go.wait()
            await Author.objects.acreate(name=f"{name} second")
            if name == "b":
                raise Failure

    async def main() -> None:
        go = asyncio.Event()
        with statements() as sent:
            async with asyncio.timeout(20), aatomic():
                tasks = [asyncio.create_task(nested(name, go)) for name in "abc"]
                # Two stand in line while the first is in its block.
                await until(lambda: queued() == 2)
                go.set()
                results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [type(None), Failure, type(None)]
        assert await names() == ["a first", "a second", "c first", "c second"]
        block = ["SAVEPOINT", "INSERT", "INSERT"]
        assert _shape(sent) == [
            *block, "RELEASE",
            *block, "ROLLBACK", "RELEASE",
            *block, "RELEASE",
        ]  # fmt: skip

    run(main)


def test_a_query_waits_for_a_nested_block_of_another_task(database: str, run: Run) -> None:
    """What the nested block rolls back takes nobody else's statement with it."""

    async def nested(entered: asyncio.Event, go: asyncio.Event) -> None:
        async with aatomic():
            await Author.objects.acreate(name="nested")
            entered.set()
            await go.wait()
            raise Failure

    async def main() -> None:
        entered, go = asyncio.Event(), asyncio.Event()
        async with asyncio.timeout(20), aatomic():
            block = asyncio.create_task(nested(entered, go))
            await entered.wait()
            single = asyncio.create_task(Author.objects.acreate(name="single"))
            await until(lambda: queued() == 1)
            go.set()
            with pytest.raises(Failure):
                await block
            await single
            assert [a.name for a in await Author.objects.alist()] == ["single"]
        assert await names() == ["single"]

    run(main)


def test_the_owner_waits_for_a_nested_block_of_its_child(database: str, run: Run) -> None:
    """The transaction's own code must not slip a statement into a child's savepoint either."""

    async def nested(entered: asyncio.Event, go: asyncio.Event) -> None:
        async with aatomic():
            await Author.objects.acreate(name="nested")
            entered.set()
            await go.wait()
            raise Failure

    async def main() -> None:
        entered, go = asyncio.Event(), asyncio.Event()
        async with asyncio.timeout(20), aatomic():
            block = asyncio.create_task(nested(entered, go))
            await entered.wait()

            async def release() -> None:
                await until(lambda: queued() == 1)
                go.set()

            releasing = asyncio.create_task(release())
            await Author.objects.acreate(name="owner")
            await releasing
            with pytest.raises(Failure):
                await block
        assert await names() == ["owner"]

    run(main)


def test_deep_trees_of_gathered_blocks_nest(database: str, run: Run) -> None:
    """Three levels of gathered blocks: each failure takes exactly its own subtree."""

    async def level(name: str, depth: int) -> None:
        async with aatomic():
            await Author.objects.acreate(name=name)
            if depth:
                await asyncio.gather(
                    *(level(f"{name}{i}", depth - 1) for i in range(2)), return_exceptions=True
                )
            if name in ("x01", "x1"):
                raise Failure

    async def main() -> None:
        async with asyncio.timeout(30):
            await level("x", 2)
        assert await names() == ["x", "x0", "x00"]
        assert pool_stats()["used"] == 0

    run(main)


def test_leases_are_never_two_in_one_chain(database: str, run: Run) -> None:
    """A pool of one serves a receiver inside a save inside a portal, one after another."""
    connections.settings["default"]["OPTIONS"] = {"pool": {"max_size": 1, "timeout": 5}}

    async def query(**kwargs: Any) -> None:
        await Author.objects.acount()

    @on_loop
    async def portal(name: str) -> None:
        Author.objects.create(name=name)
        await Author.objects.acount()
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            await Author.objects.acount()

    async def main() -> None:
        with receiving(post_save, query, Author):
            async with asyncio.timeout(20):
                await asyncio.gather(*(portal(f"{i}") for i in range(4)))
        assert pool_stats()["size"] == 1
        assert pool_stats()["used"] == 0

    run(main)
