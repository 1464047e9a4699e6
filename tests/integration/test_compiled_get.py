"""`get()` by plain equality: the same answers with and without the statement that is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.sessions.models import Session
from django.core.exceptions import FieldError, MultipleObjectsReturned, ObjectDoesNotExist
from django.db import connection, models
from django.db.models import Q
from django.db.models.sql.compiler import SQLCompiler
from django.test import override_settings
from django.test.utils import CaptureQueriesContext, isolate_apps
from django.utils import timezone

from nuages import on_loop
from nuages.db.orm import compiled_get as compiled
from tests.catalogue.models import Catalogued
from tests.integration.conftest import Run
from tests.library.models import Author, Biography, Book, Novel

pytestmark = pytest.mark.every_database


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[type]:
    """The model of every query that is compiled."""
    seen: list[type] = []
    original = SQLCompiler.as_sql

    def as_sql(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(self.query.model)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(SQLCompiler, "as_sql", as_sql)
    return seen


@pytest.fixture
def books(database: str) -> None:
    ursula = Author.objects.create(pk=1, name="Ursula")
    Author.objects.create(pk=2, name="Octavia", mentor=ursula)
    Biography.objects.create(author=ursula, text="a life")
    for number in range(1, 26):
        Book.objects.create(pk=number, title="same", author=ursula, copies=number)
    Novel.objects.create(pk=30, title="novel", author=ursula, genre="sf")


GETS: dict[str, Callable[[], Any]] = {
    "pk": lambda: Author.objects.get(pk=1),
    "id": lambda: Author.objects.get(id=2),
    "text": lambda: Author.objects.get(name="Octavia"),
    "two": lambda: Author.objects.get(pk=1, name="Ursula"),
    "two that disagree": lambda: Author.objects.get(pk=1, name="Octavia"),
    "a number as text": lambda: Author.objects.get(pk="1"),
    "not a number": lambda: Author.objects.get(pk="one"),
    "none": lambda: Author.objects.get(pk=None),
    "true": lambda: Author.objects.get(pk=True),
    "a float": lambda: Author.objects.get(pk=1.0),
    "too great": lambda: Book.objects.get(copies=2**40),
    "too small": lambda: Author.objects.get(pk=-(2**70)),
    "missing": lambda: Author.objects.get(pk=99),
    "many": lambda: Book.objects.get(title="same"),
    "some": lambda: Book.objects.filter(copies__lt=4).get(title="same"),
    "no such field": lambda: Author.objects.get(nothing=1),
    "a lookup": lambda: Author.objects.get(name__startswith="U"),
    "exact": lambda: Author.objects.get(name__exact="Ursula"),
    "a relation": lambda: Biography.objects.get(author=Author.objects.get(pk=1)),
    "a relation's key": lambda: Biography.objects.get(author_id=1),
    "a Q": lambda: Author.objects.get(Q(pk=1)),
    "two Qs": lambda: Author.objects.get(Q(pk=1), Q(name="Ursula")),
    "a negated Q": lambda: Author.objects.get(~Q(pk=1)),
    "an or": lambda: Author.objects.get(Q(pk=1) | Q(pk=99)),
    "nothing": lambda: Biography.objects.get(),
    "all": lambda: Author.objects.all().get(pk=1),
    "filtered": lambda: Author.objects.filter(name="Ursula").get(pk=2),
    "excluded": lambda: Author.objects.exclude(pk=1).get(pk=1),
    "ordered": lambda: Author.objects.order_by("name").get(pk=1),
    "distinct": lambda: Author.objects.distinct().get(pk=1),
    "deferred": lambda: Author.objects.only("name").get(pk=1),
    "annotated": lambda: Author.objects.annotate(n=models.Count("books")).get(pk=1).n,
    "values": lambda: Author.objects.values("name").get(pk=1),
    "sliced": lambda: Author.objects.all()[:5].get(pk=1),
    "of none": lambda: Author.objects.none().get(pk=1),
    "joined": lambda: Book.objects.select_related("author").get(pk=1).author,
    "prefetched": lambda: list(Author.objects.prefetch_related("pupils").get(pk=1).pupils.all()),
    "related": lambda: Author.objects.get(pk=1).books.get(pk=3),
    "foreign key": lambda: Book.objects.get(pk=3).author,
    "reverse one to one": lambda: Author.objects.get(pk=1).biography,
    "another manager": lambda: Catalogued.objects.get(pk=1),
    "a queryset of one's own": lambda: Catalogued.plain.get(pk=1),
    "inherited": lambda: Novel.objects.get(pk=30),
    "its parent": lambda: Book.objects.get(pk=30).novel,
    "refresh": lambda: Author.objects.get(pk=1).refresh_from_db(),
}


def outcome(get: Callable[[], Any]) -> tuple[Any, ...]:
    """What came out, with the instance's fields and state, or the error; and the statements."""
    with CaptureQueriesContext(connection) as queries:
        try:
            found = get()
        except (ValueError, TypeError, FieldError) as error:
            result: Any = (type(error), str(error))
        except (ObjectDoesNotExist, MultipleObjectsReturned) as error:
            result = (type(error), str(error))
        else:
            result = found
            if isinstance(found, models.Model):
                fields = {k: v for k, v in vars(found).items() if k != "_state"}
                result = (type(found), fields, found._state.db, found._state.adding)
    return result, [query["sql"] for query in queries]


