"""The progress of a backfill, kept in the database that it changes.

Two tables, made when first needed. `nuages_backfill` has one row for a backfill: up to which key
its table is divided into batches. `nuages_backfill_range` has a row for every batch that was begun
and is not done: that row is deleted in the batch's own transaction, so a row of the table is
changed exactly once whatever ends the process. A process that works on a batch has its row locked,
and the lock goes with the connection; so several processes share a backfill, and the batches begun
by one that crashed are taken over by the next.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from django.apps.registry import Apps
from django.db import DatabaseError, connections, models
from django.db.models import OuterRef, Q, Subquery, Sum
from django.db.models.functions import Coalesce
from django.db.transaction import atomic
from django.utils.timezone import now

from nuages.exceptions import BackfillError


class _Private:
    apps = Apps()
    app_label = "nuages"


class Checkpoint(models.Model):
    """The progress of one backfill."""

    id = models.BigAutoField(primary_key=True)
    key = models.CharField(max_length=255)
    backwards = models.BooleanField(default=False)
    position = models.TextField(null=True)
    """The last key that is in a batch; None before the first batch."""
    upper = models.TextField(null=True)
    """The last key there was at the start; None for an empty table."""
    total = models.BigIntegerField(default=0)
    claimed = models.BigIntegerField(default=0)
    """Rows in the batches so far."""
    started = models.DateTimeField(default=now)
    finished = models.DateTimeField(null=True)
    over = models.BooleanField(default=False)
    """Whether its migration has been recorded since, so that the next run starts anew."""

    class Meta(_Private):
        """One row a backfill, each way."""

        db_table = "nuages_backfill"
        constraints = (
            models.UniqueConstraint(fields=["key", "backwards"], name="nuages_backfill_key"),
        )


class Range(models.Model):
    """A batch that was begun: keys above `lower` (None: from the first) up to `upper`."""

    id = models.BigAutoField(primary_key=True)
    checkpoint = models.ForeignKey(Checkpoint, models.CASCADE, related_name="+")
    lower = models.TextField(null=True)
    upper = models.TextField()
    size = models.IntegerField()

    class Meta(_Private):
        """One row a batch, while it is under way."""

        db_table = "nuages_backfill_range"


def has_tables(alias: str) -> bool:
    """Tell whether the tables are there."""
    return not _missing(alias)


def _missing(alias: str) -> list[type[models.Model]]:
    """The models that have no table, in the order in which they are made."""
    connection = connections[alias]
    with connection.cursor() as cursor:
        there = connection.introspection.table_names(cursor)
    return [model for model in (Checkpoint, Range) if model._meta.db_table not in there]


def make_tables(alias: str) -> None:
    """Make the tables where they are missing.

    One by one: another process may be making them, and MySQL keeps a table whose maker has died.
    """
    for model in _missing(alias):
        _make_table(alias, model)


def _make_table(alias: str, model: type[models.Model]) -> None:
    connection = connections[alias]
    # In a migration, whose own editor has the checks off; this editor switches them on at its end.
    checks_are_off = connection.vendor == "sqlite" and not _checks_foreign_keys(connection)
    try:
        with connection.schema_editor() as editor:
            editor.create_model(model)
    except DatabaseError:
        # Another process that migrates may just have made it.
        if model in _missing(alias):
            raise
    if checks_are_off:
        connection.disable_constraint_checking()


def _checks_foreign_keys(connection: Any) -> bool:
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA foreign_keys")
        return bool(cursor.fetchone()[0])


def find(alias: str, key: str) -> list[Checkpoint]:
    """Return what is known of a backfill: at most one checkpoint each way."""
    if not has_tables(alias):
        return []
    return list(Checkpoint._base_manager.using(alias).filter(key=key).order_by("backwards"))


def done_rows(checkpoint: Checkpoint) -> int:
    """Return how many rows are done."""
    alias = checkpoint._state.db
    begun = Range._base_manager.using(alias).filter(checkpoint=OuterRef("pk"))
    begun = begun.values("checkpoint").annotate(rows=Sum("size")).values("rows")
    # In one statement, because others may be at work.
    now_at = Checkpoint._base_manager.using(alias).annotate(begun=Coalesce(Subquery(begun), 0))
    claimed, rows = now_at.values_list("claimed", "begun").get(pk=checkpoint.pk)
    return int(claimed - rows)


def forget(alias: str, keys: list[str]) -> None:
    """Forget what was done, so that the next run begins anew."""
    if has_tables(alias):
        with atomic(alias):
            _delete(Checkpoint._base_manager.using(alias).filter(key__in=keys))


def _delete(known: Any) -> None:
    # One after the other: in their own registry the models do not know each other.
    Range._base_manager.using(known.db).filter(checkpoint__in=known).delete()
    known.delete()


def mark_over(alias: str, keys: list[str]) -> None:
    """Note that a migration was recorded: its backfills are over, and would run anew."""
    if has_tables(alias):
        Checkpoint._base_manager.using(alias).filter(key__in=keys).update(over=True)


class Divided:
    """The rows of a table, divided into batches by primary key."""

    def __init__(self, model: Any, alias: str, where: Q | None, size: int) -> None:
        self.model = model
        self.alias = alias
        self.size = size
        self._key = model._meta.pk
        if isinstance(self._key, models.CompositePrimaryKey):
            raise BackfillError(
                f"Backfill cannot divide {model._meta.label}: its primary key is composite. Run "
                "it with an UPDATE of your own (RunSQL, or RunPython with an async function)."
            )
        rows = model._base_manager.using(alias)
        self.rows: Any = rows.filter(where) if where is not None else rows.all()

    def between(self, lower: Any, upper: Any) -> Any:
        """Return the rows above `lower` up to `upper` (keys), in their order."""
        inside = Q(pk__lte=upper)
        if lower is not None:
            inside &= Q(pk__gt=lower)
        return self.rows.filter(inside).order_by("pk")

    def of(self, batch: Range) -> Any:
        """Return the rows of a batch."""
        return self.between(self.key(batch.lower), self.key(batch.upper))

    def keys(self, rows: Any) -> Any:
        """Return a queryset of the primary keys of `rows`."""
        return rows.values_list("pk", flat=True)

    def text(self, key: Any) -> str:
        """Return a key as text to store; raises BackfillError where it would not come back."""
        field = self._field()
        value = SimpleNamespace(**{field.attname: key})
        text = str(field.value_to_string(value))
        if self.key(text) != key:
            raise BackfillError(
                f"Backfill cannot keep a key of {self.model._meta.label} as text: {key!r} comes "
                f"back as {self.key(text)!r}. Give {type(field).__name__} a value_to_string() and "
                "to_python() that are each other's reverse."
            )
        return text

    def key(self, text: str | None) -> Any:
        """Return a key from its text."""
        return None if text is None else self._field().to_python(text)

    def _field(self) -> Any:
        field = self._key
        while field.remote_field:
            field = field.target_field
        return field

    # In transactions of their own

    def begin(
        self, key: str, backwards: bool, done_elsewhere: Callable[[], bool] = lambda: False
    ) -> Checkpoint:
        """Return the checkpoint: as an earlier run left it, or a new one.

        `done_elsewhere` tells whether another process has recorded the migration meanwhile.
        """
        known = Checkpoint._base_manager.using(self.alias)
        with atomic(self.alias):
            _delete(known.filter(key=key, backwards=not backwards))
            checkpoint, new = known.get_or_create(key=key, backwards=backwards)
            checkpoint = known.select_for_update().get(pk=checkpoint.pk)
            if new or (checkpoint.over and not done_elsewhere()):
                Range._base_manager.using(self.alias).filter(checkpoint=checkpoint).delete()
                last = self.keys(self.rows.order_by("-pk"))[:1]
                upper = next(iter(last), None)
                checkpoint.upper = None if upper is None else self.text(upper)
                checkpoint.position = checkpoint.finished = None
                checkpoint.total = 0 if upper is None else self.between(None, upper).count()
                checkpoint.claimed = 0
                checkpoint.started = now()
                checkpoint.over = False
                checkpoint.save()
        return checkpoint

    def claim(self, checkpoint: Checkpoint) -> int | None:
        """Begin the next batch; return its number, or None where there is none."""
        with atomic(self.alias):
            locked = Checkpoint._base_manager.using(self.alias).select_for_update()
            now_at = locked.get(pk=checkpoint.pk)
            if now_at.upper is None or now_at.position == now_at.upper:
                return None
            rows = self.between(self.key(now_at.position), self.key(now_at.upper))
            last = list(self.keys(rows)[self.size - 1 : self.size])
            end, size = (self.text(last[0]), self.size) if last else (now_at.upper, rows.count())
            lower, now_at.position = now_at.position, end
            now_at.claimed += size
            now_at.save(update_fields=["position", "claimed"])
            if not size:
                return None
            batch = Range(checkpoint=now_at, lower=lower, upper=end, size=size)
            batch.save(using=self.alias)
            return int(batch.pk)

    def begun(self, checkpoint: Checkpoint) -> list[int]:
        """Return the numbers of the batches that were begun and are not done."""
        ranges = Range._base_manager.using(self.alias).filter(checkpoint=checkpoint)
        return list(ranges.order_by("pk").values_list("pk", flat=True))

    def finish(self, checkpoint: Checkpoint) -> None:
        """Note that all is done."""
        known = Checkpoint._base_manager.using(self.alias)
        known.filter(pk=checkpoint.pk, finished=None).update(finished=now())

    # In a batch's transaction

    def take(self, number: int, wait: bool) -> Range | None:
        """Lock a batch; None where it is done, or (without `wait`) somebody is working on it."""
        ranges = Range._base_manager.using(self.alias).select_for_update(skip_locked=not wait)
        return ranges.filter(pk=number).first()

    def done(self, batch: Range) -> None:
        """Note that a batch is done, with the transaction's other changes."""
        Range._base_manager.using(self.alias).filter(pk=batch.pk).delete()
