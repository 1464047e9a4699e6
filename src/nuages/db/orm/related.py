"""`await post.aauthor`: related objects in async code; and async twins of Model methods."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Iterator
from typing import Any

from django.apps import apps
from django.db import models
from django.db.models.fields.related import ForeignObject, lazy_related_operation
from django.db.models.signals import class_prepared

from nuages.db.orm.to_async import orm_to_async

_MISSING: Any = object()


class RelatedObject:
    """The value of `post.aauthor`: an awaitable that gives `post.author`.

    Awaiting it queries only where `post.author` would. It raises what `post.author` raises.
    """

    __slots__ = ("_name", "instance")

    def __init__(self, instance: models.Model, name: str) -> None:
        self.instance = instance
        self._name = name

    def __await__(self) -> Generator[Any, Any, Any]:
        return orm_to_async(self._get)().__await__()

    def _get(self) -> Any:
        return getattr(self.instance, self._name)

    def __repr__(self) -> str:
        return f"<await to get {type(self.instance).__name__}.{self._name}>"


class AsyncRelated:
    """The descriptor of `a<relation>` on a model."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, instance: models.Model | None, owner: type | None = None) -> Any:
        return self if instance is None else RelatedObject(instance, self.name)


def forward_relations(model: type[models.Model]) -> Iterator[str]:
    """Yield the name of every relation that `model` itself declares to one object."""
    for field in model._meta.local_fields:
        if isinstance(field, ForeignObject):
            yield field.name
    for private in model._meta.private_fields:
        to_one = private.many_to_one or private.one_to_one
        if to_one and (isinstance(private, ForeignObject) or hasattr(private, "ct_field")):
            yield private.name


def async_relations(model: type[models.Model]) -> Iterator[tuple[str, str]]:
    """Yield the `a<relation>` attributes that a class itself has, each with its relation's name.

    For type checkers (`nuages.mypy`). An abstract model has none, but its subclasses will.
    """
    for name, value in vars(model).items():
        if isinstance(value, AsyncRelated):
            yield name, value.name
    if model._meta.abstract:
        for relation in forward_relations(model):
            if inspect.getattr_static(model, f"a{relation}", _MISSING) is _MISSING:
                yield f"a{relation}", relation


def shadowed(model: type[models.Model]) -> list[str]:
    """Return the `a*` names that a model has of its own, so that ours are not available.

    Names that it inherits from another model are reported for that one.
    """
    parents = list(model._meta.all_parents)
    names = {name: None for owner in (model, *parents) for name in forward_relations(owner)}
    names |= {
        accessor: None
        for relation in model._meta.related_objects
        if relation.one_to_one and not relation.hidden
        if (accessor := relation.get_accessor_name()) is not None
    }
    found = []
    for name in (f"a{name}" for name in names):
        value = inspect.getattr_static(model, name, _MISSING)
        if value is _MISSING or isinstance(value, AsyncRelated):
            continue
        if all(inspect.getattr_static(parent, name, _MISSING) is not value for parent in parents):
            found.append(name)
    return found


def _add(model: type[models.Model], relation: str) -> None:
    if not hasattr(model, f"a{relation}"):
        setattr(model, f"a{relation}", AsyncRelated(relation))


def add_async_relations(sender: type[models.Model], **kwargs: Any) -> None:
    """Give a model its `a<relation>` attributes; names that it has itself stay.

    A receiver of `class_prepared`. It looks at the model's own fields only: asking for reverse
    relations would fill caches of `_meta` before all models are there.
    """
    for name in list(forward_relations(sender)):
        _add(sender, name)
    for field in sender._meta.local_fields:
        if isinstance(field, models.OneToOneField):
            lazy_related_operation(_add_reverse, sender, field.remote_field.model, field=field)


def _add_reverse(model: Any, related_model: Any, field: Any) -> None:
    accessor = field.remote_field.get_accessor_name()
    if accessor and not field.remote_field.hidden and not related_model._meta.swapped:
        _add(related_model, accessor)


def install() -> None:
    """Add the attributes to every model, including models defined later."""
    for model in apps.get_models(include_auto_created=True):
        add_async_relations(model)
    class_prepared.connect(add_async_relations, dispatch_uid="nuages.db.orm.related")


async def afull_clean(self: Any, exclude: Any = None, validate_unique: bool = True,
                      validate_constraints: bool = True) -> None:  # fmt: skip
    """Validate the instance: `full_clean()`, whose checks may query the database."""
    await orm_to_async(self.full_clean)(
        exclude=exclude,
        validate_unique=validate_unique,
        validate_constraints=validate_constraints,
    )


MODEL_METHODS = {"afull_clean": afull_clean}
