"""`migrate --lock-timeout`: a schema change does not stall the site behind a long transaction."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.db.migrations import AddField, RunPython, RunSQL
from django.db.models import IntegerField

from nuages import on_loop
from nuages.db.migrations import Backfill
from nuages.db.migrations.locks import patience
from nuages.exceptions import MigrationLockTimeout, MigrationNotRepeatable
from tests.integration.conftest import Run
from tests.integration.migration_tools import Shop, applied, clean, migration
from tests.integration.pool_tools import server
from tests.integration.processes import Site, site_in
from tests.integration.scope_tools import observer
from tests.integration.test_migrate import INITIAL, PLAIN, add_shop

ADD = migration("0002_stock", AddField("Item", "stock", IntegerField(default=0)))
WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'shop_item'::regclass"


@pytest.fixture
def entry(postgresql: dict[str, Any]) -> Iterator[dict[str, Any]]:
    with clean():
        yield {k: connection.settings_dict[k] for k in PLAIN if connection.settings_dict.get(k)}


@asynccontextmanager
async def reading() -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A long transaction that has read the table: it holds ACCESS SHARE until it ends."""
    async with observer() as client:
        await client.execute("BEGIN")
        await client.execute("SELECT count(*) FROM shop_item")
        yield client
        await client.execute("ROLLBACK")


ADD_STOCK = """
    from django.db import migrations, models

    class Migration(migrations.Migration):
        dependencies = [("shop", "0001_initial")]
        operations = [migrations.AddField("Item", "stock", models.IntegerField(default=0))]
"""


def test_others_go_on_between_the_tries_and_it_succeeds_in_the_end(
    entry: dict[str, Any], tmp_path: Path
) -> None:
    """The whole of it, by `manage.py migrate`, as the server sees it."""

    async def main(site: Site) -> None:
        add_shop(site, entry, m0001_initial=INITIAL, m0002_stock=ADD_STOCK)
        await on_loop(Shop)()
        async with server() as watcher, observer() as visitor, reading() as long:
            command = site.start("migrate", "--lock-timeout", "0.2", "--lock-retries", "50")
            await watcher.until(WAITING, 1)
            # In the queue behind it: without the timeout this would not return.
            await visitor.execute("SELECT count(*) FROM shop_item")
            # Between two tries nothing waits, and the long transaction is still open.
            again = await asyncio.to_thread(command.wait_for, r"lock timeout; tried again in")
            assert "canceling statement due to" in again.string
            await watcher.until(WAITING, 0)
            await watcher.until(WAITING, 1)
            await visitor.execute("SELECT count(*) FROM shop_item")
            await long.execute("COMMIT")
            assert await asyncio.to_thread(command.end) == 0, command.output
            assert re.search(r"Applying shop\.0002_stock\.\.\. OK", command.output)
            await visitor.execute("SELECT stock FROM shop_item")

    with site_in(tmp_path) as site:
        asyncio.run(main(site))


def in_a_thread_of_its_own(function: Any, *args: Any) -> None:
    """Call sync code with a connection that is no pool's."""
    try:
        function(*args)
    finally:
        connection.close()


@pytest.mark.parametrize("where", ["loop", "outside"])
def test_without_success_the_error_says_what_to_do(
    entry: dict[str, Any], run: Run, where: str
) -> None:
    said: list[str] = []
    runs = 0

    def once_more(apps: Any, schema_editor: Any) -> None:
        nonlocal runs
        runs += 1
        apps.get_model("shop", "Item").objects.create(name="rolled back")

    both = migration("0002_both", RunPython(once_more), *ADD.operations)

    def migrate(shop: Shop) -> None:
        with patience(0.02, 2, said.append), pytest.raises(MigrationLockTimeout) as caught:
            shop.apply(both)
        assert "shop.0002_both did not get a lock within 0.02 s, 3 times" in str(caught.value)
        assert "pg_stat_activity" in str(caught.value)
        assert not connection.in_atomic_block
        assert shop.names() == []
        assert applied() == ["0001_initial"]

    async def main() -> None:
        shop = await on_loop(Shop)()
        async with reading():
            if where == "loop":
                await on_loop(migrate)(shop)
            else:
                await asyncio.to_thread(in_a_thread_of_its_own, migrate, shop)

    run(main)
    assert len(said) == 2
    assert runs == 3


