"""What Django's PostgreSQL backend does, done on the event loop; and psycopg's own features."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.postgres.fields import (
    ArrayField,
    DateTimeRangeField,
    HStoreField,
    IntegerRangeField,
)
from django.contrib.postgres.operations import CITextExtension, HStoreExtension
from django.contrib.postgres.signals import get_citext_oids, get_hstore_oids
from django.db import (
    DatabaseError,
    IntegrityError,
    OperationalError,
    connection,
    connections,
    migrations,
    models,
    transaction,
)
from django.db.migrations.state import ProjectState
from django.db.models import Func
from django.test.utils import isolate_apps, modify_settings
from django.utils import timezone
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.range import Range

from nuages import off_loop, on_loop
from nuages.bridge import await_
from nuages.db import aatomic, acursor, aon_commit, hold_connection
from nuages.exceptions import NotCommitted
from tests import judge
from tests.integration.conftest import Run, close_thread_connection, use
from tests.integration.pool_tools import server
from tests.library.models import Author, Tag
from tests.services import FullPostgresServer, fresh_database

pytestmark = [
    pytest.mark.both_loops,
    pytest.mark.postgresql,
    pytest.mark.usefixtures("postgresql", "nothing_blocks"),
]


@pytest.fixture
def configure(postgresql: dict[str, Any]) -> Callable[..., None]:
    """Change the default database's entry: keywords are keys, `options` goes into OPTIONS."""

    def change(options: dict[str, Any] | None = None, **keys: Any) -> None:
        entry = {k: v for k, v in postgresql.items() if k != "TEST"} | keys
        use(entry | {"OPTIONS": options or {}})

    return change


async def scalar(sql: str, params: Any = None) -> Any:
    async with acursor() as cursor:
        await cursor.execute(sql, params)
        return (await cursor.fetchone())[0]


async def until(sql: str, params: Any = None) -> None:
    """Ask the server until it says yes; the caller sets the deadline."""
    while not await scalar(sql, params):  # noqa: ASYNC110  no event tells what it sees
        await asyncio.sleep(0)


async def many(count: int) -> None:
    await Tag.objects.abulk_create(Tag(name=f"{number:05}") for number in range(count))


# Server-side cursors


def test_iterator_in_sync_code_on_the_loop_uses_a_server_side_cursor(run: Run) -> None:
    @on_loop
    def walk() -> tuple[list[str], int]:
        with connection.cursor() as cursor:
            names, cursors = [], 0
            for tag in Tag.objects.order_by("name").iterator(chunk_size=100):
                names.append(tag.name)
                if len(names) == 50:
                    cursor.execute("SELECT count(*) FROM pg_cursors WHERE name LIKE '\\_django%'")
                    cursors = cursor.fetchone()[0]
        return names, cursors

    async def main() -> None:
        await many(250)
        assert await walk() == ([f"{number:05}" for number in range(250)], 1)
        assert await scalar("SELECT count(*) FROM pg_cursors WHERE is_holdable") == 0

    run(main)


@pytest.mark.parametrize("where", ["bridge", "thread"])
def test_a_server_side_cursor_that_cannot_be_closed_is_an_error_of_django(
    run: Run, where: str
) -> None:
    """psycopg's own came through: Django closes the cursor outside of what it wraps."""

    def walk() -> None:
        cursor = connection.chunked_cursor()
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
        async_to_sync(end)(pid)
        with pytest.raises(OperationalError):
            cursor.close()

    async def end(pid: int) -> None:
        async with server() as pg:
            await pg.kill(pid)

    async def main() -> None:
        await (on_loop(walk) if where == "bridge" else sync_to_async(walk))()

    run(main)


def test_aiterator_uses_a_server_side_cursor_and_closes_it(run: Run) -> None:
    async def main() -> None:
        await many(250)
        count = 0
        async for _ in Tag.objects.order_by("name").aiterator(chunk_size=100):
            count += 1
            if count == 50:
                sql = "SELECT count(*) FROM pg_cursors WHERE name LIKE '\\_django%%'"
                assert await scalar(sql, []) == 1
        assert count == 250
        assert await scalar("SELECT count(*) FROM pg_cursors WHERE is_holdable") == 0

    run(main)


