"""A site whose visitors all listen to one event stream, for tests/acceptance/test_many_streams.py.

Settings, URLs and application in one module: it is served by uvicorn in a process of its own.
"""

from __future__ import annotations

import asyncio
import gc
import os
import weakref
from collections.abc import AsyncGenerator
from typing import Any

import psutil
from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

from nuages.asgi import get_asgi_application

if not settings.configured:
    settings.configure(
        SECRET_KEY="tests",
        ROOT_URLCONF=__name__,
        ALLOWED_HOSTS=["127.0.0.1"],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        INSTALLED_APPS=[
            "django.contrib.contenttypes",
            "django.contrib.auth",
            "django.contrib.sessions",
            "django.contrib.messages",
            "tests.library",
            "nuages",
        ],
        MIGRATION_MODULES={"contenttypes": None, "auth": None, "sessions": None},
        MIDDLEWARE=[
            "django.middleware.security.SecurityMiddleware",
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.common.CommonMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
            "django.middleware.clickjacking.XFrameOptionsMiddleware",
        ],
        DATABASES={
            "default": {
                "ENGINE": "nuages.db.backends.postgresql",
                "NAME": os.environ["STREAMS_DATABASE"],
                "HOST": os.environ["STREAMS_HOST"],
                "PORT": os.environ["STREAMS_PORT"],
                "USER": os.environ["STREAMS_USER"],
                "PASSWORD": os.environ["STREAMS_PASSWORD"],
                "OPTIONS": {"pool": {"max_size": 5}},
            }
        },
    )

application = get_asgi_application()

listeners: set[asyncio.Queue[int]] = set()
generators: weakref.WeakSet[Any] = weakref.WeakSet()
changed = asyncio.Condition()


async def listen(last_event_id: str | None) -> AsyncGenerator[Any, None]:
    """Every number that is published, each with a query of its own."""
    from nuages.http import Event
    from tests.library.models import Author

    queue: asyncio.Queue[int] = asyncio.Queue()
    listeners.add(queue)
    async with changed:
        changed.notify_all()
    try:
        while True:
            number = await queue.get()
            yield Event({"authors": await Author.objects.acount()}, id=str(number))
    finally:
        # Awaited, as a cleanup that tells somebody would.
        await asyncio.sleep(0)
        listeners.discard(queue)
        async with changed:
            changed.notify_all()


async def events(request: HttpRequest) -> Any:
    from nuages.http import EventStream

    def source(last_event_id: str | None) -> Any:
        generator = listen(last_event_id)
        generators.add(generator)
        return generator

    return EventStream(source, request, heartbeat=None)


async def publish(request: HttpRequest, number: int) -> HttpResponse:
    for queue in listeners:
        queue.put_nowait(number)
    return HttpResponse()


async def listening(request: HttpRequest, count: int) -> JsonResponse:
    """Answer when `count` streams are open, with the state of the process."""
    from nuages.bridge.core import _bridges
    from nuages.db.pool.pool import open_pools

    async with changed:
        await changed.wait_for(lambda: len(listeners) == count)
    # What a closed connection still has to do: its transport's callbacks come after its task.
    while len(generators) > count:
        gc.collect()
        await asyncio.sleep(0)
    return JsonResponse(
        {
            "tasks": len(asyncio.all_tasks()),
            "generators": len(generators),
            "bridges": len(_bridges),
            "used": sum(pool.stats()["used"] for pool in open_pools()),
            "connections": sum(pool.stats()["size"] for pool in open_pools()),
            "memory": psutil.Process().memory_info().rss,
        }
    )


async def ordinary(request: HttpRequest) -> JsonResponse:
    from tests.library.models import Author

    return JsonResponse({"authors": await Author.objects.acount()})


urlpatterns = [
    path("events/", events),
    path("publish/<int:number>/", publish),
    path("listening/<int:count>/", listening),
    path("ordinary/", ordinary),
]
