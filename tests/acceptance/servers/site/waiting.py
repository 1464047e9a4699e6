"""The site's views that take their time: long queries, streams, streams without an end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator

from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse

from nuages.db import acursor
from nuages.http import Event, EventStream
from tests.acceptance.servers.site.models import Entry, Item

CHUNK = b"x" * 65536
produced: Counter[str] = Counter()
"""How many chunks the endless streams have made, by the test's token."""


async def note(token: str, what: str) -> None:
    await Entry.objects.acreate(token=token, what=what)


async def run_noted(token: str, statement: str) -> None:
    """Run one statement on the server; note how that ended."""
    await note(token, "started")
    try:
        async with acursor() as cursor:
            await cursor.execute(f"{statement} /* {token} */")
    except asyncio.CancelledError:
        await note(token, "cancelled")
        raise
    finally:
        await note(token, "finally")


async def sleep(request: HttpRequest, token: str) -> HttpResponse:
    """Sleep in the database for half a minute."""
    await run_noted(token, "SELECT pg_sleep(30)")
    return HttpResponse("slept")


async def locked(request: HttpRequest, token: str, key: int) -> HttpResponse:
    """Wait until the test lets go of its advisory lock."""
    await run_noted(token, f"SELECT pg_advisory_xact_lock({int(key)})")
    return HttpResponse("unlocked")


async def gathered(request: HttpRequest) -> JsonResponse:
    """Three queries at the same time."""
    counts = await asyncio.gather(*(Item.objects.acount() for _ in range(3)))
    return JsonResponse({"counts": counts})


async def stream(request: HttpRequest, token: str) -> StreamingHttpResponse:
    """Stream the items from an open server-side cursor, and three pieces more."""

    async def lines() -> AsyncIterator[str]:
        try:
            async for item in Item.objects.aiterator():
                yield f"{item.name}\n"
            for number in range(3):
                await asyncio.sleep(0)
                yield f"{number} é\n"
        finally:
            await note(token, "finally")

    return StreamingHttpResponse(lines(), content_type="text/plain")


def sync_stream(request: HttpRequest) -> StreamingHttpResponse:
    def lines() -> Iterator[str]:
        for item in Item.objects.iterator():
            yield f"{item.name}\n"

    return StreamingHttpResponse(lines(), content_type="text/plain")


async def silent(request: HttpRequest, token: str) -> StreamingHttpResponse:
    """Stream one chunk and then wait for ever."""

    async def chunks() -> AsyncIterator[bytes]:
        try:
            yield b"first\n"
            await note(token, "waiting")
            await asyncio.get_running_loop().create_future()
        finally:
            await note(token, "finally")

    return StreamingHttpResponse(chunks(), content_type="text/plain")


async def events(request: HttpRequest, token: str) -> EventStream:
    """Send two events, counted on from the last one received, and then wait for ever."""

    async def source(last_event_id: str | None) -> AsyncIterator[Event]:
        first = int(last_event_id or -1) + 1
        try:
            for number in (first, first + 1):
                yield Event({"number": number} if number else 0, id=str(number))
            await note(token, "waiting")
            await asyncio.get_running_loop().create_future()
        finally:
            await note(token, "finally")

    return EventStream(source, request)


def sync_endless(request: HttpRequest, token: str) -> StreamingHttpResponse:
    """The same as `endless`, made in a thread."""

    def chunks() -> Iterator[bytes]:
        try:
            for _ in range(4096):
                produced[token] += 1
                yield CHUNK
        finally:
            Entry.objects.create(token=token, what="finally")

    return StreamingHttpResponse(chunks(), content_type="application/octet-stream")


async def endless(request: HttpRequest, token: str) -> StreamingHttpResponse:
    """Stream as fast as the server takes it, a quarter of a gigabyte at the most."""

    async def chunks() -> AsyncIterator[bytes]:
        try:
            for _ in range(4096):
                produced[token] += 1
                yield CHUNK
                await asyncio.sleep(0)
        finally:
            await note(token, "finally")

    return StreamingHttpResponse(chunks(), content_type="application/octet-stream")


async def how_many(request: HttpRequest, token: str) -> JsonResponse:
    return JsonResponse({"produced": produced[token]})
