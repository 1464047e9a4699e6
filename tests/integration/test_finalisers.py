"""What the garbage collector finishes: in any task or thread, in the middle of any statement.

Each thing here is abandoned in a cycle of references, so that nothing but a collection frees it,
and the collection is forced at one chosen place. The judge of what was committed is a client that
has nothing to do with Nuages.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from psycopg.adapt import Dumper
from pymysql.cursors import SSCursor  # type: ignore[import-untyped]

from nuages import on_loop
from nuages.bridge import await_, tasks
from nuages.db import aatomic, hold_connection
from tests import judge
from tests.integration.conftest import Run
from tests.integration.pool_tools import assert_whole, options, the_pool
from tests.integration.scope_tools import until
from tests.library.models import Author

pytestmark = pytest.mark.every_database

MANY = 250
"""More rows than SQLite's worker brings at once."""
PATIENCE = 10.0

_tags = itertools.count(1)


@pytest.fixture(autouse=True)
def _no_collection_by_itself() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collect what finalisers raise, which nobody could handle."""
    seen: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", seen.append)
    return seen


def committed() -> set[str]:
    """The authors' names that a client of the database sees, but for those of `populate()`."""
    return {name for name in judge.authors() if not name.startswith("row")}


async def whole() -> None:
    """See that the pool is, after what is reset in the background."""
    await tasks.wait_for_spawned(PATIENCE)
    assert_whole(the_pool())


def populate() -> None:
    Author.objects.bulk_create([Author(name=f"row{number:03}") for number in range(MANY)])


def tagged(cursor: Any = None) -> None:
    """Run a query of a value that no other has, and see that its answer is this one's."""
    tag = next(_tags)
    if cursor is not None:
        cursor.execute("SELECT %s", [tag])
        assert cursor.fetchall() in ([(tag,)], ((tag,),))
        return
    with connection.cursor() as own:
        tagged(own)


class _Cycle:
    def __init__(self, held: Any) -> None:
        self.me = self
        self.held = held


def abandon(held: Any) -> weakref.ref[Any]:
    """Leave `held` to the garbage collector; the reference tells when that has come."""
    return weakref.ref(_Cycle(held))


# What is abandoned

_SQL = "SELECT name FROM library_author WHERE name >= 'row' ORDER BY name"


def _rows() -> Any:
    return Author.objects.filter(name__gte="row").order_by("name")


def _iterator() -> Any:
    rows = _rows().iterator(chunk_size=2)
    assert next(rows).name == "row000"
    return rows


def _values() -> Any:
    rows = _rows().values_list("name").iterator(chunk_size=2)
    assert next(rows) == ("row000",)
    return rows


def _cursor() -> Any:
    def rows() -> Iterator[str]:
        with connection.cursor() as cursor:
            cursor.execute(_SQL)
            yield cursor.fetchone()[0]

    generator = rows()
    assert next(generator) == "row000"
    return generator


def _named() -> Any:
    """A cursor whose rows are on the server, by the driver's own means."""

    def rows() -> Iterator[str]:
        with contextlib.closing(connection.chunked_cursor()) as cursor:
            cursor.execute(_SQL)
            yield cursor.fetchone()[0]

    def unbuffered() -> Iterator[str]:
        connection.ensure_connection()
        assert connection.connection is not None
        with contextlib.closing(connection.connection.cursor(SSCursor)) as cursor:
            cursor.execute(_SQL)
            yield cursor.fetchone()[0]

    generator = unbuffered() if connection.vendor == "mysql" else rows()
    assert next(generator) == "row000"
    return generator


THINGS = [_iterator, _values, _cursor, _named]
BUFFERED = THINGS[:3]
"""While an unbuffered cursor of PyMySQL's is there, its connection can do nothing else."""


# Where it is collected


def _between_statements() -> None:
    tagged()
    gc.collect()
    tagged()


def _in_a_wrapper() -> None:
    def collect(execute: Any, *args: Any) -> Any:
        gc.collect()
        return execute(*args)

    with connection.execute_wrapper(collect):
        tagged()


class Tripwire:
    """A parameter of a query that collects garbage as it is adapted."""


