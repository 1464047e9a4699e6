"""A Backfill that is killed half-way and taken up again. `make backfill`: a million rows, figures.

Rows are locked from outside so that every worker stands in the middle of a batch when the process
is killed, whatever the machine's speed.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tests import services
from tests.integration.processes import Command, Site, site_in

ROWS = int(os.environ.get("NUAGES_BACKFILL_ROWS", "20000"))
BATCH = max(ROWS // 500, 100)
WORKERS = 4
NAIVE = ROWS // 50
"""Rows of the loops it is compared with; they would take too long for all."""
GROWTH = 16 * 2**20
"""Bytes by which the process may grow while it works, whatever the number of rows."""

INITIAL = """
    from django.db import migrations, models

    FIELDS = [
        ("id", models.BigAutoField(primary_key=True)),
        ("name", models.CharField(max_length=50)),
        ("changes", models.IntegerField(default=0)),
    ]

    class Migration(migrations.Migration):
        initial = True
        operations = [
            migrations.CreateModel(name, FIELDS) for name in ("Item", "Whole", "Saved", "Updated")
        ]
"""
BACKFILL = """
    from django.db import migrations
    from django.db.models import F
    from django.db.models.functions import Upper
    from nuages.db.migrations import Backfill

    class Migration(migrations.Migration):
        atomic = False
        dependencies = [("shop", {before!r})]
        operations = [
            Backfill(
                {model!r}, {{"name": Upper("name"), "changes": F("changes") + 1}},
                batch_size={batch}, concurrency={workers},
            ),
        ]
"""
NAIVELY = """
    import time

    from django.db import migrations
    from django.db.models import F
    from django.db.models.functions import Upper

    def save(apps, schema_editor):
        begun = time.perf_counter()
        for row in apps.get_model("shop", "Saved").objects.iterator():
            row.name = row.name.upper()
            row.changes += 1
            row.save()
        print(f"SAVED {time.perf_counter() - begun}")

    def update(apps, schema_editor):
        begun = time.perf_counter()
        rows = apps.get_model("shop", "Updated").objects
        for key in rows.values_list("pk", flat=True).iterator():
            rows.filter(pk=key).update(name=Upper("name"), changes=F("changes") + 1)
        print(f"UPDATED {time.perf_counter() - begun}")

    class Migration(migrations.Migration):
        dependencies = [("shop", "0003_whole")]
        operations = [migrations.RunPython(save), migrations.RunPython(update)]
"""
SETTINGS = """
    import os
    INSTALLED_APPS = ["shop", "nuages"]
    DATABASES = {{"default": {{
        "ENGINE": os.environ.get("ENGINE", "nuages.db.backends.postgresql"), **{entry!r}
    }}}}
    MIGRATION_MODULES = {{}}
    ROOT_URLCONF = "tests.urls"
"""


@pytest.fixture
def database(postgres_url: str) -> Iterator[str]:
    with services.fresh_database(postgres_url) as url:
        yield url


@pytest.fixture
def site(tmp_path: Path, database: str) -> Iterator[Site]:
    parts = conninfo_to_dict(database)
    entry = {
        "NAME": parts["dbname"],
        "HOST": parts["host"],
        "PORT": parts.get("port", ""),
        "USER": parts["user"],
        "PASSWORD": parts.get("password", ""),
    }
    with site_in(tmp_path) as made:
        made.settings(SETTINGS.format(entry=entry))
        for name in ("shop/__init__.py", "shop/migrations/__init__.py", "shop/models.py"):
            made.write(name, "")
        made.write("shop/migrations/0001_initial.py", INITIAL)
        for number, model, before in (
            ("0002_item", "Item", "0001_initial"),
            ("0003_whole", "Whole", "0002_item"),
        ):
            text = BACKFILL.format(model=model, before=before, batch=BATCH, workers=WORKERS)
            made.write(f"shop/migrations/{number}.py", text)
        made.write("shop/migrations/0004_naively.py", NAIVELY)
        yield made


class Memory(threading.Thread):
    """Samples the resident memory of a command while its backfill runs."""

    def __init__(self, command: Command, client: psycopg.Connection[Any]) -> None:
        super().__init__()
        self.process = psutil.Process(command.process.pid)
        self.client = client
        self.samples: list[int] = []
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.02):
            try:
                size = self.process.memory_info().rss
            except psutil.NoSuchProcess:
                return
            # From its first batch on; what comes before is Django's start.
            if self.samples or value(self.client, UNDER_WAY):
                self.samples.append(size)


UNDER_WAY = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND query LIKE 'UPDATE "shop_item"%'
"""


