"""`manage.py migrate`: on the loop as a program, where the caller is when it is called."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from tests.integration.migration_tools import applied, clean
from tests.integration.processes import Site, site_in

INITIAL = """
    from django.db import migrations, models

    class Migration(migrations.Migration):
        initial = True
        operations = [
            migrations.CreateModel("Item", [
                ("id", models.BigAutoField(primary_key=True)),
                ("name", models.CharField(max_length=50)),
                ("price", models.IntegerField(default=0)),
            ]),
        ]
"""
FILL = """
    import asyncio
    import sys
    import threading

    from django.db import migrations

    async def fill(apps, schema_editor):
        "Fills the shop."
        Item = apps.get_model("shop", "Item")
        alias = schema_editor.connection.alias
        await asyncio.gather(*(Item.objects.using(alias).acreate(name=str(n)) for n in range(3)))
        print("LOOP", type(asyncio.get_running_loop()).__module__, flush=True)
        print("MAIN", threading.current_thread() is threading.main_thread(), flush=True)

    async def empty(apps, schema_editor):
        await apps.get_model("shop", "Item").objects.all().adelete()

    class Migration(migrations.Migration):
        dependencies = [("shop", "0001_initial")]
        operations = [migrations.RunPython(fill, empty)]
"""


def add_shop(site: Site, entry: dict[str, Any], **migrations: str) -> None:
    """Give the site the app `shop` with these migrations, and the database `entry`."""
    databases = {"default": {**entry, "OPTIONS": {}}}
    site.settings(
        f"""
        INSTALLED_APPS = ["shop", "nuages"]
        DATABASES = {databases!r}
        MIGRATION_MODULES = {{}}
        ROOT_URLCONF = "tests.urls"
        """
    )
    for name in ("shop/__init__.py", "shop/migrations/__init__.py"):
        site.write(name, "")
    site.write(
        "shop/models.py",
        """
        from django.db import models

        class Item(models.Model):
            name = models.CharField(max_length=50)
            price = models.IntegerField(default=0)
        """,
    )
    for name, text in migrations.items():
        site.write(f"shop/migrations/{name.lstrip('m')}.py", text)


PLAIN = ("NAME", "HOST", "PORT", "USER", "PASSWORD", "ENGINE")


@pytest.fixture
def entry(database: str) -> Iterator[dict[str, Any]]:
    """The DATABASES entry of each database in turn; the shop's tables are dropped afterwards."""
    with clean():
        yield {k: connection.settings_dict[k] for k in PLAIN if connection.settings_dict.get(k)}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with site_in(tmp_path) as made:
        yield made


def names() -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM shop_item ORDER BY name")
        return [name for (name,) in cursor.fetchall()]


PROGRAM = """
    import sys
    from django.core.management import execute_from_command_line

    for line in sys.argv[1:]:
        code = 0
        try:
            execute_from_command_line(["manage.py", *line.split()])
        except SystemExit as end:
            code = end.code
        print("EXIT", line, code, flush=True)
"""


def run(site: Site, *lines: str, code: int = 0) -> str:
    """Run commands one after another in one process, as `manage.py` runs each."""
    path = site.write("program.py", PROGRAM)
    done = subprocess.run(
        [sys.executable, str(path), *lines],
        env=site.environment,
        cwd=site.folder,
        stdin=site.keeping,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=50,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def test_it_runs_on_the_loop_forwards_and_back(site: Site, entry: dict[str, Any]) -> None:
    add_shop(site, entry, m0001_initial=INITIAL, m0002_fill=FILL)
    output = run(
        site,
        "migrate --plan",
        "migrate",
        "migrate --check",
        "migrate shop 0001",
        "migrate --check",
        "migrate",
        "sqlmigrate shop 0002",
        "squashmigrations --noinput shop 0002",
    )
    assert "Raw Python operation -> Fills the shop." in output
    assert output.count("LOOP uvloop") == output.count("MAIN True") == 2, output
    assert "Applying shop.0002_fill..." in output
    assert "EXIT migrate --check 0\n" in output
    assert "Unapplying shop.0002_fill... OK" in output
    assert "EXIT migrate --check 1\n" in output
    assert "CANNOT BE WRITTEN AS SQL" in output
    assert names() == ["0", "1", "2"]
    (squashed,) = (site.folder / "shop" / "migrations").glob("0001*squashed*.py")
    assert "code=shop.migrations.0002_fill.fill" in squashed.read_text()


def test_a_foreign_engine_is_migrated_as_in_stock(site: Site, tmp_path: Path) -> None:
    entry = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "foreign.sqlite3")}
    add_shop(site, entry, m0001_initial=INITIAL, m0002_fill=FILL)
    output = run(site, "migrate")
    assert "Applying shop.0002_fill..." in output
    assert "MAIN False" in output  # its async function has a loop of its own


