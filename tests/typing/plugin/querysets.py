"""The methods that are added to Django's querysets and managers."""

from __future__ import annotations

from typing import assert_type

from django.db.models import Prefetch, QuerySet

from shop.models import Audiobook, Author, Book, Shelf, ShelfQuerySet, Tag


async def querysets(author: Author, book: Book) -> None:
    assert_type(await Book.objects.filter(title="x").alist(), list[Book])
    assert_type(await Book.objects.alist(), list[Book])
    assert_type(await Audiobook.objects.all().alist(), list[Audiobook])
    assert_type(await author.books.alist(), list[Book])
    assert_type(await book.tags.alist(), list[Tag])
    assert_type(await Shelf.objects.long().alist(), list[Shelf])
    assert_type(await Shelf.objects.alist(), list[Shelf])
    assert_type(await Shelf.plain.filter(length=3).alist(), list[Shelf])
    assert_type(await Book.objects.values_list("title", flat=True).alist(), list[str])
    assert_type(await Book.objects.values_list("title", "pk").alist(), list[tuple[str, int]])
    assert_type(await Book.objects.aget(pk=1), Book)
    assert_type(await Book.objects.raw("SELECT 1").alist(), list[Book])
    async for found in Book.objects.raw("SELECT 1"):
        assert_type(found, Book)


async def chains(author: Author) -> None:
    assert_type(Book.objects.aselect_related("author"), QuerySet[Book, Book])
    assert_type(Book.objects.all().aselect_related("author"), QuerySet[Book, Book])
    assert_type(Book.objects.aprefetch_related("tags"), QuerySet[Book, Book])
    assert_type(Shelf.objects.long().aselect_related("owner"), ShelfQuerySet)
    assert_type(Shelf.objects.aselect_related("owner").long(), ShelfQuerySet)
    assert_type(Shelf.objects.aprefetch_related("owner").long(), ShelfQuerySet)
    tagged = Book.objects.aprefetch_related(Prefetch("tags", Tag.objects.all(), to_attr="found"))
    assert_type((await tagged.aget(pk=1)).found, list[Tag])
    assert_type(await author.books.aselect_related("author").alist(), list[Book])


async def wrong(author: Author) -> None:
    await Book.objects.alist(1)  # error: mypy call-arg
    await Book.objects.aliste()  # error: mypy attr-defined
    await Book.objects.aselect_related("author")  # error: mypy misc
    Book.objects.aselect_related("no_such_field")  # error: mypy misc
    Shelf.objects.all().aselect_related("length")  # error: mypy misc
    Book.objects.aprefetch_related(3)  # error: mypy arg-type, mypy call-overload
    Book.objects.aselect_related(author=1)  # error: mypy call-arg
    Book.objects.alist().count()  # error: mypy attr-defined
    title: str = (await Book.objects.alist())[0]  # error: mypy assignment
    Book.alist()  # error: mypy attr-defined
    author.alist()  # error: mypy attr-defined
