"""What Django's SQLite backend does, done by the connection's worker thread."""

from __future__ import annotations

import asyncio
import datetime
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import (
    DatabaseError,
    IntegrityError,
    OperationalError,
    ProgrammingError,
    connection,
    connections,
    models,
    transaction,
)
from django.db.models.functions import Sqrt, TruncMonth, Upper
from django.test.utils import isolate_apps

from nuages import on_loop
from nuages.bridge import await_
from nuages.db import aatomic, acursor, aon_commit, hold_connection
from nuages.db.backends.base.statistics import statistics
from nuages.db.backends.sqlite3.connection import Connection
from nuages.db.backends.sqlite3.cursor import PREFETCH
from nuages.exceptions import NotCommitted
from tests import judge
from tests.integration.conftest import Run, use
from tests.integration.scope_tools import until
from tests.library.models import Author, Book, Tag

pytestmark = [
    pytest.mark.both_loops,
    pytest.mark.sqlite,
    pytest.mark.usefixtures("sqlite", "nothing_blocks"),
]

NUMBERS = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 250) "
    "SELECT i FROM n ORDER BY i"
)


@pytest.fixture
def configure(sqlite: dict[str, Any]) -> Callable[..., None]:
    """Change the default database's entry: keywords are keys, `options` goes into OPTIONS."""

    def change(options: dict[str, Any] | None = None, **keys: Any) -> None:
        entry = {k: v for k, v in sqlite.items() if k != "TEST"} | keys
        use(entry | {"OPTIONS": options or {}})

    return change


async def scalar(sql: str, params: Any = None) -> Any:
    async with acursor() as cursor:
        await cursor.execute(sql, params)
        return (await cursor.fetchone())[0]


# Opening


def is_closed(raw: sqlite3.Connection) -> bool:
    try:
        raw.in_transaction  # noqa: B018
    except sqlite3.ProgrammingError:
        return True
    return False


@pytest.mark.parametrize("how", ["cancelled", "closed by hand"])
def test_a_connection_that_nobody_waits_for_any_more_is_closed(
    configure: Callable[..., None], run: Run, how: str
) -> None:
    opening, may_open = threading.Event(), threading.Event()
    opened: list[sqlite3.Connection] = []

    class Slow(Connection):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            opening.set()
            may_open.wait()
            super().__init__(*arguments, **options)
            opened.append(self)

    configure({"factory": Slow})

    async def main() -> None:
        if how == "cancelled":
            task = asyncio.create_task(scalar("SELECT 1"))
            await asyncio.to_thread(opening.wait)
            task.cancel()
            may_open.set()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            coroutine = scalar("SELECT 1")
            coroutine.send(None)
            opening.wait()
            coroutine.close()
            may_open.set()
        await until(lambda: bool(opened) and is_closed(opened[0]))
        assert await scalar("SELECT 1") == 1
        assert len(opened) == 2

    run(main)


def test_a_warning_about_making_a_test_database_names_its_caller(
    sqlite: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    creation = connections["default"].creation
    callers: list[str] = []

    def named() -> str:
        # What `warnings.warn(..., stacklevel=2)` of create_test_db() blames.
        callers.append(sys._getframe(2).f_code.co_name)
        raise LookupError

    monkeypatch.setattr(creation, "_get_test_db_name", named)
    with pytest.raises(LookupError):
        creation.create_test_db(verbosity=0)
    assert callers == ["test_a_warning_about_making_a_test_database_names_its_caller"]


# Functions


def test_djangos_functions_run_in_the_worker(run: Run) -> None:
    from django.contrib.auth.models import User

    async def main() -> None:
        author = await Author.objects.acreate(name="Fyodor")
        await Book.objects.acreate(title="Идиот", author=author, copies=9)
        assert await Book.objects.filter(title__regex="^Иди").acount() == 1
        assert await Book.objects.filter(title__iregex="^иди").acount() == 1
        found = await Book.objects.annotate(root=Sqrt("copies"), up=Upper("title")).aget()
        assert found.root == 3.0
        joined = datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.UTC)
        user = await User.objects.acreate(username="u", date_joined=joined)
        month = await User.objects.annotate(m=TruncMonth("date_joined")).aget()
        assert month.m == datetime.datetime(2024, 2, 1, tzinfo=datetime.UTC)
        assert await User.objects.filter(date_joined__year=2024).acount() == 1
        await user.adelete()

    run(main)


