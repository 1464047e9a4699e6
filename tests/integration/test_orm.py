"""Every a* method of Django's ORM, and what Nuages adds, through every kind of source.

What is there to be tested is found by introspection: a method that a new Django brings, or that
we add, fails `test_nothing_is_untested` until it has a scenario here.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import datetime
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.core.exceptions import SynchronousOnlyOperation, ValidationError
from django.db import IntegrityError, connection, models
from django.db.models import Count, F, Manager, Model, Prefetch, QuerySet, Sum
from django.db.models.query import RawQuerySet, aprefetch_related_objects
from django.http import Http404
from django.shortcuts import aget_list_or_404, aget_object_or_404

from nuages import on_loop
from nuages.db import aatomic
from tests.catalogue.models import Catalogued, Entry, Part, Shelf
from tests.integration.conftest import Run
from tests.library.models import Author, Book, Note, Tag

pytestmark = pytest.mark.every_database


@pytest.fixture(autouse=True)
def _clean(request: pytest.FixtureRequest) -> Iterator[None]:
    """Empty this module's tables before the database fixture empties its own."""
    if "database" in request.fixturenames:
        request.getfixturevalue("database")
    yield
    if "database" in request.fixturenames:
        for model in (Part, Entry, Shelf):
            QuerySet(model).delete()


