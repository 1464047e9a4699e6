"""The site: a view for every way of working.

Every answer can be checked by who asks: it follows from the request, from the rows that were there
at the beginning, or from what the same client did before.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator
from typing import Any

from asgiref.sync import sync_to_async
from django.contrib import admin
from django.contrib.auth import aauthenticate, alogin
from django.core.cache import cache
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.template import engines
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from nuages import on_loop
from nuages.db import aatomic, acursor, aon_commit, detached
from nuages.http import EventStream, request_timeout
from tests.library.models import Author, Book, Tag
from tests.soak.errors import classes
from tests.soak.gauges import gauges
from tests.soak.kinds import EVENTS

DEADLINE = 0.15
"""Seconds that the slow view may take; it would take far longer."""

SLEEP = {
    "postgresql": "SELECT pg_sleep(60)",
    "mysql": "SELECT SLEEP(60)",
    "sqlite": (
        "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    ),
}
"""What takes a minute at least."""

LIST = """<html><title>Authors</title>{% csrf_token %}<p>{{ user.get_username }}</p>
<ul>{% for author in authors %}<li>{{ author.name }}: {{ author.books.count }}</li>{% endfor %}
</ul></html>"""


class Failure(Exception):
    """What the failing views raise."""


async def gathered(request: HttpRequest) -> JsonResponse:
    """Three queries at the same time."""
    author, authors, books = await asyncio.gather(
        Author.objects.aget(name="author 07"),
        Author.objects.acount(),
        Book.objects.select_related("author").order_by("title")[:5].alist(),
    )
    return JsonResponse(
        {"name": author.name, "authors": authors, "books": [book.author.name for book in books]}
    )


@on_loop
def on_the_loop(request: HttpRequest) -> JsonResponse:
    """A sync view on the loop: implicit queries and a transaction."""
    with transaction.atomic():
        author = Author.objects.get(name="author 03")
        titles = [book.title for book in author.books.order_by("title")]
    return JsonResponse({"titles": titles})


def in_a_thread(request: HttpRequest) -> JsonResponse:
    """A sync view as it is."""
    with transaction.atomic():
        author = Author.objects.get(name="author 04")
        titles = [book.title for book in author.books.order_by("title")]
    return JsonResponse({"titles": titles})


async def write(request: HttpRequest, key: str) -> HttpResponse:
    """A transaction with a savepoint that is kept, one that is not, and a hook."""
    async with aatomic():
        await Tag.objects.acreate(name=key)
        async with aatomic():
            await Tag.objects.acreate(name=f"{key} kept")
        try:
            async with aatomic():
                await Tag.objects.acreate(name=f"{key} gone")
                raise Failure
        except Failure:
            pass
        # Where the connection was lost in that rollback, Django notes it, and would end this
        # block with a rollback and no error: it is the next query that says so.
        await Tag.objects.filter(name=key).aexists()

        async def hook() -> None:
            await Tag.objects.acreate(name=f"{key} hook")

        await aon_commit(hook)
    return HttpResponse(status=201)


async def write_in_tasks(request: HttpRequest, key: str) -> HttpResponse:
    """Tasks and a thread started in a transaction; what is detached stays whatever happens."""

    async def nested(name: str) -> None:
        async with aatomic():
            await Tag.objects.acreate(name=name)

    async with aatomic():
        await Tag.objects.acreate(name=key)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(nested(f"{key} kept"))
            tasks.create_task(nested(f"{key} task"))
        await sync_to_async(Tag.objects.create, thread_sensitive=False)(name=f"{key} thread")
        async with detached():
            await Tag.objects.acount()
    return HttpResponse(status=201)


async def roll_back(request: HttpRequest, key: str) -> HttpResponse:
    """A transaction that fails."""
    async with aatomic():
        await Tag.objects.acreate(name=f"{key} gone")
        raise Failure


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    """Rows of a server-side cursor."""

    async def rows() -> AsyncIterator[str]:
        async for author in Author.objects.order_by("name").aiterator(chunk_size=10):
            yield f"{author.name}\n"

    return StreamingHttpResponse(rows(), content_type="text/plain")


async def events(request: HttpRequest) -> EventStream:
    """Server-sent events with a query before each."""

    async def source(last_event_id: str | None) -> AsyncIterator[str]:
        for number in range(EVENTS):
            count = await Author.objects.acount()
            yield f"{number} {count}"
            await asyncio.sleep(0.005)

    return EventStream(source, request)


@csrf_exempt
async def upload(request: HttpRequest) -> JsonResponse:
    """A file that is spooled to disk, read again."""
    file: Any = request.FILES["file"]
    digest = hashlib.sha256()
    async for chunk in file.achunks():
        digest.update(chunk)
    return JsonResponse({"sha256": digest.hexdigest(), "size": file.size})


@csrf_exempt
async def log_in(request: HttpRequest) -> HttpResponse:
    """Log a user in, whose session is in the cache."""
    user = await aauthenticate(request, username=request.POST["name"], password="soak")
    assert user is not None
    await alogin(request, user)
    return HttpResponse(status=204)


async def count_in_session(request: HttpRequest) -> JsonResponse:
    """The session's own counter."""
    session: Any = request.session
    count = await session.aget("count", 0) + 1
    await session.aset("count", count)
    return JsonResponse({"count": count, "user": (await request.auser()).get_username()})