def test_functions_of_the_users_own(run: Run) -> None:
    threads: list[str] = []

    def shout(text: str) -> str:
        threads.append(threading.current_thread().name)
        return text.upper() + "!"

    class Longest:
        def __init__(self) -> None:
            self.found = ""

        def step(self, text: str) -> None:
            self.found = max(self.found, text, key=len)

        def finalize(self) -> str:
            return self.found

    @on_loop
    def use_it() -> tuple[Any, Any, list[Any]]:
        connection.ensure_connection()
        raw = connection.connection
        raw.create_function("shout", 1, shout, deterministic=True)
        raw.create_aggregate("longest", 1, Longest)
        raw.create_collation("backwards", lambda a, b: (a < b) - (a > b))
        with connection.cursor() as cursor:
            cursor.execute("SELECT shout('hey'), longest(x) FROM (SELECT 'a' x UNION SELECT 'bb')")
            row = cursor.fetchone()
            cursor.execute(
                "SELECT x FROM (SELECT 'a' x UNION SELECT 'b') ORDER BY x COLLATE backwards"
            )
            return (*row, cursor.fetchall())

    async def main() -> None:
        assert await use_it() == ("HEY!", "bb", [("b",), ("a",)])
        assert threads == ["nuages-sqlite"]

    run(main)


def test_an_error_in_a_function_of_the_users_own(run: Run) -> None:
    def broken(_: Any) -> Any:
        raise ZeroDivisionError

    @on_loop
    def use_it() -> None:
        connection.ensure_connection()
        connection.connection.create_function("broken", 1, broken)
        with connection.cursor() as cursor:
            cursor.execute("SELECT broken(1)")

    async def main() -> None:
        with pytest.raises(OperationalError, match="user-defined function"):
            await use_it()
        assert await scalar("SELECT 1") == 1

    run(main)


# Options


@pytest.mark.parametrize("mode", [None, "DEFERRED", "IMMEDIATE", "exclusive"])
def test_transaction_mode(configure: Any, run: Run, mode: str | None) -> None:
    begun: list[str] = []

    @on_loop
    def trace() -> None:
        from django.db import transaction

        connection.ensure_connection()
        connection.connection.set_trace_callback(begun.append)
        with transaction.atomic():
            Tag.objects.count()
        connection.connection.set_trace_callback(None)

    configure({"transaction_mode": mode} if mode else {})
    run(trace)
    assert begun[0].split()[:2] == ["BEGIN", (mode or "IMMEDIATE").upper()]


def test_a_wrong_transaction_mode_is_named(configure: Any, run: Run) -> None:
    configure({"transaction_mode": "sometimes"})

    async def main() -> None:
        with pytest.raises(ImproperlyConfigured, match="transaction_mode"):
            await Tag.objects.acount()

    run(main)


def test_init_command_runs_on_every_connection(configure: Any, run: Run) -> None:
    async def one(barrier: asyncio.Barrier) -> tuple[int, int]:
        async with hold_connection():
            await barrier.wait()
            return await scalar("PRAGMA cache_size"), await scalar("PRAGMA synchronous")

    async def main() -> None:
        barrier = asyncio.Barrier(3)
        found = await asyncio.gather(*(one(barrier) for _ in range(3)))
        assert found == [(-4321, 1)] * 3

    configure({"init_command": "PRAGMA cache_size = -4321; PRAGMA synchronous = NORMAL"})
    run(main)


