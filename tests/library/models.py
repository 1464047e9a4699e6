"""A small library: every kind of relation that the tests walk."""

from __future__ import annotations

from django.contrib.contenttypes.fields import GenericForeignKey, GenericRelation
from django.contrib.contenttypes.models import ContentType
from django.db import models


class Author(models.Model):
    name = models.CharField(max_length=100, unique=True)
    mentor = models.ForeignKey("self", models.SET_NULL, null=True, related_name="pupils")

    def __str__(self) -> str:
        return self.name


class Biography(models.Model):
    author = models.OneToOneField(Author, models.CASCADE, related_name="biography")
    text = models.TextField()


class Tag(models.Model):
    name = models.CharField(max_length=50)


class Note(models.Model):
    """A remark on anything."""

    content_type = models.ForeignKey(ContentType, models.CASCADE)
    object_id = models.PositiveBigIntegerField()
    subject = GenericForeignKey()
    text = models.TextField()


class Book(models.Model):
    title = models.CharField(max_length=200)
    author = models.ForeignKey(Author, models.CASCADE, related_name="books")
    tags = models.ManyToManyField(Tag, related_name="books")
    copies = models.IntegerField(default=0)
    notes = GenericRelation(Note)

    def __str__(self) -> str:
        return self.title


class Novel(Book):
    """Inherits a table, so that a save is several statements in a transaction."""

    genre = models.CharField(max_length=50)


class Scan(models.Model):
    """Has a file."""

    file = models.FileField()
    image = models.ImageField(blank=True)