def test_aiterator_in_a_transaction(run: Run) -> None:
    async def main() -> None:
        await many(250)
        async with aatomic():
            found = [tag.name async for tag in Tag.objects.order_by("name").aiterator(100)]
            await Tag.objects.acreate(name="after")
        assert len(found) == 250
        assert await Tag.objects.acount() == 251

    run(main)


@pytest.mark.parametrize("binding", [False, True])
def test_server_side_binding(configure: Any, run: Run, binding: bool) -> None:
    async def main() -> None:
        await many(250)
        names = [tag.name async for tag in Tag.objects.order_by("name").aiterator(100)]
        assert len(names) == 250
        assert (await Tag.objects.aget(name="00042")).name == "00042"
        assert await Tag.objects.filter(name__in=["00001", "00002"]).acount() == 2
        kind = await on_loop(lambda: type(connection.cursor().cursor).__mro__[2].__name__)()
        assert kind == ("ServerBindingCursor" if binding else "Cursor")

    configure({"server_side_binding": binding})
    run(main)


def test_server_side_cursors_can_be_disabled(configure: Any, run: Run) -> None:
    async def main() -> None:
        await many(250)
        count = 0
        async for _ in Tag.objects.aiterator(chunk_size=100):
            if not count:
                assert await scalar("SELECT count(*) FROM pg_cursors WHERE is_holdable") == 0
            count += 1
        assert count == 250

    configure(DISABLE_SERVER_SIDE_CURSORS=True)
    run(main)


# COPY


def test_copy_both_ways_in_a_bridge(run: Run) -> None:
    @on_loop
    def copy() -> list[tuple[Any, ...]]:
        with connection.cursor() as cursor:
            with cursor.copy("COPY library_tag (name) FROM STDIN") as data:
                for number in range(5000):
                    data.write_row((f"{number:05}",))
            with cursor.copy("COPY (SELECT name FROM library_tag ORDER BY 1) TO STDOUT") as data:
                data.set_types(["text"])
                return list(data.rows())

    async def main() -> None:
        assert await copy() == [(f"{number:05}",) for number in range(5000)]

    run(main)


def test_an_error_in_copy_leaves_the_connection_usable(run: Run) -> None:
    @on_loop
    def broken() -> int:
        with connection.cursor() as cursor:
            with (
                pytest.raises(ZeroDivisionError),
                cursor.copy("COPY library_tag (name) FROM STDIN") as data,
            ):
                data.write_row(("a",))
                raise ZeroDivisionError
            cursor.execute("SELECT count(*) FROM library_tag")
            return int(cursor.fetchone()[0])

    async def main() -> None:
        assert await broken() == 0
        assert await Tag.objects.acount() == 0

    run(main)


# Types


def test_arrays_ranges_and_json(run: Run) -> None:
    with isolate_apps("tests.catalogue"):

        class Typed(models.Model):
            words = ArrayField(models.TextField())
            grid = ArrayField(ArrayField(models.IntegerField()), null=True)
            span = IntegerRangeField(null=True)
            when = DateTimeRangeField(null=True)
            data = models.JSONField(null=True)
            uid = models.UUIDField(null=True)
            raw = models.BinaryField(null=True)
            price = models.DecimalField(max_digits=6, decimal_places=2, null=True)
            lasting = models.DurationField(null=True)
            address = models.GenericIPAddressField(null=True)

            class Meta:
                app_label = "catalogue"

    @on_loop
    def with_table(create: bool) -> None:
        with connection.schema_editor() as editor:
            (editor.create_model if create else editor.delete_model)(Typed)

    async def main() -> None:
        await with_table(True)
        try:
            start = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
            values = {
                "words": ["a", "b"],
                "grid": [[1, 2], [3, 4]],
                "span": Range(1, 5),
                "when": Range(start, start + datetime.timedelta(1)),
                "data": {"key": [1, None, {"x": "y"}]},
                "uid": uuid.UUID(int=7),
                "price": 12,
                "lasting": datetime.timedelta(days=1, seconds=2),
                "address": "10.0.0.1",
            }
            pk = (await Typed.objects.acreate(raw=b"\0\xff" * 50_000, **values)).pk
            found = await Typed.objects.aget(pk=pk)
            assert {name: getattr(found, name) for name in values} == values
            assert bytes(found.raw) == b"\0\xff" * 50_000
            for lookup in (
                {"words__contains": ["a"]},
                {"words__0": "a"},
                {"span__contains": 3},
                {"data__key__2__x": "y"},
                {"when__contains": start},
            ):
                assert await Typed.objects.filter(**lookup).acount() == 1
        finally:
            await with_table(False)

    run(main)


