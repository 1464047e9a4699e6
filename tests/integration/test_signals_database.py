"""Receivers of model signals: in the sender's transaction, on its connection, without a thread."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.signals import request_started
from django.db import connection, connections, transaction
from django.db.models.signals import m2m_changed, post_delete, post_save
from django.dispatch import Signal
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path

from nuages import on_loop
from nuages.asgi.handler import ASGIHandler
from nuages.db import aatomic, detached
from nuages.handling import receivers as dispatch
from tests.integration.asgi_client import fetch, where
from tests.integration.conftest import Counts, Run
from tests.integration.pool_tools import server
from tests.integration.scope_tools import Failure, observer, pool_stats, receiving
from tests.library.models import Author, Book, Novel, Tag

LOCK = 5150


@asynccontextmanager
async def outside() -> AsyncIterator[Callable[[str], Any]]:
    """A connection that has nothing to do with Nuages: await it with SQL for the first column."""
    if connection.vendor == "sqlite":
        client = sqlite3.connect(connections.settings["default"]["NAME"])

        async def ask(sql: str) -> list[Any]:
            return [row[0] for row in client.execute(sql)]

        try:
            yield ask
        finally:
            client.close()
        return
    async with observer() as conn:

        async def ask_server(sql: str) -> list[Any]:
            return [row[0] for row in await (await conn.execute(sql)).fetchall()]

        yield ask_server


TAGS = "SELECT name FROM library_tag ORDER BY name"
AUTHORS = "SELECT name FROM library_author ORDER BY name"


async def tagging(sender: Any, instance: Any, **named: Any) -> None:
    """Writes what it saw, awaiting in between."""
    assert where() == "loop"
    count = await Author.objects.acount()
    await Tag.objects.acreate(name=f"{instance} {count}")


def sync_tagging(sender: Any, instance: Any, **named: Any) -> None:
    assert where() == "loop"
    Tag.objects.create(name=f"{instance} {Author.objects.count()}")


@pytest.fixture(params=["gather", "task group"])
def both_kinds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "LIKE_TASK_GROUP", request.param == "task group")


@pytest.fixture(params=[tagging, sync_tagging], ids=["async", "sync"])
def receiver(request: pytest.FixtureRequest) -> Any:
    return request.param


async def asave() -> None:
    await Author(name="Ada").asave()


@on_loop
def save_in_bridge() -> None:
    Author(name="Ada").save()


@on_loop
async def save_in_portal() -> None:
    Author(name="Ada").save()


@pytest.mark.parametrize("save", [asave, save_in_bridge, save_in_portal])
def test_a_receiver_writes_in_the_senders_transaction(
    database: str, run: Run, receiver: Any, save: Any, both_kinds: None
) -> None:
    """Another connection sees its row when the sender's is committed, and never before."""

    async def main() -> None:
        async with outside() as ask:
            async with aatomic():
                await save()
                assert await Tag.objects.acount() == 1
                assert await ask(TAGS) == []
            assert await ask(TAGS) == ["Ada 1"]
        assert pool_stats()["used"] == 0

    with receiving(post_save, receiver, sender=Author):
        run(main)


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_a_receiver_that_raises_rolls_the_block_back(
    database: str, run: Run, kind: str, both_kinds: None
) -> None:
    def fail(**named: Any) -> None:
        Tag.objects.create(name="by the receiver")
        raise Failure

    async def afail(**named: Any) -> None:
        await Tag.objects.acreate(name="by the receiver")
        raise Failure

    async def main() -> None:
        async with outside() as ask:
            with pytest.raises(Failure):
                async with aatomic():
                    await Tag.objects.acreate(name="before")
                    await Author(name="Ada").asave()
            assert await ask(TAGS) == []
            assert await ask(AUTHORS) == []
        assert pool_stats()["used"] == 0

    with receiving(post_save, fail if kind == "sync" else afail, sender=Author):
        run(main)


