"""Async functions in RunPython: in place, in the migration's transaction, both ways."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, transaction
from django.db.migrations import AddField, RunPython, RunSQL
from django.db.migrations.writer import OperationWriter
from django.db.models import CASCADE, ForeignKey, IntegerField

from nuages import on_loop
from nuages.db import aatomic, detached
from tests.integration.conftest import Counts, Run
from tests.integration.migration_tools import Shop, applied, clean, migration

Where = Any  # how a test calls: on_this_loop, in_a_thread, outside


@pytest.fixture
def shop_tables(database: str) -> Iterator[str]:
    with clean():
        yield database


async def add_items(apps: Any, schema_editor: Any) -> None:
    """Everything async that the historical models can."""
    alias = schema_editor.connection.alias
    Item = apps.get_model("shop", "Item")
    first = await Item.objects.using(alias).acreate(name="first")
    again = await Item.objects.using(alias).aget(pk=first.pk)
    again.price = 7
    await again.asave()
    async with aatomic(alias):
        await Item.objects.abulk_create([Item(name="second"), Item(name="third")])
    assert [item.name async for item in Item.objects.order_by("pk")] == [
        "first", "second", "third",
    ]  # fmt: skip
    await asyncio.gather(*(Item.objects.acreate(name=f"gathered {n}") for n in range(3)))


async def remove_items(apps: Any, schema_editor: Any) -> None:
    await apps.get_model("shop", "Item").objects.all().adelete()


async def fail(apps: Any, schema_editor: Any) -> None:
    await apps.get_model("shop", "Item").objects.acreate(name="lost")
    raise ZeroDivisionError


FILL = migration("0002_fill", RunPython(add_items, remove_items))


def on_this_loop(run: Run, function: Any) -> Any:
    return run(on_loop(function))


def in_a_thread(run: Run, function: Any) -> Any:
    return run(sync_to_async(function))


def outside(run: Run, function: Any) -> Any:
    return function()


@pytest.mark.parametrize("where", [on_this_loop, in_a_thread, outside])
@pytest.mark.parametrize("atomic", [True, False])
def test_async_functions_run_forwards_and_back(
    shop_tables: str, run: Run, where: Where, atomic: bool
) -> None:
    fill = migration("0002_fill", RunPython(add_items, remove_items), atomic=atomic)

    def main() -> None:
        shop = Shop()
        shop.apply(fill)
        assert shop.item.objects.count() == 6
        assert shop.item.objects.get(name="first").price == 7
        assert applied() == ["0001_initial", "0002_fill"]
        shop.unapply(fill)
        assert shop.item.objects.count() == 0
        assert applied() == ["0001_initial"]

    where(run, main)


@pytest.mark.parametrize("where", [on_this_loop, in_a_thread, outside])
def test_a_failing_function_rolls_the_migration_back(
    shop_tables: str, run: Run, where: Where
) -> None:
    broken = migration(
        "0002_broken",
        AddField("Item", "stock", IntegerField(default=0)),
        RunPython(add_items),
        RunPython(fail),
    )

    def main() -> None:
        shop = Shop()
        with pytest.raises(ZeroDivisionError):
            shop.apply(broken)
        assert not connection.in_atomic_block
        assert shop.names() == []
        with connection.cursor() as cursor:
            columns = connection.introspection.get_table_description(cursor, "shop_item")
        assert "stock" not in [column.name for column in columns]
        assert applied() == ["0001_initial"]

    where(run, main)


def test_on_the_loop_no_thread_is_used(postgresql: Any, run: Run, threads: Counts) -> None:
    def main() -> None:
        shop = Shop()
        shop.apply(FILL)
        assert shop.item.objects.count() == 6

    with clean():
        on_this_loop(run, main)
        threads.assert_none()
    # The control: elsewhere the function has a loop in a thread.
    with clean():
        main()
        assert threads.submitted


@pytest.mark.parametrize("where", [on_this_loop, outside])
def test_the_schema_editor_can_be_used_in_the_function(
    shop_tables: str, run: Run, where: Where
) -> None:
    async def by_sql(apps: Any, schema_editor: Any) -> None:
        schema_editor.execute("INSERT INTO shop_item (name, price) VALUES ('by SQL', 1)")
        assert schema_editor.connection.in_atomic_block
        assert await apps.get_model("shop", "Item").objects.acount() == 1

    def main() -> None:
        shop = Shop()
        shop.apply(migration("0002_sql", RunPython(by_sql)))
        assert shop.names() == ["by SQL"]

    where(run, main)


def test_a_transaction_of_the_caller_is_joined(shop_tables: str, run: Run) -> None:
    """As in a test case: what the migration did goes with the caller's rollback."""

    def main() -> None:
        shop = Shop()
        if shop_tables == "sqlite":
            with transaction.atomic(), pytest.raises(Exception, match="foreign key"):
                shop.apply(FILL)
            return
        with transaction.atomic():
            shop.apply(FILL)
            assert shop.item.objects.count() == 6
            transaction.set_rollback(True)
        assert shop.item.objects.count() == 0

    on_this_loop(run, main)
    with clean():
        pass
    main()


