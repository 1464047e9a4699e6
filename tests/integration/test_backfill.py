"""Backfill: every row exactly once, whatever ends the process and whoever works beside it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, models, transaction
from django.db.migrations import AddField, RunPython, SeparateDatabaseAndState
from django.db.migrations.exceptions import IrreversibleError
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.writer import OperationWriter
from django.db.models import CompositePrimaryKey, F, IntegerField, Q
from django.db.models.functions import Upper

from nuages import on_loop
from nuages.db.migrations import Backfill
from nuages.db.migrations.checkpoint import Checkpoint, Range, make_tables
from nuages.exceptions import BackfillError
from tests.integration.conftest import Run
from tests.integration.migration_tools import FIELDS, Shop, applied, clean, migration

COUNT = {"price": F("price") + 1}
"""Shows how often a row was changed."""


on_one_loop = pytest.mark.parametrize("run", ["asyncio"], indirect=True)
"""What the kind of loop has no part in."""


@pytest.fixture
def shop_tables(database: str) -> Iterator[str]:
    with clean():
        yield database


@pytest.fixture
def on_postgresql(postgresql: dict[str, Any]) -> Iterator[None]:
    with clean():
        yield


def backfill(*arguments: Any, **options: Any) -> Any:
    return migration("0002_backfill", Backfill("Item", *arguments, **options), atomic=False)


def prices(shop: Shop) -> list[int]:
    return list(shop.item.objects.order_by("pk").values_list("price", flat=True))


def open_ranges() -> int:
    return Range._base_manager.using("default").count()


def outside(run: Run, function: Any) -> None:
    function()


def on_this_loop(run: Run, function: Any) -> None:
    run(on_loop(function))


def in_a_thread(run: Run, function: Any) -> None:
    run(sync_to_async(function))


async def count_by_async_function(apps: Any, rows: Any) -> None:
    async for row in rows:
        row.price += 1
        await row.asave(update_fields=["price"])


def count_by_function(apps: Any, rows: Any) -> None:
    Item = apps.get_model("shop", "Item")
    for row in rows:
        Item.objects.filter(pk=row.pk).update(price=F("price") + 1)


@pytest.mark.parametrize(
    ("where", "change"),
    [
        (on_this_loop, COUNT),
        (on_this_loop, count_by_async_function),
        (on_this_loop, count_by_function),
        (in_a_thread, count_by_async_function),
        (outside, COUNT),
        (outside, count_by_async_function),
    ],
)
def test_every_row_is_changed_once(shop_tables: str, run: Run, where: Any, change: Any) -> None:
    def main() -> None:
        shop = Shop()
        shop.fill(25)
        shop.apply(backfill(change, batch_size=4))
        assert prices(shop) == [1] * 25
        assert open_ranges() == 0
        (checkpoint,) = Checkpoint._base_manager.using("default")
        assert (checkpoint.key, checkpoint.total, checkpoint.claimed) == (
            "shop.0002_backfill", 25, 25,
        )  # fmt: skip
        assert checkpoint.finished
        assert checkpoint.over

    where(run, main)


@on_one_loop
def test_an_empty_table(shop_tables: str, run: Run) -> None:
    def main() -> None:
        shop = Shop()
        shop.apply(backfill(COUNT))
        assert applied() == ["0001_initial", "0002_backfill"]

    on_this_loop(run, main)


@on_one_loop
def test_it_goes_back_and_comes_again(shop_tables: str, run: Run) -> None:
    both = backfill(
        COUNT, reverse={"price": F("price") - 5}, reverse_where=Q(name__gt="item 1"), batch_size=2
    )

    def main() -> None:
        shop = Shop()
        shop.fill(3)
        shop.apply(both)
        shop.unapply(both)
        assert prices(shop) == [1, 1, -4]
        assert applied() == ["0001_initial"]
        shop.fill(1)
        shop.apply(both)
        assert prices(shop) == [2, 2, -3, 1]

    on_this_loop(run, main)


@on_one_loop
def test_noop_and_no_way_back(shop_tables: str, run: Run) -> None:
    noop = backfill(COUNT, reverse=Backfill.noop)
    never = migration("0003_never", Backfill("Item", COUNT), atomic=False)

    def main() -> None:
        shop = Shop()
        shop.fill(2)
        shop.apply(noop)
        shop.unapply(noop)
        shop.apply(noop)
        assert prices(shop) == [2, 2]
        shop.apply(never)
        with pytest.raises(IrreversibleError, match="is not reversible"):
            shop.unapply(never)

    on_this_loop(run, main)


@on_one_loop
def test_rows_are_chosen_by_where(shop_tables: str, run: Run) -> None:
    def main() -> None:
        shop = Shop()
        shop.fill(10)
        shop.apply(
            backfill({"name": Upper("name"), "price": 7}, where=Q(pk__gt=5, price=0), batch_size=2)
        )
        assert prices(shop) == [0] * 5 + [7] * 5
        assert shop.names()[-1] == "ITEM 9"

    on_this_loop(run, main)


@on_one_loop
@pytest.mark.parametrize(
    ("field", "keys"),
    [
        (models.UUIDField(primary_key=True), [uuid.uuid4() for _ in range(11)]),
        (models.CharField(primary_key=True, max_length=9), [*"zyxÄwacé b", "Z'\"%"]),
        (models.DateTimeField(primary_key=True), None),
        (models.DecimalField(primary_key=True, max_digits=9, decimal_places=3), None),
    ],
    ids=["uuid", "str", "datetime", "decimal"],
)
def test_any_key_that_has_an_order_will_do(
    shop_tables: str, run: Run, field: Any, keys: Any
) -> None:
    import datetime
    import decimal

    if keys is None and isinstance(field, models.DateTimeField):
        start = datetime.datetime(2026, 1, 1, microsecond=7, tzinfo=datetime.UTC)
        keys = [start + datetime.timedelta(microseconds=n) for n in range(11)]
    elif keys is None:
        keys = [decimal.Decimal(n) / 8 for n in range(-5, 6)]

    def main() -> None:
        shop = Shop([("id", field.clone()), *FIELDS[1:]])
        shop.item.objects.bulk_create(shop.item(pk=key) for key in keys)
        shop.apply(backfill(COUNT, batch_size=3))
        assert prices(shop) == [1] * len(keys)

    on_this_loop(run, main)


@on_one_loop
def test_a_composite_key_is_refused(shop_tables: str, run: Run) -> None:
    def main() -> None:
        shop = Shop(
            [
                ("pk", CompositePrimaryKey("name", "price")),
                ("name", models.CharField(max_length=9)),
                ("price", IntegerField(default=0)),
            ]
        )
        with pytest.raises(BackfillError, match=r"shop\.Item: its primary key is composite"):
            shop.apply(backfill({"price": 1}))

    on_this_loop(run, main)


@on_one_loop
def test_an_atomic_migration_is_refused(shop_tables: str, run: Run) -> None:
    def main() -> None:
        shop = Shop()
        with pytest.raises(BackfillError, match="set `atomic = False`"):
            shop.apply(migration("0002_atomic", Backfill("Item", COUNT)))

    on_this_loop(run, main)


@on_one_loop
def test_rows_added_meanwhile_are_left_alone(shop_tables: str, run: Run) -> None:
    async def adding(apps: Any, rows: Any) -> None:
        await rows.aupdate(**COUNT)
        await apps.get_model("shop", "Item").objects.acreate(name="new")

    def main() -> None:
        shop = Shop()
        shop.fill(4)
        shop.apply(backfill(adding, batch_size=2))
        assert prices(shop) == [1, 1, 1, 1, 0, 0]

    on_this_loop(run, main)


class Broken(Exception):
    pass


def test_a_failed_run_is_taken_up_where_it_stopped(shop_tables: str, run: Run) -> None:
    seen: list[list[int]] = []
    fails = True

    async def failing(apps: Any, rows: Any) -> None:
        await rows.aupdate(**COUNT)
        seen.append([row.pk async for row in rows])
        if fails and len(seen) == 3:
            raise Broken

    broken = backfill(failing, batch_size=3, concurrency=1)

    def main() -> None:
        nonlocal fails
        shop = Shop()
        shop.fill(14)
        with pytest.raises(Broken):
            shop.apply(broken)
        assert prices(shop) == [1] * 6 + [0] * 8
        assert open_ranges() == 1
        assert applied() == ["0001_initial"]
        fails = False
        shop.apply(broken)
        assert prices(shop) == [1] * 14
        assert seen[3] == seen[2]  # the batch that failed comes first
        assert applied() == ["0001_initial", "0002_backfill"]

    on_this_loop(run, main)


@on_one_loop
def test_a_finished_backfill_is_not_done_again_where_the_migration_fails_later(
    shop_tables: str, run: Run
) -> None:
    fails = True

    def fail(apps: Any, schema_editor: Any) -> None:
        if fails:
            raise Broken

    both = migration(
        "0002_two",
        Backfill("Item", COUNT),
        SeparateDatabaseAndState([Backfill("Item", {"price": F("price") + 10})]),
        RunPython(fail),
        atomic=False,
    )

    def main() -> None:
        nonlocal fails
        shop = Shop()
        shop.fill(3)
        with pytest.raises(Broken):
            shop.apply(both)
        fails = False
        shop.apply(both)
        assert prices(shop) == [11] * 3
        keys = Checkpoint._base_manager.using("default").values_list("key", flat=True)
        assert sorted(keys) == ["shop.0002_two", "shop.0002_two:2"]

    on_this_loop(run, main)


def test_cancelled_it_ends_between_batches(on_postgresql: None, run: Run) -> None:
    """The batches under way end, no other begins; a second cancellation rolls them back."""

    async def main() -> None:
        shop = await on_loop(Shop)()
        await on_loop(shop.fill)(20)
        go, working = asyncio.Event(), asyncio.Semaphore(0)

        async def wait(apps: Any, rows: Any) -> None:
            await rows.aupdate(**COUNT)
            working.release()
            await go.wait()

        waiting = backfill(wait, batch_size=3, concurrency=2)
        task = asyncio.create_task(on_loop(shop.apply)(waiting))
        await working.acquire()
        await working.acquire()
        task.cancel()
        await asyncio.sleep(0)
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await on_loop(prices)(shop) == [1] * 6 + [0] * 14
        assert await on_loop(open_ranges)() == 0

        go.clear()
        task = asyncio.create_task(on_loop(shop.apply)(waiting))
        await working.acquire()
        await working.acquire()
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await on_loop(prices)(shop) == [1] * 6 + [0] * 14
        assert await on_loop(open_ranges)() == 2
        go.set()
        await on_loop(shop.apply)(waiting)
        assert await on_loop(prices)(shop) == [1] * 20

    run(main)


def test_batches_run_side_by_side_and_no_more_than_asked_for(
    on_postgresql: None, run: Run
) -> None:
    async def main() -> None:
        shop = await on_loop(Shop)()
        await on_loop(shop.fill)(24)
        at_once, most, together = 0, 0, asyncio.Event()

        async def meet(apps: Any, rows: Any) -> None:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            await rows.aupdate(**COUNT)
            if at_once == 3:
                together.set()
            await together.wait()
            at_once -= 1

        await on_loop(shop.apply)(backfill(meet, batch_size=2, concurrency=3))
        assert most == 3
        assert await on_loop(prices)(shop) == [1] * 24

    run(main)


def test_two_that_migrate_at_the_same_time_share_the_work(on_postgresql: None, run: Run) -> None:
    """Both are in a batch at once; none is done twice, and both end with the migration applied."""

    async def main() -> None:
        shop = await on_loop(Shop)()
        await on_loop(shop.fill)(40)
        barrier, batches = asyncio.Barrier(2), []

        async def count(apps: Any, rows: Any) -> None:
            await rows.aupdate(**COUNT)
            batches.append(rows)
            if len(batches) <= 2:
                await barrier.wait()

        one = backfill(count, batch_size=3, concurrency=1)

        def migrate() -> None:
            executor = MigrationExecutor(connection)
            executor.apply_migration(shop.state.clone(), one)

        await asyncio.gather(on_loop(migrate)(), on_loop(migrate)())
        assert await on_loop(prices)(shop) == [1] * 40
        assert len(batches) == 14
        # One that comes late, with a plan made before the migration was recorded.
        await on_loop(migrate)()
        assert await on_loop(prices)(shop) == [1] * 40

    run(main)


def test_a_deadlock_is_tried_again(on_postgresql: None, run: Run) -> None:
    """Two batches lock each other's row of another table; one is ended by the server."""

    async def main() -> None:
        shop = await on_loop(Shop)()
        await on_loop(shop.fill)(4)
        tries: list[int] = []
        barrier = asyncio.Barrier(2)

        async def cross(apps: Any, rows: Any) -> None:
            Item = apps.get_model("shop", "Item")
            mine = [row.pk async for row in rows]
            tries.append(mine[0])
            await Item.objects.filter(pk__in=mine).aupdate(**COUNT)
            if len(tries) <= 2:
                await barrier.wait()
                others = Item.objects.exclude(pk__in=mine)
                await others.aupdate(name="touched")

        await on_loop(shop.apply)(backfill(cross, batch_size=2, concurrency=2))
        assert len(tries) == 3
        assert await on_loop(prices)(shop) == [1] * 4

    run(main)


