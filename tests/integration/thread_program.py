"""A program whose threads are inside a database driver while their connection is ended.

    python -m tests.integration.thread_program DATABASES_ENTRY LOOP STORY

A process of its own, since what it shows may be a crash or a thread that never ends. A thread
waits inside a statement for a lock that a second connection, the judge, holds until the end;
SQLite's statement has no end of its own. The judge says, too, what was committed. Prints what the
thread got and what the task ended with as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import faulthandler
import functools
import gc
import itertools
import json
import os
import sqlite3
import sys
import threading
from collections.abc import Callable
from typing import Any

import django
import psycopg
import pymysql  # type: ignore[import-untyped]
import uvloop
from django.conf import settings
from django.db import DatabaseError, InterfaceError

LOCK = 4711
PATIENCE = 20.0
"""Seconds until a program that goes on is one that hangs: it says where, and ends."""

_BLOCKED = {
    "postgresql": (
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted "
        f"AND objid = {LOCK} AND database = (SELECT oid FROM pg_database "
        "WHERE datname = current_database())"
    ),
    "mysql": (
        "SELECT count(*) FROM information_schema.processlist "
        "WHERE state = 'User lock' AND db = DATABASE()"
    ),
}
_WAIT = {
    "postgresql": f"SELECT pg_advisory_lock({LOCK})",
    "mysql": f"SELECT GET_LOCK(concat(DATABASE(), {LOCK}), 600)",
    "sqlite3": (
        "WITH RECURSIVE n(x) AS (SELECT begun() UNION ALL SELECT x + 1 FROM n) "
        "SELECT count(*) FROM n"
    ),
}
_numbers = itertools.count()
_ROWS = "SELECT name FROM library_author ORDER BY name"


class Judge:
    """A plain connection of the driver, which Nuages knows nothing of."""

    def __init__(self, entry: dict[str, Any]) -> None:
        self.vendor = entry["ENGINE"].rpartition(".")[2]
        self.begun = threading.Event()
        connect = getattr(self, f"_{self.vendor}")
        self._client = connect(entry)

    @staticmethod
    def _postgresql(entry: dict[str, Any]) -> Any:
        client = psycopg.connect(
            host=entry["HOST"],
            port=entry["PORT"] or None,
            user=entry["USER"],
            password=entry["PASSWORD"],
            dbname=entry["NAME"],
            autocommit=True,
        )
        client.execute(_WAIT["postgresql"])
        return client

    @staticmethod
    def _mysql(entry: dict[str, Any]) -> Any:
        client = pymysql.connect(
            host=entry["HOST"],
            port=int(entry["PORT"] or 3306),
            user=entry["USER"],
            password=entry["PASSWORD"],
            database=entry["NAME"],
            autocommit=True,
        )
        client.cursor().execute(_WAIT["mysql"])
        return client

    @staticmethod
    def _sqlite3(entry: dict[str, Any]) -> Any:
        return sqlite3.connect(entry["NAME"], isolation_level=None)

    def rows(self, sql: str) -> list[Any]:
        cursor = self._client.cursor()
        cursor.execute(sql)
        return [row[0] for row in cursor.fetchall()]

    def names(self) -> list[str]:
        return self.rows(_ROWS)

    def clear(self) -> None:
        self._client.cursor().execute("DELETE FROM library_author")

    async def until_blocked(self) -> None:
        """Wait until a statement of the program waits for the lock."""
        if self.vendor == "sqlite3":
            while not self.begun.is_set():  # noqa: ASYNC110 - a thread's event
                await asyncio.sleep(0)
            return
        while self.rows(_BLOCKED[self.vendor]) == [0]:  # noqa: ASYNC110 - the server's view
            await asyncio.sleep(0)


class Work:
    """What a thread does, and what became of it."""

    def __init__(self, judge: Judge, body: Callable[[Judge], None]) -> None:
        self._judge = judge
        self._body = body
        self._ended = threading.Event()
        self.error: BaseException | None = None
        self.task: object = None
        """What runs it, where nobody awaits that."""

    def __call__(self) -> None:
        try:
            self._body(self._judge)
        except BaseException as error:
            self.error = error
            raise
        finally:
            self._ended.set()

    def outcome(self) -> str:
        """What the thread got; not before it has ended."""
        self._ended.wait()
        return "ended" if self.error is None else describe(self.error)

    async def until_ended(self) -> None:
        while not self._ended.is_set():  # noqa: ASYNC110 - a thread's event
            await asyncio.sleep(0)


def _new_name() -> str:
    """A name that no other transaction has: a server that was sending may be long in finding out
    that its client is gone, and would keep the next one from inserting the same.
    """
    return f"{os.getpid()} {next(_numbers)}"


def describe(error: BaseException) -> str:
    if isinstance(error, DatabaseError | InterfaceError):
        return "database error"
    return repr(error)


def wait_in_statement(judge: Judge) -> None:
    """Write, and wait inside the driver for what does not come."""
    from django.db import connection

    from tests.library.models import Author

    Author.objects.create(name="thread")
    with connection.cursor() as cursor:
        if judge.vendor == "sqlite3":

            def begun() -> int:
                judge.begun.set()
                return 1

            connection.connection.create_function("begun", 0, begun)
        cursor.execute(_WAIT[judge.vendor])


def wait_in_manual_transaction(judge: Judge) -> None:
    from django.db import transaction

    transaction.set_autocommit(False)
    wait_in_statement(judge)


def keep_busy(judge: Judge) -> None:
    """Send one statement after another, and never stop."""
    from tests.library.models import Author

    Author.objects.create(name="thread")
    while True:
        Author.objects.filter(name="thread").update(name="thread")
        judge.begun.set()


def receive_much(judge: Judge) -> None:
    """Be inside the driver nearly all the time, reading what is long."""
    from django.db import connection

    from tests.library.models import Author

    Author.objects.create(name=_new_name())
    long = {
        "postgresql": "SELECT repeat('x', 1000000) FROM generate_series(1, 8)",
        "mysql": "SELECT repeat('x', 1000000) FROM information_schema.collations LIMIT 8",
        "sqlite3": "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 8) "
        "SELECT hex(zeroblob(500000)) FROM n",
    }[judge.vendor]
    with connection.cursor() as cursor:
        while True:
            judge.begun.set()
            cursor.execute(long)
            cursor.fetchall()


async def _block(work: Work) -> None:
    from asgiref.sync import sync_to_async

    from nuages.db import aatomic
    from tests.library.models import Author

    async with aatomic():
        await Author.objects.acreate(name=_new_name())
        await sync_to_async(work)()


async def _cancel_until_done(task: asyncio.Task[Any]) -> None:
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)


def _ending(task: asyncio.Task[Any]) -> str:
    if task.cancelled():
        return "cancelled"
    error = task.exception()
    return "ended" if error is None else describe(error)


async def cancelled_repeatedly(judge: Judge) -> Any:
    """As anyio's cancel scopes: at every turn of the loop, until the task has ended."""
    work = Work(judge, wait_in_statement)
    task = asyncio.create_task(_block(work))
    await judge.until_blocked()
    await _cancel_until_done(task)
    await work.until_ended()
    return work, _ending(task)


