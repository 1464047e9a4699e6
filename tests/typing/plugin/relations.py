"""`await book.aauthor`: of the type that `book.author` has."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar, assert_type

from django.db import models

from shop.models import Audiobook, Author, Book, Cover, Loan, Note, Shelf, Tag


async def forwards(book: Book, cover: Cover, shelf: Shelf, note: Note, loan: Loan) -> None:
    assert_type(book.aauthor, Awaitable[Author])
    assert_type(await book.aauthor, Author)
    assert_type(await book.aeditor, Author | None)
    assert_type(await book.asequel_of, Book | None)
    assert_type(await cover.abook, Book)
    assert_type(await cover.ahidden, Tag)
    assert_type(await shelf.aowner, Author)
    assert_type(await loan.areader, Author)
    assert_type(loan.abook(), int)
    subject: models.Model | None = await note.asubject
    first, second = await asyncio.gather(book.aauthor, cover.abook)
    assert_type(first, Author)
    assert_type(second, Book)
    assert_type((await (await cover.abook).aauthor).name, str)


async def backwards(book: Book) -> None:
    assert_type(await book.acover, Cover)
    assert_type(await book.asequel, Book)
    assert_type(await book.aaudiobook, Audiobook)


async def inherited(audiobook: Audiobook) -> None:
    assert_type(await audiobook.aauthor, Author)
    assert_type(await audiobook.abook_ptr, Book)
    assert_type(await audiobook.acover, Cover)


B = TypeVar("B", bound=Book)


async def of_any_subclass(book: B) -> None:
    assert_type(await book.aauthor, Author)


async def wrong(author: Author, book: Book, tag: Tag, cover: Cover) -> None:
    await book.awriter  # error: mypy attr-defined
    await author.abooks  # error: mypy attr-defined
    await book.atags  # error: mypy attr-defined
    await book.atitle  # error: mypy attr-defined
    await tag.acover  # error: mypy attr-defined
    book.aauthor.name  # error: mypy attr-defined
    (await book.aeditor).name  # error: mypy union-attr
    editor: Author = await book.aeditor  # error: mypy assignment
    book.aauthor()  # error: mypy operator
    book.aauthor = author  # error: mypy misc, mypy assignment
    asyncio.create_task(book.aauthor)  # error: mypy arg-type
