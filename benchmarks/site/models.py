"""The one table. benchmarks.database makes and fills it, FastAPI's subject maps the same."""

from django.db import models


class Article(models.Model):
    title = models.CharField(max_length=200)
    author = models.CharField(max_length=100)
    body = models.TextField()
    published = models.BooleanField(default=True)
    views = models.IntegerField(default=0)

    class Meta:
        managed = False
        db_table = "article"