def test_another_database_than_the_default_one(
    site: Site, entry: dict[str, Any], tmp_path: Path
) -> None:
    """The function's queries, and a Backfill's, go where its schema editor is."""
    add_shop(site, entry, m0001_initial=INITIAL, m0002_fill=FILL, m0003_backfill=OTHER)
    path = tmp_path / "other.sqlite3"
    other = {"ENGINE": "nuages.db.backends.sqlite3", "NAME": str(path)}
    site.settings(f'DATABASES["other"] = {other!r}')
    run(site, "migrate --database other")
    with closing(sqlite3.connect(path)) as client:
        found = client.execute("SELECT name, price FROM shop_item ORDER BY name").fetchall()
    assert found == [("0", 1), ("1", 1), ("2", 1)]
    with connection.cursor() as cursor:
        assert "shop_item" not in connection.introspection.table_names(cursor)


OTHER = """
    from django.db import migrations
    from django.db.models import F
    from nuages.db.migrations import Backfill

    async def count(apps, rows):
        async for row in rows:
            row.price += 1
            await row.asave()

    class Migration(migrations.Migration):
        atomic = False
        dependencies = [("shop", "0002_fill")]
        operations = [Backfill("Item", count, batch_size=2)]
"""
WAITING = """
    import asyncio

    from django.db import migrations

    async def wait(apps, schema_editor):
        await apps.get_model("shop", "Item").objects.acreate(name="lost")
        print("WAITING", flush=True)
        await asyncio.Event().wait()

    class Migration(migrations.Migration):
        dependencies = [("shop", "0001_initial")]
        operations = [migrations.RunPython(wait)]
"""


def test_ctrl_c_rolls_back_and_ends_as_django_s(site: Site, entry: dict[str, Any]) -> None:
    add_shop(site, entry, m0001_initial=INITIAL, m0002_wait=WAITING)
    command = site.start("migrate")
    command.wait_for("WAITING")
    assert command.end(signal.SIGINT) == -signal.SIGINT  # 130 in a shell
    assert "KeyboardInterrupt" in command.output
    assert names() == []
    assert applied() == ["0001_initial"]


BROKEN = """
    from django.db import migrations

    async def fail(apps, schema_editor):
        await apps.get_model("shop", "Item").objects.acreate(name="lost")
        raise ZeroDivisionError("on purpose")

    class Migration(migrations.Migration):
        dependencies = [("shop", "0001_initial")]
        operations = [migrations.RunPython(fail)]
"""


def test_an_error_is_shown_as_usual(site: Site, entry: dict[str, Any]) -> None:
    add_shop(site, entry, m0001_initial=INITIAL, m0002_broken=BROKEN)
    output = run(site, "migrate", code=1)
    assert "Traceback" in output
    assert output.rstrip().endswith("ZeroDivisionError: on purpose")
    assert "CancelledError" not in output
    assert names() == []
    assert applied() == ["0001_initial"]


CALLS = """
    import asyncio, json, sys
    import django
    django.setup()
    from django.core.management import call_command
    from nuages import on_loop

    def migrate(*arguments):
        call_command("migrate", *arguments, verbosity=0)

    async def main():
        await on_loop(migrate)()
        await on_loop(migrate)("shop", "zero")

    asyncio.run(main())
    migrate()
    migrate("shop", "zero")
    migrate()
"""


def test_call_command_works_in_a_bridge_and_in_sync_code(
    site: Site, entry: dict[str, Any]
) -> None:
    add_shop(site, entry, m0001_initial=INITIAL, m0002_fill=FILL)
    site.write("calls.py", CALLS)
    done = subprocess.run(
        [sys.executable, "calls.py"],
        env=site.environment,
        cwd=site.folder,
        stdin=site.keeping,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:4] == [
        "LOOP asyncio.unix_events", "MAIN True",
        "LOOP asyncio.unix_events", "MAIN False",
    ]  # fmt: skip
    assert names() == ["0", "1", "2"]
