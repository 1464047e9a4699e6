"""PostgreSQL needs no thread: counted at the executors, at the threads, and on the loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import sync_to_async

from nuages import on_loop
from nuages.db import aatomic
from nuages.db.backends.base.statistics import statistics
from tests.integration.conftest import Counts, Run
from tests.integration.pool_tools import Heartbeat, fetch, server
from tests.library.models import Author, Book

pytestmark = [pytest.mark.every_database, pytest.mark.both_loops]

LOCK = 4242


async def aget() -> None:
    await Author.objects.aget(name="Ursula")


async def asave() -> None:
    author = Author(name="Octavia")
    await author.asave()
    author.name = "Octavia B."
    await author.asave()


async def adelete() -> None:
    author = await Author.objects.acreate(name="Octavia")
    await author.adelete()


async def in_aatomic() -> None:
    async with aatomic():
        await Author.objects.acreate(name="Octavia")
        async with aatomic():
            await Author.objects.filter(name="Octavia").aupdate(name="Butler")


async def async_for() -> None:
    assert [book.title async for book in Book.objects.all()] == ["one", "two"]
    assert len([book async for book in Book.objects.aiterator(chunk_size=1)]) == 2


async def gather() -> None:
    await asyncio.gather(*(Author.objects.acount() for _ in range(5)))


@on_loop
async def lazy_relation() -> None:
    book = await Book.objects.afirst()
    assert book is not None
    assert book.author.name == "Ursula"
    assert len(book.author.books.all()) == 2


@pytest.mark.parametrize(
    "work", [aget, asave, adelete, in_aatomic, async_for, gather, lazy_relation]
)
def test_no_thread_is_used(
    postgresql: dict[str, Any], run: Run, threads: Counts, work: Callable[[], Any]
) -> None:
    author = Author.objects.create(name="Ursula")
    for title in ("one", "two"):
        Book.objects.create(title=title, author=author)

    async def main() -> None:
        statistics.reset()
        await work()
        assert statistics.bridged > 0
        assert (statistics.blocked, statistics.worker) == (0, 0)

    threads.clear()
    run(main)
    threads.assert_none()


def test_the_counter_counts(postgresql: dict[str, Any], run: Run, threads: Counts) -> None:
    """A control: `sync_to_async` submits a call and starts a thread."""

    async def main() -> None:
        there = await sync_to_async(threading.get_ident, thread_sensitive=False)()
        assert there != threading.get_ident()
        submitted = len(threads.submitted)
        assert submitted
        assert threads.started
        await sync_to_async(len)("")
        assert len(threads.submitted) > submitted
        await asyncio.get_running_loop().run_in_executor(None, len, "")

    run(main)


def _blocked_queries() -> dict[str, Callable[[], Any]]:
    lock = f"SELECT pg_advisory_xact_lock_shared({LOCK})"

    async def bare() -> None:
        await fetch(lock)

    async def transaction() -> None:
        async with aatomic():
            await fetch(lock)

    @on_loop
    def bridged() -> None:
        Author.objects.extra(where=[f"pg_advisory_xact_lock_shared({LOCK}) IS NOT NULL"]).first()

    return {"bare": bare, "transaction": transaction, "bridged": bridged}


@pytest.mark.parametrize("kind", ["bare", "transaction", "bridged"])
def test_the_loop_goes_on_while_the_server_keeps_a_statement_waiting(
    postgresql: dict[str, Any], run: Run, threads: Counts, kind: str
) -> None:
    Author.objects.create(name="Ursula")

    async def main() -> None:
        async with server() as pg:
            async with pg.locked(LOCK), Heartbeat() as heart:
                statistics.reset()
                task = asyncio.create_task(_blocked_queries()[kind]())
                await pg.until_blocked()
                await heart.more(200)
                await pg.until_blocked()
                assert not task.done()
            await task
        assert statistics.blocked == 0

    run(main)
    assert threads.started == []


def test_the_loop_is_never_found_waiting_in_psycopg(
    postgresql: dict[str, Any], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """blockbuster does not see psycopg's waits, which are in C: so we look at who waits."""
    from psycopg import waiting

    waits: list[str] = []

    def seeing(name: str) -> None:
        original = getattr(waiting, name)

        def wait(*args: Any, **kwargs: Any) -> Any:
            if asyncio._get_running_loop() is not None:
                waits.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(waiting, name, wait)

    for name in ("wait", "wait_conn", "wait_selector", "wait_select", "wait_poll"):
        seeing(name)

    async def main() -> None:
        async with aatomic():
            await Author.objects.acreate(name="Ursula")
        assert [a.name async for a in Author.objects.aiterator()] == ["Ursula"]
        assert waits == []
        # The control: with Django's own switch, a statement may block the loop, and is seen.
        monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
        statistics.reset()
        assert Author.objects.count() == 1
        assert statistics.blocked > 0
        from django.db import connections

        connections["default"].close()

    run(main)
