"""What both kinds of views share: how a row is told, and a query that takes its time."""

from typing import Any

from django.db.models import F, Func, QuerySet, TextField, Value

from benchmarks.site.models import Article
from benchmarks.works import PAUSE


def told(article: Article) -> dict[str, Any]:
    return {
        "id": article.pk,
        "title": article.title,
        "author": article.author,
        "body": article.body,
        "published": article.published,
        "views": article.views,
    }


def slow(key: int) -> QuerySet[Article, Any]:
    """The key of one row, from a query that takes PAUSE seconds on the server."""
    pause = Func(Value(PAUSE), function="pg_sleep", output_field=TextField())
    return Article.objects.filter(pk=key).annotate(pause=pause).values_list(F("pk"), "pause")
