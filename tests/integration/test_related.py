"""`await book.aauthor`: every kind of relation to one object, and code that reads them all."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from django.apps import apps
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, models
from django.template import Context, Engine
from django.test.utils import isolate_apps

from nuages import on_loop
from nuages.checks import check_models
from nuages.db.orm.related import AsyncRelated, RelatedObject, shadowed
from tests.catalogue.models import Chair, Entry, Lamp, Remark, Shelf, Taken, TakenBelow
from tests.integration.conftest import Run
from tests.integration.test_orm import queries
from tests.library.models import Author, Biography, Book, Note, Novel, Tag

pytestmark = pytest.mark.every_database


@pytest.fixture(autouse=True)
def _clean(request: pytest.FixtureRequest) -> Iterator[None]:
    if "database" not in request.fixturenames:
        yield
        return
    request.getfixturevalue("database")
    yield
    for model in (TakenBelow, Taken, Lamp, Chair, Entry, Shelf, Remark):
        model._base_manager.all().delete()


async def a_book(**kwargs: Any) -> Book:
    author = await Author.objects.acreate(name="Italo")
    return await Book.objects.acreate(title="Invisible Cities", author=author, **kwargs)


def test_forward_foreign_key(database: str, run: Run) -> None:
    async def main() -> None:
        pk = (await a_book()).pk
        book = await Book.objects.aget(pk=pk)
        with queries() as log:
            author = await book.aauthor
            assert author.name == "Italo"
            assert (await book.aauthor) is author
            assert book.author is author  # cached
        assert len(log) == 1
        book.author_id = 10**6
        with pytest.raises(Author.DoesNotExist):
            await book.aauthor

    run(main)


def test_empty_foreign_key_is_none_without_a_query(database: str, run: Run) -> None:
    async def main() -> None:
        author = await Author.objects.acreate(name="Italo")
        with queries() as log:
            assert await author.amentor is None
        assert log == []
        with pytest.raises(Book.author.RelatedObjectDoesNotExist):
            await Book(title="orphan").aauthor

    run(main)


def test_one_to_one_both_ways(database: str, run: Run) -> None:
    async def main() -> None:
        author = await Author.objects.acreate(name="Italo")
        with pytest.raises(Author.biography.RelatedObjectDoesNotExist):
            await author.abiography
        await Biography.objects.acreate(author=author, text="He was born in Cuba.")
        author = await Author.objects.aget(pk=author.pk)
        biography = await author.abiography
        assert biography.text.startswith("He was")
        with queries() as log:
            assert await biography.aauthor is author
            assert await author.abiography is biography
        assert log == []
        biography = await Biography.objects.aget(pk=biography.pk)
        assert await biography.aauthor == author

    run(main)


def test_links_of_inherited_tables(database: str, run: Run) -> None:
    async def main() -> None:
        author = await Author.objects.acreate(name="Italo")
        novel = await Novel.objects.acreate(title="The Baron", author=author, genre="fable")
        plain = await a_plain_book(author)
        found = await Novel.objects.aget(pk=novel.pk)
        assert await found.aauthor == author  # the parent's relation, on the child
        assert (await found.abook_ptr).title == "The Baron"
        book = await Book.objects.aget(pk=novel.pk)
        assert (await book.anovel).genre == "fable"
        with pytest.raises(Novel.DoesNotExist):
            await plain.anovel

    async def a_plain_book(author: Author) -> Book:
        return await Book.objects.acreate(title="plain", author=author)

    run(main)


def test_generic_foreign_key(database: str, run: Run) -> None:
    async def main() -> None:
        book = await a_book()
        note = await Note.objects.acreate(subject=book, text="fine")
        note = await Note.objects.aget(pk=note.pk)
        assert await note.asubject == book
        with queries() as log:
            assert await note.asubject is note.subject
        assert log == []
        assert await (await Remark.objects.acreate()).aabout is None

    run(main)


def test_generic_foreign_key_to_what_is_gone_is_none(database: str, run: Run) -> None:
    async def main() -> None:
        tag = await Tag.objects.acreate(name="gone")
        remark = await Remark.objects.acreate(about=tag)
        await tag.adelete()
        remark = await Remark.objects.aget(pk=remark.pk)
        assert await remark.aabout is None

    run(main)


def test_deferred_fields(database: str, run: Run) -> None:
    async def main() -> None:
        await a_book()
        book = await Book.objects.only("title").aget()
        with queries() as log:
            assert (await book.aauthor).name == "Italo"
        assert len(log) == 2  # the key, then the author
        with pytest.raises(SynchronousOnlyOperation):
            book.copies  # noqa: B018
        assert await on_loop(getattr)(book, "copies") == 0

    run(main)


def test_select_related_needs_no_query(database: str, run: Run) -> None:
    async def main() -> None:
        await a_book()
        book = await Book.objects.select_related("author__mentor").aget()
        with queries() as log:
            assert await (await book.aauthor).amentor is None
        assert log == []

    run(main)


def test_models_defined_later_and_abstract_bases(database: str, run: Run) -> None:
    async def main() -> None:
        shelf = await Shelf.objects.acreate(name="top")
        entry = await Entry.objects.acreate(name="e", on_shelf=shelf)
        entry = await Entry.objects.aget(pk=entry.pk)
        assert await entry.aon_shelf == shelf
        owner = await Author.objects.acreate(name="owner")
        chair = await Chair.objects.acreate(owner=owner)
        lamp = await Lamp.objects.acreate(owner=owner, chair=chair)
        chair = await Chair.objects.aget(pk=chair.pk)
        assert await chair.aowner == owner
        assert await chair.alamp == lamp
        assert await (await Lamp.objects.aget(pk=lamp.pk)).aowner == owner

    run(main)


def test_gathered_relations(database: str, run: Run) -> None:
    async def main() -> None:
        await a_book()
        one, two = await Book.objects.aget(), await Book.objects.aget()
        found = await asyncio.gather(on_loop(lambda: one.author)(), reading(two))
        assert found[0] == found[1]

    async def reading(book: Book) -> Author:
        return await book.aauthor

    run(main)


def test_a_model_defined_while_running_has_them() -> None:
    with isolate_apps("tests.catalogue"):

        class Later(models.Model):
            author = models.ForeignKey(Author, models.CASCADE, related_name="+")
            nextone = models.OneToOneField(
                "Latest", models.CASCADE, related_name="earlier", null=True
            )
            swap = models.ForeignKey("auth.User", models.CASCADE, related_name="+")

            class Meta:
                app_label = "catalogue"

        class Latest(models.Model):
            class Meta:
                app_label = "catalogue"

        assert isinstance(Later.__dict__["aauthor"], AsyncRelated)
        assert isinstance(Later.__dict__["anextone"], AsyncRelated)
        assert isinstance(Later.__dict__["aswap"], AsyncRelated)
        assert isinstance(Latest.__dict__["aearlier"], AsyncRelated)
    assert "aauthor" in dir(Author(pk=1).books.model)


def test_hidden_and_many_sided_relations_have_none() -> None:
    assert not hasattr(Author, "abooks")
    assert not hasattr(Book, "atags")
    assert not hasattr(Author, "a+")
    assert not hasattr(Author, "achair_set")


def test_swapped_models() -> None:
    with isolate_apps("tests.catalogue"):

        class Swappable(models.Model):
            class Meta:
                app_label = "catalogue"
                swappable = "CATALOGUE_SWAP_MODEL"

        class Profile(models.Model):
            of = models.OneToOneField(Swappable, models.CASCADE, related_name="profile")

            class Meta:
                app_label = "catalogue"

        assert isinstance(Profile.__dict__["aof"], AsyncRelated)


def test_what_a_model_has_itself_is_never_shadowed(database: str, run: Run) -> None:
    async def main() -> None:
        author = await Author.objects.acreate(name="Italo")
        taken = await Taken.objects.acreate(author=author, aauthor="mine")
        taken = await Taken.objects.aget(pk=taken.pk)
        assert taken.aauthor == "mine"
        assert taken.atag == "an attribute"
        assert taken.ashelf() == "a method"
        assert await taken.apublisher is None
        below = await TakenBelow.objects.acreate(author=author)
        below = await TakenBelow.objects.aget(pk=below.pk)
        assert below.aauthor == "a field"
        assert below.apublisher == "a field below"

    run(main)


def test_a_check_names_what_is_shadowed() -> None:
    assert sorted(shadowed(Taken)) == ["aauthor", "ashelf", "atag"]
    assert shadowed(TakenBelow) == ["apublisher"]  # the rest is its parent's
    assert shadowed(Book) == []
    found = check_models([apps.get_app_config("catalogue")])
    assert {message.id for message in found} == {"nuages.W002"}
    assert {(message.obj, message.msg.split()[0]) for message in found} == {
        (Taken, "catalogue.Taken.aauthor"),
        (Taken, "catalogue.Taken.ashelf"),
        (Taken, "catalogue.Taken.atag"),
        (TakenBelow, "catalogue.TakenBelow.apublisher"),
    }
    assert check_models([apps.get_app_config("library")]) == []


def test_the_awaitable_can_be_awaited_twice_and_tells_what_it_is(database: str, run: Run) -> None:
    async def main() -> None:
        await a_book()
        book = await Book.objects.aget()
        related = book.aauthor
        assert isinstance(related, RelatedObject)
        assert repr(related) == "<await to get Book.author>"
        assert await related is await related
        assert await asyncio.create_task(awaiting(related)) == book.author
        assert Book.aauthor.name == "author"

    async def awaiting(awaitable: Any) -> Any:
        return await awaitable

    run(main)


# Implicit I/O: async code with @on_loop, and what it calls


def test_lazy_relations_in_an_async_function_on_the_loop(database: str, run: Run) -> None:
    @on_loop
    async def view(pk: int) -> str:
        book = await Book.objects.aget(pk=pk)
        line = f"{book.title} by {book.author.name}"  # a query
        await asyncio.sleep(0)
        return line + f", {book.tags.count()} tags, {[note.text for note in book.notes.all()]}"

    async def main() -> None:
        book = await a_book()
        assert await view(book.pk) == "Invisible Cities by Italo, 0 tags, []"

    run(main)


def test_a_template_queries_while_it_is_rendered(database: str, run: Run) -> None:
    template = Engine().from_string(
        "{% for book in books %}{{ book.title }} by {{ book.author.name }}"
        "{% for tag in book.tags.all %} #{{ tag.name }}{% endfor %};{% endfor %}"
    )

    @on_loop
    async def view() -> str:
        return template.render(Context({"books": Book.objects.order_by("title")}))

    async def main() -> None:
        book = await a_book()
        await book.tags.aadd(await Tag.objects.acreate(name="city"))
        assert await view() == "Invisible Cities by Italo #city;"
        assert await on_loop(template.render)(Context({"books": Book.objects.all()})) == (
            "Invisible Cities by Italo #city;"
        )
        with pytest.raises(SynchronousOnlyOperation):
            template.render(Context({"books": Book.objects.all()}))

    run(main)


def test_an_async_generator_on_the_loop(database: str, run: Run) -> None:
    @on_loop
    async def lines() -> Any:
        for book in Book.objects.order_by("title"):
            yield book.author.name
            await asyncio.sleep(0)

    async def main() -> None:
        await a_book()
        assert [line async for line in lines()] == ["Italo"]

    run(main)


def test_the_facade_answers_what_needs_no_connection(database: str, run: Run) -> None:
    async def main() -> None:
        assert connection.vendor == database
        assert connection.in_atomic_block is False
        assert connection.ops.quote_name("x").strip('`"') == "x"

    run(main)
