"""A site with Django's seven default middlewares, sessions, login, forms, files and the admin.

It runs under Nuages and, for comparison, under stock Django: there `on_loop` is left out.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from django import forms
from django.apps import apps
from django.contrib import admin, messages
from django.contrib.auth import get_user_model
from django.contrib.auth.decorators import login_required
from django.contrib.auth.views import LoginView
from django.contrib.sessions.backends.db import SessionStore
from django.core.exceptions import BadRequest
from django.db import transaction
from django.http import FileResponse, HttpResponse, JsonResponse, StreamingHttpResponse
from django.shortcuts import render
from django.template.response import TemplateResponse
from django.urls import path, re_path
from django.views import View
from django.views.decorators.csrf import csrf_exempt, ensure_csrf_cookie
from django.views.decorators.http import etag
from django.views.generic import FormView, ListView

from nuages import on_loop as _on_loop
from tests.library.models import Author, Book

BOOKS = """{% load i18n %}<html><title>{% translate "Home" %}</title>
<p>{{ user.get_username }}</p>
<ul>{% for book in books %}<li>{{ book.title }}, {{ book.author.name }}</li>{% endfor %}</ul>
{% for message in messages %}<p class="message">{{ message }}</p>{% endfor %}
<form>{% csrf_token %}{{ form }}</form></html>"""

SITE: dict[str, Any] = {
    "ROOT_URLCONF": "tests.integration.full_site",
    "ALLOWED_HOSTS": ["site.test", ".example.org"],
    "MIDDLEWARE": [
        "django.middleware.security.SecurityMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
        "django.middleware.clickjacking.XFrameOptionsMiddleware",
    ],
    "TEMPLATES": [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ],
                "loaders": [
                    (
                        "django.template.loaders.cached.Loader",
                        [
                            (
                                "django.template.loaders.locmem.Loader",
                                {"books.html": BOOKS, "registration/login.html": BOOKS},
                            ),
                            "django.template.loaders.app_directories.Loader",
                        ],
                    )
                ],
            },
        }
    ],
    "PASSWORD_HASHERS": ["django.contrib.auth.hashers.MD5PasswordHasher"],
    "LOGIN_REDIRECT_URL": "/books/async/",
    "STATIC_URL": "/static/",
}

on_loop: Any = _on_loop if apps.is_installed("nuages") else lambda function: function


def log_in(user: Any) -> str:
    """Make a session in which `user` is logged in, as `login()` would; return its key."""
    session = SessionStore()
    session["_auth_user_id"] = str(user.pk)
    session["_auth_user_backend"] = "django.contrib.auth.backends.ModelBackend"
    session["_auth_user_hash"] = user.get_session_auth_hash()
    session.create()
    key = session.session_key
    assert key is not None
    return key


def make_user(name: str = "django", **fields: Any) -> Any:
    """A superuser, whose password is "reinhardt"."""
    return get_user_model().objects.create_superuser(name, password="reinhardt", **fields)


def plain(text: Any, **options: Any) -> HttpResponse:
    return HttpResponse(str(text), content_type="text/plain; charset=utf-8", **options)


async def books_async(request: Any) -> HttpResponse:
    user = await request.auser()
    books = [book async for book in Book.objects.select_related("author").order_by("title")]
    return render(request, "books.html", {"books": books, "user": user})


@on_loop
def books_loop(request: Any) -> HttpResponse:
    """Template with everything lazy: the books, their authors, the user."""
    return render(request, "books.html", {"books": Book.objects.order_by("title")})


class BookList(ListView):
    queryset = Book.objects.order_by("title")
    template_name = "books.html"
    context_object_name = "books"


def books_sync(request: Any) -> HttpResponse:
    return render(request, "books.html", {"books": Book.objects.order_by("title")})


class AsyncClass(View):
    async def get(self, request: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        await asyncio.sleep(0)
        return plain(await Author.objects.acount())

    async def post(self, request: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        return plain(sorted(request.POST.items()))


class BookForm(forms.Form):
    title = forms.CharField(max_length=20)
    copies = forms.IntegerField(required=False)
    cover = forms.FileField(required=False)


class BookFormView(FormView):
    form_class = BookForm
    template_name = "books.html"

    def form_valid(self, form: Any) -> HttpResponse:
        cover = form.cleaned_data["cover"]
        return plain(f"{form.cleaned_data['title']!r} {cover and cover.size}")


@csrf_exempt
async def parsed(request: Any) -> HttpResponse:
    """Everything that a request is parsed into."""
    return JsonResponse(
        {
            "method": request.method,
            "GET": sorted(request.GET.lists()),
            "POST": sorted(request.POST.lists()),
            "FILES": sorted((name, file.size) for name, file in request.FILES.items()),
            "COOKIES": len(request.COOKIES),
            "host": request.get_host(),
            "path": request.get_full_path(),
        }
    )


@csrf_exempt
async def body_async(request: Any) -> HttpResponse:
    await asyncio.sleep(0)
    return plain(len(request.body))


@csrf_exempt
def json_sync(request: Any) -> HttpResponse:
    try:
        value = json.loads(request.body)
    except ValueError as error:
        raise BadRequest("no JSON") from error
    return JsonResponse({"type": type(value).__name__})


@csrf_exempt
@on_loop
def write_loop(request: Any) -> HttpResponse:
    """A session, a message and a row, in a transaction."""
    with transaction.atomic():
        Author.objects.get_or_create(name="written")
        request.session["count"] = request.session.get("count", 0) + 1
        messages.info(request, "written")
    return plain(request.session["count"])


async def stream_async(request: Any) -> StreamingHttpResponse:
    async def lines() -> AsyncIterator[str]:
        yield "begin\n"
        async for author in Author.objects.order_by("name").aiterator(chunk_size=1):
            yield f"{author.name}\n"
        await asyncio.sleep(0)
        yield "end\n"

    return StreamingHttpResponse(lines(), content_type="text/plain")


def _lines() -> Iterator[str]:
    yield "begin\n"
    for author in Author.objects.order_by("name").iterator(chunk_size=1):
        yield f"{author.name}\n"
    yield "end\n"


def stream_sync(request: Any) -> StreamingHttpResponse:
    return StreamingHttpResponse(_lines(), content_type="text/plain")


stream_loop = on_loop(stream_sync)


def file(request: Any) -> FileResponse:
    return FileResponse(Path(__file__).open("rb"))


@on_loop
def file_loop(request: Any) -> FileResponse:
    return FileResponse(BytesIO(b"0123456789" * 100), filename="digits.txt")


@on_loop
@etag(lambda request: '"digits"')
def conditional(request: Any) -> HttpResponse:
    return plain("0123456789")


async def any_path(request: Any, rest: str) -> HttpResponse:
    return plain(ascii(rest))


def template_response(request: Any) -> TemplateResponse:
    return TemplateResponse(request, "books.html", {"books": Book.objects.order_by("title")})


@ensure_csrf_cookie
async def token(request: Any) -> HttpResponse:
    return plain("a cookie")


@csrf_exempt
async def spool(request: Any) -> HttpResponse:
    """Uploads, and what is made of them, in temporary files."""
    sizes = []
    for upload in request.FILES.values():
        with tempfile.SpooledTemporaryFile() as copy:
            for chunk in upload.chunks():
                copy.write(chunk)
                await asyncio.sleep(0)
            sizes.append(copy.tell())
    return plain(sizes)


site = admin.AdminSite()
site.register(Author)
site.register(Book, list_display=["title", "author", "copies"], search_fields=["title"])

urlpatterns = [
    path("books/async/", books_async),
    path("books/loop/", books_loop),
    path("books/class/", on_loop(BookList.as_view())),
    path("books/sync/", books_sync),
    path("books/login/", login_required(books_sync)),
    path("books/template/", template_response),
    path("class/", AsyncClass.as_view()),
    path("form/", BookFormView.as_view()),
    path("form/loop/", csrf_exempt(on_loop(csrf_exempt(BookFormView.as_view())))),
    path("parsed/", parsed),
    path("body/", body_async),
    path("json/", json_sync),
    path("write/", write_loop),
    path("stream/async/", stream_async),
    path("stream/sync/", stream_sync),
    path("stream/loop/", stream_loop),
    path("file/", file),
    path("file/loop/", file_loop),
    path("conditional/", conditional),
    path("token/", token),
    path("spool/", spool),
    path("login/", LoginView.as_view()),
    path("admin/", site.urls),
    re_path(r"\Aany/(.*)\Z", any_path),
]
