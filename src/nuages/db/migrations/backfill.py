"""`Backfill`: the migration operation that changes the rows of a large table in batches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from asgiref.sync import async_to_sync
from django.db import router
from django.db.migrations.operations.base import Operation, OperationCategory
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import Q

from nuages.bridge import current_bridge, on_loop
from nuages.bridge.portal import run_steps
from nuages.db.backends.base.base import LoopWrapper
from nuages.db.migrations import checkpoint
from nuages.db.migrations.batches import Batches, Work
from nuages.db.migrations.checkpoint import Divided
from nuages.exceptions import BackfillError

if TYPE_CHECKING:
    from django.db.backends.base.schema import BaseDatabaseSchemaEditor
    from django.db.migrations.state import ProjectState

# Any: a historical model has the fields of its time, which no checker knows.
Change = dict[str, Any] | Callable[[Any, Any], object]
"""Fields with their new values, or a function of the historical apps and the batch's rows."""
Wait = Callable[[], float | Awaitable[float | None] | None]


class Backfill(Operation):
    """Change the rows of a large table in batches, in a migration with `atomic = False`.

    `Backfill("article", {"slug": Lower("title")})`: `update` is a dict of fields and values or
    expressions, one UPDATE for each batch; or a function, `async def` or not, that gets the
    historical apps and a queryset of the batch's rows, ordered by primary key.

    * `where`: a Q; only rows that fulfil it are counted and changed.
    * `reverse`: the same for migrating backwards, for all rows, or those of `reverse_where`;
      `Backfill.noop` does nothing. Without it the operation is irreversible.
    * `batch_size`: rows in a batch, which is a transaction: their locks are held that long.
    * `concurrency`: batches at once, each on a connection of the pool; SQLite does one.
    * `load`: the part of the time in which each of these works (above 0, up to 1); between batches
      it rests in proportion.
    * `wait`: a function, `async def` or not, asked before each batch: it returns the seconds to
      wait before it is asked again, or 0 (None, False) to go on. For the lag of a replica, say.
    * `name`: of the checkpoint, by default the migration's.
    * `hints`, `elidable`: as for RunPython.

    Batches are by primary key, up to the last key at the start: rows that are added later are not
    changed, so first deploy code that fills them. Progress is kept in the database with each
    batch: after a crash, or Ctrl-C, the next `migrate` goes on, and every row is changed exactly
    once. Processes that migrate at the same time share the work. Raises BackfillError where it
    cannot run.
    """

    reduces_to_sql = False
    category = OperationCategory.PYTHON

    def __init__(
        self,
        model_name: str,
        update: Change,
        where: Q | None = None,
        reverse: Change | None = None,
        reverse_where: Q | None = None,
        batch_size: int = 1000,
        concurrency: int = 4,
        load: float = 1.0,
        wait: Wait | None = None,
        name: str | None = None,
        hints: dict[str, Any] | None = None,
        elidable: bool = False,
    ) -> None:
        changes: dict[str, Any] = {"update": update, "reverse": reverse}
        for argument, change in changes.items():
            if change is None and argument == "reverse":
                continue
            if not (callable(change) or (isinstance(change, dict) and change)):
                raise ValueError(
                    f"Backfill's {argument} must be a dict of fields and values, or a function of "
                    f"apps and rows, not {change!r}."
                )
        conditions: tuple[tuple[str, Any], ...] = (
            ("where", where),
            ("reverse_where", reverse_where),
        )
        for argument, condition in conditions:
            if condition is not None and not isinstance(condition, Q):
                raise ValueError(f"Backfill's {argument} must be a Q, not {condition!r}.")
        numbers: dict[str, Any] = {"batch_size": batch_size, "concurrency": concurrency}
        for argument, number in numbers.items():
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"Backfill's {argument} must be 1 or more, not {number!r}.")
        if not 0 < load <= 1:
            raise ValueError(f"Backfill's load must be above 0 and up to 1, not {load!r}.")
        if wait is not None and not callable(wait):
            raise ValueError(f"Backfill's wait must be a function, not {wait!r}.")
        self.model_name = model_name
        self.update = update
        self.where = where
        self.reverse = reverse
        self.reverse_where = reverse_where
        self.batch_size = batch_size
        self.concurrency = concurrency
        self.load = load
        self.wait = wait
        self.name = name
        self.hints = hints or {}
        self.elidable = elidable  # type: ignore[misc] # as Django's own operations do

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        """Return what makes the same operation: the arguments that differ from the defaults."""
        defaults = {"batch_size": 1000, "concurrency": 4, "load": 1.0, "hints": {}}
        defaults |= {"elidable": False}
        kwargs = {"model_name": self.model_name, "update": self.update}
        for argument in (
            "where", "reverse", "reverse_where", "batch_size", "concurrency", "load", "wait",
            "name", "hints", "elidable",
        ):  # fmt: skip
            value = getattr(self, argument)
            if value != defaults.get(argument):
                kwargs[argument] = value
        return type(self).__qualname__, [], kwargs

    @staticmethod
    async def noop(apps: object, rows: object) -> None:
        """Do nothing: `reverse=Backfill.noop`."""

    @property
    def reversible(self) -> bool:  # type: ignore[override]
        """Tell whether there is a way back."""
        return self.reverse is not None

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        """Do nothing: rows are no part of the state."""

    def describe(self) -> str:
        """Say what the operation does, for `migrate --plan`."""
        if isinstance(self.update, dict):
            what = ", ".join(self.update)
        else:
            what = getattr(self.update, "__name__", type(self.update).__name__) + "()"
        return f"Backfill {self.model_name}: {what}, {self.batch_size:,} rows a batch"

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        """Change the rows that are not changed yet."""
        self._migrate(app_label, schema_editor, from_state, backwards=False)

    def database_backwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        """Change the rows back."""
        if self.reverse is None:
            raise NotImplementedError("You cannot reverse this operation")
        self._migrate(app_label, schema_editor, from_state, backwards=True)

    def _migrate(self, app_label: str, editor: Any, state: Any, *, backwards: bool) -> None:
        connection = editor.connection
        if editor.atomic_migration:
            raise BackfillError(
                "Backfill commits batch by batch, so its migration must not be one transaction: "
                "set `atomic = False` on the Migration class, and put changes of the schema into "
                "migrations of their own."
            )
        if router.allow_migrate(connection.alias, app_label, **self.hints):
            state.clear_delayed_apps_cache()
            migration = _current.get()
            key = key_of(self, migration)
            run(self, key, migration, app_label, connection, state.apps, backwards=backwards)

    def divided(
        self, app_label: str, apps: Any, alias: str, *, backwards: bool = False
    ) -> Divided:
        """Return the rows that the operation changes, in batches."""
        label, _, name = self.model_name.rpartition(".")
        model = apps.get_model(label or app_label, name)
        where = self.reverse_where if backwards else self.where
        return Divided(model, alias, where, self.batch_size)


