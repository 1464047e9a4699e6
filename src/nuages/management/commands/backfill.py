"""`manage.py backfill`: what the backfills of the project's migrations have done, and will do."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.migrations.loader import AmbiguityError, MigrationLoader

from nuages.db.migrations import backfill, checkpoint
from nuages.db.migrations.report import Report, reporting
from nuages.exceptions import BackfillError
from nuages.management.program import LoopProgram


class Command(LoopProgram, BaseCommand):
    """Lists backfills; counts, runs or resets those of one migration."""

    help = (
        "Lists the Backfill operations of all migrations, or of one, with what they have done. "
        "Those of a migration that comes next can be counted, run ahead of it, and reset."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Which migration, and what to do with it."""
        parser.add_argument("app_label", nargs="?", help="App label of a migration.")
        parser.add_argument("migration_name", nargs="?", help="The migration's name, or prefix.")
        parser.add_argument(
            "--database",
            default=DEFAULT_DB_ALIAS,
            choices=tuple(connections),
            help='The database (default: "default").',
        )
        what = parser.add_mutually_exclusive_group()
        what.add_argument(
            "--dry-run", action="store_true", help="Count rows and batches; change nothing."
        )
        what.add_argument(
            "--run",
            action="store_true",
            help="Do it now, ahead of `migrate`, which then finds it done.",
        )
        what.add_argument(
            "--reset",
            action="store_true",
            help="Forget what is done: the next run changes every row, those that were changed "
            "once more.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """List, count, run or reset."""
        self.alias: str = options["database"]
        connection = connections[self.alias]
        loader = MigrationLoader(connection)
        label, name = options["app_label"], options["migration_name"]
        if label is None or name is None:
            if options["dry_run"] or options["run"] or options["reset"]:
                raise CommandError("Name one migration: backfill APP_LABEL MIGRATION_NAME.")
            self.list(loader, label)
            return
        migration = self.find(loader, label, name)
        try:
            if options["reset"]:
                checkpoint.forget(connection.alias, list(backfill.keys_of(migration).values()))
                self.stdout.write(f"What {migration} has done is forgotten.")
            elif options["dry_run"] or options["run"]:
                report = Report(self.stdout, self.stderr, options["verbosity"])
                with reporting(report):
                    self.work(loader, migration, dry=options["dry_run"])
            else:
                self.show(loader, migration)
        except BackfillError as error:
            raise CommandError(str(error)) from error

    def find(self, loader: MigrationLoader, label: str, name: str) -> Any:
        """Return the migration meant; raises CommandError."""
        try:
            migration = loader.get_migration_by_prefix(label, name)
        except AmbiguityError as error:
            raise CommandError(
                f"More than one migration of {label!r} matches {name!r}."
            ) from error
        except KeyError as error:
            raise CommandError(f"{label!r} has no migration that matches {name!r}.") from error
        if not backfill.backfills_of(migration):
            raise CommandError(f"{migration} has no Backfill.")
        return migration

    def list(self, loader: MigrationLoader, label: str | None) -> None:
        """Show the backfills of all migrations, or of one app."""
        if label is not None:
            try:
                apps.get_app_config(label)
            except LookupError as error:
                raise CommandError(str(error)) from error
        shown = False
        for (app, _), migration in sorted(loader.disk_migrations.items()):
            if label in (None, app) and backfill.backfills_of(migration):
                self.show(loader, migration)
                shown = True
        if not shown:
            self.stdout.write("No migration has a Backfill.")

    def show(self, loader: MigrationLoader, migration: Any) -> None:
        """Write a line for each backfill of a migration."""
        alias = self.alias
        applied = (migration.app_label, migration.name) in loader.applied_migrations
        for operation, key in backfill.keys_of(migration).items():
            states = [_state(found) for found in checkpoint.find(alias, key) if not found.over]
            state = ", ".join(states) or ("done" if applied else "not begun")
            mark = "X" if applied else " "
            self.stdout.write(f"[{mark}] {key}: {operation.describe()}: {state}")

    def work(self, loader: MigrationLoader, migration: Any, *, dry: bool) -> None:
        """Count or run the backfills that a migration begins with."""
        connection = connections[self.alias]
        key = (migration.app_label, migration.name)
        if key in loader.applied_migrations:
            raise CommandError(f"{migration} is applied already.")
        missing = [
            ".".join(parent)
            for parent in loader.graph.forwards_plan(key)[:-1]
            if parent not in loader.applied_migrations
        ]
        if missing:
            raise CommandError(f"{migration} comes after {', '.join(missing)}: apply that first.")
        keys = backfill.keys_of(migration)
        left = len(keys)
        state = loader.project_state(key, at_end=False)
        for operation in migration.operations:
            if operation not in keys:
                raise CommandError(
                    f"{migration} changes something else first ({operation.describe()}), so it "
                    "cannot run ahead. Give the Backfill a migration of its own."
                )
            label = migration.app_label
            if dry:
                divided = operation.divided(label, state.apps, connection.alias)
                rows = divided.rows.count()
                batches = -(-rows // operation.batch_size)
                self.stdout.write(
                    f"{keys[operation]}: {operation.describe()}: {rows:,} rows in {batches:,} "
                    "batches; nothing was changed"
                )
            else:
                backfill.run(operation, keys[operation], migration, label, connection, state.apps)
            left -= 1
            if not left:
                return


def _state(found: checkpoint.Checkpoint) -> str:
    way = "backwards, " if found.backwards else ""
    if found.finished:
        return f"{way}finished, {found.claimed:,} rows"
    return f"{way}{checkpoint.done_rows(found):,} of {found.total:,} rows done"
