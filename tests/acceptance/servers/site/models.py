"""What the site stores."""

from django.db import models


class Item(models.Model):
    name = models.CharField(max_length=100)

    class Meta:
        ordering = ["pk"]

    def __str__(self) -> str:
        return self.name


class Entry(models.Model):
    """Something that happened on the server while it served a test."""

    token = models.CharField(max_length=40, db_index=True)
    what = models.CharField(max_length=100)