@pytest.mark.parametrize(
    ("init_command", "mode"),
    [(None, "wal"), ("PRAGMA journal_mode = DELETE", "delete"), ("PRAGMA JOURNAL_MODE=TRUNCATE",
     "truncate")],
)  # fmt: skip
def test_wal_is_the_default_and_can_be_switched_off(
    configure: Any, run: Run, tmp_path: Path, init_command: str | None, mode: str
) -> None:
    async def main() -> None:
        assert await scalar("PRAGMA journal_mode") == mode

    options = {"init_command": init_command} if init_command else {}
    configure(options, NAME=str(tmp_path / "own.sqlite3"))
    run(main)


def test_timeout_is_how_long_a_writer_waits(configure: Any, run: Run, sqlite: Any) -> None:
    other = sqlite3.connect(sqlite["NAME"], isolation_level=None)

    async def main() -> None:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OperationalError, match="locked"):
            await Tag.objects.acreate(name="waits in vain")
        with pytest.raises(OperationalError, match="locked"):
            async with aatomic():
                pass
        assert await Tag.objects.acount() == 0  # readers do not wait
        other.execute("ROLLBACK")
        await Tag.objects.acreate(name="fine")

    configure({"timeout": 0.1})
    try:
        run(main)
    finally:
        other.close()


def test_a_writer_goes_on_when_another_process_lets_go(run: Run, sqlite: Any) -> None:
    other = sqlite3.connect(sqlite["NAME"], isolation_level=None)

    async def main() -> None:
        other.execute("BEGIN IMMEDIATE")
        before = statistics.worker
        writing = asyncio.create_task(Tag.objects.acreate(name="patient"))
        while statistics.worker < before + 4:  # noqa: ASYNC110  it has tried and tries again
            await asyncio.sleep(0)
        assert not writing.done()
        other.execute("ROLLBACK")
        assert (await writing).pk is not None

    try:
        run(main)
    finally:
        other.close()


@pytest.mark.parametrize("way", ["executemany", "executescript", "connection.executemany"])
def test_every_kind_of_write_waits_for_the_lock(run: Run, sqlite: Any, way: str) -> None:
    other = sqlite3.connect(sqlite["NAME"], isolation_level=None)
    begun = threading.Event()

    def trace(statement: str) -> None:
        if statement.startswith("INSERT"):
            begun.set()

    @on_loop
    def write() -> None:
        connection.ensure_connection()
        raw = connection.connection
        raw.set_trace_callback(trace)
        if way == "executescript":
            raw.executescript(
                "INSERT INTO library_tag (name) VALUES ('a'); "
                "INSERT INTO library_tag (name) VALUES ('b');"
            )
        elif way == "connection.executemany":
            raw.executemany("INSERT INTO library_tag (name) VALUES (?)", [("a",), ("b",)])
        else:
            with connection.cursor() as cursor:
                cursor.executemany("INSERT INTO library_tag (name) VALUES (%s)", [("a",), ("b",)])
        raw.set_trace_callback(None)

    async def main() -> None:
        await Tag.objects.acount()  # the connection is open
        other.execute("BEGIN IMMEDIATE")
        writing = asyncio.create_task(write())
        while not begun.is_set():  # noqa: ASYNC110  set by a thread
            await asyncio.sleep(0)
        other.execute("ROLLBACK")
        await writing
        assert await Tag.objects.acount() == 2

    try:
        run(main)
    finally:
        other.close()


