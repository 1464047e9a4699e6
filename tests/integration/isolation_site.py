"""A site whose every answer says whose it is: user, language, time zone, row, contextvar."""

from __future__ import annotations

import asyncio
import contextvars
import datetime
import random
from typing import Any

from django.contrib import messages
from django.db import connection, transaction
from django.http import HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import path
from django.utils import timezone, translation
from django.views import View
from django.views.decorators.csrf import csrf_exempt

from nuages import on_loop
from nuages.bridge import await_, current_bridge
from nuages.db import aatomic
from tests.integration.full_site import SITE as FULL
from tests.library.models import Author, Book

ZONES = ["Europe/Paris", "America/New_York", "Asia/Tokyo", "Asia/Kolkata", "Pacific/Auckland"]
LANGUAGES = ["en", "fr", "de", "ja", "es"]
NOON = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)

PAGE = (
    "{% load i18n tz %}{{ user.username }}|{% get_current_language as L %}{{ L }}|"
    '{% translate "Yes" %}|{% get_current_timezone as Z %}{{ Z }}|{{ noon|date:"H:i" }}|'
    "{{ row.title }}|{{ row.author.name }}|{% for m in messages %}{{ m }};{% endfor %}"
)

whose: contextvars.ContextVar[str] = contextvars.ContextVar("whose")


class Failure(Exception):
    """What some views raise to have their transaction rolled back."""


def zone_middleware(get_response: Any) -> Any:
    """Per-user time zone and contextvar: a user's own coroutine middleware."""

    async def middleware(request: Any) -> Any:
        user = await request.auser()
        zone = ZONES[int(user.last_name) % len(ZONES)]
        whose.set(user.username)
        with timezone.override(zone):
            await pause()
            return await get_response(request)

    return middleware


zone_middleware.async_capable = True  # type: ignore[attr-defined]
zone_middleware.sync_capable = False  # type: ignore[attr-defined]

SITE: dict[str, Any] = FULL | {
    "ROOT_URLCONF": "tests.integration.isolation_site",
    "MIDDLEWARE": [
        *FULL["MIDDLEWARE"][:2],
        "django.middleware.locale.LocaleMiddleware",
        *FULL["MIDDLEWARE"][2:],
        "tests.integration.isolation_site.zone_middleware",
    ],
    "USE_I18N": True,
    "USE_TZ": True,
    "TEMPLATES": [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {
                "context_processors": FULL["TEMPLATES"][0]["OPTIONS"]["context_processors"],
                "loaders": [("django.template.loaders.locmem.Loader", {"page.html": PAGE})],
            },
        }
    ],
}


async def pause() -> None:
    """Let others run, for some turns of the loop."""
    for _ in range(random.randrange(3)):
        await asyncio.sleep(0)


def pause_here() -> None:
    """The same from sync code; a thread gives the others time by itself."""
    if current_bridge() is not None:
        await_(pause())


def number(request: Any) -> str:
    return str(request.headers["x-number"])


def fails(request: Any) -> bool:
    return "x-fail" in request.headers


def answer(request: Any, user: Any, row: Any) -> HttpResponse:
    """What every view answers, in the page's own format."""
    zone = timezone.get_current_timezone_name()
    said = "".join(f"{m};" for m in messages.get_messages(request))
    language = translation.get_language()
    noon = timezone.localtime(NOON).strftime("%H:%M")
    assert whose.get() == user.username
    text = [user.username, language, str(translation.gettext("Yes")), zone, noon,
            row.title, row.author.name, said]  # fmt: skip
    return HttpResponse("|".join(str(part) for part in text))


def write(request: Any, user: Any) -> Book:
    """The request's own row, and its mark in the session, in a transaction."""
    with transaction.atomic():
        assert connection.in_atomic_block
        author = Author.objects.get(name=user.username)
        pause_here()
        row = Book.objects.create(title=number(request), author=author)
        pause_here()
        messages.info(request, f"{user.username}:{row.title}")
        if fails(request):
            raise Failure
    assert not connection.in_atomic_block
    return Book.objects.get(pk=row.pk)


@csrf_exempt
async def native(request: Any) -> HttpResponse:
    user = await request.auser()
    await pause()
    async with aatomic():
        author = await Author.objects.aget(name=user.username)
        await pause()
        row = await Book.objects.acreate(title=number(request), author=author)
        messages.info(request, f"{user.username}:{row.title}")
        await pause()
        if fails(request):
            raise Failure
    row = await Book.objects.select_related("author").aget(pk=row.pk)
    return answer(request, user, row)


@csrf_exempt
@on_loop
def loop(request: Any) -> HttpResponse:
    row = write(request, request.user)
    pause_here()
    return answer(request, request.user, row)


@csrf_exempt
def threaded(request: Any) -> HttpResponse:
    return answer(request, request.user, write(request, request.user))


class Page(View):
    """A template with everything lazy."""

    def post(self, request: Any) -> HttpResponse:
        row = write(request, request.user)
        pause_here()
        return render(request, "page.html", {"row": row, "noon": NOON})


@csrf_exempt
@on_loop
@transaction.atomic
def atomic(request: Any) -> HttpResponse:
    """One transaction around everything, with a savepoint in it."""
    row = write_inside(request)
    pause_here()
    return answer(request, request.user, row)


def write_inside(request: Any) -> Book:
    with transaction.atomic():
        author = Author.objects.get(name=request.user.username)
        row = Book.objects.create(title=number(request), author=author)
    pause_here()
    messages.info(request, f"{request.user.username}:{row.title}")
    if fails(request):
        raise Failure
    return row


@on_loop
def session(request: Any) -> JsonResponse:
    """The session's own user, and a counter that only this user's requests set."""
    request.session["last"] = request.user.username
    return JsonResponse({"user": request.user.username, "last": request.session["last"]})


urlpatterns = [
    path("native/", native),
    path("loop/", loop),
    path("threaded/", threaded),
    path("class/", csrf_exempt(on_loop(Page.as_view()))),
    path("atomic/", atomic),
    path("session/", session),
]
