"""Serve requests at once; fail where a panel does not list exactly its own request's queries."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import django
from asgiref.sync import sync_to_async
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.urls import include, path

settings.configure(
    DEBUG=True,
    SECRET_KEY="toolbar",
    ALLOWED_HOSTS=["*"],
    DATABASES={"default": json.loads(os.environ["TOOLBAR_DATABASE"])},
    INSTALLED_APPS=[
        "nuages",
        "django.contrib.contenttypes",
        "django.contrib.staticfiles",
        "debug_toolbar",
        "tests.library",
    ],
    MIDDLEWARE=["debug_toolbar.middleware.DebugToolbarMiddleware"],
    TEMPLATES=[
        {"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True},
    ],
    ROOT_URLCONF=__name__,
    MIGRATION_MODULES={"contenttypes": None},
    STATIC_URL="static/",
    USE_TZ=True,
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    DEBUG_TOOLBAR_CONFIG={"SHOW_TOOLBAR_CALLBACK": lambda request: True},
    DEBUG_TOOLBAR_PANELS=["debug_toolbar.panels.sql.SQLPanel"],
    NUAGES=json.loads(os.environ["TOOLBAR_NUAGES"]),
)
django.setup()

from debug_toolbar.toolbar import DebugToolbar  # noqa: E402

from nuages import on_loop  # noqa: E402
from nuages.db import aatomic  # noqa: E402
from tests.library.models import Author  # noqa: E402


def look(mark: str) -> None:
    """Send one query that says whose it is."""
    list(Author.objects.filter(name=mark))


async def async_view(request: HttpRequest) -> HttpResponse:
    """Send 11 marked queries, from everywhere."""
    mark = request.GET["mark"]
    authors = Author.objects.filter(name=mark)
    await authors.acount()
    await asyncio.gather(*(authors.acount() for _ in range(3)))
    async with asyncio.TaskGroup() as group:
        group.create_task(on_loop(look)(mark))
    await sync_to_async(look)(mark)
    await sync_to_async(look, thread_sensitive=False)(mark)
    async with aatomic():
        await authors.aexists()
        await asyncio.gather(authors.acount(), on_loop(look)(mark))
    async for _ in authors.aiterator():
        pass
    return HttpResponse("<html><body>async</body></html>")


def sync_view(request: HttpRequest) -> HttpResponse:
    """Send 2 marked queries."""
    look(request.GET["mark"])
    look(request.GET["mark"])
    return HttpResponse("<html><body>sync</body></html>")


QUERIES = {"async": 11, "sync": 2}
urlpatterns = [
    path("async", async_view),
    path("sync", sync_view),
    path("__debug__/", include("debug_toolbar.urls")),
]
panels: list[Any] = []


def note(sender: Any, toolbar: Any, **kwargs: Any) -> None:
    """Keep the panel of every request."""
    panels.append(toolbar.get_panel_by_id("SQLPanel"))


async def main() -> None:
    """Serve each view to several clients at once."""
    from nuages.asgi.handler import ASGIHandler
    from tests.integration.asgi_client import fetch

    DebugToolbar._created.connect(note)
    application = ASGIHandler()
    expected = {f"{kind} {number}": QUERIES[kind] for kind in QUERIES for number in range(4)}
    async with asyncio.timeout(60):
        await asyncio.gather(
            *(fetch(application, f"/{mark.split()[0]}?mark={mark}") for mark in expected)
        )
    found: dict[str, int] = {}
    for panel in panels:
        queries = [each["sql"] for each in panel._queries if "library_author" in each["sql"]]
        marks = {mark for mark in expected for sql in queries if f"'{mark}'" in sql}
        assert len(marks) == 1, (marks, queries)
        found[marks.pop()] = len(queries)
    assert found == expected, (found, expected)


if __name__ == "__main__":
    from django.core.management import call_command

    call_command("migrate", run_syncdb=True, verbosity=0)
    asyncio.run(main())
    print("counted")
