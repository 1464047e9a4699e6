"""Migrations made in a test, of an app that exists only there: `shop`, with one model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection, connections, models
from django.db.migrations import CreateModel, Migration
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.state import ProjectState

FIELDS = [
    ("id", models.BigAutoField(primary_key=True)),
    ("name", models.CharField(max_length=50)),
    ("price", models.IntegerField(default=0)),
]


def migration(name: str, *operations: Any, atomic: bool = True) -> Migration:
    body = {"operations": list(operations), "atomic": atomic}
    return type("Migration", (Migration,), body)(name, "shop")


class Shop:
    """The app: its state after the migrations that were applied."""

    def __init__(self, fields: Any = FIELDS) -> None:
        self.state = ProjectState()
        self.states: list[ProjectState] = []
        self.apply(migration("0001_initial", CreateModel("Item", fields)))

    @property
    def item(self) -> Any:
        return self.state.apps.get_model("shop", "Item")

    def apply(self, *migrations: Migration, alias: str = "default") -> None:
        for one in migrations:
            before = self.state.clone()
            executor = MigrationExecutor(connections[alias])
            self.state = executor.apply_migration(self.state.clone(), one)
            self.states.append(before)

    def unapply(self, one: Migration) -> None:
        before = self.states.pop()
        MigrationExecutor(connection).unapply_migration(before.clone(), one)
        self.state = before

    def fill(self, count: int) -> None:
        self.item.objects.bulk_create(self.item(name=f"item {n}") for n in range(count))

    def names(self) -> list[str]:
        return list(self.item.objects.order_by("pk").values_list("name", flat=True))


def applied() -> list[str]:
    recorder = MigrationExecutor(connection).recorder
    return sorted(name for app, name in recorder.applied_migrations() if app == "shop")


@contextmanager
def clean() -> Iterator[None]:
    """Drop the app's tables and records afterwards, from outside of any loop."""
    try:
        yield
    finally:
        with connection.constraint_checks_disabled(), connection.cursor() as cursor:
            tables = connection.introspection.table_names(cursor)
            for table in tables:
                if table.startswith(("shop_", "nuages_backfill")):
                    cascade = " CASCADE" if connection.vendor == "postgresql" else ""
                    cursor.execute(f"DROP TABLE {connection.ops.quote_name(table)}{cascade}")
            if "django_migrations" in tables:
                cursor.execute("DELETE FROM django_migrations WHERE app = 'shop'")