@on_one_loop
def test_the_load_and_wait_are_asked_for(shop_tables: str, run: Run) -> None:
    answers: list[Any] = [0.001, 0.001, None, False, 0]
    asked = 0

    def lag() -> Any:
        nonlocal asked
        asked += 1
        return answers.pop(0) if answers else 0

    def main() -> None:
        shop = Shop()
        shop.fill(4)
        shop.apply(backfill(COUNT, batch_size=2, concurrency=1, load=0.5, wait=lag))
        assert prices(shop) == [1] * 4
        assert not answers
        assert asked == 5

    on_this_loop(run, main)


def test_a_caller_s_transaction_is_joined(on_postgresql: None, run: Run) -> None:
    """As in a test case, whose rows no other connection could see.

    SQLite's schema editor refuses to work in a transaction, in stock Django too.
    """

    def main() -> None:
        shop = Shop()
        with transaction.atomic():
            shop.fill(7)
            shop.apply(backfill(COUNT, batch_size=2))
            assert prices(shop) == [1] * 7
            transaction.set_rollback(True)
        assert prices(shop) == []
        with connection.cursor() as cursor:
            assert "nuages_backfill" not in connection.introspection.table_names(cursor)

    on_this_loop(run, main)
    with clean():
        pass
    main()


def test_what_makemigrations_writes() -> None:
    operation = Backfill(
        "Item", {"name": Upper("name")}, Q(name=""), reverse=count_by_async_function, load=0.5
    )
    assert operation.deconstruct() == (
        "Backfill",
        [],
        {
            "model_name": "Item",
            "update": {"name": Upper("name")},
            "where": Q(name=""),
            "reverse": count_by_async_function,
            "load": 0.5,
        },
    )
    written, imports = OperationWriter(operation).serialize()
    assert "import nuages.db.migrations" in imports
    namespace: dict[str, Any] = {}
    exec("\n".join(imports) + f"\noperation = [{written}][0]", namespace)
    assert namespace["operation"].deconstruct() == operation.deconstruct()
    assert operation.describe() == "Backfill Item: name, 1,000 rows a batch"
    assert Backfill("Item", count_by_function).describe().startswith("Backfill Item: count_by_fun")


