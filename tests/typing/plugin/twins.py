"""The other methods that are added to Django's classes."""

from __future__ import annotations

from datetime import datetime
from typing import IO, Any, assert_type

from django import forms
from django.core.files import File
from django.core.files.base import ContentFile
from django.core.files.storage import FileSystemStorage, Storage, default_storage
from django.core.mail import EmailMultiAlternatives, get_connection
from django.db.models.fields.files import FieldFile
from django.forms import BaseModelFormSet
from django.test import TestCase
from django.test.utils import CaptureQueriesContext

from shop.models import Book


class SearchForm(forms.Form):
    text = forms.CharField()


class BookForm(forms.ModelForm[Book]):
    class Meta:
        model = Book
        fields = ("title",)


async def of_forms(form: SearchForm, book_form: BookForm) -> None:
    assert_type(await form.ais_valid(), bool)
    await form.afull_clean()
    assert_type(await book_form.ais_valid(), bool)
    assert_type(await book_form.asave(), Book)
    assert_type(await book_form.asave(commit=False), Book)
    await book_form.asave_m2m()
    await form.asave()  # error: mypy attr-defined
    await form.ais_valid(1)  # error: mypy call-arg
    await book_form.asave(comit=False)  # error: mypy call-arg


async def of_formsets(formset: BaseModelFormSet[Book, BookForm]) -> None:
    assert_type(await formset.ais_valid(), bool)
    assert_type(await formset.asave(), list[Book])


async def of_models(book: Book) -> None:
    await book.afull_clean(exclude={"title"}, validate_unique=False)
    await book.afull_clean(excluded=[])  # error: mypy call-arg


async def of_storages(storage: Storage, files: FileSystemStorage) -> None:
    assert_type(await storage.aopen("a"), File[Any])
    assert_type(await storage.asave("a", ContentFile(b"")), str)
    assert_type(await storage.aexists("a"), bool)
    assert_type(await files.asize("a"), int)
    assert_type(await storage.alistdir("a"), tuple[list[str], list[str]])
    assert_type(await storage.aget_modified_time("a"), datetime)
    assert_type(await default_storage.aurl("a"), str)
    await storage.adelete("a")
    await storage.aexists()  # error: mypy call-arg


async def of_files(file: File[bytes], field: FieldFile, written: IO[bytes]) -> None:
    async with file as opened:
        assert_type(opened, File[bytes])
        assert_type(await opened.aread(10), bytes)
        assert_type(await opened.awrite(b""), int)
        assert_type(await opened.asize(), int)
        async for line in opened:
            assert_type(line, bytes)
        async for piece in opened.achunks(chunk_size=10):
            assert_type(piece, bytes)
    await file.aclose()
    async with await field.aopen() as field_file:
        assert_type(field_file, FieldFile)
    await field.asave("a", ContentFile(b""), save=False)
    await field.adelete()
    await file.awrite("text")  # error: mypy arg-type


async def of_mail(message: EmailMultiAlternatives) -> None:
    assert_type(await message.asend(), int)
    async with get_connection() as connection:
        assert_type(await connection.asend_messages([message]), int)
    await message.asend("now", 1)  # error: mypy call-arg, mypy arg-type


class Tests(TestCase):
    async def test_queries(self) -> None:
        async with self.assertNumQueries(1) as queries:
            assert_type(queries.captured_queries, list[dict[str, str]])


async def of_captured_queries(context: CaptureQueriesContext) -> None:
    async with context as queries:
        assert_type(queries, CaptureQueriesContext)
