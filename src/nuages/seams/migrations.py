"""Migrations: async functions in RunPython, one connection for a migration, locks, backfills."""

from __future__ import annotations

import functools
import sys
from typing import Any

from nuages.db.migrations import backfill, editor, locks
from nuages.db.migrations.functions import with_sync_code
from nuages.seams.table import Seam


def _run_python(original: Any) -> Any:
    @functools.wraps(original)
    def run(self: Any, *args: Any) -> None:
        original(with_sync_code(self), *args)

    return run


def _enter(original: Any) -> Any:
    @functools.wraps(original)
    def __enter__(self: Any) -> Any:
        editor.begin(self)
        try:
            original(self)
        except BaseException:
            editor.end(self)
            raise
        try:
            locks.begin(self)
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    return __enter__


def _exit(original: Any) -> Any:
    @functools.wraps(original)
    def __exit__(self: Any, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        try:
            original(self, exc_type, exc_value, traceback)
        except BaseException:
            editor.close_block(self)
            raise
        finally:
            try:
                locks.end(self)
            finally:
                editor.end(self)

    return __exit__


def _apply(original: Any) -> Any:
    @functools.wraps(original)
    def apply_migration(
        self: Any, state: Any, migration: Any, fake: bool = False, fake_initial: bool = False
    ) -> Any:
        with backfill.running(migration):
            result = locks.repeated(
                migration, lambda make: original(self, make(state), migration, fake, fake_initial)
            )
        backfill.note_recorded(self.connection, migration)
        return result

    return apply_migration


def _unapply(original: Any) -> Any:
    @functools.wraps(original)
    def unapply_migration(self: Any, state: Any, migration: Any, fake: bool = False) -> Any:
        with backfill.running(migration):
            result = locks.repeated(
                migration, lambda make: original(self, make(state), migration, fake)
            )
        backfill.note_recorded(self.connection, migration)
        return result

    return unapply_migration


def _sqlite_exit(original: Any) -> Any:
    @functools.wraps(original)
    def __exit__(self: Any, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        try:
            original(self, exc_type, exc_value, traceback)
        except BaseException:
            # The editor's check of foreign keys comes before everything else.
            try:
                editor.close_block(self)
            finally:
                self.connection.enable_constraint_checking()
                editor.end(self)
            raise

    return __exit__


def seams() -> list[Seam]:
    """Return this area's seams."""
    run_python = (
        "An async function is run to its end, in the migration's transaction; stock Django makes "
        "its coroutine and drops it."
    )
    arguments = "(self, app_label, schema_editor, from_state, to_state)"
    special = "django.db.migrations.operations.special:RunPython"
    schema = "django.db.backends.base.schema:BaseDatabaseSchemaEditor"
    executor = "django.db.migrations.executor:MigrationExecutor"
    patience = (
        "A backfill knows the migration it belongs to; with --lock-timeout a migration that does "
        "not get its locks is tried again."
    )
    return [
        Seam(
            f"{executor}.apply_migration",
            patience,
            _apply,
            "(self, state, migration, fake=False, fake_initial=False)",
        ),
        Seam(
            f"{executor}.unapply_migration",
            patience,
            _unapply,
            "(self, state, migration, fake=False)",
        ),
        Seam(f"{special}.database_forwards", run_python, _run_python, arguments),
        Seam(f"{special}.database_backwards", run_python, _run_python, arguments),
        Seam(
            f"{schema}.__enter__",
            "A migration that is not atomic keeps one connection from its beginning to its end.",
            _enter,
            "(self)",
        ),
        Seam(
            f"{schema}.__exit__",
            "The connection goes back; a transaction whose deferred SQL fails is rolled back.",
            _exit,
            "(self, exc_type, exc_value, traceback)",
        ),
        Seam(
            "django.db.backends.sqlite3.schema:DatabaseSchemaEditor.__exit__",
            "As above where a foreign key is found broken, with the checks switched on again: the "
            "connection is a pool's.",
            _sqlite_exit,
            "(self, exc_type, exc_value, traceback)",
        ),
    ]
