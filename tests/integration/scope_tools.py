"""What the tests of scopes, transactions and threads share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
import pytest
from django.db import connection, connections
from django.dispatch import Signal

from nuages.db import aatomic, detached
from nuages.db.pool.pool import open_pools
from nuages.db.scopes.tree import context_node, held_by_request
from tests.library.models import Author


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Let other tasks run until `condition()` holds; fail after `seconds`."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


@contextmanager
def receiving(signal: Signal, receiver: Callable[..., Any], sender: Any = None) -> Iterator[None]:
    """Connect `receiver` for the length of the block."""
    signal.connect(receiver, sender=sender, weak=False)
    try:
        yield
    finally:
        assert signal.disconnect(receiver, sender=sender)


@contextmanager
def statements() -> Iterator[list[str]]:
    """Collect the SQL that this context and the tasks started in it send, in order."""
    sent: list[str] = []

    def record(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        sent.append(str(sql))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(record):
        yield sent


def pool_stats(alias: str = "default") -> dict[str, int]:
    """The counts of the running loop's pool."""
    (pool,) = [pool for pool in open_pools() if pool.alias == alias]
    return pool.stats()


async def turns(count: int = 10) -> None:
    """Let the loop's tasks take so many turns: one closes what a dropped generator holds.

    Nothing is waited for: what follows must be right before that task is done, and after it.
    """
    for _ in range(count):
        await asyncio.sleep(0)


async def names() -> list[str]:
    """The names of all authors, seen from outside of any transaction."""
    async with detached():
        return [a.name for a in await Author.objects.order_by("name").alist()]


def queued(alias: str = "default") -> int:
    """How many wait for a turn in the scope of the calling code."""
    held = held_by_request(alias)
    node = context_node(alias) or (None if held is None else held.get(alias))
    waiting = 0
    while node is not None:
        waiting += len(node.turns._queue)
        node = node.parent
    return waiting


@asynccontextmanager
async def observer() -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A client of the PostgreSQL server that has nothing to do with Nuages."""
    given = connections.settings["default"]
    async with await psycopg.AsyncConnection.connect(
        host=given["HOST"],
        port=given["PORT"] or None,
        user=given["USER"],
        password=given["PASSWORD"],
        dbname=given["NAME"],
        autocommit=True,
    ) as client:
        yield client


class Failure(Exception):
    """What a test raises to have a block rolled back."""


@asynccontextmanager
async def rolled_back() -> AsyncIterator[None]:
    """A transaction that fails at its end, which must come out of it."""
    with pytest.raises(Failure):
        async with aatomic():
            yield
            raise Failure


class Child:
    """A task that opens a nested block and leaves it when it is told to."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.leave = asyncio.Event()
        self.error_inside: BaseException | None = None

    async def run(self, *, query_again: bool = False, fail: bool = False) -> None:
        async with aatomic():
            await Author.objects.acreate(name="child")
            self.entered.set()
            await self.leave.wait()
            if query_again:
                try:
                    await Author.objects.acreate(name="late")
                except BaseException as error:
                    self.error_inside = error
            if fail:
                raise Failure
