"""A site of event streams and files, for test_event_stream.py: served by a real uvicorn.

What happens in the server is noted; `/noted/<text>/` answers when it has been.
"""

from __future__ import annotations

import asyncio
import collections
import os
from collections.abc import AsyncIterator
from typing import Any

from django.db import connection
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.urls import path

from nuages import on_loop
from nuages.db.pool.pool import open_pools
from nuages.http import Event, EventStream, afile_response
from tests.library.models import Author

notes: collections.Counter[str] = collections.Counter()
_noted = asyncio.Condition()


async def note(text: str) -> None:
    print(f"noted: {text}", flush=True)
    async with _noted:
        notes[text] += 1
        _noted.notify_all()


async def noted(request: HttpRequest, text: str, times: int) -> HttpResponse:
    async with _noted:
        await _noted.wait_for(lambda: notes[text] >= times)
    return HttpResponse("noted")


async def count(request: HttpRequest, end: int) -> EventStream:
    """Counts from where the client was."""

    async def numbers(last: str | None) -> AsyncIterator[Event]:
        for number in range(int(last or 0) + 1, end + 1):
            yield Event({"n": number}, id=number, event="count")

    return EventStream(numbers, request, retry=10)


async def silent(request: HttpRequest) -> EventStream:
    """Says nothing; notes its life."""

    async def source(last: str | None) -> AsyncIterator[str]:
        try:
            await note("silent began")
            await asyncio.Event().wait()
            yield "never"
        finally:
            await asyncio.sleep(0)
            await note("silent ended")

    return EventStream(source, request, heartbeat=0.02)


async def busy(request: HttpRequest) -> EventStream:
    """Never stops by itself."""

    async def source(last: str | None) -> AsyncIterator[str]:
        try:
            while True:
                yield "x" * 1000
        finally:
            await asyncio.sleep(0)
            await note("busy ended")

    return EventStream(source, request)


async def broken(request: HttpRequest) -> EventStream:
    async def source(last: str | None) -> AsyncIterator[str]:
        yield "before"
        raise ZeroDivisionError("in the source")

    return EventStream(source, request)


async def queries(request: HttpRequest) -> EventStream:
    """Queries in every way between its events."""

    @on_loop
    async def implicit(number: int) -> AsyncIterator[str]:
        yield Author.objects.create(name=f"Ada {number}").name

    async def source(last: str | None) -> AsyncIterator[Any]:
        for number in range(3):
            async for name in implicit(number):
                yield {"name": name, "count": await Author.objects.acount()}
                yield {"used": [pool.stats()["used"] for pool in open_pools()]}
        assert not connection.in_atomic_block

    return EventStream(source, request)


async def file(request: HttpRequest) -> HttpResponseBase:
    return await afile_response(request, os.environ["STREAM_SITE_FILE"], as_attachment=True)


async def tasks(request: HttpRequest) -> JsonResponse:
    """How many tasks the server's loop has, and how many of its pools' connections are used."""
    used = [pool.stats()["used"] for pool in open_pools()]
    return JsonResponse({"tasks": len(asyncio.all_tasks()), "used": used})


urlpatterns = [
    path("count/<int:end>/", count),
    path("silent/", silent),
    path("busy/", busy),
    path("broken/", broken),
    path("queries/", queries),
    path("file/", file),
    path("tasks/", tasks),
    path("noted/<str:text>/<int:times>/", noted),
]