def _collect() -> int:
    gc.collect()
    return 1


class _TripwireDumper(Dumper):
    oid = 23

    def dump(self, obj: Any) -> bytes:
        return b"%d" % _collect()


def _in_a_statement() -> None:
    """Driver code runs, the connection's lock is held, the statement is about to be sent."""
    connection.ensure_connection()
    raw = connection.connection
    assert raw is not None
    if connection.vendor == "postgresql":
        raw.adapters.register_dumper(Tripwire, _TripwireDumper)
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT %s::int", [Tripwire()])
        elif connection.vendor == "mysql":
            usual = raw.decoders
            raw.decoders = {kind: lambda value: _collect() for kind in usual}
            try:
                cursor.execute("SELECT 1")
            finally:
                raw.decoders = usual
        else:
            raw.create_function("collect_garbage", 0, _collect)
            cursor.execute("SELECT collect_garbage()")
        assert cursor.fetchone() == (1,)


def _in_a_callback() -> None:
    """In a weak reference's callback, inside a statement's wrapper."""

    class Thing:
        pass

    def dropped(_: Any) -> None:
        gc.collect()

    things = [Thing()]
    watch = weakref.ref(things[0], dropped)

    def drop(execute: Any, *args: Any) -> Any:
        things.clear()
        return execute(*args)

    with connection.execute_wrapper(drop):
        tagged()
    assert watch() is None


PLACES = [_between_statements, _in_a_wrapper, _in_a_statement, _in_a_callback]


def _in_bare_thread() -> None:
    thread = threading.Thread(target=gc.collect)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()


async def _collect_in(place: Callable[[], None], how: str) -> None:
    """Call `place` in a task of its own, in a block of its own: its rows must be there."""

    def work() -> None:
        with transaction.atomic():
            Author.objects.create(name=f"beside {how}")
            place()
            tagged()
        tagged()

    await (sync_to_async(work)() if how == "thread" else on_loop(work)())


# Cursors


class _Owner:
    """A task that abandons `thing`, and goes on when it is told to."""

    def __init__(self, thing: Callable[[], Any], *, in_block: bool) -> None:
        self.thing = thing
        self.in_block = in_block
        self.paused, self.go_on = asyncio.Event(), asyncio.Event()
        self.gone: Any = None

    def run(self) -> None:
        with transaction.atomic() if self.in_block else contextlib.nullcontext():
            if self.in_block:
                Author.objects.create(name="owner")
            self.gone = abandon(self.thing())
            self.paused.set()
            await_(self.go_on.wait())
            for _ in range(3):
                tagged()
        tagged()


@pytest.mark.parametrize("how", ["task", "thread"])
@pytest.mark.parametrize("in_block", [True, False], ids=["block", "lease"])
@pytest.mark.parametrize("place", PLACES, ids=lambda one: one.__name__.strip("_"))
@pytest.mark.parametrize("thing", THINGS, ids=lambda one: one.__name__.strip("_"))
def test_a_cursor_collected_by_somebody_else(
    database: str,
    run: Run,
    unraisable: list[Any],
    thing: Callable[[], Any],
    place: Callable[[], None],
    in_block: bool,
    how: str,
) -> None:
    populate()

    async def main() -> None:
        owner = _Owner(thing, in_block=in_block)
        if database != "postgresql" and in_block:
            # SQLite has one writer at a time, and InnoDB locks the gaps around deleted names of
            # the test before: it only reads beside.
            beside = on_loop(place) if how == "task" else sync_to_async(place)
        else:
            beside = lambda: _collect_in(place, how)  # noqa: E731
        async with asyncio.timeout(PATIENCE):
            task = asyncio.create_task(on_loop(owner.run)())
            await owner.paused.wait()
            assert owner.gone() is not None
            await beside()
            assert owner.gone() is None
            owner.go_on.set()
            await task
        await whole()

    run(main)
    expected = {"owner"} if in_block else set()
    if database == "postgresql" or not in_block:
        expected |= {f"beside {how}"}
    assert committed() == expected
    assert not unraisable