def test_a_path_as_name(configure: Any, run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        assert await scalar("SELECT file FROM pragma_database_list") == str(path)

    path = tmp_path / "path.sqlite3"
    configure(NAME=path)
    run(main)


def test_uri_names(configure: Any, run: Run, sqlite: Any) -> None:
    async def main() -> None:
        assert await Tag.objects.acount() == 0
        with pytest.raises(OperationalError, match="readonly"):
            await Tag.objects.acreate(name="x")

    configure({"init_command": "PRAGMA query_only = 0; SELECT 'journal_mode'"},
              NAME=f"file:{sqlite['NAME']}?mode=ro")  # fmt: skip
    run(main)


def test_a_folder_that_does_not_exist(configure: Any, run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        for _ in range(3):
            with pytest.raises(OperationalError, match="unable to open"):
                await Tag.objects.acount()

    before = threading.active_count()
    configure({"pool": {"max_size": 1}}, NAME=str(tmp_path / "none" / "db.sqlite3"))
    run(main)
    for thread in threading.enumerate()[before:]:
        thread.join(5)
    assert threading.active_count() <= before


def test_a_connection_class_of_the_users_own_is_refused_clearly(configure: Any, run: Run) -> None:
    class Own(sqlite3.Connection):
        pass

    async def main() -> None:
        with pytest.raises(ImproperlyConfigured, match="factory"):
            await Tag.objects.acount()

    configure({"factory": Own})
    run(main)


def test_a_subclass_of_our_connection_class_is_used(configure: Any, run: Run) -> None:
    from nuages.db.backends.sqlite3.connection import Connection

    class Own(Connection):
        pass

    async def main() -> None:
        assert await Tag.objects.acount() == 0
        assert await on_loop(lambda: connection.cursor() and type(connection.connection))() is Own

    configure({"factory": Own})
    run(main)


# Cursors


def test_rows_come_in_order_however_they_are_fetched(run: Run) -> None:
    assert PREFETCH == 100

    @on_loop
    def fetch(how: str) -> list[int]:
        with connection.cursor() as cursor:
            cursor.execute(NUMBERS)
            found: list[Any] = []
            if how == "all":
                found = cursor.fetchall()
            elif how == "iterate":
                found = list(cursor)
            elif how == "one":
                while (row := cursor.fetchone()) is not None:
                    found.append(row)
            elif how == "many":
                while rows := cursor.fetchmany(33):
                    found += rows
            else:
                found += [cursor.fetchone(), *cursor.fetchmany(99), *cursor.fetchmany(50)]
                rows = iter(cursor)
                found += [next(rows), *cursor.fetchall()]
            assert cursor.fetchone() is None
            assert cursor.fetchmany(5) == []
            assert cursor.fetchall() == []
            assert list(cursor) == []
            return [i for (i,) in found]

    async def main() -> None:
        for how in ("all", "iterate", "one", "many", "mixed"):
            assert await fetch(how) == list(range(1, 251)), how

    run(main)


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 200, 201])
def test_results_around_the_prefetch(run: Run, size: int) -> None:
    async def main() -> None:
        async with acursor() as cursor:
            await cursor.execute(f"SELECT i FROM ({NUMBERS}) WHERE i <= {size}")
            assert [i async for (i,) in cursor] == list(range(1, size + 1))

    run(main)


@pytest.mark.parametrize("how", ["fetchall", "fetchmany", "fetchone", "iterate"])
def test_an_error_in_the_150th_row(run: Run, how: str) -> None:
    def fail_at_150(i: int) -> int:
        if i == 150:
            raise ZeroDivisionError
        return i

    @on_loop
    def fetch() -> None:
        connection.ensure_connection()
        connection.connection.create_function("fail_at_150", 1, fail_at_150)
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT fail_at_150(i) FROM ({NUMBERS})")
            assert cursor.fetchone() == (1,)
            with pytest.raises(OperationalError, match="user-defined function"):
                if how == "fetchall":
                    cursor.fetchall()
                elif how == "fetchmany":
                    while cursor.fetchmany(40):
                        pass
                elif how == "fetchone":
                    while cursor.fetchone():
                        pass
                else:
                    for _ in cursor:
                        pass
            cursor.execute("SELECT 7")
            assert cursor.fetchall() == [(7,)]

    async def main() -> None:
        await fetch()
        assert await scalar("SELECT 1") == 1

    run(main)