def test_the_editor_keeps_its_connection_in_a_migration_that_is_not_atomic(
    shop_tables: str, run: Run
) -> None:
    seen = []

    def note(apps: Any, schema_editor: Any) -> None:
        with connection.cursor() as cursor:
            if shop_tables == "postgresql":
                cursor.execute("SELECT pg_backend_pid(), current_setting('my.setting', true)")
            else:
                cursor.execute("PRAGMA foreign_keys")
            seen.append(cursor.fetchone())
        assert not connection.in_atomic_block

    async def elsewhere(apps: Any, schema_editor: Any) -> None:
        """Others use the pool meanwhile, and a block of its own is outside on purpose."""
        async with detached():
            await asyncio.gather(
                *(apps.get_model("shop", "Item").objects.acount() for _ in range(3))
            )
            if shop_tables == "postgresql":
                async with aatomic():
                    await apps.get_model("shop", "Item").objects.acreate(name="apart")

    operations: list[Any] = [RunPython(note), RunPython(elsewhere), RunPython(note)]
    if shop_tables == "postgresql":
        operations.insert(0, RunSQL("SET my.setting TO 'kept'"))
    not_atomic = migration("0002_mixed", *operations, atomic=False)
    after = migration("0003_atomic", RunPython(fail))

    def main() -> None:
        shop = Shop()
        shop.apply(not_atomic)
        assert seen[0] == seen[1]
        if shop_tables == "postgresql":
            assert seen[0][1] == "kept"
        else:
            assert seen[0] == (0,)
        # What comes after is in one transaction again.
        with pytest.raises(ZeroDivisionError):
            shop.apply(after)
        assert "lost" not in shop.names()

    on_this_loop(run, main)


def test_a_deferred_statement_that_fails_leaves_no_transaction_open(
    shop_tables: str, run: Run
) -> None:
    """Foreign keys are made (PostgreSQL) or checked (SQLite) last; stock forgets the rollback."""

    def main() -> None:
        shop = Shop()
        shop.fill(1)
        broken = migration(
            "0002_broken",
            AddField("Item", "parent", ForeignKey("shop.Item", CASCADE, default=4711)),
        )
        with pytest.raises(Exception, match=r"(?i)foreign key"):
            shop.apply(broken)
        assert not connection.in_atomic_block
        assert applied() == ["0001_initial"]
        if shop_tables == "sqlite":
            with connection.cursor() as cursor:
                cursor.execute("PRAGMA foreign_keys")
                assert cursor.fetchone() == (1,)
        shop.fill(1)
        assert shop.item.objects.count() == 2

    on_this_loop(run, main)
    with clean():
        pass
    main()


def test_a_cancellation_rolls_back(shop_tables: str, run: Run) -> None:
    begun = asyncio.Event()

    async def endless(apps: Any, schema_editor: Any) -> None:
        await apps.get_model("shop", "Item").objects.acreate(name="lost")
        begun.set()
        await asyncio.Event().wait()

    async def main() -> None:
        begun.clear()
        shop = await on_loop(Shop)()
        task = asyncio.create_task(
            on_loop(shop.apply)(migration("0002_endless", RunPython(endless)))
        )
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await on_loop(shop.names)() == []
        assert await on_loop(applied)() == ["0001_initial"]

    run(main)


def test_makemigrations_writes_async_functions_as_they_are() -> None:
    written, imports = OperationWriter(RunPython(add_items, RunPython.noop)).serialize()
    name = f"{__name__}.add_items"
    assert f"code={name}," in written
    assert "RunPython.noop" in written
    assert f"import {__name__}" in imports


def test_the_operation_keeps_its_function() -> None:
    operation = RunPython(add_items)
    assert operation.deconstruct()[2] == {"code": add_items}
    assert operation.code is add_items


def test_noop_and_sync_functions_are_as_ever(shop_tables: str, run: Run) -> None:
    calls = []

    def plain(apps: Any, schema_editor: Any) -> None:
        calls.append(apps.get_model("shop", "Item").objects.count())

    mixed = migration("0002_mixed", RunPython(plain, RunPython.noop))

    def main() -> None:
        shop = Shop()
        shop.apply(mixed)
        shop.unapply(mixed)

    on_this_loop(run, main)
    assert calls == [0]