async def cancelled_between_statements(judge: Judge) -> Any:
    return await _cancelled_at_work(judge, keep_busy)


async def cancelled_amid_answers(judge: Judge) -> Any:
    return await _cancelled_at_work(judge, receive_much)


async def _cancelled_at_work(judge: Judge, body: Callable[[Judge], None]) -> Any:
    for _ in range(20):
        judge.begun.clear()
        work = Work(judge, body)
        task = asyncio.create_task(_block(work))
        while not judge.begun.is_set():  # noqa: ASYNC110 - a thread's event
            await asyncio.sleep(0)
        await _cancel_until_done(task)
        await work.until_ended()
        if work.outcome() != "database error":
            break
    return work, _ending(task)


async def committed_at_work(judge: Judge) -> Any:
    """A block ends as it should while a thread is in it: what that had written is committed."""
    for _ in range(40):
        judge.begun.clear()
        work = Work(judge, keep_busy)
        task = asyncio.create_task(_leave(work, judge))
        await asyncio.wait([task])
        await work.until_ended()
        if judge.names() != ["task", "thread"]:
            break
        if (work.outcome(), _ending(task)) != ("database error", "ended"):
            break
        judge.clear()
    return work, _ending(task)


async def _leave(work: Work, judge: Judge) -> None:
    from asgiref.sync import sync_to_async

    from nuages.db import aatomic
    from tests.library.models import Author

    async with aatomic():
        await Author.objects.acreate(name="task")
        running = asyncio.ensure_future(sync_to_async(work)())
        while not judge.begun.is_set():  # noqa: ASYNC110 - a thread's event
            await asyncio.sleep(0)
    with contextlib.suppress(DatabaseError):
        await running


