"""The site whose next request must be answered, whatever happened before."""

from __future__ import annotations

from django.http import HttpRequest, JsonResponse
from django.urls import path

from nuages.db import aatomic
from tests.library.models import Tag


async def write(request: HttpRequest) -> JsonResponse:
    """Write a row and read it again, in a transaction."""
    async with aatomic():
        await Tag.objects.acreate(name=request.GET["name"])
        found = await Tag.objects.filter(name=request.GET["name"]).acount()
    return JsonResponse({"found": found})


urlpatterns = [path("write/", write)]