def test_receivers_of_what_runs_in_a_transaction_of_its_own(
    database: str, run: Run, both_kinds: None
) -> None:
    """m2m_changed, post_delete and a child model's signals are sent inside Django's own blocks."""
    seen: list[str] = []

    def noting(name: str) -> Any:
        async def receive(**named: Any) -> None:
            # The sender holds the connection: this does not wait for itself.
            assert connection.in_atomic_block
            seen.append(f"{name} {await Author.objects.acount()}")

        return receive

    async def main() -> None:
        seen.clear()
        author = await Author.objects.acreate(name="Ada")
        book = await Book.objects.acreate(title="one", author=author)
        tag = await Tag.objects.acreate(name="x")
        await book.tags.aadd(tag)
        await book.tags.aset([])
        await Tag.objects.all().adelete()
        async with aatomic():
            await Novel(title="two", author=author, genre="g").asave()
        assert seen == ["m2m 1"] * 4 + ["deleted 1", "saved 1"]
        assert pool_stats()["used"] == 0

    with (
        receiving(m2m_changed, noting("m2m")),
        receiving(post_delete, noting("deleted"), sender=Tag),
        receiving(post_save, noting("saved"), sender=Novel),
    ):
        run(main)


def test_several_receivers_take_turns_in_the_transaction(
    database: str, run: Run, both_kinds: None
) -> None:
    """Concurrent blocks of theirs never interleave: what one rolls back is its own only."""

    async def main() -> None:
        barrier = asyncio.Barrier(3)

        async def keeps(**named: Any) -> None:
            await barrier.wait()
            async with aatomic():
                await Tag.objects.acreate(name="kept")
                await asyncio.sleep(0)
                await Tag.objects.acreate(name="kept too")

        async def drops(**named: Any) -> None:
            await barrier.wait()
            with pytest.raises(Failure):
                async with aatomic():
                    await Tag.objects.acreate(name="dropped")
                    await asyncio.sleep(0)
                    raise Failure

        async def goes_outside(**named: Any) -> None:
            await barrier.wait()
            async with detached():
                assert not connection.in_atomic_block
                await asyncio.sleep(0)
                assert await Author.objects.acount() == 0
            assert connection.in_atomic_block

        with (
            receiving(post_save, keeps, sender=Author),
            receiving(post_save, drops, sender=Author),
            receiving(post_save, goes_outside, sender=Author),
        ):
            async with aatomic():
                await Author(name="Ada").asave()
                assert connection.in_atomic_block
        assert [tag.name async for tag in Tag.objects.order_by("name")] == ["kept", "kept too"]
        assert pool_stats()["used"] == 0

    run(main)


def test_concurrent_saves_with_receivers_on_a_small_pool(
    database: str, run: Run, receiver: Any
) -> None:
    async def main() -> None:
        async with asyncio.timeout(30):
            await asyncio.gather(*(Author(name=f"{i}").asave() for i in range(10)))
        assert await Tag.objects.acount() == 10
        assert pool_stats()["used"] == 0

    connections.settings["default"]["OPTIONS"] = {"pool": {"max_size": 2}}
    with receiving(post_save, receiver, sender=Author):
        run(main)


def test_a_cancellation_while_a_receiver_waits(database: str, run: Run, both_kinds: None) -> None:
    ended: list[str] = []

    async def main() -> None:
        ended.clear()
        begun = asyncio.Event()

        async def waits(**named: Any) -> None:
            await Tag.objects.acreate(name="by the receiver")
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("receiver")

        async def save() -> None:
            async with aatomic():
                await Author(name="Ada").asave()

        with receiving(post_save, waits, sender=Author):
            task = asyncio.create_task(save())
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert ended == ["receiver"]
        assert await Author.objects.acount() == await Tag.objects.acount() == 0
        assert pool_stats()["used"] == 0

    run(main)