# Types of contrib's extensions, on a full server: each database has oids of its own for them


class CaselessField(models.TextField):
    """Django has no field for citext any more, but still loads arrays of it."""

    def db_type(self, connection: Any) -> str:
        return "citext"


class Install(migrations.Migration):
    operations = [
        HStoreExtension(),
        CITextExtension(),
        migrations.CreateModel(
            "Stored",
            [
                ("id", models.BigAutoField(primary_key=True)),
                ("pairs", HStoreField(null=True)),
                ("words", ArrayField(CaselessField(), default=list)),
            ],
        ),
    ]


def clear_type_oids() -> None:
    """Django remembers them for each alias; here one alias is many databases."""
    get_hstore_oids.cache_clear()
    get_citext_oids.cache_clear()


@pytest.fixture
def contrib(configure: Any, full_postgres_server: FullPostgresServer) -> Iterator[Any]:
    """An empty database on a full server, with django.contrib.postgres; configures it."""
    apps = modify_settings(INSTALLED_APPS={"append": "django.contrib.postgres"})
    with fresh_database(full_postgres_server.url) as url, apps:
        parts = conninfo_to_dict(url)
        keys = {"NAME": parts["dbname"], "HOST": parts["host"], "PORT": parts["port"]}
        keys |= {"USER": parts["user"], "PASSWORD": ""}

        def change(**pool: Any) -> None:
            configure({"pool": pool}, **keys)

        change()
        clear_type_oids()
        yield change
        close_thread_connection()
        configure()
        clear_type_oids()


@on_loop
def install() -> Any:
    """Apply the migration; gives its model."""
    with connection.schema_editor(atomic=True) as editor:
        state = Install("install", "catalogue").apply(ProjectState(), editor)
    return state.apps.get_model("catalogue", "Stored")


def test_hstore_and_citext_from_their_migration_on(contrib: Any, run: Run) -> None:
    async def main() -> None:
        stored = await install()
        pairs = {"a": "b", "none": None, "ü": 'quoted "text"'}
        pk = (await stored.objects.acreate(pairs=pairs, words=["One", "two"])).pk
        found = await stored.objects.aget(pk=pk)
        assert (found.pairs, found.words) == (pairs, ["One", "two"])
        for lookup in (
            {"pairs__a": "b"},
            {"pairs__has_key": "none"},
            {"pairs__contains": {"a": "b"}},
            {"words__contains": ["ONE"]},
        ):
            assert await stored.objects.filter(**lookup).acount() == 1
        found.pairs = {"new": "x"}
        await found.asave()
        await stored.objects.acreate()
        values = stored.objects.order_by("pk").values_list("pairs", "words")
        assert await values.alist() == [({"new": "x"}, ["One", "two"]), (None, [])]

    run(main)


def test_type_oids_are_looked_up_on_the_connection_that_is_being_opened(
    contrib: Any, run: Run
) -> None:
    """From a pool of one there is no other connection, and waiting for it would not end."""

    async def main() -> None:
        async with acursor() as cursor:
            await cursor.execute("SELECT 'a=>b'::hstore, ARRAY['A']::citext[]")
            assert await cursor.fetchone() == ({"a": "b"}, ["A"])
        assert get_hstore_oids.cache_info().misses == 1

    run(install)
    clear_type_oids()
    contrib(max_size=1, timeout=1)
    run(main)


