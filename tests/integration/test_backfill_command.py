"""`manage.py backfill`, and what `migrate` shows of a Backfill."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.db import connection

from tests.integration.migration_tools import applied, clean
from tests.integration.processes import Site, site_in
from tests.integration.test_migrate import INITIAL, PLAIN, add_shop, names, run

FILL = """
    from django.db import migrations

    def fill(apps, schema_editor):
        Item = apps.get_model("shop", "Item")
        Item.objects.bulk_create(Item(name=f"item {n}") for n in range(5))

    class Migration(migrations.Migration):
        dependencies = [("shop", "0001_initial")]
        operations = [migrations.RunPython(fill, migrations.RunPython.noop)]
"""
BACKFILL = """
    from django.db import migrations
    from django.db.models import F
    from django.db.models.functions import Upper
    from nuages.db.migrations import Backfill
    from nuages.stopping import wait_for_stop

    class Migration(migrations.Migration):
        atomic = False
        dependencies = [("shop", "0002_fill")]
        operations = [
            Backfill("Item", {"name": Upper("name"), "price": F("price") + 1}, batch_size=2),
        ]
"""


@pytest.fixture
def site(tmp_path: Path, database: str) -> Iterator[Site]:
    with clean(), site_in(tmp_path) as made:
        entry = {k: connection.settings_dict[k] for k in PLAIN if connection.settings_dict.get(k)}
        add_shop(made, entry, m0001_initial=INITIAL, m0002_fill=FILL, m0003_backfill=BACKFILL)
        yield made


def test_it_is_counted_run_ahead_shown_and_reset(site: Site) -> None:
    what = "shop.0003_backfill: Backfill Item: name, price, 2 rows a batch"
    expected = [
        ("backfill shop 0003 --dry-run", "comes after shop.0001_initial, shop.0002_fill: apply"),
        ("migrate shop 0002", "Applying shop.0002_fill... OK"),
        ("backfill", f"[ ] {what}: not begun"),
        ("backfill shop 0003 --dry-run", f"{what}: 5 rows in 3 batches; nothing was changed"),
        ("backfill shop 0003 --run", "shop.0003_backfill: 5 of 5 rows (100%)"),
        ("backfill shop 0003", f"[ ] {what}: finished, 5 rows"),
        ("migrate --plan", "Backfill Item: name, price, 2 rows a batch"),
        ("migrate", "Applying shop.0003_backfill... OK"),  # it finds it done
        ("backfill", f"[X] {what}: done"),
        ("backfill shop 0003 --run", "shop.0003_backfill is applied already"),
        ("migrate --plan shop 0002", "Backfill Item: name, price, 2 rows a batch -> IRREVERSIBLE"),
        ("backfill shop 0003 --reset", "What shop.0003_backfill has done is forgotten"),
        ("backfill shop 0001", "shop.0001_initial has no Backfill"),
        ("backfill shop 0009", "no migration that matches '0009'"),
        ("backfill nowhere", "No installed app with label 'nowhere'"),
        ("backfill --run", "Name one migration"),
    ]
    output = run(site, *(line for line, _ in expected))
    for line, text in expected:
        told, found, output = output.partition(f"EXIT {line} ")
        assert found, line
        assert text in told
    with connection.cursor() as cursor:
        cursor.execute("SELECT DISTINCT price FROM shop_item")
        assert cursor.fetchall() == [(1,)]  # migrate found it done
    assert names() == [f"ITEM {n}" for n in range(5)]


WAITING = BACKFILL.replace(
    """{"name": Upper("name"), "price": F("price") + 1}, batch_size=2""", """wait, batch_size=2"""
).replace(
    """    class Migration""",
    """
    async def wait(apps, rows):
        await rows.aupdate(price=F("price") + 1)
        print("WORKING", flush=True)
        await wait_for_stop()  # the signal: the batch has not ended when it comes

    class Migration""",
).replace('"Item", wait', '"Item", wait, concurrency=1')  # fmt: skip


def test_ctrl_c_ends_between_batches_and_says_so(site: Site) -> None:
    site.write("shop/migrations/0003_backfill.py", WAITING)
    command = site.start("migrate")
    command.wait_for("WORKING")
    assert command.end(signal.SIGINT) == -signal.SIGINT
    assert "Stopped between batches, with 2 of 5 rows done; the next run goes on" in command.output
    with connection.cursor() as cursor:
        cursor.execute("SELECT price FROM shop_item ORDER BY id")
        assert cursor.fetchall() == [(1,), (1,), (0,), (0,), (0,)]
    assert applied() == ["0001_initial", "0002_fill"]