async def template(request: HttpRequest) -> HttpResponse:
    """A template whose rows query as they are rendered."""
    context = {"authors": Author.objects.order_by("name").prefetch_related("books")[:10]}
    text = await on_loop(engines["django"].from_string(LIST).render)(context, request)
    return HttpResponse(text)


async def cached(request: HttpRequest, key: str) -> JsonResponse:
    """Set, count, get and compute."""
    await cache.aset(key, {"key": key}, 30)
    await cache.aadd(f"{key}:n", 0, 30)
    counted = await cache.aincr(f"{key}:n")
    computed = await cache.aget_or_set("authors", Author.objects.acount, 1)
    return JsonResponse({"found": await cache.aget(key), "counted": counted, "computed": computed})


async def fail(request: HttpRequest) -> HttpResponse:
    """An error in the middle of a query's transaction."""
    async with aatomic():
        await Author.objects.acount()
        raise Failure


@request_timeout(DEADLINE)
async def slow(request: HttpRequest) -> HttpResponse:
    """A statement that takes longer than the request may."""
    async with aatomic(), acursor() as cursor:
        await cursor.execute(SLEEP[connection.vendor])
    return HttpResponse()


async def far(request: HttpRequest, key: str) -> HttpResponse:
    """A transaction over connections that are cut."""
    async with aatomic("cut"):
        await Tag.objects.using("cut").acreate(name=key)
        await Tag.objects.using("cut").acreate(name=f"{key} kept")
    return HttpResponse(status=201)


async def measured(request: HttpRequest) -> JsonResponse:
    """What the process says of itself."""
    return JsonResponse(gauges())


def server_error(request: HttpRequest) -> HttpResponse:
    """The answer to an exception: its class, so that one can be told from another."""
    text = ",".join(sorted(classes(sys.exception())))
    return HttpResponse(text, status=500, content_type="text/plain")


admin.site.register(Author)

handler500 = server_error
urlpatterns = [
    path("gathered/", gathered),
    path("loop/", on_the_loop),
    path("thread/", in_a_thread),
    path("write/<str:key>/", write),
    path("tasks/<str:key>/", write_in_tasks),
    path("back/<str:key>/", roll_back),
    path("far/<str:key>/", far),
    path("stream/", stream),
    path("events/", events),
    path("upload/", upload),
    path("login/", log_in),
    path("count/", count_in_session),
    path("template/", template),
    path("cached/<str:key>/", cached),
    path("fail/", fail),
    path("slow/", slow),
    path("measured/", measured),
    path("admin/", admin.site.urls),
]