@pytest.mark.parametrize("place", PLACES, ids=lambda one: one.__name__.strip("_"))
@pytest.mark.parametrize("thing", BUFFERED, ids=lambda one: one.__name__.strip("_"))
def test_a_cursor_collected_in_a_statement_of_its_own_connection(
    database: str,
    run: Run,
    unraisable: list[Any],
    thing: Callable[[], Any],
    place: Callable[[], None],
) -> None:
    populate()

    def work() -> None:
        with transaction.atomic():
            Author.objects.create(name="owner")
            gone = abandon(thing())
            place()
            assert gone() is None
            tagged()
        tagged()

    async def main() -> None:
        async with asyncio.timeout(PATIENCE):
            await on_loop(work)()
        await whole()

    run(main)
    assert committed() == {"owner"}
    assert not unraisable


@pytest.mark.parametrize("thing", THINGS, ids=lambda one: one.__name__.strip("_"))
def test_a_cursor_collected_in_a_bare_thread_or_callback(
    database: str, run: Run, unraisable: list[Any], thing: Callable[[], Any]
) -> None:
    """No bridge and no chain there: a thread of nobody's, and a callback of the loop."""
    populate()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for collect in (
            lambda: loop.run_in_executor(None, gc.collect),
            lambda: asyncio.to_thread(_in_bare_thread),
        ):
            async with asyncio.timeout(PATIENCE):
                owner = _Owner(thing, in_block=False)
                task = asyncio.create_task(on_loop(owner.run)())
                await owner.paused.wait()
                await collect()
                assert owner.gone() is None
                owner.go_on.set()
                await task
        owner = _Owner(thing, in_block=False)
        task = asyncio.create_task(on_loop(owner.run)())
        await owner.paused.wait()
        loop.call_soon(gc.collect)
        await until(lambda: owner.gone() is None)
        owner.go_on.set()
        await task
        await whole()

    run(main)
    assert not unraisable


@pytest.mark.parametrize("thing", BUFFERED, ids=lambda one: one.__name__.strip("_"))
def test_a_sibling_in_the_same_block_collects(
    database: str, run: Run, unraisable: list[Any], thing: Callable[[], Any]
) -> None:
    """One task has the turn in a nested block and waits for the one whose statement collects."""
    populate()

    async def main() -> None:
        abandoned, collected = asyncio.Event(), asyncio.Event()

        @on_loop
        def first() -> None:
            gone = abandon(thing())
            with transaction.atomic():
                tagged()
                abandoned.set()
                await_(collected.wait())
                assert gone() is None
                tagged()

        async def second() -> None:
            await abandoned.wait()
            await on_loop(gc.collect)()
            collected.set()
            await on_loop(tagged)()

        async with asyncio.timeout(PATIENCE), aatomic():
            await Author.objects.acreate(name="block")
            await asyncio.gather(first(), second())
        await whole()

    run(main)
    assert committed() == {"block"}
    assert not unraisable


@pytest.mark.parametrize("thing", THINGS, ids=lambda one: one.__name__.strip("_"))
def test_its_connection_is_given_back_when_the_code_waits_next(
    database: str, run: Run, thing: Callable[[], Any]
) -> None:
    populate()

    @on_loop
    def work() -> None:
        gone = abandon(thing())
        gc.collect()
        assert gone() is None
        await_(until(lambda: used() == 0))

    def used() -> int:
        return the_pool().stats()["used"]

    run(work)


def test_what_was_abandoned_is_closed_before_the_next_statement(
    postgresql: dict[str, Any], run: Run
) -> None:
    """An open cursor would keep the table from DROP, and its locks from everybody."""
    populate()

    async def main() -> None:
        async with hold_connection():

            def work() -> None:
                for _ in range(5):
                    abandon(_iterator())
                gc.collect()
                with connection.cursor() as cursor:
                    cursor.execute("SELECT count(*) FROM pg_cursors")
                    assert cursor.fetchone() == (0,)

            await on_loop(work)()
        async with aatomic():
            await on_loop(work)()
            await on_loop(tagged)()

    run(main)