def test_type_oids_looked_up_by_many_connections_at_once(contrib: Any, run: Run) -> None:
    async def ask(barrier: asyncio.Barrier) -> None:
        async with acursor() as cursor:
            await cursor.execute("SELECT 'a=>b'::hstore, ARRAY['A']::citext[]")
            assert await cursor.fetchone() == ({"a": "b"}, ["A"])
            await barrier.wait()

    async def main() -> None:
        barrier = asyncio.Barrier(5)
        await asyncio.gather(*(ask(barrier) for _ in range(5)))

    run(install)
    clear_type_oids()
    contrib(max_size=5)
    run(main)


def test_connections_opened_before_an_extension_was_installed_know_its_types(
    contrib: Any, run: Run
) -> None:
    """Stock's pool asks Django's receivers at each checkout; ours only when it opens one."""

    async def ask(barrier: asyncio.Barrier) -> Any:
        async with acursor() as cursor:
            await cursor.execute("SELECT to_regtype('hstore') IS NULL")
            missing = (await cursor.fetchone())[0]
            await barrier.wait()
            if missing:
                return None
            await cursor.execute("SELECT 'a=>b'::hstore, ARRAY['A']::citext[]")
            return await cursor.fetchone()

    async def three() -> list[Any]:
        barrier = asyncio.Barrier(3)
        return await asyncio.gather(*(ask(barrier) for _ in range(3)))

    async def main() -> None:
        assert await three() == [None] * 3
        await install()
        assert await three() == [({"a": "b"}, ["A"])] * 3

    contrib(max_size=3)
    run(main)


# Options of Django's backend


def test_assume_role(configure: Any, run: Run) -> None:
    async def main() -> None:
        assert await scalar("SELECT current_user") == "nuages_assumed"
        async with acursor() as cursor:
            await cursor.execute("SET search_path TO pg_catalog")  # so it is reset
        assert await scalar("SELECT current_user") == "nuages_assumed"

    with connection.cursor() as cursor:
        cursor.execute("DROP ROLE IF EXISTS nuages_assumed")
        cursor.execute("CREATE ROLE nuages_assumed")
    try:
        configure({"assume_role": "nuages_assumed"})
        run(main)
    finally:
        configure()
        with connection.cursor() as cursor:
            cursor.execute("DROP ROLE nuages_assumed")


def test_isolation_level(configure: Any, run: Run) -> None:
    async def main() -> None:
        for _ in range(2):  # a new connection, and one of the pool
            async with aatomic():
                assert await scalar("SHOW transaction_isolation") == "serializable"

    configure({"isolation_level": psycopg.IsolationLevel.SERIALIZABLE})
    run(main)


def test_time_zones(configure: Any, run: Run) -> None:
    async def main() -> None:
        for _ in range(2):
            assert await scalar("SHOW timezone") == "Asia/Tokyo"
            moment = await scalar("SELECT timestamptz '2024-01-01 00:00+00'")
            assert moment == datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
            assert str(moment.tzinfo) == "Asia/Tokyo"

    configure(TIME_ZONE="Asia/Tokyo")
    run(main)


def test_the_current_time_zone_of_django_does_not_reach_the_server(run: Run) -> None:
    async def main() -> None:
        with timezone.override("America/Lima"):
            assert await scalar("SHOW timezone") == "UTC"
            await Author.objects.acreate(name="x")

    run(main)


def test_statement_timeout(configure: Any, run: Run) -> None:
    async def main() -> None:
        with pytest.raises(OperationalError, match="statement timeout"):
            await scalar("SELECT pg_sleep(20)")
        assert await scalar("SELECT 1") == 1

    configure({"statement_timeout": 0.05})
    run(main)


