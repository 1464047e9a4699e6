"""Every decorator that Django lists as working with async views, in each of our placements."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from typing import Any

import django.views.decorators as decorators
import pytest
from django.contrib.auth.decorators import (
    login_required,
    permission_required,
    user_passes_test,
)
from django.contrib.auth.models import AnonymousUser, User
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.cache import cache_control, never_cache
from django.views.decorators.clickjacking import (
    xframe_options_deny,
    xframe_options_exempt,
    xframe_options_sameorigin,
)
from django.views.decorators.common import no_append_slash
from django.views.decorators.csrf import (
    csrf_exempt,
    csrf_protect,
    ensure_csrf_cookie,
    requires_csrf_token,
)
from django.views.decorators.debug import sensitive_post_parameters, sensitive_variables
from django.views.decorators.gzip import gzip_page
from django.views.decorators.http import (
    condition,
    conditional_page,
    etag,
    last_modified,
    require_GET,
    require_http_methods,
    require_POST,
    require_safe,
)
from django.views.decorators.vary import vary_on_cookie, vary_on_headers

from nuages import on_loop
from nuages.asgi.handler import ASGIHandler
from nuages.http import request_timeout
from tests.integration.asgi_client import Exchange, fetch, where
from tests.integration.conftest import Run

Check = Callable[[Any, str], Any]
WHEN = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)


def give_etag(request: HttpRequest) -> str:
    return '"tag"'


def give_date(request: HttpRequest) -> datetime.datetime:
    return WHEN


# Name: the decorator, the request's options, what the answer must be.
Case = tuple[Any, dict[str, Any], Callable[[Exchange], bool]]


def has(name: str, value: str) -> Callable[[Exchange], bool]:
    return lambda answer: answer.status == 200 and value in answer.headers[name]


def plain(answer: Exchange) -> bool:
    return answer.status == 200 and answer.content.startswith(b"body")


def status(wanted: int) -> Callable[[Exchange], bool]:
    return lambda answer: answer.status == wanted


POST = {"method": "POST"}
USER = {"headers": {"User": "root"}}
CASES: dict[str, Case] = {
    "cache_control": (cache_control(max_age=7), {}, has("cache-control", "max-age=7")),
    "never_cache": (never_cache, {}, has("cache-control", "no-store")),
    "no_append_slash": (no_append_slash, {}, plain),
    "csrf_exempt": (csrf_exempt, POST, plain),
    "csrf_protect": (csrf_protect, POST, status(403)),
    "csrf_protect get": (csrf_protect, {}, plain),
    "ensure_csrf_cookie": (ensure_csrf_cookie, {}, lambda a: "csrftoken" in a.cookies),
    "requires_csrf_token": (requires_csrf_token, {}, plain),
    "sensitive_variables": (sensitive_variables("secret"), {}, plain),
    "sensitive_post_parameters": (sensitive_post_parameters("secret"), POST, plain),
    "gzip_page": (
        gzip_page,
        {"headers": {"Accept-Encoding": "gzip"}},
        has("content-encoding", "gzip"),
    ),
    "condition": (
        condition(etag_func=give_etag),
        {"headers": {"If-None-Match": '"tag"'}},
        status(304),
    ),
    "condition fails": (
        condition(etag_func=give_etag),
        {"headers": {"If-Match": '"other"'}},
        status(412),
    ),
    "conditional_page": (conditional_page, {}, lambda a: "etag" in a.headers),
    "etag": (etag(give_etag), {}, has("etag", '"tag"')),
    "last_modified": (last_modified(give_date), {}, has("last-modified", "02 Jan 2026")),
    "require_http_methods": (require_http_methods(["PUT"]), {}, status(405)),
    "require_GET": (require_GET, POST, status(405)),
    "require_POST": (require_POST, {}, status(405)),
    "require_safe": (require_safe, {}, plain),
    "vary_on_cookie": (vary_on_cookie, {}, has("vary", "Cookie")),
    "vary_on_headers": (vary_on_headers("Tenant"), {}, has("vary", "Tenant")),
    "xframe_options_deny": (xframe_options_deny, {}, has("x-frame-options", "DENY")),
    "xframe_options_sameorigin": (
        xframe_options_sameorigin,
        {},
        has("x-frame-options", "SAMEORIGIN"),
    ),
    "xframe_options_exempt": (
        xframe_options_exempt,
        {},
        lambda a: a.status == 200 and "x-frame-options" not in a.headers,
    ),
    "login_required": (login_required, {}, status(302)),
    "login_required user": (login_required, USER, plain),
    "permission_required": (permission_required("x.y", raise_exception=True), {}, status(403)),
    "permission_required user": (permission_required("x.y"), USER, plain),
    "user_passes_test": (user_passes_test(lambda user: user.is_staff), {}, status(302)),
    "user_passes_test user": (user_passes_test(lambda user: user.is_staff), USER, plain),
    "request_timeout": (request_timeout(20), {}, plain),
}
if hasattr(decorators, "csp"):
    from django.views.decorators.csp import csp_override, csp_report_only_override

    POLICY = {"default-src": ["'self'"]}
    CASES["csp_override"] = (csp_override(POLICY), {}, plain)
    CASES["csp_report_only_override"] = (csp_report_only_override(POLICY), {}, plain)


@on_loop
def users(get_response: Any) -> Any:
    """Like AuthenticationMiddleware, without a database."""

    def middleware(request: Any) -> Any:
        if "User" in request.headers:
            user: Any = User(username="root", is_superuser=True, is_staff=True)
        else:
            user = AnonymousUser()

        async def auser() -> Any:
            return user

        request.user, request.auser = user, auser
        return get_response(request)

    return middleware


BODY = "body " * 100
places: list[str] = []


def async_view(decorate: Any) -> Any:
    @decorate
    async def view(request: HttpRequest) -> HttpResponse:
        places.append(where())
        return HttpResponse(BODY)

    return view


def above_on_loop(decorate: Any) -> Any:
    @decorate
    @on_loop
    def view(request: HttpRequest) -> HttpResponse:
        places.append(where())
        return HttpResponse(BODY)

    return view


def below_on_loop(decorate: Any) -> Any:
    @on_loop
    @decorate
    def view(request: HttpRequest) -> HttpResponse:
        places.append(where())
        return HttpResponse(BODY)

    return view


def sync_view(decorate: Any) -> Any:
    @decorate
    def view(request: HttpRequest) -> HttpResponse:
        places.append(where())
        return HttpResponse(BODY)

    return view


def on_dispatch(decorate: Any) -> Any:
    @method_decorator(decorate, name="dispatch")
    class Decorated(View):
        def get(self, request: HttpRequest) -> HttpResponse:
            places.append(where())
            return HttpResponse(BODY)

        def post(self, request: HttpRequest) -> HttpResponse:
            return self.get(request)

    return on_loop(Decorated.as_view())


FORMS = {
    "async": (async_view, "loop"),
    "above": (above_on_loop, "loop"),
    "below": (below_on_loop, "loop"),
    "sync": (sync_view, "thread"),
    "dispatch": (on_dispatch, "loop"),
}

urlpatterns = [
    path(f"{form}/{name.replace(' ', '-')}/", make(case[0]))
    for form, (make, _) in FORMS.items()
    for name, case in CASES.items()
]


@pytest.fixture(autouse=True)
def _site() -> Iterator[None]:
    with override_settings(
        ROOT_URLCONF=__name__,
        MIDDLEWARE=[
            "django.middleware.clickjacking.XFrameOptionsMiddleware",
            f"{__name__}.users",
        ],
    ):
        yield


@pytest.mark.parametrize("form", FORMS)
def test_decorators(run: Run, form: str) -> None:
    async def main() -> None:
        handler = ASGIHandler()
        for name, (_, options, expected) in CASES.items():
            places.clear()
            answer = await fetch(handler, f"/{form}/{name.replace(' ', '-')}/", **options)
            assert expected(answer), (name, answer.sent)
            assert set(places) <= {FORMS[form][1]}, name
            if answer.status == 200:
                assert places, name

    run(main)


def test_the_list_is_whole() -> None:
    """What Django exports and documents as a view decorator is tried above."""
    import importlib
    import pkgutil

    found = set()
    for module in pkgutil.iter_modules(decorators.__path__):
        contents = importlib.import_module(f"django.views.decorators.{module.name}")
        found |= {
            name
            for name, value in vars(contents).items()
            if callable(value)
            and not isinstance(value, type)
            and value.__module__ == contents.__name__
            and not name.startswith("_")
        }
    # cache_page goes through a sync middleware; the others are no decorators of views.
    found -= {"cache_page", "make_csp_decorator"}
    tried = {name.split()[0] for name in CASES}
    assert found <= tried | {"csrf_protect", "xframe_options_exempt"}, found - tried