def test_what_a_rolled_back_savepoint_has_closed_is_not_closed_again(
    postgresql: dict[str, Any], run: Run
) -> None:
    populate()

    def work() -> None:
        with transaction.atomic():
            Author.objects.create(name="outer")
            with contextlib.suppress(ZeroDivisionError), transaction.atomic():
                gone = abandon(_iterator())
                raise ZeroDivisionError
            gc.collect()
            assert gone() is None
            tagged()

    async def main() -> None:
        await on_loop(work)()
        await whole()

    run(main)
    assert committed() == {"outer"}


def test_explicit_close_by_the_owner_is_a_real_one(postgresql: dict[str, Any], run: Run) -> None:
    populate()

    def work() -> None:
        with transaction.atomic():
            rows = _iterator()
            rows.close()
            raw: Any = connection.connection
            assert not raw.open_cursors
            assert not raw.orphaned_cursors

    async def main() -> None:
        await on_loop(work)()

    run(main)


@pytest.mark.parametrize("thing", BUFFERED, ids=lambda one: one.__name__.strip("_"))
def test_outside_loops_another_thread_or_statement_may_collect(
    database: str, unraisable: list[Any], thing: Callable[[], Any]
) -> None:
    """A command's or WSGI's connection is a thread's own."""
    populate()
    with transaction.atomic():
        gone = abandon(thing())
        _in_bare_thread()
        assert gone() is None
        tagged()
        gone = abandon(thing())
        _in_a_statement()
        assert gone() is None
        tagged()
    tagged()
    assert not unraisable


# Blocks


def _block(name: str = "lost") -> Any:
    def rows() -> Iterator[None]:
        with transaction.atomic():
            Author.objects.create(name=name)
            yield

    generator = rows()
    next(generator)
    return generator


@pytest.mark.parametrize("how", ["task", "thread", "bare thread", "callback"])
@pytest.mark.parametrize("place", PLACES, ids=lambda one: one.__name__.strip("_"))
def test_a_block_collected_by_somebody_else_is_never_committed(
    database: str,
    run: Run,
    unraisable: list[Any],
    place: Callable[[], None],
    how: str,
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE):
            paused, go_on = asyncio.Event(), asyncio.Event()
            gone: Any = None

            @on_loop
            def owner() -> None:
                nonlocal gone
                gone = abandon(_block())
                paused.set()
                await_(go_on.wait())
                assert not connection.in_atomic_block
                tagged()
                with transaction.atomic():
                    Author.objects.create(name="after")
                tagged()

            task = asyncio.create_task(owner())
            await paused.wait()
            if how == "bare thread":
                await loop.run_in_executor(None, gc.collect)
            elif how == "callback":
                loop.call_soon(gc.collect)
                await until(lambda: gone() is None)
            else:
                await (sync_to_async(place)() if how == "thread" else on_loop(place)())
            assert gone() is None
            await until(lambda: the_pool().stats()["used"] == 0)
            go_on.set()
            await task
        await whole()

    run(main)
    assert committed() == {"after"}
    assert not unraisable


@pytest.mark.parametrize("place", PLACES, ids=lambda one: one.__name__.strip("_"))
def test_a_block_collected_in_its_own_statements_is_rolled_back(
    database: str, run: Run, unraisable: list[Any], place: Callable[[], None]
) -> None:
    def work() -> None:
        gone = abandon(_block())
        place()
        assert gone() is None
        assert not connection.in_atomic_block
        tagged()
        Author.objects.create(name="after")

    async def main() -> None:
        async with asyncio.timeout(PATIENCE):
            await on_loop(work)()
        await whole()

    run(main)
    assert committed() == {"after"}
    assert not unraisable