def test_executemany_with_a_generator_returning_rowcount_and_lastrowid(run: Run) -> None:
    @on_loop
    def use_it() -> None:
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO library_tag (name) VALUES (%s)", ((str(n),) for n in range(250))
            )
            assert cursor.rowcount == 250
            cursor.execute("INSERT INTO library_tag (name) VALUES ('last')")
            assert cursor.rowcount == 1
            last = cursor.lastrowid
            cursor.execute("INSERT INTO library_tag (name) VALUES ('x') RETURNING id, name")
            assert cursor.fetchall() == [(last + 1, "x")]
            cursor.execute("UPDATE library_tag SET name = name || '!' RETURNING id")
            assert len(cursor.fetchall()) == 252
            cursor.execute("DELETE FROM library_tag")
            assert cursor.rowcount == 252
            assert cursor.description is None
            cursor.execute("SELECT 1 AS one")
            assert cursor.description[0][0] == "one"
            assert cursor.rowcount == -1

    async def main() -> None:
        await use_it()
        made = await Tag.objects.abulk_create(Tag(name=str(n)) for n in range(300))
        assert len({tag.pk for tag in made}) == 300

    run(main)


def test_a_closed_cursor_says_so(run: Run) -> None:
    @on_loop
    def closed() -> None:
        cursor = connection.cursor()
        cursor.execute(NUMBERS)
        cursor.fetchone()
        cursor.close()
        for fetch in (cursor.fetchone, cursor.fetchmany, cursor.fetchall):
            with pytest.raises(ProgrammingError, match="closed cursor"):
                fetch()

    run(closed)


def test_a_cursor_is_closed_without_an_error_after_its_connection(run: Run) -> None:
    """Django closes one where a statement failed, whose error must not be replaced."""

    @on_loop
    def work() -> None:
        with connection.cursor() as cursor:
            cursor.execute(NUMBERS)
            raw = connection.connection
            raw.terminate()
            await_(asyncio.to_thread(raw.worker.join))
            cursor.cursor.close()
            with pytest.raises(sqlite3.ProgrammingError):
                cursor.cursor.fetchall()
        connection.close()

    async def main() -> None:
        await work()
        assert await Author.objects.acount() == 0

    run(main)


def test_a_write_whose_rows_nobody_fetches_is_committed(run: Run) -> None:
    async def main() -> None:
        async with acursor() as cursor:
            await cursor.execute(
                f"INSERT INTO library_tag (name) SELECT i FROM ({NUMBERS}) WHERE true RETURNING id"
            )
            await cursor.fetchone()
        assert await Tag.objects.acount() == 250
        await Tag.objects.acreate(name="the next writer does not wait")

    run(main)


def test_iterator_walks_a_long_result_while_others_write(run: Run) -> None:
    async def main() -> None:
        await Tag.objects.abulk_create(Tag(name=f"{n:03}") for n in range(250))
        seen = []
        async for tag in Tag.objects.order_by("name").aiterator(chunk_size=20):
            seen.append(tag.name)
            if tag.name == "130":
                await Tag.objects.acreate(name="zzz")
        assert seen[:250] == [f"{n:03}" for n in range(250)]
        assert await Tag.objects.acount() == 251

    run(main)


def test_large_blobs(run: Run) -> None:
    with isolate_apps("tests.catalogue"):

        class Blob(models.Model):
            data = models.BinaryField()

            class Meta:
                app_label = "catalogue"

    @on_loop
    def with_table(create: bool) -> None:
        with connection.schema_editor() as editor:
            (editor.create_model if create else editor.delete_model)(Blob)

    async def main() -> None:
        await with_table(True)
        data = bytes(range(256)) * 40_000
        pk = (await Blob.objects.acreate(data=data)).pk
        assert bytes((await Blob.objects.aget(pk=pk)).data) == data
        await with_table(False)

    run(main)


# Errors