TAKEN = """
    SELECT extract(epoch FROM finished - started) FROM nuages_backfill
    WHERE key = 'shop.0003_whole'
"""


def value(client: psycopg.Connection[Any], sql: str) -> Any:
    row = client.execute(sql).fetchone()  # type: ignore[call-overload]
    return None if row is None else row[0]


def until(client: psycopg.Connection[Any], sql: str, wanted: Any) -> None:
    """Ask the server until the query's value is `wanted`."""
    end = time.monotonic() + 300
    while (found := value(client, sql)) != wanted:
        assert time.monotonic() < end, f"{sql} gave {found!r}, not {wanted!r}"
        time.sleep(0.005)


def migrate(site: Site, *arguments: str) -> Command:
    return site.start("migrate", "shop", *arguments)


def ended(command: Command) -> str:
    assert command.end(timeout=1500) == 0, command.output
    return command.output


@pytest.mark.timeout(1800)
def test_it_is_killed_half_way_and_every_row_is_changed_once(site: Site, database: str) -> None:
    ended(migrate(site, "0001", "-v", "0"))
    with psycopg.connect(database, autocommit=True) as client:
        for table, count in (
            *((name, ROWS) for name in ("item", "whole")),
            *((name, NAIVE) for name in ("saved", "updated")),
        ):
            client.execute(
                f"INSERT INTO shop_{table} (name, changes) "
                f"SELECT 'item ' || n, 0 FROM generate_series(1, {count}) n"
            )
        client.execute("VACUUM ANALYZE")

        # Killed in the middle of four batches.
        first = migrate(site, "0002")
        with psycopg.connect(database) as blocker:
            for worker in range(WORKERS):
                key = ROWS // 2 + 1 + worker * BATCH
                blocker.execute(f"SELECT 1 FROM shop_item WHERE id = {key} FOR UPDATE")
            until(client, f"{UNDER_WAY} AND wait_event_type = 'Lock'", WORKERS)
            first.process.send_signal(signal.SIGKILL)
            first.process.wait()
        until(client, UNDER_WAY, 0)
        killed_at = value(client, "SELECT count(*) FROM shop_item WHERE changes = 1")
        assert killed_at == ROWS // 2
        assert value(client, "SELECT count(*) FROM nuages_backfill_range") == WORKERS

        # Taken up again.
        # Then another table from end to end, for the rate.
        second = migrate(site, "0003")
        memory = Memory(second, client_of_its_own(database))
        memory.start()
        output = ended(second)
        memory.ended.set()
        memory.join()
        memory.client.close()
        assert f"{ROWS:,} of {ROWS:,} rows (100%)" in output
        wrong = "SELECT count(*) FROM shop_item WHERE changes <> 1 OR name <> upper(name)"
        assert value(client, wrong) == 0
        assert value(client, "SELECT count(*) FROM nuages_backfill_range") == 0

        assert value(client, wrong.replace("shop_item", "shop_whole")) == 0
        seconds = float(value(client, TAKEN))

        # The loops it is compared with, on Django's own engine.
        site.environment["ENGINE"] = "django.db.backends.postgresql"
        output = ended(migrate(site, "0004"))
        for table in ("saved", "updated"):
            assert value(client, f"SELECT count(*) FROM shop_{table} WHERE changes <> 1") == 0
    saved, updated = (
        NAIVE / float(output.partition(f"{word} ")[2].split()[0]) for word in ("SAVED", "UPDATED")
    )
    start, peak = memory.samples[0], max(memory.samples)
    rate = ROWS / seconds
    print(
        f"\nkilled after {killed_at:,} of {ROWS:,} rows, in {WORKERS} batches of {BATCH:,}; "
        f"taken up again: every row changed once\n"
        f"memory {start / 2**20:.1f} MiB at its first batch, {peak / 2**20:.1f} MiB at most\n"
        f"{rate:,.0f} rows/s; row.save() in a loop {saved:,.0f} (Backfill is {rate / saved:.1f} "
        f"times as fast), update() of each row {updated:,.0f} ({rate / updated:.1f} times)"
    )
    assert peak - start < GROWTH
    assert rate > saved


def client_of_its_own(database: str) -> psycopg.Connection[Any]:
    return psycopg.connect(database, autocommit=True)