async def asked_side_by_side(judge: Judge) -> Any:
    """Threads of the user's own in one block: each gets the answer to its own question."""
    from nuages.db import aatomic

    works = [Work(judge, functools.partial(_ask, number)) for number in range(4)]
    async with aatomic():
        for work in works:
            here = contextvars.copy_context()
            threading.Thread(target=functools.partial(here.run, _quietly, work)).start()
        for work in works:
            await work.until_ended()
    failed = [work for work in works if work.error is not None]
    return (failed or works)[0], "ended"


def _ask(number: int, judge: Judge) -> None:
    from django.db import connection

    for _ in range(200):
        with connection.cursor() as cursor:
            cursor.execute("SELECT %s", [number])
            found = cursor.fetchall()
        if [int(value) for (value,) in found] != [number]:
            raise AssertionError(f"asked for {number}, got {found}")


async def closed_by_its_task(judge: Judge) -> Any:
    """`connection.close()`, of code that does not know of the thread."""
    from asgiref.sync import sync_to_async
    from django.db import connection

    from nuages import on_loop
    from nuages.db import aatomic

    work = Work(judge, wait_in_statement)

    async def main() -> None:
        async with aatomic():
            thread = asyncio.ensure_future(sync_to_async(work)())
            await judge.until_blocked()
            close = on_loop(lambda: connection.close())
            closing = asyncio.ensure_future(close())
            await asyncio.wait([closing, thread])
            await closing
            await thread

    task = asyncio.create_task(main())
    await asyncio.wait([task])
    await work.until_ended()
    return work, _ending(task)


async def left_by_its_loop(judge: Judge) -> Any:
    """The loop ends while a thread is at work in a transaction that nobody is left to end."""
    from asgiref.sync import sync_to_async

    work = Work(judge, wait_in_manual_transaction)
    work.task = asyncio.create_task(sync_to_async(work, thread_sensitive=False)())
    await judge.until_blocked()
    return work, "running"


async def collected(judge: Judge) -> Any:
    """A block whose coroutine is closed, as the garbage collector does, its thread at work."""
    work = Work(judge, wait_in_statement)
    context = contextvars.copy_context()

    async def main() -> None:
        from nuages.db import aatomic
        from tests.library.models import Author

        async with aatomic():
            await Author.objects.acreate(name="task")
            here = contextvars.copy_context()
            threading.Thread(target=functools.partial(here.run, _quietly, work)).start()
            await asyncio.get_running_loop().create_future()

    coroutine = main()
    task: Any = asyncio.create_task(coroutine, context=context)
    await judge.until_blocked()
    ending = "ended"
    try:
        context.run(coroutine.close)
    except BaseException as error:
        ending = describe(error)
    task._log_destroy_pending = False
    await work.until_ended()
    task.cancel()
    await asyncio.wait([task])
    _ending(task)
    return work, ending


def _quietly(work: Work) -> None:
    try:
        work()
    except BaseException as error:
        if work.error is not error:
            raise


STORIES = {
    story.__name__: story
    for story in (
        cancelled_repeatedly,
        cancelled_between_statements,
        cancelled_amid_answers,
        committed_at_work,
        asked_side_by_side,
        closed_by_its_task,
        left_by_its_loop,
        collected,
    )
}


def _eager() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    return loop


FACTORIES: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
    "eager": _eager,
}


async def _count_afterwards() -> int:
    from tests.library.models import Author

    return await Author.objects.acount()


def main() -> None:
    entry, loop, story = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
    faulthandler.enable()
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    sys.setswitchinterval(1e-6)  # as many interleavings as can be
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    settings.DATABASES["default"] = entry
    django.setup()
    judge = Judge(entry)
    with asyncio.Runner(loop_factory=FACTORIES[loop]) as runner:
        work, ending = runner.run(STORIES[story](judge))
        if story != left_by_its_loop.__name__:
            assert runner.run(_count_afterwards()) == 0
    answer = {"thread": work.outcome(), "task": ending, "committed": judge.names()}
    gc.collect()
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