def test_a_cancellation_while_a_receivers_statement_waits(
    postgresql: Any, run: Run, both_kinds: None
) -> None:
    """The statement is cancelled on the server, and the sender's transaction rolled back."""

    async def blocked(**named: Any) -> None:
        async with aatomic():
            await Tag.objects.acreate(name="by the receiver")
            lock = f"pg_advisory_xact_lock_shared({LOCK}) IS NOT NULL"
            await Tag.objects.extra(where=[lock]).afirst()

    async def save() -> None:
        async with aatomic():
            await Author(name="Ada").asave()

    async def main() -> None:
        async with server() as pg, pg.locked(LOCK):
            task = asyncio.create_task(save())
            await pg.until_blocked()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await Author.objects.acount() == await Tag.objects.acount() == 0
        assert pool_stats()["used"] == 0

    with receiving(post_save, blocked, sender=Author):
        run(main)


def test_a_save_with_receivers_needs_no_thread(
    postgresql: Any, run: Run, threads: Counts, receiver: Any
) -> None:
    async def main() -> None:
        await Author(name="Ada").asave()
        async with aatomic():
            await Author(name="Grace").asave()
        assert await Tag.objects.acount() == 2
        threads.assert_none()
        await sync_to_async(int)()  # the control
        assert threads.submitted

    threads.clear()
    with receiving(post_save, receiver, sender=Author):
        run(main)


def test_in_a_thread_of_the_sender(database: str, run: Run, both_kinds: None) -> None:
    """`save()` in a thread that is in the transaction: the receiver runs on the loop, in it."""

    async def main() -> None:
        async with outside() as ask:
            async with aatomic():
                await sync_to_async(Author(name="Ada").save)()
                assert await ask(TAGS) == []
            assert await ask(TAGS) == ["Ada 1"]
        assert pool_stats()["used"] == 0

    with receiving(post_save, tagging, sender=Author):
        run(main)


def test_in_a_sync_program(database: str, both_kinds: None) -> None:
    """The receiver runs on a loop of its own, in the program's transaction."""

    async def receive(sender: Any, instance: Any, **named: Any) -> None:
        await Tag.objects.acreate(name=f"{instance} {await Author.objects.acount()}")

    with receiving(post_save, receive, sender=Author):
        with pytest.raises(Failure), transaction.atomic():
            Author(name="Ada").save()
            assert Tag.objects.count() == 1
            raise Failure
        assert Tag.objects.count() == 0
        with transaction.atomic():
            Author(name="Grace").save()
        assert [tag.name for tag in Tag.objects.all()] == ["Grace 1"]


def test_asend_of_a_sync_receiver_joins_the_transaction_from_its_thread(
    database: str, run: Run
) -> None:
    """A signal of the project's, whose sync receiver may block: in a thread, as `asend` has it."""
    done = Signal()

    def receive(**named: Any) -> None:
        assert where() == "thread"
        Tag.objects.create(name="by the receiver")

    async def main() -> None:
        async with outside() as ask:
            with receiving(done, receive), pytest.raises(Failure):
                async with aatomic():
                    await done.asend(None)
                    assert await Tag.objects.acount() == 1
                    assert await ask(TAGS) == []
                    raise Failure
            assert await ask(TAGS) == []
        assert pool_stats()["used"] == 0

    run(main)


async def view(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(await Tag.objects.acount()))


urlpatterns = [path("", view)]


def test_request_started(database: str, run: Run) -> None:
    """Its async receivers are concurrent, too, and query before the view runs."""

    async def main() -> None:
        barrier = asyncio.Barrier(2)

        async def one(**named: Any) -> None:
            await barrier.wait()
            await Tag.objects.acreate(name="one")

        async def two(**named: Any) -> None:
            await barrier.wait()
            await Tag.objects.acreate(name="two")

        with receiving(request_started, one), receiving(request_started, two):
            answer = await fetch(ASGIHandler(), "/")
        assert answer.text == "2"

    with override_settings(ROOT_URLCONF=__name__):
        run(main)