Backfill.__module__ = "nuages.db.migrations"  # as migrations import it

_current: ContextVar[Any] = ContextVar("nuages.migrations.current", default=None)


@contextmanager
def running(migration: Any) -> Iterator[None]:
    """Run a block as a part of `migration`, whose backfills are kept by its name."""
    token = _current.set(migration)
    try:
        yield
    finally:
        _current.reset(token)


def backfills_of(migration: Any) -> list[Backfill]:
    """Return the backfills of a migration, in their order."""
    found = []

    def walk(operations: Any) -> None:
        for operation in operations:
            if isinstance(operation, Backfill):
                found.append(operation)
            walk(getattr(operation, "database_operations", ()))

    walk(migration.operations)
    return found


def keys_of(migration: Any) -> dict[Backfill, str]:
    """Return the names under which the backfills of a migration are kept."""
    own = f"{migration.app_label}.{migration.name}"
    return {
        operation: operation.name or (own if number == 1 else f"{own}:{number}")
        for number, operation in enumerate(backfills_of(migration), 1)
    }


def key_of(operation: Backfill, migration: Any) -> str:
    """Return the name under which a backfill is kept; raises BackfillError where it has none."""
    key = keys_of(migration).get(operation) if migration is not None else None
    if key is None and (key := operation.name) is None:
        raise BackfillError(
            "This Backfill runs outside of a migration, so what it has done has no name: give it "
            "one, Backfill(..., name=...)."
        )
    return key


def note_recorded(connection: Any, migration: Any) -> None:
    """Note, after a migration was recorded, that its backfills are over."""
    if keys := list(keys_of(migration).values()):
        checkpoint.mark_over(connection.alias, keys)


def run(
    operation: Backfill,
    key: str,
    migration: Any,
    app_label: str,
    connection: Any,
    apps: Any,
    *,
    backwards: bool = False,
) -> None:
    """Do what is left of a backfill."""
    alias = connection.alias
    if not isinstance(connection, LoopWrapper):
        raise BackfillError(
            f"Backfill runs on the event loop, and the engine of {alias!r} does not: use one of "
            "nuages.db.backends."
        )
    change = operation.reverse if backwards else operation.update
    if change is Backfill.noop:
        checkpoint.forget(alias, [key])
        return
    divided = operation.divided(app_label, apps, alias, backwards=backwards)
    checkpoint.make_tables(alias)

    def done_elsewhere() -> bool:
        return migration is not None and _is_recorded(migration, connection) is not backwards

    row = divided.begin(key, backwards, done_elsewhere)
    if row.finished:
        return
    work = Work(change, apps, operation.concurrency, operation.load, operation.wait)
    batches = Batches(divided, row, work)
    bridge = current_bridge()
    if bridge is not None:
        run_steps(bridge, batches.run())
    else:
        async_to_sync(on_loop(batches.run))()


def _is_recorded(migration: Any, connection: Any) -> bool:
    applied = MigrationRecorder(connection).applied_migrations()
    names = migration.replaces or [(migration.app_label, migration.name)]
    return all(tuple(name) in applied for name in names)
