"""Forms and formsets whose validation and saving query the database, awaited."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from django import forms
from django.core.exceptions import SynchronousOnlyOperation, ValidationError
from django.db import models
from django.forms.formsets import BaseFormSet
from django.forms.models import BaseModelForm, BaseModelFormSet

from nuages import on_loop
from nuages.db import aatomic
from tests.catalogue.models import Entry
from tests.integration.conftest import Run
from tests.integration.test_orm import queries
from tests.library.models import Author, Book, Tag


@pytest.fixture(autouse=True)
def _clean(database: str) -> Iterator[None]:
    yield
    models.QuerySet(Entry).delete()


class AuthorForm(forms.ModelForm):
    class Meta:
        model = Author
        fields = ["name", "mentor"]


class BookForm(forms.ModelForm):
    class Meta:
        model = Book
        fields = ["title", "author", "tags"]


class KnownAuthor(forms.Form):
    """A plain form that asks the database."""

    name = forms.CharField()

    def clean_name(self) -> str:
        name = self.cleaned_data["name"]
        if not Author.objects.filter(name=name).exists():
            raise ValidationError("Nobody of that name.")
        return name


def test_a_plain_form(run: Run) -> None:
    async def main() -> None:
        form = KnownAuthor({"name": "Italo"})
        assert await form.ais_valid() is False
        assert form.errors == {"name": ["Nobody of that name."]}
        await Author.objects.acreate(name="Italo")
        form = KnownAuthor({"name": "Italo"})
        with queries() as log:
            assert await form.ais_valid() is True
            assert await form.ais_valid() is True  # cleaned once
        assert len(log) == 1
        assert form.is_valid()  # what is validated needs no query, so neither an await
        form = KnownAuthor({"name": "Italo"})
        await form.afull_clean()
        assert form.cleaned_data == {"name": "Italo"}
        assert await KnownAuthor().ais_valid() is False  # unbound
        with pytest.raises(SynchronousOnlyOperation):
            KnownAuthor({"name": "Italo"}).is_valid()

    run(main)


def test_a_model_form_validates_uniqueness_and_saves(run: Run) -> None:
    async def main() -> None:
        mentor = await Author.objects.acreate(name="Elio")
        form = AuthorForm({"name": "Italo", "mentor": mentor.pk})
        assert await form.ais_valid()
        italo = await form.asave()
        assert italo.pk is not None
        form = AuthorForm({"name": "Italo"})
        assert not await form.ais_valid()
        assert "already exists" in str(form.errors["name"])
        with pytest.raises(ValueError, match="didn't validate"):
            await form.asave()
        form = AuthorForm({"name": "Italo Calvino", "mentor": italo.pk}, instance=italo)
        assert await form.ais_valid()
        assert (await form.asave()) is italo
        await italo.arefresh_from_db()
        assert (italo.name, italo.mentor_id) == ("Italo Calvino", italo.pk)
        assert not await AuthorForm({"name": "x", "mentor": 10**6}).ais_valid()

    run(main)


def test_commit_false_and_save_m2m(run: Run) -> None:
    async def main() -> None:
        author = await Author.objects.acreate(name="Italo")
        tags = [await Tag.objects.acreate(name=name) for name in ("city", "memory")]
        data = {"title": "Cities", "author": author.pk, "tags": [tag.pk for tag in tags]}
        form = BookForm(data)
        assert await form.ais_valid()
        book = await form.asave(commit=False)
        assert book.pk is None
        await book.asave()
        await form.asave_m2m()
        assert await book.tags.acount() == 2
        # A form of an instance reads its many-to-many data at once.
        form = await on_loop(BookForm)(data | {"tags": [tags[0].pk]}, instance=book)
        assert await form.ais_valid()
        await form.asave()
        assert await book.tags.alist() == [tags[0]]

    run(main)


def test_a_form_saves_through_the_users_own_save(run: Run) -> None:
    class EntryForm(forms.ModelForm):
        class Meta:
            model = Entry
            fields = ["name"]

        def save(self, commit: bool = True) -> Any:
            self.instance.name = self.instance.name.upper()
            return super().save(commit=commit)

    async def main() -> None:
        form = EntryForm({"name": "low"})
        assert await form.ais_valid()
        entry = await form.asave()
        assert (entry.name, entry.number) == ("LOW", 1)

    run(main)


def test_formsets(run: Run) -> None:
    Known = forms.formset_factory(KnownAuthor, extra=2)

    async def main() -> None:
        await Author.objects.acreate(name="Italo")
        data = {"form-TOTAL_FORMS": "2", "form-INITIAL_FORMS": "0"}
        formset = Known(data | {"form-0-name": "Italo", "form-1-name": "Nobody"})
        assert not await formset.ais_valid()
        assert formset.errors == [{}, {"name": ["Nobody of that name."]}]
        formset = Known(data | {"form-0-name": "Italo", "form-1-name": "Italo"})
        await formset.afull_clean()
        assert formset.total_error_count() == 0
        assert await formset.ais_valid()

    run(main)


def test_model_formsets(run: Run) -> None:
    Authors = forms.modelformset_factory(Author, fields=["name"], extra=1, can_delete=True)

    async def main() -> None:
        one = await Author.objects.acreate(name="one")
        two = await Author.objects.acreate(name="two")
        data = {
            "form-TOTAL_FORMS": "3",
            "form-INITIAL_FORMS": "2",
            "form-0-id": one.pk,
            "form-0-name": "uno",
            "form-1-id": two.pk,
            "form-1-name": "two",
            "form-1-DELETE": "on",
            "form-2-name": "three",
        }
        formset = Authors(data, queryset=Author.objects.order_by("pk"))
        assert await formset.ais_valid()
        async with aatomic():
            saved = await formset.asave()
        assert [author.name for author in saved] == ["uno", "three"]
        assert await Author.objects.order_by("pk").values_list("name", flat=True).alist() == [
            "uno",
            "three",
        ]
        twice = data | {"form-INITIAL_FORMS": "0", "form-TOTAL_FORMS": "1", "form-0-id": ""}
        formset = Authors(twice | {"form-0-name": "uno"}, queryset=Author.objects.none())
        assert not await formset.ais_valid()

    run(main)


def test_inline_formsets_and_commit_false(run: Run) -> None:
    Books = forms.inlineformset_factory(Author, Book, fields=["title", "tags"], extra=1)

    async def main() -> None:
        author = await Author.objects.acreate(name="Italo")
        tag = await Tag.objects.acreate(name="city")
        data = {
            "books-TOTAL_FORMS": "1",
            "books-INITIAL_FORMS": "0",
            "books-0-title": "Cities",
            "books-0-tags": [tag.pk],
        }
        formset = Books(data, instance=author)
        assert await formset.ais_valid()
        (book,) = await formset.asave(commit=False)
        assert book.pk is None
        await book.asave()
        await formset.asave_m2m()
        assert await author.books.alist() == [book]
        assert await book.tags.alist() == [tag]

    run(main)


def test_every_blocking_method_of_forms_has_its_twin() -> None:
    """Introspection: the sync methods named here are those that may query."""
    for form, names in (
        (forms.BaseForm, {"is_valid", "full_clean"}),
        (BaseFormSet, {"is_valid", "full_clean"}),
        (BaseModelForm, {"is_valid", "full_clean", "save"}),
        (BaseModelFormSet, {"is_valid", "full_clean", "save"}),
    ):
        for name in names:
            twin = getattr(form, f"a{name}")
            assert inspect.iscoroutinefunction(twin)
            assert inspect.signature(twin) is not None
