"""Views: where each kind runs, its transaction, and what it may return."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.views import LoginView
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.template import engines
from django.template.response import TemplateResponse
from django.test import override_settings
from django.urls import path
from django.views import View

from nuages import on_loop
from nuages.asgi.handler import ASGIHandler
from tests.integration.asgi_client import fetch, where
from tests.integration.conftest import Run
from tests.integration.scope_tools import names
from tests.library.models import Author


def answer(request: HttpRequest) -> HttpResponse:
    atomic = connections["default"].in_atomic_block
    Author.objects.create(name=request.path)
    if "fail" in request.GET:
        raise ValueError
    return HttpResponse(json.dumps({"where": where(), "atomic": atomic}))


def sync_view(request: HttpRequest) -> HttpResponse:
    return answer(request)


async def async_view(request: HttpRequest) -> HttpResponse:
    return await on_loop(answer)(request)


@on_loop
async def portal_view(request: HttpRequest) -> HttpResponse:
    return answer(request)


class SyncGet(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        return answer(request)


class AsyncGet(View):
    async def get(self, request: HttpRequest) -> HttpResponse:
        return await async_view(request)


class Callable_:
    def __call__(self, request: HttpRequest) -> HttpResponse:
        return answer(request)


class AsyncCallable:
    async def __call__(self, request: HttpRequest) -> HttpResponse:
        return await async_view(request)


def wrapping(view: Any) -> Any:
    """A decorator of the project, which may block, on Django's own view."""

    @functools.wraps(view)
    def inner(request: HttpRequest) -> Any:
        return answer(request)

    return inner


VIEWS: dict[str, tuple[Any, str]] = {
    "sync": (sync_view, "thread"),
    "on_loop": (on_loop(sync_view), "loop"),
    "async": (async_view, "loop"),
    "portal": (portal_view, "loop"),
    "class": (SyncGet.as_view(), "thread"),
    "class_on_loop": (on_loop(SyncGet.as_view()), "loop"),
    "class_async": (AsyncGet.as_view(), "loop"),
    "partial": (functools.partial(sync_view), "thread"),
    "partial_async": (functools.partial(async_view), "loop"),
    "object": (Callable_(), "thread"),
    "object_async": (AsyncCallable(), "loop"),
    "decorated": (wrapping(LoginView.as_view()), "thread"),
}


def lazy(request: HttpRequest) -> TemplateResponse:
    template = engines["django"].from_string("{% for a in authors %}{{ a }} {% endfor %}{{ w }}")
    return TemplateResponse(request, template, {"authors": Author.objects.all(), "w": where})


def nothing(request: HttpRequest) -> None:
    return None


async def nothing_async(request: HttpRequest) -> None:
    return None


def bad_render(request: HttpRequest) -> TemplateResponse:
    return TemplateResponse(request, "there/is/no/such.html")


async def streaming(request: HttpRequest) -> StreamingHttpResponse:
    async def parts() -> Any:
        yield json.dumps({"atomic": connections["default"].in_atomic_block})

    return StreamingHttpResponse(parts())


urlpatterns = [
    *(path(f"{name}/", view) for name, (view, _) in VIEWS.items()),
    path("free_on_loop/", transaction.non_atomic_requests(on_loop(answer))),
    path("free_sync/", transaction.non_atomic_requests(lambda request: answer(request))),
    path("lazy/", on_loop(lazy)),
    path("lazy_thread/", lazy),
    path("nothing/", nothing),
    path("nothing_async/", nothing_async),
    path("bad_render/", on_loop(bad_render)),
    path("streaming/", streaming),
]


@pytest.fixture(autouse=True)
def _site(database: str) -> Iterator[None]:
    with override_settings(
        ROOT_URLCONF=__name__,
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
    ):
        yield


@pytest.mark.parametrize("mode", ["thread", "loop"])
@pytest.mark.parametrize("per", ["query", "request"])
def test_every_kind_of_view(run: Run, mode: str, per: str) -> None:
    async def main() -> None:
        await Author.objects.all().adelete()
        handler = ASGIHandler()
        for name, (_, place) in VIEWS.items():
            got = await fetch(handler, f"/{name}/")
            assert got.status == 200, name
            expected = {"where": "loop" if mode == "loop" else place, "atomic": False}
            assert json.loads(got.content) == expected, name

    with override_settings(NUAGES={"SYNC_VIEWS": mode, "CONNECTION_PER": per}):
        run(main)


def test_atomic_requests(run: Run) -> None:
    async def main() -> None:
        await Author.objects.all().adelete()
        handler = ASGIHandler()
        for name in VIEWS:
            assert (await fetch(handler, f"/{name}/?fail=1")).status == 500
            assert await names() == [], name
            got = await fetch(handler, f"/{name}/")
            assert json.loads(got.content)["atomic"], name
            assert await names() == [f"/{name}/"]
            await Author.objects.all().adelete()
        for name in ("free_on_loop", "free_sync"):
            assert (await fetch(handler, f"/{name}/?fail=1")).status == 500
            assert await names() == [f"/{name}/"]
            await Author.objects.all().adelete()
        assert json.loads((await fetch(handler, "/streaming/")).content) == {"atomic": False}

    connections.settings["default"]["ATOMIC_REQUESTS"] = True
    try:
        run(main)
    finally:
        connections.settings["default"]["ATOMIC_REQUESTS"] = False


def test_a_template_with_a_lazy_queryset(run: Run) -> None:
    async def main() -> None:
        await Author.objects.all().adelete()
        await Author.objects.acreate(name="Ada")
        handler = ASGIHandler()
        assert (await fetch(handler, "/lazy/")).content == b"Ada loop"
        assert (await fetch(handler, "/lazy_thread/")).content == b"Ada thread"

    run(main)


def test_wrong_views(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        handler = ASGIHandler()
        for name in ("nothing", "nothing_async", "bad_render"):
            caplog.clear()
            assert (await fetch(handler, f"/{name}/")).status == 500
            error = caplog.records[-1].exc_info
            assert error is not None
            said = "TemplateDoesNotExist" if name == "bad_render" else "ValueError"
            assert error[0] is not None
            assert error[0].__name__ == said

    run(main)