@pytest.mark.parametrize("elsewhere", [True, False], ids=["elsewhere", "here"])
def test_a_nested_block_collected_does_not_take_the_outer_one_with_it_unseen(
    database: str, run: Run, unraisable: list[Any], elsewhere: bool
) -> None:
    """The owner rolls back to the savepoint before its next statement."""

    async def main() -> None:
        paused, go_on = asyncio.Event(), asyncio.Event()

        @on_loop
        def owner() -> None:
            with transaction.atomic():
                Author.objects.create(name="outer")
                gone = abandon(_block())
                if elsewhere:
                    paused.set()
                    await_(go_on.wait())
                else:
                    gc.collect()
                assert gone() is None
                tagged()
                Author.objects.create(name="outer again")

        async with asyncio.timeout(PATIENCE):
            task = asyncio.create_task(owner())
            if elsewhere:
                await paused.wait()
                await on_loop(gc.collect)()
                go_on.set()
            await task
        await whole()

    run(main)
    assert committed() == {"outer", "outer again"}
    assert not unraisable


def test_a_nested_block_collected_last_is_rolled_back_by_the_end_of_the_outer_one(
    database: str, run: Run, unraisable: list[Any]
) -> None:
    def work() -> None:
        with transaction.atomic():
            Author.objects.create(name="outer")
            abandon(_block())
            gc.collect()

    async def main() -> None:
        async with asyncio.timeout(PATIENCE):
            await on_loop(work)()
        await whole()

    run(main)
    assert committed() == {"outer"}
    assert not unraisable


# What is kept in a context


def test_an_execute_wrapper_collected_elsewhere_takes_only_itself(database: str, run: Run) -> None:
    def wrapped(seen: list[str]) -> Any:
        def note(execute: Any, sql: Any, *args: Any) -> Any:
            seen.append(sql)
            return execute(sql, *args)

        def install() -> Iterator[None]:
            with connection.execute_wrapper(note):
                yield

        generator = install()
        next(generator)
        return generator

    def work() -> None:
        first: list[str] = []
        second: list[str] = []
        third: list[str] = []

        def note(execute: Any, sql: Any, *args: Any) -> Any:
            second.append(sql)
            return execute(sql, *args)

        abandon(wrapped(first))
        with connection.execute_wrapper(note):
            gc.collect()
            tagged()
            kept = wrapped(third)
            tagged()
            kept.close()
        assert first == []
        assert len(second) == 2
        assert len(third) == 1

    run(on_loop(work))


def test_a_capture_collected_elsewhere_ends_nobody_elses(database: str, run: Run) -> None:
    async def main() -> None:
        paused, go_on = asyncio.Event(), asyncio.Event()

        def capture() -> Iterator[None]:
            with CaptureQueriesContext(connection):
                yield

        @on_loop
        def owner() -> None:
            generator = capture()
            next(generator)
            abandon(generator)
            del generator
            paused.set()
            await_(go_on.wait())

        @on_loop
        def other() -> None:
            with CaptureQueriesContext(connection) as captured:
                tagged()
                gc.collect()
                tagged()
            assert len(captured) == 2

        task = asyncio.create_task(owner())
        await paused.wait()
        await other()
        go_on.set()
        await task

    run(main)


# All at once


@pytest.mark.both_loops
def test_under_stress_every_answer_is_its_own(
    database: str, run: Run, unraisable: list[Any]
) -> None:
    """Collections at every allocation, in tasks and threads that abandon what they opened."""
    options(max_size=4)
    populate()
    rounds = 4

    def work(number: int) -> None:
        for turn in range(rounds):
            with transaction.atomic():
                Author.objects.create(name=f"kept {number} {turn}")
                abandon(BUFFERED[turn % len(BUFFERED)]())
                tagged()
            abandon(BUFFERED[(turn + 1) % len(BUFFERED)]())
            tagged()
            # Old garbage may stay for long, and with it a cursor of this connection, which keeps
            # SQLite from a BEGIN, in Django too.
            gc.collect()

    async def main() -> None:
        before = gc.get_threshold()
        gc.enable()
        gc.set_threshold(1, 3, 3)
        try:
            async with asyncio.timeout(60):
                await asyncio.gather(
                    *(on_loop(work)(number) for number in range(4)),
                    *(sync_to_async(work, thread_sensitive=False)(number) for number in (4, 5)),
                )
        finally:
            gc.set_threshold(*before)
            gc.disable()
        gc.collect()
        await whole()

    run(main)
    assert committed() == {
        f"kept {number} {turn}" for number in range(6) for turn in range(rounds)
    }
    assert not unraisable
