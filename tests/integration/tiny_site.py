"""A tiny site for the ASGI tests: served by the handler in-process and by a real uvicorn."""

from __future__ import annotations

import threading
from typing import Any

from django.db import connection, transaction
from django.http import HttpRequest, JsonResponse, StreamingHttpResponse
from django.urls import path

from nuages import on_loop
from nuages.db.pool.pool import open_pools
from tests.library.models import Author


async def count(request: HttpRequest) -> JsonResponse:
    pool_states = [pool.stats()["used"] for pool in open_pools()]
    return JsonResponse({"count": await Author.objects.acount(), "used": pool_states})


async def add(request: HttpRequest) -> JsonResponse:
    author = await Author.objects.acreate(name=request.POST["name"])
    return JsonResponse({"pk": author.pk})


def sync_count(request: HttpRequest) -> JsonResponse:
    with transaction.atomic():
        count = Author.objects.count()
    return JsonResponse(
        {
            "count": count,
            "main": threading.current_thread() is threading.main_thread(),
            "role": connection.role,
        }
    )


@on_loop
def loop_count(request: HttpRequest) -> JsonResponse:
    main = threading.current_thread() is threading.main_thread()
    return JsonResponse({"count": Author.objects.count(), "main": main})


async def broken(request: HttpRequest) -> JsonResponse:
    await Author.objects.acreate(name="before the error")
    raise ZeroDivisionError


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    async def lines() -> Any:
        async for author in Author.objects.order_by("name").aiterator():
            yield f"{author.name}\n"

    return StreamingHttpResponse(lines(), content_type="text/plain")


async def pools(request: HttpRequest) -> JsonResponse:
    return JsonResponse({pool.alias: pool.stats() for pool in open_pools()})


urlpatterns = [
    path("count/", count),
    path("add/", add),
    path("sync/", sync_count),
    path("loop/", loop_count),
    path("broken/", broken),
    path("stream/", stream),
    path("pools/", pools),
]