def test_prepared_statements(configure: Any, run: Run) -> None:
    @on_loop
    def prepared() -> list[str]:
        with connection.cursor() as cursor:
            for number in range(8):
                cursor.execute("SELECT name FROM library_tag WHERE name = %s", [str(number)])
            cursor.execute("SELECT statement FROM pg_prepared_statements")
            return [row[0] for row in cursor.fetchall()]

    async def main() -> None:
        statements = await prepared()
        assert any("library_tag" in statement for statement in statements)
        # The same connection again, and after a reset of its session.
        await prepared()
        async with acursor() as cursor:
            await cursor.execute("SET search_path TO public")
        await prepared()
        await Tag.objects.acreate(name="fine")

    configure({"prepare_threshold": 2, "server_side_binding": True, "pool": {"max_size": 1}})
    run(main)


def test_nothing_is_prepared_by_default(run: Run) -> None:
    async def main() -> None:
        for _ in range(10):
            await Tag.objects.acount()
        assert await scalar("SELECT count(*) FROM pg_prepared_statements") == 0

    run(main)


# psycopg's connection in a bridge


def test_pipeline_mode(run: Run) -> None:
    @on_loop
    def pipelined() -> list[int]:
        connection.ensure_connection()
        raw = connection.connection
        with raw.pipeline(), raw.cursor() as one, raw.cursor() as two:
            one.execute("SELECT 1")
            two.execute("SELECT 2")
            return [one.fetchone()[0], two.fetchone()[0]]

    async def main() -> None:
        assert await pipelined() == [1, 2]
        assert await pipelined() == [1, 2]
        assert await scalar("SELECT 3") == 3

    run(main)


