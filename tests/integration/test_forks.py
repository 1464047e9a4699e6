"""A process that forks anywhere: its child has connections of its own, and ends nothing here.

The judge is a plain connection of its own (`tests/judge.py`), asked by the parent.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, connections, transaction

from nuages import on_loop
from nuages.db import aatomic, acursor, hold_connection
from nuages.exceptions import ForkedBlock, ForkedDatabase
from tests import judge
from tests.integration.conftest import Run
from tests.library.models import Author

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
    pytest.mark.every_database,
]

PATIENCE = 30


def in_child(work: Callable[[], Any]) -> Any:
    """Fork; return what `work` returns there, as JSON has it. A child that hangs fails."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads, and a fork
        child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the parent's is pytest's
        signal.alarm(PATIENCE)
        answer: dict[str, Any] = {}
        try:
            answer["value"] = work()
            gc.collect()
        except BaseException:
            answer["error"] = traceback.format_exc()
        os.write(write, json.dumps(answer).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = json.loads(pipe.read() or "{}")
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child hung, or crashed: {status}"
    assert "error" not in answer, answer["error"]
    return answer["value"]


def count_and_add() -> int:
    """Query by sync code and by a loop of the child's own; commit a row."""
    found = Author.objects.count()

    async def add() -> int:
        async with aatomic():
            await Author.objects.acreate(name="child")
        return await Author.objects.acount()

    assert asyncio.run(add()) == found + 1
    assert Author.objects.count() == found + 1
    return found


def refused() -> str:
    """Query, and return the error's name."""
    try:
        Author.objects.count()
    except Exception as error:
        return type(error).__name__
    return "nothing"


async def a_thread(work: Callable[[], Any]) -> Any:
    def call() -> Any:
        assert Author.objects.count() == 1
        return in_child(work)

    return await sync_to_async(call)()


async def an_own_thread(work: Callable[[], Any]) -> Any:
    def call() -> Any:
        assert Author.objects.count() == 1
        return in_child(work)

    return await sync_to_async(call, thread_sensitive=False)()


async def a_bridge(work: Callable[[], Any]) -> Any:
    @on_loop
    def call() -> Any:
        assert Author.objects.count() == 1
        return in_child(work)

    return await call()


async def a_coroutine(work: Callable[[], Any]) -> Any:
    assert await Author.objects.acount() == 1
    return in_child(work)


async def a_hold(work: Callable[[], Any]) -> Any:
    async with hold_connection():
        assert await Author.objects.acount() == 1
        return in_child(work)


async def an_iteration(work: Callable[[], Any]) -> Any:
    async for _ in Author.objects.aiterator(chunk_size=1):
        return in_child(work)
    raise AssertionError


async def a_cursor(work: Callable[[], Any]) -> Any:
    async with acursor() as cursor:
        await cursor.execute("SELECT 1")
        await cursor.fetchall()
        return in_child(work)


@pytest.mark.parametrize(
    "place", [a_thread, an_own_thread, a_bridge, a_coroutine, a_hold, an_iteration, a_cursor]
)
def test_a_child_queries_on_connections_of_its_own(
    database: str, run: Run, place: Callable[..., Any]
) -> None:
    Author.objects.create(name="parent")
    connections.close_all()

    async def main() -> None:
        assert await place(count_and_add) == 1
        # Every connection of the parent goes on.
        assert await Author.objects.acount() == 2
        assert await sync_to_async(Author.objects.count)() == 2
        async with aatomic():
            await Author.objects.acreate(name="parent, later")

    run(main)
    assert judge.authors() == ["child", "parent", "parent, later"]


def test_a_sync_program_and_its_child(database: str) -> None:
    Author.objects.create(name="parent")
    connection.tenant = "kept"  # type: ignore[attr-defined]
    assert connection.connection is not None

    def work() -> int:
        assert connection.tenant == "kept"  # type: ignore[attr-defined]
        return count_and_add()

    try:
        assert in_child(work) == 1
        with transaction.atomic():
            Author.objects.create(name="parent, later")
    finally:
        del connection.tenant  # type: ignore[attr-defined]
    assert judge.authors() == ["child", "parent", "parent, later"]


def try_a_block() -> list[str]:
    """In a block that the parent goes on with: query, and try to enter another one."""
    told = [refused()]
    try:
        with transaction.atomic():
            told.append("entered")
    except ForkedBlock:
        told.append("not entered")
    return told


TOLD = ["ForkedBlock", "not entered"]


AGAIN = {"sqlite": "ForkedDatabase"}
"""Outside of the parent's block the child has connections of its own, if SQLite lets it."""


@pytest.mark.parametrize("failed", [False, True])
def test_a_child_leaves_its_parents_block(database: str, failed: bool) -> None:
    """By an error, or as if it were done: nothing is sent, and it is told."""
    connections.close_all()
    with transaction.atomic():
        Author.objects.create(name="first")

        def work() -> list[str]:
            told = [refused()]
            try:
                block.__exit__(*((KeyError, KeyError(), None) if failed else (None, None, None)))
            except ForkedBlock:
                told.append("told")
            return [*told, refused()]

        block = transaction.get_connection().atomic_blocks[-1]
        assert in_child(work) == [
            "ForkedBlock",
            *([] if failed else ["told"]),
            AGAIN.get(database, "nothing"),
        ]
        Author.objects.create(name="second")
    assert judge.authors() == ["first", "second"]


def test_a_child_leaves_nested_blocks(database: str) -> None:
    connections.close_all()
    hooks: list[str] = []

    def work() -> str:
        raise SystemExit

    def program() -> None:
        with transaction.atomic():
            Author.objects.create(name="first")
            transaction.on_commit(lambda: hooks.append("ran"))
            with transaction.atomic():
                Author.objects.create(name="second")
                child.append(_fork())
                if not child[0]:
                    work()
            Author.objects.create(name="third")

    child: list[int] = []
    read, write = os.pipe()
    try:
        program()
    except SystemExit:
        os.write(write, f"{hooks} {refused()}".encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read() == f"[] {AGAIN.get(database, 'nothing')}"
    os.waitpid(child[0], 0)
    assert hooks == ["ran"]
    assert judge.authors() == ["first", "second", "third"]


def _fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(PATIENCE)
    return child


@pytest.mark.parametrize("where", ["coroutine", "bridge", "thread"])
def test_a_child_of_a_block_on_the_loop_is_refused(database: str, run: Run, where: str) -> None:
    def fork() -> Any:
        assert Author.objects.count() == 1
        return in_child(try_a_block)

    async def main() -> None:
        async with aatomic():
            await Author.objects.acreate(name="first")
            if where == "coroutine":
                assert in_child(try_a_block) == TOLD
            elif where == "bridge":
                assert await on_loop(fork)() == TOLD
            else:
                assert await sync_to_async(fork)() == TOLD
            await Author.objects.acreate(name="second")

    run(main)
    assert judge.authors() == ["first", "second"]


def test_a_child_of_a_block_that_runs_a_loop_is_refused(database: str, run: Run) -> None:
    def work() -> str:
        async def main() -> str:
            with pytest.raises(ForkedBlock):
                await Author.objects.acount()
            with pytest.raises(ForkedBlock) as caught:
                await aatomic().__aenter__()
            return caught.value.code

        return asyncio.run(main())

    async def main() -> None:
        async with aatomic():
            await Author.objects.acreate(name="first")
            assert in_child(work) == "nuages.forked-block"

    run(main)
    assert judge.authors() == ["first"]


def test_a_child_where_autocommit_is_off(database: str) -> None:
    connections.close_all()

    def work() -> list[str]:
        told = refused()
        connection.close()
        return [told, refused()]

    transaction.set_autocommit(False)
    try:
        Author.objects.create(name="first")
        assert in_child(work) == ["ForkedBlock", AGAIN.get(database, "nothing")]
        transaction.commit()
    finally:
        transaction.set_autocommit(True)
    assert judge.authors() == ["first"]


def test_a_file_that_another_task_is_writing(sqlite: dict[str, Any], run: Run) -> None:
    """The child has SQLite's notes of locks that are not its own: it is told."""

    async def main() -> None:
        entered, go = asyncio.Event(), asyncio.Event()

        async def write() -> None:
            async with aatomic():
                await Author.objects.acreate(name="first")
                entered.set()
                await go.wait()

        task = asyncio.create_task(write())
        await entered.wait()
        assert in_child(refused) == ForkedDatabase.__name__
        go.set()
        await task
        assert in_child(count_and_add) == 1

    run(main)
    assert judge.authors() == ["child", "first"]


def test_a_thread_that_forks_has_a_copy_of_a_database_in_memory(sqlite: dict[str, Any]) -> None:
    from nuages.db.backends.sqlite3 import base

    connections["default"].settings_dict["NAME"] = ":memory:"

    def insert() -> int:
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE IF NOT EXISTS t (x)")
            cursor.execute("INSERT INTO t VALUES (1)")
            cursor.execute("SELECT count(*) FROM t")
            return int(cursor.fetchone()[0])

    def fork() -> tuple[int, int]:
        insert()
        return in_child(insert), insert()

    try:
        assert asyncio.run(sync_to_async(fork)()) == (2, 2)
    finally:
        for key in list(base._in_memory):
            kept = base._in_memory.pop(key)
            while kept.is_alive():
                kept.close()
