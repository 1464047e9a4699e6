"""`django.db.connection` in coroutine code: what it tells and what it refuses."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, connections, transaction

from nuages import on_loop
from nuages.db import aatomic, detached, hold_connection
from nuages.db.backends.base.statistics import Statistics, statistics
from nuages.db.pool.pool import open_pools
from nuages.db.transaction import request_connections
from nuages.exceptions import AtomicInCoroutine, SyncInCoroutine
from tests.integration.conftest import Run
from tests.integration.scope_tools import names, pool_stats, until
from tests.library.models import Author, Book

# What it tells, without I/O


def test_it_tells_of_the_database_without_io(database: str, run: Run) -> None:
    async def main() -> None:
        statistics.reset()
        assert connection.vendor == database
        assert connection.alias == "default"
        assert connection.settings_dict["NAME"] == connections.settings["default"]["NAME"]
        assert connection.settings_dict["ENGINE"].startswith("nuages.db.backends.")
        assert connection.ops.quote_name("a").strip('`"') == "a"
        assert connection.features.uses_savepoints
        assert connection.operators["exact"]
        assert connection.data_types["BooleanField"]
        assert connection.introspection.connection is connections["default"]
        assert connection.schema_editor is not None
        assert str(Author.objects.filter(name="x").query)
        assert connection.in_atomic_block is False
        assert connection.get_autocommit() is True
        assert connection.needs_rollback is False
        assert connection.connection is None
        assert connection.queries == []
        connection.ensure_connection()
        assert open_pools() == []
        assert statistics == Statistics()

    run(main)


def test_in_atomic_block_is_that_of_the_calling_code(database: str, run: Run) -> None:
    async def tell() -> bool:
        return bool(connection.in_atomic_block)

    async def main() -> None:
        before = asyncio.Event()

        async def outside() -> bool:
            await before.wait()
            return await tell()

        task = asyncio.create_task(outside())
        assert not connection.in_atomic_block
        async with aatomic():
            assert connection.in_atomic_block
            assert await asyncio.create_task(tell())
            assert await asyncio.to_thread(lambda: connection.in_atomic_block)
            before.set()
            assert not await task
            async with detached():
                assert not connection.in_atomic_block
        assert not connection.in_atomic_block
        async with hold_connection():
            assert not connection.in_atomic_block
            async with aatomic():
                assert connection.in_atomic_block

    run(main)


def test_on_commit_in_coroutine_code(database: str, run: Run) -> None:
    calls: list[str] = []

    async def main() -> None:
        connection.on_commit(lambda: calls.append("at once"))
        transaction.on_commit(lambda: calls.append("at once too"))
        assert calls == ["at once", "at once too"]
        with pytest.raises(TypeError, match="callable"):
            connection.on_commit("no function")
        async with aatomic():
            transaction.on_commit(lambda: calls.append("after commit"))
            assert len(calls) == 2
        assert calls[2:] == ["after commit"]

    run(main)


# Sync ORM in a bare coroutine


def _attributes() -> list[Callable[[], Any]]:
    return [
        lambda: Author.objects.count(),
        lambda: list(Author.objects.all()),
        lambda: Author(name="x").save(),
        lambda: Author.objects.create(name="x"),
        lambda: connection.cursor(),
        lambda: transaction.atomic().__enter__(),
        lambda: connection.savepoint(),
        lambda: connection.commit(),
    ]


@pytest.mark.parametrize("number", range(len(_attributes())))
@pytest.mark.parametrize("scope", ["outside", "transaction", "hold"])
def test_sync_orm_in_a_coroutine_is_refused(
    database: str, run: Run, number: int, scope: str
) -> None:
    use = _attributes()[number]

    async def main() -> None:
        blocks = {"outside": detached, "transaction": aatomic, "hold": hold_connection}
        async with blocks[scope]():
            with pytest.raises(SyncInCoroutine) as caught:
                use()
            assert isinstance(caught.value, SynchronousOnlyOperation)
            message = str(caught.value)
            if isinstance(caught.value, AtomicInCoroutine):
                assert "`async with transaction.atomic()" in message
            else:
                assert "await Article.objects.aget(" in message
                assert "`await on_loop(function)(...)`" in message
            assert "`@on_loop`" in message
        assert await names() == []
        # The connection of a hold is reset in the background.
        await until(lambda: pool_stats()["used"] == 0)

    run(main)


def test_a_lazy_relation_in_a_coroutine_is_refused(database: str, run: Run) -> None:
    async def main() -> None:
        author = await Author.objects.acreate(name="Clarice")
        book = await Book.objects.acreate(title="T", author=author)
        found = await Book.objects.aget(pk=book.pk)
        with pytest.raises(SyncInCoroutine):
            _ = found.author.name
        assert (await found.aauthor).name == "Clarice"
        assert found.author.name == "Clarice"

    run(main)


@pytest.mark.parametrize("scope", ["outside", "transaction"])
def test_async_unsafe_keeps_its_meaning(
    database: str, run: Run, scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DJANGO_ALLOW_ASYNC_UNSAFE: sync code may run in a coroutine, and blocks, as in Django."""
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")

    async def main() -> None:
        statistics.reset()
        if scope == "transaction":
            async with aatomic():
                await Author.objects.acreate(name="async")
                Author.objects.create(name="sync")
                assert Author.objects.count() == 2
            assert statistics.blocked > 0
        else:
            Author.objects.create(name="sync")
            with transaction.atomic():
                Author.objects.create(name="in a block")
            with pytest.raises(ZeroDivisionError), transaction.atomic():
                Author.objects.create(name="rolled back")
                raise ZeroDivisionError
            assert Author.objects.count() == 2
            await Author.objects.acreate(name="async")
            connection.close()
        assert len(await names()) == 2 + (scope == "outside")
        assert pool_stats()["used"] == 0

    run(main)


def test_a_facade_is_not_another_threads(database: str, run: Run) -> None:
    """Two loops in two threads: neither sees an attribute of the other's facade."""
    seen: dict[str, int] = {}

    async def look(name: str) -> None:
        seen[name] = id(connections["default"])
        assert await Author.objects.acount() == 0

    async def main() -> None:
        thread = threading.Thread(target=asyncio.run, args=(look("other"),))
        thread.start()
        await look("here")
        await asyncio.get_running_loop().run_in_executor(None, thread.join)

    run(main)
    assert seen["here"] != seen["other"]


def test_the_wrappers_public_face_is_djangos() -> None:
    """Properties of ours take the place of Django's attributes, under the same names."""
    from django.db.backends.base.base import BaseDatabaseWrapper

    from nuages.db.backends.base.base import LoopWrapper

    for name in ("on_commit", "set_autocommit", "get_autocommit", "execute_wrapper", "close"):
        ours = inspect.signature(getattr(LoopWrapper, name))
        djangos = inspect.signature(getattr(BaseDatabaseWrapper, name))
        assert list(ours.parameters) == list(djangos.parameters)


def test_what_it_refuses_in_a_request_takes_no_turn(database: str, run: Run) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), request_connections():
            await on_loop(lambda: connection.vendor)()
            for refused in (connection.connect, connection.ensure_connection, connection.cursor):
                with pytest.raises(SyncInCoroutine):
                    refused()
            assert await Author.objects.acount() == 0

    run(main)
