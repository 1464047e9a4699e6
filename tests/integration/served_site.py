"""What the commands serve in their tests: the tiny site, and views that take their time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

from nuages.stopping import wait_for_stop
from tests.integration import tiny_site


async def process(request: HttpRequest) -> JsonResponse:
    loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
    return JsonResponse({
        "pid": os.getpid(),
        "loop": loop,
        "scheme": request.scheme,
        "client": request.META.get("REMOTE_ADDR"),
        "path": request.path,
        "settings": os.environ["DJANGO_SETTINGS_MODULE"],
    })  # fmt: skip


async def events(request: HttpRequest) -> StreamingHttpResponse:
    """Ends when the server stops, as every event stream of Nuages does."""

    async def until_stopped() -> AsyncIterator[bytes]:
        yield b"first\n"
        await wait_for_stop()
        yield b"last\n"

    return StreamingHttpResponse(until_stopped())


async def endless(request: HttpRequest) -> StreamingHttpResponse:
    """Ends when it is cancelled, and not before."""

    async def for_ever() -> AsyncIterator[bytes]:
        yield b"first\n"
        await asyncio.Event().wait()

    return StreamingHttpResponse(for_ever())


async def text(request: HttpRequest) -> HttpResponse:
    return HttpResponse("twelve chars")


urlpatterns: list[Any] = [
    *tiny_site.urlpatterns,
    path("process/", process),
    path("events/", events),
    path("endless/", endless),
    path("text/", text),
]