def test_the_answers_are_the_same(books: None, run: Run) -> None:
    async def main() -> None:
        check = on_loop(outcome)
        for name, get in GETS.items():
            with override_settings(NUAGES={"SHORTCUTS": False}):
                stock = await check(get)
            assert await check(get) == stock, name  # compiles
            assert await check(get) == stock, name  # has it

    run(main)


@pytest.mark.parametrize("name", ["pk", "text", "two", "a number as text", "all", "foreign key"])
def test_a_plain_get_is_compiled_once(
    books: None, run: Run, compilations: list[type], name: str
) -> None:
    async def main() -> None:
        await on_loop(GETS[name])()
        compilations.clear()
        await on_loop(GETS[name])()
        assert compilations == []
        await Author.objects.aget(pk=2, name="Octavia")
        compilations.clear()
        await Author.objects.aget(pk=1, name="Ursula")
        assert compilations == []

    run(main)


@pytest.mark.parametrize("before", [False, True])
def test_time_zones_are_used_as_the_settings_now_say(
    database: str, run: Run, before: bool
) -> None:
    vars(Session._meta).pop(compiled._ATTRIBUTE, None)
    Session.objects.create(pk="one", expire_date=timezone.now())

    def is_aware() -> bool:
        return timezone.is_aware(Session.objects.get(pk="one").expire_date)

    async def main() -> None:
        for use in (before, not before):
            with override_settings(USE_TZ=use):
                assert await on_loop(is_aware)() is use

    run(main)


def test_the_switch(books: None, run: Run, compilations: list[type]) -> None:
    async def main() -> None:
        await Author.objects.aget(pk=1)
        compilations.clear()
        await Author.objects.aget(pk=1)
        assert compilations == [Author]

    with override_settings(NUAGES={"SHORTCUTS": False}):
        run(main)


def test_a_field_that_is_added_later_is_there(sqlite: dict[str, Any], run: Run) -> None:
    with isolate_apps("tests.library"):

        class Growing(models.Model):
            name = models.CharField(max_length=10)

            class Meta:
                app_label = "library"

        def work() -> None:
            with connection.schema_editor() as editor:
                editor.create_model(Growing)
            try:
                Growing.objects.create(name="a")
                assert Growing.objects.get(pk=1).name == "a"
                size = models.IntegerField(default=7)
                size.contribute_to_class(Growing, "size")
                with connection.schema_editor() as editor:
                    editor.add_field(Growing, size)
                assert Growing.objects.get(pk=1).size == 7  # type: ignore[attr-defined]
            finally:
                with connection.schema_editor() as editor:
                    editor.delete_model(Growing)

        async def main() -> None:
            await on_loop(work)()

        run(main)


def test_a_lookup_that_is_registered_later_is_used(books: None, run: Run) -> None:
    class Shouting(models.lookups.Exact):  # type: ignore[name-defined]
        def get_prep_lookup(self) -> Any:
            return super().get_prep_lookup()[::-1]

    async def main() -> None:
        assert (await Author.objects.aget(name="Ursula")).pk == 1
        with pytest.raises(Author.DoesNotExist):
            field = Author._meta.get_field("name")
            field.register_lookup(Shouting, "exact")
            try:
                await Author.objects.aget(name="Ursula")
            finally:
                field._unregister_lookup(Shouting, "exact")
        assert (await Author.objects.aget(name="Ursula")).pk == 1

    run(main)


def test_a_queryset_that_filters_its_own_way_is_asked(books: None, run: Run) -> None:
    class Careful(models.QuerySet):
        def filter(self, *args: Any, **kwargs: Any) -> Any:
            return super().filter(*args, **kwargs).exclude(pk=1)

    def work() -> None:
        assert not compiled._is_plain(Careful)
        with pytest.raises(Author.DoesNotExist):
            Careful(Author).get(pk=1)

    async def main() -> None:
        await on_loop(work)()

    run(main)


def test_few_statements_are_kept_and_no_values(sqlite: dict[str, Any], run: Run) -> None:
    """The names may come from outside, as in get(**form_data); a value may be a secret."""
    secret = "the first caller's secret"

    def work() -> None:
        kept = vars(Author._meta).setdefault(compiled._ATTRIBUTE, {})
        kept.clear()
        for number in range(5):
            with pytest.raises(FieldError):
                Author.objects.get(**{f"field_{number}": 1})
        assert kept == {}
        with pytest.raises(Author.DoesNotExist):
            Author.objects.get(name=secret)
        (statement,) = kept.values()
        assert secret not in repr(
            [statement, vars(statement.attributes["query"]), statement.attributes["query"].where]
        )
        assert statement.attributes["where"] is None
        kept.update((number, statement) for number in range(compiled.MOST))
        with pytest.raises(Author.DoesNotExist):
            Author.objects.get(pk=1)
        assert len(kept) == compiled.MOST + 1
        kept.clear()

    async def main() -> None:
        await on_loop(work)()

    run(main)
