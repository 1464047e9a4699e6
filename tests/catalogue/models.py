"""Models with code of their own: overrides, custom managers, names that collide, base classes."""

from __future__ import annotations

from typing import Any

from django.contrib.contenttypes.fields import GenericForeignKey
from django.contrib.contenttypes.models import ContentType
from django.db import models

from tests.library.models import Author, Book, Tag


class CataloguedQuerySet(models.QuerySet):
    def plentiful(self) -> CataloguedQuerySet:
        return self.filter(copies__gte=2)


class CataloguedManager(models.Manager):
    def get_queryset(self) -> Any:
        return super().get_queryset().exclude(title="hidden")


class Catalogued(Book):
    """Books by other managers."""

    objects = CataloguedManager.from_queryset(CataloguedQuerySet)()
    plain = CataloguedQuerySet.as_manager()

    class Meta:
        proxy = True


class Entry(models.Model):
    """Its save() and delete() query, as users' overrides do."""

    name = models.CharField(max_length=50, unique=True)
    number = models.IntegerField(default=0)
    on_shelf = models.ForeignKey("Shelf", models.SET_NULL, null=True, related_name="entries")
    parts = models.ManyToManyField("Entry", through="Part", symmetrical=False)

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self.number:
            self.number = Entry.objects.count() + 1
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> Any:
        Tag.objects.create(name=f"deleted {self.name}")
        return super().delete(*args, **kwargs)

    class Meta:
        get_latest_by = "number"


class Part(models.Model):
    """The table between entries, with data of its own."""

    whole = models.ForeignKey(Entry, models.CASCADE, related_name="part_rows")
    part = models.ForeignKey(Entry, models.CASCADE, related_name="whole_rows")
    place = models.IntegerField(default=0)


class Shelf(models.Model):
    """Defined after what points at it."""

    name = models.CharField(max_length=50)


class Owned(models.Model):
    """An abstract base with a relation."""

    owner = models.ForeignKey(Author, models.CASCADE, related_name="+")

    class Meta:
        abstract = True


class Chair(Owned):
    pass


class Lamp(Owned):
    chair = models.OneToOneField(Chair, models.CASCADE, null=True, related_name="lamp")


class Taken(models.Model):
    """Has names of its own where `a<relation>` would stand."""

    author = models.ForeignKey(Author, models.CASCADE, related_name="+")
    publisher = models.ForeignKey(Shelf, models.CASCADE, related_name="+", null=True)
    tag = models.ForeignKey(Tag, models.CASCADE, related_name="+", null=True)
    shelf = models.ForeignKey(Shelf, models.CASCADE, related_name="+", null=True)
    aauthor = models.CharField(max_length=20, default="a field")
    atag = "an attribute"

    def ashelf(self) -> str:
        return "a method"


class TakenBelow(Taken):
    """Shadows in a subclass what its parent was given."""

    apublisher = models.CharField(max_length=20, default="a field below")


class Remark(models.Model):
    """A generic relation that may be empty."""

    content_type = models.ForeignKey(ContentType, models.CASCADE, null=True)
    object_id = models.PositiveBigIntegerField(null=True)
    about = GenericForeignKey()
