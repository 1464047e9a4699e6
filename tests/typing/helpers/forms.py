"""Forms that a checker without plugins knows, by a mixin."""

from __future__ import annotations

from typing import assert_type

from django import forms

from magazines.models import Magazine
from nuages.typing import AsyncForm, AsyncModelForm


class SearchForm(forms.Form, AsyncForm):
    text = forms.CharField()


class MagazineForm(forms.ModelForm[Magazine], AsyncForm, AsyncModelForm[Magazine]):
    class Meta:
        model = Magazine
        fields = ("pages",)


async def of_forms(search: SearchForm, form: MagazineForm) -> None:
    assert_type(await search.ais_valid(), bool)
    assert_type(await form.ais_valid(), bool)
    assert_type(await form.asave(), Magazine)
    await search.asave()  # error: mypy attr-defined, pyright reportAttributeAccessIssue