def test_sqlites_error_codes_are_kept(run: Run) -> None:
    async def main() -> None:
        await Author.objects.acreate(name="one")
        with pytest.raises(IntegrityError) as caught:
            await Author.objects.acreate(name="one")
        cause = caught.value.__cause__
        assert isinstance(cause, sqlite3.IntegrityError)
        assert cause.sqlite_errorname == "SQLITE_CONSTRAINT_UNIQUE"
        assert cause.sqlite_errorcode == sqlite3.SQLITE_CONSTRAINT_UNIQUE
        with pytest.raises(OperationalError, match="syntax error") as syntax:
            await scalar("SELEKT 1")
        assert syntax.value.__cause__.sqlite_errorname == "SQLITE_ERROR"
        assert "scalar" in [frame.name for frame in caught.traceback] or caught.traceback

    run(main)


def test_deferred_constraints_fail_at_the_end(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(IntegrityError):
            async with aatomic():
                await Book.objects.acreate(title="orphan", author_id=10**6)
        assert await Book.objects.acount() == 0

    run(main)


# The connection itself


def test_the_raw_connection_in_a_bridge(run: Run) -> None:
    @on_loop
    def raw() -> list[Any]:
        connection.ensure_connection()
        raw = connection.connection
        assert isinstance(raw, sqlite3.Connection)
        found = [raw.execute("SELECT ?", [5]).fetchone()[0]]
        raw.executemany("INSERT INTO library_tag (name) VALUES (?)", [("a",), ("b",)])
        found.append(raw.execute("SELECT count(*) FROM library_tag").fetchall()[0][0])
        cursor = raw.cursor()
        cursor.row_factory = sqlite3.Row
        cursor.execute(NUMBERS)
        found.append(sum(row["i"] for row in cursor))
        found.append(raw.total_changes >= 2)
        target = sqlite3.connect(":memory:", check_same_thread=False)
        raw.backup(target)
        found.append(target.execute("SELECT count(*) FROM library_tag").fetchone()[0])
        target.close()
        found.append(any("library_tag" in line for line in raw.iterdump()))
        return found

    async def main() -> None:
        assert await raw() == [5, 2, 250 * 251 // 2, True, 2, True]

    run(main)


def test_close_in_a_bridge_and_a_new_connection_after_it(run: Run) -> None:
    @on_loop
    def reopened() -> bool:
        connection.ensure_connection()
        first = connection.connection
        connection.close()
        assert connection.connection is None
        assert Tag.objects.count() == 0
        return connection.connection is not first

    async def main() -> None:
        assert await reopened()

    run(main)


def test_a_connection_terminated_while_it_works(run: Run) -> None:
    """As a pool does that closes: the statement is interrupted, the worker ends."""
    raws: list[Any] = []
    started = threading.Event()

    def slow(i: int) -> int:
        started.set()
        return i

    @on_loop
    def work() -> None:
        connection.ensure_connection()
        raws.append(connection.connection)
        connection.connection.create_function("slow", 1, slow)
        with connection.cursor() as cursor:
            cursor.execute(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT slow(i) FROM n) "
                "SELECT max(i) FROM n"
            )

    async def main() -> None:
        working = asyncio.create_task(work())
        await asyncio.to_thread(started.wait, 10)
        raws[0].terminate()
        with pytest.raises(OperationalError, match="interrupted"):
            await working
        await asyncio.to_thread(raws[0].worker._thread.join, 10)
        assert not raws[0].worker._thread.is_alive()
        assert await Tag.objects.acount() == 0

    run(main)


def test_in_memory_databases_are_one_connection(configure: Any, run: Run) -> None:
    @on_loop
    def create() -> None:
        with connection.schema_editor() as editor:
            editor.create_model(Tag)

    async def main() -> None:
        await create()
        await asyncio.gather(*(Tag.objects.acreate(name=str(n)) for n in range(20)))
        assert await Tag.objects.acount() == 20
        async with aatomic():
            await Tag.objects.acreate(name="in a transaction")
        assert await Tag.objects.acount() == 21
        await on_loop(drop)()

    def drop() -> None:
        with connection.schema_editor() as editor:
            editor.delete_model(Tag)

    configure(NAME=":memory:")
    run(main)


def test_outside_loops_it_is_sqlite3_as_ever(sqlite: Any) -> None:
    Tag.objects.create(name="sync")
    assert connections["default"].connection.worker is None
    assert [tag.name for tag in Tag.objects.iterator()] == ["sync"]
    with connection.cursor() as cursor:
        cursor.execute(NUMBERS)
        assert [i for (i,) in cursor] == list(range(1, 251))


def copy_without_wal(database: str, path: Path) -> None:
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(path)) as target:
        source.backup(target)
        assert target.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)


