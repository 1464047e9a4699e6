"""Code without a loop around it: its transactions, its coroutines, its wrappers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import connection, transaction

from nuages.db import aatomic
from tests.integration.scope_tools import (
    Failure,
    observer,
)
from tests.library.models import Author


def create(name: str) -> Author:
    return Author.objects.create(name=name)


def test_coroutines_of_sync_code_join_its_transaction(database: str) -> None:
    """`with atomic(): async_to_sync(coroutine)()` under WSGI or in a command."""

    async def work(name: str) -> None:
        assert connection.in_atomic_block
        await Author.objects.acreate(name=name)
        await asyncio.gather(*(Author.objects.acreate(name=f"{name}{i}") for i in range(3)))
        with pytest.raises(Failure):
            async with aatomic():
                await Author.objects.acreate(name="inner")
                raise Failure
        await sync_to_async(create)(f"{name} thread")

    with pytest.raises(Failure), transaction.atomic():
        create("sync")
        async_to_sync(work)("a")
        assert Author.objects.count() == 6
        raise Failure
    assert Author.objects.count() == 0
    with transaction.atomic():
        async_to_sync(work)("a")
        create("sync")
    assert Author.objects.count() == 6
    assert not connection.in_atomic_block


def test_a_failing_coroutine_rolls_sync_code_back(database: str) -> None:
    async def fail() -> None:
        await Author.objects.acreate(name="async")
        raise Failure

    with pytest.raises(Failure), transaction.atomic():
        create("sync")
        async_to_sync(fail)()
    assert Author.objects.count() == 0
    with transaction.atomic():
        create("outer")
        with pytest.raises(Failure), transaction.atomic():
            async_to_sync(fail)()
    assert [a.name for a in Author.objects.all()] == ["outer"]


def test_wsgi_leaves_no_connections(postgresql: dict[str, Any]) -> None:
    """An async view that `async_to_sync` adapts has a loop for each call, which takes its pool."""

    async def view() -> int:
        await asyncio.gather(*(Author.objects.acount() for _ in range(3)))
        async with aatomic():
            return await Author.objects.acount()

    for _ in range(10):
        assert async_to_sync(view)() == 0

    async def look() -> None:
        async with observer() as client, asyncio.timeout(10):
            query = (
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            # The server takes a moment to see that a client has gone.
            while (await (await client.execute(query)).fetchone()) != (1 if own else 0,):
                pass

    own = connection.connection is not None
    asyncio.run(look())