def test_the_timeout_is_the_migration_s_only(entry: dict[str, Any], run: Run) -> None:
    seen = []

    def look(apps: Any, schema_editor: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SHOW lock_timeout")
            seen.append(cursor.fetchone()[0])

    def main() -> None:
        shop = Shop()
        with patience(1.5, 0, print):
            shop.apply(migration("0002", RunPython(look)))
            look(None, None)
            shop.apply(migration("0003", RunPython(look), atomic=False))
            look(None, None)
            shop.apply(migration("0004", RunPython(look, atomic=True), atomic=False))
            shop.fill(1)
            shop.apply(
                migration(
                    "0005", Backfill("Item", lambda apps, rows: look(None, None)), atomic=False
                )
            )
        look(None, None)

    run(on_loop(main))
    assert seen == ["1500ms", "0", "1500ms", "0", "1500ms", "1500ms", "0"]
    seen.clear()
    with clean():
        pass
    main()
    assert seen == ["1500ms", "0", "1500ms", "0", "1500ms", "1500ms", "0"]


def test_not_atomic_a_statement_is_repeated_where_it_stands(
    entry: dict[str, Any], run: Run
) -> None:
    """What came before it is not done again."""
    said: list[str] = []

    async def main() -> None:
        shop = await on_loop(Shop)()
        many = migration(
            "0002_many",
            RunSQL("INSERT INTO shop_item (name, price) VALUES ('once', 0)"),
            RunSQL("ALTER TABLE shop_item ADD COLUMN extra integer"),
            atomic=False,
        )
        async with server() as watcher, reading() as long:

            def migrate() -> None:
                with patience(0.1, 100, said.append):
                    shop.apply(many)

            task = asyncio.create_task(on_loop(migrate)())
            await watcher.until(WAITING, 1)
            await watcher.until(WAITING, 0)
            await watcher.until(WAITING, 1)
            await long.execute("COMMIT")
            await task
        assert await on_loop(shop.names)() == ["once"]
        assert said

    run(main)


def test_not_atomic_a_transaction_of_its_own_ends_it(entry: dict[str, Any], run: Run) -> None:
    def own(apps: Any, schema_editor: Any) -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("LOCK TABLE shop_item IN ACCESS EXCLUSIVE MODE")

    async def main() -> None:
        shop = await on_loop(Shop)()

        def migrate() -> None:
            with (
                patience(0.02, 5, print),
                pytest.raises(
                    MigrationNotRepeatable,
                    match=r"shop\.0002_own has `atomic = False`.*has been committed",
                ),
            ):
                shop.apply(migration("0002_own", RunPython(own), atomic=False))

        async with reading():
            await on_loop(migrate)()

    run(main)


def test_an_index_built_concurrently_waits_for_as_long_as_it_takes(
    entry: dict[str, Any], run: Run
) -> None:
    """It stands in nobody's way, and interrupted it would leave an invalid index."""

    async def main() -> None:
        shop = await on_loop(Shop)()
        index = migration(
            "0002_index", RunSQL("CREATE INDEX CONCURRENTLY shop_price ON shop_item (price)"),
            RunSQL("SELECT set_config('my.timeout', current_setting('lock_timeout'), false)"),
            atomic=False,
        )  # fmt: skip
        said: list[str] = []
        async with server() as watcher, observer() as old:
            await old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            await old.execute("UPDATE shop_item SET price = 1")

            def migrate() -> None:
                with patience(0.05, 0, said.append):
                    shop.apply(index)

            task = asyncio.create_task(on_loop(migrate)())
            await watcher.until_running("CREATE INDEX CONCURRENTLY")
            waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            await watcher.until(waits, 1)
            await watcher.value("SELECT pg_sleep(0.15)")  # three times the timeout, on the server
            assert await watcher.value(waits) == 1
            await old.execute("COMMIT")
            await task
            valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'shop_price'::regclass"
            assert await watcher.value(valid) is True
        assert said == []

    run(main)


def test_other_errors_are_not_tried_again(entry: dict[str, Any], run: Run) -> None:
    said: list[str] = []

    def main() -> None:
        shop = Shop()
        with patience(1, 5, said.append), pytest.raises(Exception, match="does not exist"):
            shop.apply(migration("0002_wrong", RunSQL("ALTER TABLE nowhere ADD a integer")))

    run(on_loop(main))
    assert said == []


def test_pauses_grow_and_are_spread() -> None:
    from nuages.db.migrations.locks import LONGEST_PAUSE, Patience

    pauses = list(Patience(1.0, 10, print).pauses())
    for number, pause in enumerate(pauses):
        middle = min(2**number, LONGEST_PAUSE)
        assert 0.5 * middle <= pause <= 1.5 * middle
    assert len(pauses) == 10


def test_sqlite_has_no_such_timeout(sqlite: dict[str, Any]) -> None:
    with pytest.raises(CommandError, match=r"PostgreSQL's; 'default' is sqlite.*OPTIONS"):
        call_command("migrate", lock_timeout=1.0)


@pytest.mark.parametrize("wrong", ["--lock-timeout=0", "--lock-timeout=x", "--lock-retries=-1"])
def test_wrong_options(sqlite: dict[str, Any], wrong: str) -> None:
    with pytest.raises(CommandError, match="argument --lock"):
        call_command("migrate", wrong)
