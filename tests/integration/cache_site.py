"""A site whose pages, fragments and sessions are cached."""

from __future__ import annotations

from typing import Any

from django.core.cache import cache
from django.http import HttpResponse
from django.shortcuts import render
from django.urls import path
from django.views.decorators.cache import cache_page

from nuages import on_loop

FRAGMENT = "{% load cache %}{% cache 100 fragment key %}{{ made }}{% endcache %}"
made = 0


def make() -> int:
    """A new number, each time."""
    global made
    made += 1
    return made


def page(request: Any) -> HttpResponse:
    return HttpResponse(str(make()))


@on_loop
def fragment(request: Any) -> HttpResponse:
    return render(request, "fragment.html", {"key": request.GET["key"], "made": make})


async def session(request: Any) -> HttpResponse:
    visits = await request.session.aget("visits", 0)
    await request.session.aset("visits", visits + 1)
    return HttpResponse(str(visits))


@on_loop
def sync_session(request: Any) -> HttpResponse:
    visits = request.session.get("visits", 0)
    request.session["visits"] = visits + 1
    if visits == 2:
        request.session.cycle_key()
    return HttpResponse(str(visits))


async def direct(request: Any) -> HttpResponse:
    await cache.aset("direct", 5)
    await cache.aset_many({"a": 1, "b": 2})
    found = await cache.aget_many(["a", "b", "c"])
    assert found == {"a": 1, "b": 2}, found
    assert await cache.aincr("direct") == 6
    assert await cache.ahas_key("direct")
    assert await cache.aadd("direct", 1) is False
    assert await cache.atouch("direct", 100)
    await cache.adelete_many(["a", "b"])
    return HttpResponse(str(await cache.aget("direct")))


urlpatterns = [
    path("page/", page),
    path("decorated/", cache_page(100, key_prefix="decorated")(on_loop(page))),
    path("fragment/", fragment),
    path("session/", session),
    path("sync-session/", sync_session),
    path("direct/", direct),
]

SITE: dict[str, Any] = {
    "ROOT_URLCONF": "tests.integration.cache_site",
    "TEMPLATES": [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {
                "loaders": [("django.template.loaders.locmem.Loader", {"fragment.html": FRAGMENT})]
            },
        }
    ],
}
SESSIONS = "django.contrib.sessions.middleware.SessionMiddleware"
WHOLE_SITE = [
    "django.middleware.cache.UpdateCacheMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.cache.FetchFromCacheMiddleware",
]
