"""The dashboard: three queries and two HTTP calls at the same time, and the proof of it.

The page takes as long as the slowest of the five, not as long as their sum. On a thread per
request, as stock Django runs the ORM, the three queries would wait for one another.
"""

import asyncio
import random
import ssl
from collections.abc import Awaitable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import httpx
from django.db.models import Count, Q
from django.db.models.functions import TruncMonth
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone

from magazine.models import Article, Author, Comment, Tag
from magazine.views import arender

# The two JSON endpoints play a remote service of ordinary speed.
SERVICE_SECONDS = 0.15

# Made once: httpx would otherwise read the certificate store on each request, which blocks the
# loop for tens of milliseconds.
TLS = ssl.create_default_context()

VISIBLE = Q(articles__comments__status=Comment.Status.PUBLISHED)


@dataclass
class Lap:
    """One awaited thing: when it started, counted from the first, and how long it took."""

    label: str
    kind: str
    start: float
    seconds: float
    result: Any


async def timed(label: str, kind: str, awaitable: Awaitable, zero: float) -> Lap:
    """Await, and note the time in seconds since ``zero``."""
    start = perf_counter()
    result = await awaitable
    return Lap(label, kind, start - zero, perf_counter() - start, result)


async def dashboard(request: HttpRequest) -> HttpResponse:
    """Gather figures, news and weather, and show how long each of them took."""
    # trust_env: a proxy set up for the outer world cannot reach this very server.
    async with httpx.AsyncClient(
        base_url=request.build_absolute_uri("/"), verify=TLS, trust_env=False, timeout=5
    ) as client:
        zero = perf_counter()
        laps = await asyncio.gather(
            timed("Activity by month", "query", months(), zero),
            timed("Most discussed writers", "query", writers(), zero),
            timed("Most discussed subjects", "query", subjects(), zero),
            timed("Headlines service", "http", get_json(client, "api/headlines/"), zero),
            timed("Weather service", "http", get_json(client, "api/weather/"), zero),
        )
        together = perf_counter() - zero
    months_lap, writers_lap, subjects_lap, headlines_lap, weather_lap = laps
    total = sum(lap.seconds for lap in laps)
    context = {
        "bars": [bar(lap, together) for lap in laps],
        "together_ms": round(together * 1000),
        "sum_ms": round(total * 1000),
        "saved_percent": round(100 * (1 - together / total)),
        "together_percent": f"{100 * together / total:.2f}",
        "months": months_lap.result,
        "writers": writers_lap.result,
        "subjects": subjects_lap.result,
        "headlines": headlines_lap.result,
        "weather": weather_lap.result,
    }
    return await arender(request, "magazine/dashboard.html", context)


def bar(lap: Lap, together: float) -> dict[str, Any]:
    """Place a lap on a timeline as long as all of them together, in percent for the CSS."""
    return {
        "label": lap.label,
        "kind": lap.kind,
        "failed": lap.result is None,
        "ms": round(lap.seconds * 1000),
        "left": f"{100 * lap.start / together:.2f}",
        "width": f"{100 * lap.seconds / together:.2f}",
    }


async def months() -> list[dict[str, Any]]:
    """What was published in each of the last twelve months, and what readers said to it."""
    return await (
        Article.objects.published()
        .annotate(month=TruncMonth("published_at"))
        .values("month")
        .annotate(
            articles=Count("pk", distinct=True),
            comments=Count("comments", filter=Q(comments__status=Comment.Status.PUBLISHED)),
        )
        .order_by("-month")[:12]
        .alist()
    )


async def writers() -> list[Author]:
    """The eight writers whose articles have the most comments."""
    return await (
        Author.objects.annotate(
            pieces=Count("articles", distinct=True),
            comments=Count("articles__comments", filter=VISIBLE, distinct=True),
        )
        .order_by("-comments", "name")[:8]
        .alist()
    )


async def subjects() -> list[Tag]:
    """The eight tags whose articles have the most comments."""
    return await (
        Tag.objects.annotate(
            pieces=Count("articles", distinct=True),
            comments=Count("articles__comments", filter=VISIBLE, distinct=True),
        )
        .order_by("-comments", "name")[:8]
        .alist()
    )


async def get_json(client: httpx.AsyncClient, path: str) -> Any:
    """Return the answer; None when the service cannot be reached: the page shows it as failed."""
    try:
        response = await client.get(path)
        response.raise_for_status()
        return response.json()
    except (httpx.HTTPError, ValueError):
        return None


async def api_headlines(request: HttpRequest) -> JsonResponse:
    """The five latest articles, from a service that takes its time."""
    await asyncio.sleep(SERVICE_SECONDS)
    latest = await Article.objects.published().aselect_related("author")[:5].alist()
    headlines = [
        {"title": article.title, "url": article.get_absolute_url(), "by": article.author.name}
        for article in latest
    ]
    return JsonResponse({"headlines": headlines})


async def api_weather(request: HttpRequest) -> JsonResponse:
    """Invented weather, the same all day, from a service that takes its time."""
    await asyncio.sleep(SERVICE_SECONDS)
    rng = random.Random(timezone.localdate().isoformat())  # noqa: S311 - weather
    sky = rng.choice(["Scattered clouds", "Thin high cloud", "Morning mist", "Bright spells"])
    return JsonResponse(
        {"sky": sky, "celsius": rng.randint(9, 24), "wind_kmh": rng.randint(3, 30)}
    )