@pytest.fixture(autouse=True)
def _no_hops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing here may go to an executor, nor start a thread but SQLite's workers."""
    hops: list[str] = []
    submit = concurrent.futures.ThreadPoolExecutor.submit
    start = threading.Thread.start

    def counted_submit(self: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        hops.append(f"submit {getattr(function, '__qualname__', type(function))}")
        return submit(self, function, *args, **kwargs)

    def counted_start(self: threading.Thread) -> None:
        if self.name != "nuages-sqlite":
            hops.append(f"start {self!r}")
        start(self)

    monkeypatch.setattr(concurrent.futures.ThreadPoolExecutor, "submit", counted_submit)
    monkeypatch.setattr(threading.Thread, "start", counted_start)
    yield
    hops = [hop for hop in hops if "shutdown" not in hop and "getaddrinfo" not in hop]
    assert hops == []


@contextmanager
def queries() -> Iterator[list[str]]:
    """Collect the SQL of this context."""
    log: list[str] = []

    def note(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        log.append(sql)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        yield log


async def shelves() -> tuple[Author, Tag]:
    """Three books, A, B and C with 1, 2 and 3 copies, of one author and with one tag."""
    author = await Author.objects.acreate(name="Jorge")
    tag = await Tag.objects.acreate(name="labyrinth")
    for number, title in enumerate("ABC", 1):
        book = await Book.objects.acreate(title=title, author=author, copies=number)
        await book.tags.aadd(tag)
    return author, tag


def titles(books: Any) -> list[str]:
    return sorted(book.title for book in books)


# QuerySet's and managers' methods: each scenario takes a source of those three books


Scenario = Callable[[Any, Author], Awaitable[None]]


async def aaggregate(source: Any, author: Author) -> None:
    assert await source.aaggregate(total=Sum("copies")) == {"total": 6}


async def acount(source: Any, author: Author) -> None:
    assert await source.acount() == 3


async def aget(source: Any, author: Author) -> None:
    assert (await source.aget(title="B")).copies == 2
    with pytest.raises(Book.DoesNotExist):
        await source.aget(title="no such")
    with pytest.raises(Book.MultipleObjectsReturned):
        await source.aget(copies__gt=0)


async def acreate(source: Any, author: Author) -> None:
    book = await source.acreate(title="D", author=author)
    assert book.pk is not None
    assert await source.acount() == 4


async def abulk_create(source: Any, author: Author) -> None:
    before = await Book.objects.acount()
    new = await source.abulk_create(
        [Book(title=title, author=author) for title in "DEF"], batch_size=2
    )
    assert titles(new) == ["D", "E", "F"]
    assert await Book.objects.acount() == before + 3


async def abulk_update(source: Any, author: Author) -> None:
    books = [book async for book in source.all()]
    for book in books:
        book.copies *= 10
    assert await source.abulk_update(books, ["copies"], batch_size=2) == 3
    assert await source.aaggregate(total=Sum("copies")) == {"total": 60}


async def aget_or_create(source: Any, author: Author) -> None:
    book, created = await source.aget_or_create(title="A", defaults={"author": author})
    assert (book.copies, created) == (1, False)
    book, created = await source.aget_or_create(title="D", defaults={"author": author})
    assert (book.author_id, created) == (author.pk, True)


async def aupdate_or_create(source: Any, author: Author) -> None:
    book, created = await source.aupdate_or_create(title="A", defaults={"copies": 9})
    assert (book.copies, created) == (9, False)
    book, created = await source.aupdate_or_create(
        title="D", defaults={"copies": 5}, create_defaults={"copies": 7, "author": author}
    )
    assert (book.copies, created) == (7, True)


async def aearliest(source: Any, author: Author) -> None:
    assert (await source.aearliest("copies")).title == "A"


async def alatest(source: Any, author: Author) -> None:
    assert (await source.alatest("copies")).title == "C"


async def afirst(source: Any, author: Author) -> None:
    assert (await source.afirst()).title == "A"
    assert await source.filter(title="no such").afirst() is None


async def alast(source: Any, author: Author) -> None:
    assert (await source.alast()).title == "C"
    assert await source.filter(title="no such").alast() is None


async def ain_bulk(source: Any, author: Author) -> None:
    first = await source.afirst()
    assert {k: v.title for k, v in (await source.ain_bulk([first.pk])).items()} == {first.pk: "A"}
    assert len(await source.ain_bulk()) == 3


async def adelete(source: Any, author: Author) -> None:
    await Tag.objects.acreate(name="other")
    count, by_model = await source.filter(title__in="AB").adelete()
    assert by_model["library.Book_tags"] == 2
    assert count == 4  # with two rows that tie them to their tag
    assert await source.acount() == 1


async def aupdate(source: Any, author: Author) -> None:
    assert await source.aupdate(copies=F("copies") + 1) == 3
    assert await source.aaggregate(total=Sum("copies")) == {"total": 9}


async def aexists(source: Any, author: Author) -> None:
    assert await source.aexists() is True
    assert await source.filter(title="no such").aexists() is False


async def acontains(source: Any, author: Author) -> None:
    book = await source.afirst()
    assert await source.acontains(book) is True
    await Book.objects.filter(pk=book.pk).aupdate(title="hidden")
    assert await source.filter(title="A").acontains(book) is False


async def aexplain(source: Any, author: Author) -> None:
    assert "library_book" in await source.aexplain() or "SCAN" in await source.aexplain()


async def aiterator(source: Any, author: Author) -> None:
    for chunk_size in (1, 2, 3, 2000):
        found = [book.title async for book in source.order_by("pk").aiterator(chunk_size)]
        assert found == ["A", "B", "C"]
    assert titles([book async for book in source.aiterator()]) == ["A", "B", "C"]
    with pytest.raises(ValueError, match="Chunk size"):
        await anext(source.aiterator(chunk_size=0))
    with queries() as log:
        books = source.order_by("pk").prefetch_related("tags").aiterator(chunk_size=2)
        assert [[tag.name for tag in book.tags.all()] async for book in books] == [
            ["labyrinth"]
        ] * 3
    assert len(log) == 3  # the books, and the tags of each chunk


async def alist(source: Any, author: Author) -> None:
    books = await source.alist()
    assert isinstance(books, list)
    assert titles(books) == ["A", "B", "C"]
    assert titles(await source.order_by("title")[1:].alist()) == ["B", "C"]
    assert await source.none().alist() == []


async def aselect_related(source: Any, author: Author) -> None:
    with queries() as log:
        books = await source.aselect_related("author").alist()
        assert [book.author.name for book in books] == ["Jorge"] * 3
    assert len(log) == 1
    assert (await source.aselect_related("author").afirst()).author == author


async def aprefetch_related(source: Any, author: Author) -> None:
    with queries() as log:
        books = await source.aprefetch_related(
            "tags", Prefetch("notes", to_attr="remarks")
        ).alist()
        assert [[tag.name for tag in book.tags.all()] for book in books] == [["labyrinth"]] * 3
        assert [book.remarks for book in books] == [[]] * 3
    assert len([sql for sql in log if "content_type" not in sql.split("WHERE")[0]]) >= 2


QUERYSET: dict[str, Scenario] = {
    function.__name__: function
    for function in (
        aaggregate, acount, aget, acreate, abulk_create, abulk_update, aget_or_create,
        aupdate_or_create, aearliest, alatest, afirst, alast, ain_bulk, adelete, aupdate,
        aexists, acontains, aexplain, aiterator, alist, aselect_related, aprefetch_related,
    )
}  # fmt: skip

SOURCES: dict[str, Callable[[Author, Tag], Any]] = {
    "queryset": lambda author, tag: Book.objects.order_by("pk"),
    "manager": lambda author, tag: Book.objects,
    "custom manager from_queryset": lambda author, tag: Catalogued.objects,
    "custom manager as_manager": lambda author, tag: Catalogued.plain,
    "custom queryset": lambda author, tag: Catalogued.plain.plentiful() | Catalogued.plain.all(),
    "reverse foreign key": lambda author, tag: author.books,
    "many to many": lambda author, tag: tag.books,
}


@pytest.mark.parametrize("method", QUERYSET)
def test_queryset_method_of_every_source(database: str, run: Run, method: str) -> None:
    async def main() -> None:
        for name, make in SOURCES.items():
            author, tag = await shelves()
            source = make(author, tag)
            if not hasattr(source, method):
                assert getattr(QuerySet, method).queryset_only
                source = source.all()
            try:
                await QUERYSET[method](source, author)
            except AssertionError as error:
                error.add_note(f"source: {name}")
                raise
            await Author.objects.all().adelete()
            await Tag.objects.all().adelete()

    run(main)


def async_methods(owner: Any) -> set[str]:
    """Names of what is async in a class: coroutine functions, generators and a* twins."""
    return {
        name
        for name in dir(owner)
        if not name.startswith("_")
        and callable(value := getattr(owner, name))
        and (
            inspect.iscoroutinefunction(value)
            or inspect.isasyncgenfunction(value)
            or (name.startswith("a") and hasattr(owner, name[1:]))
        )
    }


RELATED = {"aadd", "aremove", "aclear", "aset"}
OTHER = {
    QuerySet: set(QUERYSET),
    Manager: set(QUERYSET) - {"adelete"},
    RawQuerySet: {"alist"},
    Model: {"asave", "adelete", "arefresh_from_db", "afull_clean"},
}


@pytest.mark.parametrize("owner", OTHER)
def test_nothing_is_untested(owner: type) -> None:
    assert async_methods(owner) == OTHER[owner]


def test_no_method_of_related_managers_is_untested() -> None:
    managers = {
        "reverse foreign key": type(Author(pk=1).pupils),
        "reverse foreign key, not null": type(Author(pk=1).books),
        "many to many": type(Book(pk=1).tags),
        "reverse many to many": type(Tag(pk=1).books),
        "generic": Book.notes.related_manager_cls,
    }
    for kind, manager in managers.items():
        known = OTHER[Manager] | RELATED
        if kind == "reverse foreign key, not null":
            known = known - {"aremove", "aclear"}
        assert async_methods(manager) == known, kind


def test_no_module_level_function_is_untested() -> None:
    from django import shortcuts
    from django.db.models import query

    for module, known in (
        (shortcuts, {"aget_object_or_404", "aget_list_or_404"}),
        (query, {"aprefetch_related_objects"}),
    ):
        found = {n for n, value in vars(module).items() if inspect.iscoroutinefunction(value)}
        assert found - {"native"} == known


# Iteration


def test_async_for_over_every_kind_of_result(database: str, run: Run) -> None:
    async def main() -> None:
        author, _ = await shelves()
        books = Book.objects.order_by("title")
        assert [book.title async for book in books] == ["A", "B", "C"]
        assert [row async for row in books.values("title", "copies")][1] == {
            "title": "B",
            "copies": 2,
        }
        assert [row async for row in books.values_list("title", "copies")][2] == ("C", 3)
        assert [row async for row in books.values_list("copies", flat=True)] == [1, 2, 3]
        assert [row.title async for row in books.values_list("title", named=True)] == [*"ABC"]
        assert [
            row async for row in books.values("author").annotate(n=Count("pk")).order_by()
        ] == [{"author": author.pk, "n": 3}]
        for flat in (books.values_list("copies", flat=True), books.values("copies")):
            assert len([row async for row in flat.aiterator(chunk_size=2)]) == 3
            assert len(await flat.alist()) == 3
        one = Book.objects.filter(title="A").values_list("title")
        two = Book.objects.filter(title="C").values_list("title")
        assert await one.union(two).order_by("title").alist() == [("A",), ("C",)]

    run(main)


def test_dates_and_datetimes(database: str, run: Run) -> None:
    from django.contrib.auth.models import User

    async def main() -> None:
        moment = datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.UTC)
        user = await User.objects.acreate(username="leap", date_joined=moment)
        joined = User.objects.dates("date_joined", "month")
        assert [day async for day in joined] == [datetime.date(2024, 2, 1)]
        assert await joined.alist() == [datetime.date(2024, 2, 1)]
        hours = User.objects.datetimes("date_joined", "hour")
        assert [hour async for hour in hours.aiterator()] == [moment]
        await user.adelete()

    run(main)


def test_a_queryset_is_evaluated_once(database: str, run: Run) -> None:
    async def main() -> None:
        await shelves()
        books = Book.objects.prefetch_related("tags")
        with queries() as log:
            await books.alist()
            await books.alist()
            assert len([book async for book in books]) == 3
            assert len(books) == 3  # cached: no query, so allowed in a coroutine
        assert len(log) == 2

    run(main)


def test_alist_completes_a_prefetch_that_failed(database: str, run: Run) -> None:
    async def main() -> None:
        await shelves()
        books = Book.objects.prefetch_related("no_such")
        for _ in range(2):
            with pytest.raises(AttributeError, match="no_such"):
                await books.alist()

    run(main)


def test_raw_queries(database: str, run: Run) -> None:
    async def main() -> None:
        await shelves()
        raw = Book.objects.raw(
            "SELECT *, copies * 2 AS twice FROM library_book WHERE copies > %s ORDER BY title", [1]
        )
        assert [(book.title, book.twice) for book in await raw.alist()] == [("B", 4), ("C", 6)]
        assert [book.title async for book in raw] == ["B", "C"]
        named = Book.objects.raw(
            "SELECT id, title FROM library_book WHERE title = %(title)s", {"title": "A"}
        )
        (book,) = await named.alist()
        with pytest.raises(SynchronousOnlyOperation):
            book.copies  # noqa: B018  deferred
        assert (await on_loop(lambda: book.copies)()) == 1
        with queries() as log:
            prefetched = await raw.prefetch_related("tags").alist()
            assert prefetched[0].tags.all()[0].name == "labyrinth"
        assert len(log) == 2

    run(main)


def test_break_out_of_async_for_leaves_nothing_behind(database: str, run: Run) -> None:
    async def main() -> None:
        await shelves()
        async for book in Book.objects.order_by("title"):
            assert book.title == "A"
            break
        async for book in Book.objects.order_by("title"):
            assert await Book.objects.acount() == 3
            assert (await book.aauthor).name == "Jorge"

    run(main)


def test_gathered_queries_of_every_kind(database: str, run: Run) -> None:
    async def main() -> None:
        author, tag = await shelves()
        assert await asyncio.gather(
            Book.objects.acount(), author.books.acount(), tag.books.acount(), Tag.objects.acount()
        ) == [3, 3, 3, 1]

    run(main)


# Related managers' own methods


def test_reverse_foreign_key_manager(database: str, run: Run) -> None:
    async def main() -> None:
        teacher = await Author.objects.acreate(name="teacher")
        first, second, third = [await Author.objects.acreate(name=name) for name in "123"]
        await teacher.pupils.aadd(first, second)
        assert await teacher.pupils.acount() == 2
        await teacher.pupils.aremove(first)
        assert [pupil.name async for pupil in teacher.pupils.all()] == ["2"]
        await teacher.pupils.aset([first, third])
        assert sorted([pupil.name async for pupil in teacher.pupils.all()]) == ["1", "3"]
        await teacher.pupils.aset([second], clear=True)
        assert await teacher.pupils.alist() == [second]
        await teacher.pupils.aclear()
        assert not await teacher.pupils.aexists()
        made = await teacher.pupils.acreate(name="4")
        assert made.mentor_id == teacher.pk
        assert (await teacher.pupils.aget_or_create(name="4"))[1] is False
        assert (await teacher.pupils.aupdate_or_create(name="5"))[1] is True
        with pytest.raises(ValueError, match="primary key"):
            await Author(name="unsaved").pupils.alist()
        with pytest.raises(ValueError, match="saved"):
            await teacher.pupils.aadd(Author(name="unsaved"))

    run(main)


@pytest.mark.parametrize("side", ["forward", "reverse"])
def test_many_to_many_manager(database: str, run: Run, side: str) -> None:
    async def main() -> None:
        author, tag = await shelves()
        if side == "forward":
            manager = (await Book.objects.aget(title="A")).tags
            others = [await Tag.objects.acreate(name=name) for name in "xy"]
            new = {"name": "z"}
        else:
            manager = tag.books
            others = [await Book.objects.acreate(title=t, author=author) for t in "xy"]
            new = {"title": "z", "author": author}
        await manager.aclear()
        await manager.aadd(*others)
        await manager.aadd(others[0].pk)  # already there
        assert await manager.acount() == 2
        await manager.aremove(others[0])
        assert await manager.alist() == [others[1]]
        await manager.aset([others[0]])
        assert await manager.alist() == [others[0]]
        await manager.aset(others, clear=True)
        assert await manager.acount() == 2
        made = await manager.acreate(**new)
        assert await manager.acontains(made)
        assert (await manager.aget_or_create(**new)) == (made, False)
        assert (await manager.aupdate_or_create(**new)) == (made, False)
        await manager.aclear()
        assert not await manager.aexists()

    run(main)


def test_many_to_many_through_a_model(database: str, run: Run) -> None:
    async def main() -> None:
        whole, *parts = [await Entry.objects.acreate(name=name) for name in "WABC"]
        await whole.parts.aadd(parts[0], through_defaults={"place": 7})
        await whole.parts.aset(parts[:2], through_defaults={"place": 8})
        made = await whole.parts.acreate(name="D", through_defaults={"place": 9})
        assert await whole.part_rows.order_by("place").values_list("place", flat=True).alist() == [
            7,
            8,
            9,
        ]
        assert (await whole.parts.aget_or_create(name="D"))[0] == made
        _, created = await whole.parts.aupdate_or_create(name="E", through_defaults={"place": 1})
        assert created
        assert await parts[0].entry_set.alist() == [whole]
        await whole.parts.aremove(parts[0])
        assert await Part.objects.filter(part=parts[0]).acount() == 0

    run(main)


def test_generic_manager(database: str, run: Run) -> None:
    async def main() -> None:
        await shelves()
        a, b = await Book.objects.filter(title__in="AB").order_by("title").alist()
        notes = await on_loop(lambda: a.notes)()
        made = await notes.acreate(text="one")
        other = Note(text="two")
        await notes.aadd(other, bulk=False)
        assert await notes.acount() == 2
        assert await made.asubject == a
        await notes.aremove(other)
        assert await notes.alist() == [made]
        await notes.aset([await Note.objects.acreate(text="three", subject=b)])
        assert [note.text async for note in notes.all()] == ["three"]
        assert (await notes.aget_or_create(text="three"))[1] is False
        assert (await notes.aupdate_or_create(text="four"))[1] is True
        with queries() as log:
            found = await Note.objects.prefetch_related("subject").alist()
            assert {await note.asubject for note in found} == {a}
        assert len(log) == 2
        await notes.aclear()
        assert await Note.objects.acount() == 0

    run(main)


# Models


def test_model_methods_run_through_overrides(database: str, run: Run) -> None:
    async def main() -> None:
        entry = Entry(name="one")
        await entry.asave()
        assert entry.number == 1
        second = await Entry.objects.acreate(name="two")
        assert second.number == 2
        await Entry.objects.filter(pk=entry.pk).aupdate(number=50)
        await entry.arefresh_from_db(fields=["number"])
        assert entry.number == 50
        entry.name = "uno"
        entry.number = 0
        await entry.asave(update_fields=["name"])
        await entry.arefresh_from_db()
        assert (entry.name, entry.number) == ("uno", 50)
        await entry.adelete()
        assert entry.pk is None
        assert await Tag.objects.filter(name="deleted uno").aexists()
        with pytest.raises(Entry.DoesNotExist):
            await Entry(pk=10**6).arefresh_from_db()

    run(main)


def test_arefresh_from_db_takes_a_queryset(database: str, run: Run) -> None:
    async def main() -> None:
        await shelves()
        book = await Book.objects.afirst()
        await book.arefresh_from_db(from_queryset=Book.objects.select_related("author"))
        with queries() as log:
            assert book.author.name == "Jorge"
        assert log == []

    run(main)


def test_an_integrity_error_reaches_the_caller_and_the_connection_goes_on(
    database: str, run: Run
) -> None:
    async def main() -> None:
        await Author.objects.acreate(name="Jorge")
        with pytest.raises(IntegrityError):
            await Author.objects.acreate(name="Jorge")
        assert await Author.objects.acount() == 1

    run(main)


def test_afull_clean_asks_the_database(database: str, run: Run) -> None:
    async def main() -> None:
        jorge = await Author.objects.acreate(name="Jorge", mentor=None)
        jorge.mentor = jorge
        await jorge.afull_clean()
        with pytest.raises(ValidationError) as caught:
            await Author(name="Jorge", mentor=jorge).afull_clean()
        assert list(caught.value.message_dict) == ["name"]
        await Author(name="Jorge").afull_clean(
            exclude=["mentor"], validate_unique=False, validate_constraints=False
        )
        with pytest.raises(ValidationError):
            await Book(title="lost", author_id=10**6).afull_clean()

    run(main)


def test_shortcuts(database: str, run: Run) -> None:
    async def main() -> None:
        author, tag = await shelves()
        for source in (Book, Book.objects, Book.objects.all(), author.books, tag.books):
            assert (await aget_object_or_404(source, title="A")).copies == 1
            assert len(await aget_list_or_404(source, copies__gte=2)) == 2
            with pytest.raises(Http404):
                await aget_object_or_404(source, title="no such")
            with pytest.raises(Http404):
                await aget_list_or_404(source, title="no such")

    run(main)


def test_aprefetch_related_objects(database: str, run: Run) -> None:
    async def main() -> None:
        await shelves()
        books = await Book.objects.alist()
        await aprefetch_related_objects(books, "author", "tags__books")
        with queries() as log:
            assert {book.author.name for book in books} == {"Jorge"}
            assert titles(books[0].tags.all()[0].books.all()) == ["A", "B", "C"]
        assert log == []

    run(main)


# Custom managers


def test_custom_managers_keep_their_own_methods(database: str, run: Run) -> None:
    async def main() -> None:
        await shelves()
        assert titles(await Catalogued.objects.plentiful().alist()) == ["B", "C"]
        assert titles(await Catalogued.plain.plentiful().alist()) == ["B", "C"]
        await Book.objects.filter(title="C").aupdate(title="hidden")
        assert titles(await Catalogued.objects.alist()) == ["A", "B"]
        assert titles(await Catalogued.objects.aselect_related("author").alist()) == ["A", "B"]
        assert titles(await Catalogued.objects.aprefetch_related("tags").alist()) == ["A", "B"]
        assert await Catalogued.plain.acount() == 3

    run(main)


def test_a_users_own_a_method_is_not_replaced(database: str, run: Run) -> None:
    class Own(models.QuerySet):
        async def alist(self) -> Any:
            return "own"

        async def afirst(self) -> Any:
            return "own first"

    class Managed(models.Manager.from_queryset(Own)):  # type: ignore[misc]
        async def acount(self) -> Any:
            return "own count"

    async def main() -> None:
        manager = Managed()
        manager.model = Book
        assert await manager.acount() == "own count"
        assert await manager.afirst() == "own first"
        assert await Own(Book).alist() == "own"
        assert await manager.alist() == "own"

    run(main)


def test_slices_and_locks(database: str, run: Run) -> None:
    async def main() -> None:
        await shelves()
        part = Book.objects.order_by("title")[1:3]
        assert titles(await part.alist()) == ["B", "C"]
        assert await part.acount() == 2
        assert titles(await part.aprefetch_related("tags").alist()) == ["B", "C"]
        async with aatomic():
            locked = await Book.objects.select_for_update().aget(title="A")
            locked.copies += 1
            await locked.asave()
        assert (await Book.objects.aget(title="A")).copies == 2

    run(main)


def test_sync_queries_in_a_coroutine_name_the_ways_out(database: str, run: Run) -> None:
    async def main() -> None:
        await shelves()
        book = await Book.objects.afirst()
        for use in (
            lambda: list(Book.objects.all()),
            lambda: Book.objects.count(),
            lambda: book.author,
            lambda: book.save(),
            lambda: Book.objects.raw("SELECT * FROM library_book")[0],
        ):
            with pytest.raises(SynchronousOnlyOperation, match="on_loop"):
                use()

    run(main)


def test_a_stream_of_queries_in_an_async_generator(database: str, run: Run) -> None:
    async def stream() -> AsyncIterator[str]:
        async for book in Book.objects.order_by("title").aiterator(chunk_size=1):
            author = await book.aauthor
            yield f"{book.title} by {author.name}"

    async def main() -> None:
        await shelves()
        assert [line async for line in stream()] == [f"{t} by Jorge" for t in "ABC"]

    run(main)