def test_it_is_optimised_away_as_a_run_python_is() -> None:
    add = AddField("Item", "stock", IntegerField(default=0))
    kept, gone = Backfill("Item", COUNT), Backfill("Item", COUNT, elidable=True)
    assert gone.reduce(add, "shop") == [add]
    assert add.reduce(gone, "shop") == [add]
    assert kept.reduce(add, "shop") is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"update": {}}, "update must be a dict of fields and values, or a function"),
        ({"update": COUNT, "reverse": 3}, "reverse must be a dict"),
        ({"update": COUNT, "where": {"a": 1}}, "where must be a Q"),
        ({"update": COUNT, "batch_size": 0}, "batch_size must be 1 or more, not 0"),
        ({"update": COUNT, "concurrency": 1.5}, "concurrency must be 1 or more, not 1.5"),
        ({"update": COUNT, "load": 0}, "load must be above 0 and up to 1, not 0"),
        ({"update": COUNT, "wait": 3}, "wait must be a function, not 3"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Backfill("Item", **arguments)


@on_one_loop
def test_outside_of_a_migration_it_needs_a_name(shop_tables: str, run: Run) -> None:
    def main() -> None:
        shop = Shop()
        shop.fill(2)
        for operation in (Backfill("Item", COUNT, name="by hand"), Backfill("Item", COUNT)):
            with connection.schema_editor(atomic=False) as editor:
                if operation.name is None:
                    with pytest.raises(BackfillError, match="give it one, Backfill"):
                        operation.database_forwards("shop", editor, shop.state, shop.state)
                else:
                    operation.database_forwards("shop", editor, shop.state, shop.state)
        assert prices(shop) == [1, 1]

    on_this_loop(run, main)


@on_one_loop
def test_making_the_tables_leaves_sqlite_s_foreign_keys_as_they_were(
    sqlite: dict[str, Any], run: Run
) -> None:
    def checked() -> bool:
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA foreign_keys")
            return bool(cursor.fetchone()[0])

    def main() -> None:
        make_tables("default")
        assert checked()
        with clean():
            pass
        with connection.schema_editor(atomic=False):
            make_tables("default")
            assert not checked()
        assert checked()

    with clean():
        on_this_loop(run, main)


@on_one_loop
def test_a_table_whose_maker_died_before_the_other_is_kept(
    mysql: dict[str, Any], run: Run
) -> None:
    """MySQL commits each CREATE TABLE by itself."""

    def main() -> None:
        with connection.schema_editor() as editor:
            editor.create_model(Checkpoint)
        make_tables("default")
        assert not Checkpoint._base_manager.using("default").exists()
        assert open_ranges() == 0

    with clean():
        on_this_loop(run, main)
