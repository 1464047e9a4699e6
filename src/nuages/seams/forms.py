"""Forms and formsets: `ais_valid()`, `afull_clean()`, `asave()` and `asave_m2m()`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nuages.db.orm.to_async import orm_to_async
from nuages.seams.table import Seam


async def ais_valid(self: Any) -> bool:
    """Return whether the form has no errors; its validation may query the database."""
    return bool(await orm_to_async(self.is_valid)())


async def afull_clean(self: Any) -> None:
    """Clean all of the data; its validation may query the database."""
    await orm_to_async(self.full_clean)()


async def asave(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Save the form's instance (or instances) and return it: `save(commit=True)`, awaited.

    It takes what `save()` takes, also one of the user's own.
    """
    return await orm_to_async(self.save)(*args, **kwargs)


async def asave_m2m(self: Any) -> None:
    """Save the many-to-many data after `asave(commit=False)`."""
    await orm_to_async(self.save_m2m)()


# As for save(): templates must not call these.
asave.alters_data = asave_m2m.alters_data = True  # type: ignore[attr-defined]


def _put(function: Any) -> Callable[[Any], Any]:
    return lambda original: function


def seams() -> list[Seam]:
    """Return this area's seams."""
    where: list[tuple[str, Any]] = [
        ("django.forms.forms:BaseForm", ais_valid),
        ("django.forms.forms:BaseForm", afull_clean),
        ("django.forms.formsets:BaseFormSet", ais_valid),
        ("django.forms.formsets:BaseFormSet", afull_clean),
        ("django.forms.models:BaseModelForm", asave),
        ("django.forms.models:BaseModelForm", asave_m2m),
        ("django.forms.models:BaseModelFormSet", asave),
        ("django.forms.models:BaseModelFormSet", asave_m2m),
    ]
    return [
        Seam(
            f"{owner}.{function.__name__}",
            f"The async twin of {function.__name__[1:]}().",
            _put(function),
            new=True,
        )
        for owner, function in where
    ]
