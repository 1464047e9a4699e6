"""A login, and the delays of the server's event loop meanwhile; for benchmarks.logins."""

import asyncio
import time

from django.contrib.auth import aauthenticate, alogin, get_user_model
from django.http import HttpRequest, JsonResponse

PULSE = 0.001
"""Seconds that the heartbeat sleeps; what it sleeps longer is the loop's delay."""

BACKEND = "django.contrib.auth.backends.ModelBackend"

_heart: asyncio.Task | None = None
_delays: list[float] = []


async def login(request: HttpRequest) -> JsonResponse:
    """Log a user in: by password, or without looking at one."""
    name, password = request.GET["name"], request.GET.get("password")
    if password is None:
        user = await get_user_model().objects.aget_by_natural_key(name)
        user.backend = BACKEND
    else:
        user = await aauthenticate(request, username=name, password=password)
    await alogin(request, user)
    return JsonResponse({"user": user.username})


async def start_heart(request: HttpRequest) -> JsonResponse:
    global _heart
    _delays.clear()
    _heart = asyncio.create_task(_beat())
    return JsonResponse({"pulse": PULSE})


async def stop_heart(request: HttpRequest) -> JsonResponse:
    _heart.cancel()
    await asyncio.wait({_heart})
    return JsonResponse({"delays": _delays})


async def _beat() -> None:
    now = time.perf_counter  # uvloop's own time is in whole milliseconds
    while True:
        before = now()
        await asyncio.sleep(PULSE)
        _delays.append(now() - before - PULSE)