def test_session_state_set_in_a_pipeline_is_discarded(configure: Any, run: Run) -> None:
    @on_loop
    def pipelined() -> None:
        connection.ensure_connection()
        with connection.connection.pipeline():
            connection.connection.execute("SET search_path TO pg_catalog")

    async def main() -> None:
        await pipelined()
        assert await scalar("SHOW search_path") != "pg_catalog"

    configure({"pool": {"max_size": 1}})
    run(main)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT set_config('search_path', 'pg_catalog', false)",
        "SELECT pg_advisory_lock(7)",
        "SELECT pg_try_advisory_lock(7)",
        "SELECT pg_advisory_lock_shared(7)",
    ],
)
def test_session_state_left_by_a_function_is_discarded(
    configure: Any, run: Run, statement: str
) -> None:
    async def main() -> None:
        await scalar(statement)
        assert await scalar("SHOW search_path") != "pg_catalog"
        assert await scalar("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0

    configure({"pool": {"max_size": 1}})
    run(main)


def test_local_settings_cost_no_reset(configure: Any, run: Run) -> None:
    async def main() -> None:
        pid = await scalar("SELECT pg_backend_pid()")
        async with aatomic():
            await scalar("SELECT set_config('nuages.tenant', 'x', true)")
            await scalar("SELECT pg_advisory_xact_lock(7)")
            state = await on_loop(lambda: connection.connection.session_state)()
        assert state == ""
        assert await scalar("SELECT pg_backend_pid()") == pid

    configure({"pool": {"max_size": 1}})
    run(main)


def test_an_error_in_a_pipeline(run: Run) -> None:
    @on_loop
    def pipelined() -> None:
        connection.ensure_connection()
        raw = connection.connection
        with pytest.raises(psycopg.Error), raw.pipeline(), raw.cursor() as cursor:
            cursor.execute("SELECT 1 / 0")
            cursor.fetchone()

    async def main() -> None:
        await pipelined()
        assert await scalar("SELECT 3") == 3

    run(main)


def test_notifies_end_at_their_timeout_and_bring_what_came(run: Run) -> None:
    @on_loop
    def listen(stop_after: int, timeout: float) -> list[str]:
        with connection.cursor() as cursor:
            cursor.execute("LISTEN nuages_test")
        raw = connection.connection
        found = [
            note.payload for note in raw.notifies(timeout=timeout, stop_after=stop_after or None)
        ]
        with connection.cursor() as cursor:
            cursor.execute("UNLISTEN *")
        return found

    async def main() -> None:
        assert await listen(0, 0.0) == []
        assert await listen(0, 0.05) == []
        listening = asyncio.create_task(listen(2, 30.0))
        sql = (
            "SELECT count(*) FROM pg_stat_activity WHERE query = 'LISTEN nuages_test' "
            "AND state = 'idle' AND datname = current_database()"
        )
        async with asyncio.timeout(10):
            await until(sql)
        await scalar("SELECT pg_notify('nuages_test', 'one')")
        await scalar("SELECT pg_notify('nuages_test', 'two')")
        assert await listening == ["one", "two"]

    run(main)


def test_notices_reach_their_handler(run: Run) -> None:
    @on_loop
    def noisy() -> list[str]:
        notices: list[str] = []
        connection.ensure_connection()
        raw = connection.connection
        raw.add_notice_handler(lambda diagnostic: notices.append(diagnostic.message_primary))
        with connection.cursor() as cursor:
            cursor.execute("DO $$ BEGIN RAISE NOTICE 'hear me'; END $$")
        return notices

    async def main() -> None:
        assert await noisy() == ["hear me"]
        # A handler is not handed on: the next user's connection has none.
        assert await on_loop(lambda: connection.cursor() and connection.connection)() is not None
        handlers = await on_loop(
            lambda: connection.cursor() and len(connection.connection._notice_handlers)
        )()
        assert handlers == await baseline()

    async def baseline() -> int:
        async with hold_connection() as held:
            return len(held.connection._notice_handlers)

    run(main)


@pytest.mark.parametrize("method", ["cancel", "cancel_safe"])
def test_a_statement_cancelled_from_another_task(run: Run, method: str) -> None:
    raws: list[Any] = []

    @on_loop
    def slow() -> None:
        connection.ensure_connection()
        raws.append(connection.connection)
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(60) /* cancel me */")

    async def main() -> None:
        task = asyncio.create_task(slow())
        sql = (
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%%/* cancel me */' "
            "AND state = 'active' AND datname = current_database() AND pid <> pg_backend_pid()"
        )
        async with asyncio.timeout(10):
            await until(sql, [])
            await on_loop(getattr(raws[0], method))()
            with pytest.raises(OperationalError, match="cancel"):
                await task
        assert await scalar("SELECT 1") == 1

    run(main)


def test_close_in_a_bridge_and_a_new_connection_after_it(run: Run) -> None:
    @on_loop
    def pids() -> tuple[int, int]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            (first,) = cursor.fetchone()
        connection.close()
        assert connection.connection is None
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            return first, cursor.fetchone()[0]

    async def main() -> None:
        first, second = await pids()
        assert first != second
        assert await scalar("SELECT pg_backend_pid()") == second  # the pool's

    run(main)


def test_psycopgs_own_transaction_and_cursor_stream(run: Run) -> None:
    @on_loop
    def own() -> tuple[int, list[int]]:
        connection.ensure_connection()
        raw = connection.connection
        with raw.transaction(), raw.cursor() as cursor:
            cursor.execute("INSERT INTO library_tag (name) VALUES ('raw')")
        with raw.cursor() as cursor:
            streamed = [row[0] for row in cursor.stream("SELECT generate_series(1, 5)")]
        return Tag.objects.count(), streamed

    async def main() -> None:
        assert await own() == (1, [1, 2, 3, 4, 5])

    run(main)


def test_a_named_cursor_of_psycopg(run: Run) -> None:
    @on_loop
    def named() -> list[int]:
        connection.ensure_connection()
        raw = connection.connection
        with raw.transaction(), raw.cursor("mine") as cursor:
            cursor.itersize = 2
            cursor.execute("SELECT generate_series(1, 5)")
            cursor.scroll(1)
            return [row[0] for row in cursor]

    async def main() -> None:
        assert await named() == [2, 3, 4, 5]

    run(main)


def test_execute_values_of_many_kinds(run: Run) -> None:
    async def main() -> None:
        moment = datetime.datetime(2024, 5, 5, 12, 30, tzinfo=datetime.UTC)
        for value in (
            1,
            "x",
            1.5,
            None,
            True,
            [1, 2],
            b"\0",
            moment,
            moment.date(),
            moment.time(),
        ):
            found = await scalar("SELECT %s", [value])
            assert (bytes(found) if isinstance(value, bytes) else found) == value
        assert await scalar("SELECT repeat('x', 10000000)") == "x" * 10_000_000

    run(main)


def test_on_conflict_returning_and_functions(run: Run) -> None:
    async def main() -> None:
        made = await Author.objects.abulk_create(
            [Author(name="a"), Author(name="b")],
            update_conflicts=True,
            unique_fields=["name"],
            update_fields=["name"],
        )
        assert all(author.pk for author in made)
        upper = Author.objects.annotate(up=Func("name", function="upper")).order_by("name")
        assert await upper.values_list("up", flat=True).alist() == ["A", "B"]

    run(main)


# Threads, and outside loops


def test_a_thread_that_shares_the_transaction(run: Run) -> None:
    threads: list[int] = []

    def in_thread() -> int:
        threads.append(threading.get_ident())
        Tag.objects.create(name="thread")
        return Tag.objects.count()

    @on_loop
    def outer() -> int:
        from django.db import transaction

        with transaction.atomic():
            Tag.objects.create(name="loop")
            return off_loop(in_thread)()

    async def main() -> None:
        assert await outer() == 2
        assert threads[0] != threading.get_ident()

    run(main)


def test_outside_loops_it_is_django_as_ever() -> None:
    Tag.objects.create(name="sync")
    assert [tag.name for tag in Tag.objects.iterator()] == ["sync"]
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    assert connection.connection.info.backend_pid == pid
    close_thread_connection()
    assert connections["default"].connection is None


def test_awaiting_in_the_middle_of_sync_code(run: Run) -> None:
    @on_loop
    def mixed() -> int:
        Tag.objects.create(name="one")
        await_(asyncio.sleep(0))
        Tag.objects.create(name="two")
        return Tag.objects.count()

    async def main() -> None:
        assert await mixed() == 2

    run(main)


def test_hooks_do_not_run_where_a_caught_error_has_ended_the_transaction(run: Run) -> None:
    """The server answers ROLLBACK to COMMIT, which psycopg and Django take for a success."""
    hooks: list[str] = []

    def fail() -> None:
        Author.objects.create(name="lost")
        transaction.on_commit(lambda: hooks.append("ran"))
        with connection.cursor() as cursor, contextlib.suppress(DatabaseError):
            cursor.execute("SELECT nothing_of_the_kind")

    @on_loop
    def work() -> None:
        with (
            pytest.raises(NotCommitted, match="a statement in it had failed"),
            transaction.atomic(),
        ):
            fail()
        with transaction.atomic():
            Author.objects.create(name="after")
            # In a savepoint it is as in Django: that is rolled back, the block goes on.
            with contextlib.suppress(DatabaseError), transaction.atomic():
                fail()
                connection.cursor().execute("SELECT 1")

    async def main() -> None:
        await work()

    run(main)
    assert hooks == []
    assert judge.authors() == ["after"]


@pytest.mark.parametrize("hooks", [True, False])
def test_a_statement_in_flight_that_fails_as_its_block_ends(
    postgresql: dict[str, Any], run: Run, hooks: bool
) -> None:
    """The block's end waits for the statement, and looks at the transaction after that."""

    def violate() -> None:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO library_author (name) SELECT 'Ursula' FROM pg_sleep(0.2)")

    async def main() -> None:
        ran: list[str] = []
        with pytest.raises(NotCommitted):
            async with aatomic():
                await Author.objects.acreate(name="Ursula")
                if hooks:
                    await aon_commit(lambda: ran.append("hook"))
                late = asyncio.create_task(sync_to_async(violate, thread_sensitive=False)())
                async with server() as watching:
                    await watching.until_running("INSERT")
        with pytest.raises(IntegrityError):
            await late
        assert ran == []

    run(main)
    assert judge.authors() == []
