"""Views that read and write what is the tenant's, in every place where code may run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connection, transaction
from django.http import HttpRequest, JsonResponse, StreamingHttpResponse
from django.urls import path

from nuages import on_loop
from nuages.db import aatomic, hold_connection
from tests.tenants.notes.models import Note


def owner() -> str:
    """Whose note the calling code finds."""
    return Note.objects.get(text__startswith="of ").text


async def aowner() -> str:
    return (await Note.objects.aget(text__startswith="of ")).text


async def async_view(request: HttpRequest) -> JsonResponse:
    found: list[Any] = [connection.schema_name, await aowner()]  # type: ignore[attr-defined]
    found += await asyncio.gather(*(aowner() for _ in range(3)), on_loop(owner)())
    async with asyncio.TaskGroup() as group:
        task = group.create_task(aowner())
    found += [task.result(), await sync_to_async(owner)()]
    found.append(await sync_to_async(owner, thread_sensitive=False)())
    async with aatomic():
        found.append(await aowner())
        await Note.objects.acreate(text=request.GET["mark"])
        found += await asyncio.gather(aowner(), on_loop(owner)())
    try:
        async with aatomic():
            await Note.objects.acreate(text="rolled back")
            raise ZeroDivisionError
    except ZeroDivisionError:
        found.append(await aowner())
    async with hold_connection():
        found.append(await aowner())
    return JsonResponse({"found": found})


def sync_view(request: HttpRequest) -> JsonResponse:
    found: list[Any] = [connection.schema_name, owner()]  # type: ignore[attr-defined]
    with transaction.atomic():
        Note.objects.create(text=request.GET["mark"])
        try:
            with transaction.atomic():
                Note.objects.create(text="rolled back")
                raise ZeroDivisionError
        except ZeroDivisionError:
            found.append(owner())
    return JsonResponse({"found": [*found, owner()]})


@on_loop
def loop_view(request: HttpRequest) -> JsonResponse:
    return sync_view(request)


async def stream_view(request: HttpRequest) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[str]:
        yield f"{await aowner()},"
        async for note in Note.objects.filter(text__startswith="of ").aiterator():
            yield note.text

    return StreamingHttpResponse(parts())


urlpatterns = [
    path("async", async_view),
    path("sync", sync_view),
    path("loop", loop_view),
    path("stream", stream_view),
]
