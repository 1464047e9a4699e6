"""A relation of every kind."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING

from django.contrib.contenttypes.fields import GenericForeignKey
from django.contrib.contenttypes.models import ContentType
from django.db import models


class Author(models.Model):
    name = models.CharField(max_length=100)


class Tag(models.Model):
    name = models.CharField(max_length=100)


class Book(models.Model):
    title = models.CharField(max_length=100)
    author = models.ForeignKey(Author, models.CASCADE, related_name="books")
    editor = models.ForeignKey(Author, models.SET_NULL, null=True, related_name="+")
    sequel_of = models.OneToOneField(
        "self", models.SET_NULL, null=True, blank=True, related_name="sequel"
    )
    tags = models.ManyToManyField(Tag)


class Audiobook(Book):
    minutes = models.IntegerField()


class Signed(Book):
    class Meta:
        proxy = True

    async def signature(self) -> str:
        return (await self.aauthor).name


class Cover(models.Model):
    book = models.OneToOneField(Book, models.CASCADE)
    hidden = models.OneToOneField(Tag, models.CASCADE, related_name="+")


class Note(models.Model):
    content_type = models.ForeignKey(ContentType, models.CASCADE)
    object_id = models.BigIntegerField()
    subject = GenericForeignKey()


class ShelfQuerySet(models.QuerySet["Shelf"]):
    def long(self) -> ShelfQuerySet:
        return self.filter(length__gt=100)


class ShelfManager(models.Manager["Shelf"]):
    pass


class Owned(models.Model):
    owner = models.ForeignKey(Author, models.CASCADE, related_name="+")

    class Meta:
        abstract = True

    async def name_of_owner(self) -> str:
        return (await self.aowner).name


class Shelf(Owned):
    length = models.IntegerField()

    objects = ShelfQuerySet.as_manager()
    plain = ShelfManager()


class Loan(models.Model):
    """Attributes of its own with names that would be ours."""

    book = models.ForeignKey(Book, models.CASCADE, related_name="+")
    reader = models.ForeignKey(Author, models.CASCADE, related_name="+")

    if TYPE_CHECKING:
        areader: Awaitable[Author]

    def abook(self) -> int:
        return 1
