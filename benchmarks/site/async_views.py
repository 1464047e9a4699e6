"""Async views, as a user of Django writes them; the same code under stock Django and Nuages."""

import asyncio

from django.http import HttpRequest, JsonResponse

from benchmarks.site.models import Article
from benchmarks.site.queries import slow, told
from benchmarks.works import GATHERED_KEYS


async def hello(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"message": "hello"})


async def row(request: HttpRequest, key: int) -> JsonResponse:
    return JsonResponse(told(await Article.objects.aget(pk=key)))


async def gathered(request: HttpRequest) -> JsonResponse:
    found = await asyncio.gather(*(slow(key).aget() for key in GATHERED_KEYS))
    return JsonResponse({"keys": [key for key, _ in found]})