def test_the_first_connections_of_a_file_may_open_at_the_same_time(
    sqlite: dict[str, Any], run: Run, tmp_path: Path
) -> None:
    """Each would switch the file to WAL, which SQLite refuses while another connection reads."""

    async def main() -> None:
        counts = [Author.objects.acount() for _ in range(10)]
        assert await asyncio.gather(*counts) == [0] * 10

    for number in range(20):
        path = tmp_path / f"{number}.sqlite3"
        copy_without_wal(sqlite["NAME"], path)
        use({**sqlite, "NAME": str(path)})
        run(main)
        with closing(sqlite3.connect(path)) as opened:
            assert opened.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_file_that_another_process_keeps_from_wal_is_used_as_it_is(
    sqlite: dict[str, Any], run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "read.sqlite3"
    copy_without_wal(sqlite["NAME"], path)
    use({**sqlite, "NAME": str(path), "OPTIONS": {"timeout": 0.05}})

    async def main() -> None:
        assert await Author.objects.acount() == 0

    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM library_author").fetchall()
        run(main)
        assert reader.execute("PRAGMA journal_mode").fetchone() == ("delete",)


@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_a_file_that_is_replaced_is_noticed(
    sqlite: dict[str, Any], run: Run, tmp_path: Path, how: str
) -> None:
    """SQLite itself would go on with the old one, and what is written there is lost."""
    entry, path = dict(sqlite), tmp_path / "moved.sqlite3"
    shutil.copy(entry["NAME"], path)
    use(entry | {"NAME": str(path)})

    def move() -> None:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        if how == "replaced":
            shutil.copy(entry["NAME"], path)

    async def main() -> None:
        await Author.objects.acreate(name="Ursula")
        await asyncio.gather(*(Author.objects.acount() for _ in range(3)))
        move()
        with pytest.raises(OperationalError, match="replaced or removed"):
            await Author.objects.acreate(name="Octavia")
        if how == "replaced":
            assert await Author.objects.acount() == 0
            await Author.objects.acreate(name="Octavia")
            assert await Author.objects.acount() == 1

    run(main)
    use(entry)


@pytest.mark.parametrize(
    "statement", [Author.objects.count, lambda: Author.objects.create(name="x")]
)
def test_code_whose_connection_was_closed_goes_on(
    sqlite: dict[str, Any], run: Run, tmp_path: Path, statement: Callable[[], Any]
) -> None:
    """It awaits something else then, and ends: neither asks sqlite3 about a closed connection."""
    entry, path = dict(sqlite), tmp_path / "moved.sqlite3"
    shutil.copy(entry["NAME"], path)
    use(entry | {"NAME": str(path)})

    @on_loop
    def work() -> None:
        connection.ensure_connection()
        raw = connection.connection
        shutil.copy(entry["NAME"], tmp_path / "new")
        (tmp_path / "new").replace(path)
        raw.unverified = True
        with pytest.raises(OperationalError, match="replaced or removed"):
            statement()
        await_(asyncio.to_thread(raw.worker.join))
        await_(asyncio.sleep(0))
        assert connection.connection is None

    async def main() -> None:
        await Author.objects.acount()
        await work()
        assert await Author.objects.acount() == 0

    run(main)
    use(entry)


def test_a_process_does_not_end_while_a_connection_is_being_closed() -> None:
    """sqlite3 calls back into the interpreter then: it crashed where that was gone."""
    code = """
        import threading, time
        from nuages.db.backends.sqlite3.worker import Job, Worker

        def close():
            threading.main_thread().join()  # over when the interpreter begins to end
            for _ in range(100):
                time.sleep(0.001)  # gives the end every chance
            print("closed", flush=True)

        worker = Worker()
        worker.submit(Job(close, None))
        worker.stop()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "closed\n", "")


SLOW_DUPLICATE = (
    " INTO library_author (name)"
    " SELECT 'Ursula' FROM (WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n"
    " WHERE i < 300000) SELECT max(i) FROM n)"
)


@pytest.mark.parametrize("hold", [False, True])
def test_a_late_statement_that_rolls_its_transaction_back(
    sqlite: dict[str, Any], run: Run, hold: bool
) -> None:
    """The block's end waits for the statement, and finds no transaction to commit.

    The next block on the same connection has nothing to do with it.
    """

    async def violate() -> None:
        async with acursor() as cursor:
            await cursor.execute("INSERT OR ROLLBACK" + SLOW_DUPLICATE)

    async def in_hold() -> None:
        async with hold_connection():
            await blocks()

    async def blocks() -> None:
        ran: list[str] = []
        with pytest.raises(NotCommitted):
            async with aatomic():
                await Author.objects.acreate(name="Ursula")
                await aon_commit(lambda: ran.append("hook"))
                late = asyncio.create_task(violate())
                await until(connection.scope.wrapper.connection.is_working)
        with pytest.raises(DatabaseError):
            await late
        assert ran == []
        async with aatomic():
            await Author.objects.acreate(name="after")
            await aon_commit(lambda: ran.append("hook"))
        assert ran == ["hook"]

    run(in_hold if hold else blocks)
    assert judge.authors() == ["after"]


@pytest.mark.parametrize("end", ["fails", "cancelled"])
def test_a_late_statement_that_ends_badly_before_its_block_is_committed(
    sqlite: dict[str, Any], run: Run, end: str
) -> None:
    """The loop hears of both ends at once: after the COMMIT there is no transaction, either."""

    async def violate() -> None:
        async with acursor() as cursor:
            await cursor.execute("INSERT" + SLOW_DUPLICATE)

    async def main() -> None:
        ran: list[str] = []
        async with aatomic():
            await Author.objects.acreate(name="Ursula")
            await aon_commit(lambda: ran.append("hook"))
            late = asyncio.create_task(violate())
            raw = connection.scope.wrapper.connection
            await until(raw.is_working)

            def stand_still() -> None:
                if end == "cancelled":
                    late.cancel()
                give_up = time.monotonic() + 30
                while raw.in_transaction and time.monotonic() < give_up:
                    time.sleep(0.001)
                ran.append("stood still")

            asyncio.get_running_loop().call_soon(stand_still)
        with pytest.raises(IntegrityError if end == "fails" else asyncio.CancelledError):
            await late
        assert ran == ["stood still", "hook"]
        async with aatomic():
            await Author.objects.acreate(name="after")

    run(main)
    assert judge.authors() == ["Ursula", "after"]


@pytest.mark.parametrize("how", ["terminate", "close"])
def test_a_connection_that_is_closed_in_a_transaction_keeps_no_lock(
    sqlite: dict[str, Any], run: Run, how: str
) -> None:
    """Although somebody has a cursor of it, with rows that were not read."""

    async def main() -> None:
        await Author.objects.abulk_create(Author(name=f"{number}") for number in range(500))
        kept: list[Any] = []

        def work() -> None:
            transaction.set_autocommit(False)
            try:
                Author.objects.create(name="lost")
                kept.append(connection.cursor())
                kept[0].execute("SELECT name FROM library_author")
                getattr(connection.scope.wrapper.connection, how)()
            finally:
                connection.close()
                transaction.set_autocommit(True)

        await on_loop(work)()
        await Author.objects.acreate(name="after")
        assert {"lost", "after"} & set(judge.authors()) == {"after"}

    run(main)
