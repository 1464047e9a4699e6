"""Transactions, connections, cursors."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, assert_type

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper

from nuages.db import aatomic, acursor, aon_commit, detached, hold_connection


@aatomic
async def plain(number: int) -> str:
    return str(number)


@aatomic(using="other", durable=True)
async def configured(number: int) -> str:
    return str(number)


async def transactions() -> None:
    assert_type(await plain(1), str)
    assert_type(await configured(1), str)
    async with aatomic() as nothing:
        assert_type(nothing, None)
    async with aatomic("other", savepoint=False), detached(), detached(using="other"):
        pass
    await plain("1")  # error: mypy arg-type, pyright reportArgumentType
    await configured()  # error: mypy call-arg, pyright reportCallIssue
    aatomic(usin="other")  # error: mypy call-overload, pyright reportCallIssue
    with aatomic():  # error: mypy attr-defined x2, pyright reportGeneralTypeIssues x2
        pass
    with detached():  # error: mypy attr-defined x2, pyright reportGeneralTypeIssues x2
        pass
    async with aatomic(durable="yes"):  # error: mypy call-overload, pyright reportArgumentType
        pass


def sync() -> None: ...


aatomic(sync)  # error: mypy arg-type, pyright reportCallIssue, pyright reportArgumentType


@aatomic()  # error: mypy arg-type, pyright reportArgumentType
def sync_configured() -> None: ...


async def notify() -> None: ...


async def hooks() -> None:
    await aon_commit(notify)
    await aon_commit(sync, using="other", robust=True)
    await aon_commit(lambda: notify())
    await aon_commit(notify())  # error: mypy arg-type, pyright reportArgumentType
    await aon_commit(plain)  # error: mypy arg-type, pyright reportArgumentType


async def holds() -> None:
    async with hold_connection() as connection:
        assert_type(connection, BaseDatabaseWrapper)
        assert_type(connection.vendor, str)
        connection.vendro  # error: mypy attr-defined, pyright reportAttributeAccessIssue
    with hold_connection():  # error: mypy attr-defined x2, pyright reportGeneralTypeIssues x2
        pass


def copy(cursor: CursorWrapper, table: str) -> int:
    return 1


async def cursors() -> None:
    async with acursor() as cursor:
        await cursor.execute("SELECT %s", [1])
        await cursor.execute("SELECT %(a)s", {"a": 1})
        await cursor.executemany("SELECT %s", [(1,), (2,)])
        async for row in await cursor.execute("SELECT 1"):
            assert_type(row, tuple[Any, ...])
        assert_type(await cursor.fetchone(), tuple[Any, ...] | None)
        assert_type(await cursor.fetchmany(3), list[tuple[Any, ...]])
        assert_type(await cursor.fetchall(), list[tuple[Any, ...]])
        assert_type(cursor.rowcount, int)
        assert_type(await cursor.run(copy, "t"), int)
        assert_type(await cursor.run(copy, table="t"), int)
        await cursor.run(copy)  # error: mypy call-arg, pyright reportCallIssue
        await cursor.run(copy, 3)  # error: mypy arg-type, pyright reportArgumentType
        await cursor.execute(1)  # error: mypy arg-type, pyright reportArgumentType
        await cursor.execute("", 5)  # error: mypy arg-type, pyright reportArgumentType
        await cursor.fetchmany("3")  # error: mypy arg-type, pyright reportArgumentType
        await cursor.exceute("")  # error: mypy attr-defined, pyright reportAttributeAccessIssue
        for _ in cursor:  # error: mypy attr-defined, pyright reportGeneralTypeIssues
            pass


decorated: Callable[[int], Coroutine[Any, Any, str]] = plain
