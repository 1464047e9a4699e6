"""Forms, generic views and django.contrib on the loop: no thread, and nothing that blocks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from blockbuster import BlockingError, blockbuster_ctx
from django.conf import settings
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import override_settings

from nuages.asgi import get_asgi_application
from nuages.db.backends.base.statistics import statistics
from tests.integration.asgi_client import Exchange, fetch, post
from tests.integration.conftest import Counts, Run
from tests.integration.full_site import SITE, log_in, make_user
from tests.integration.handoff_tools import THREAD, WHERE
from tests.integration.test_handoffs import picture
from tests.library.models import Author, Book, Note, Scan, Tag

APPS = [
    f"django.contrib.{name}"
    for name in ("sites", "flatpages", "redirects", "sitemaps", "syndication", "humanize")
]
PAGE = """{% load i18n %}{{ object }}{{ form }}{% for o in object_list %}{{ o }}|{% endfor %}
{% if is_paginated %}page {{ page_obj.number }}{% endif %}{% translate "Home" %}"""
HUMANIZED = """{% load humanize %}{% for user in users %}
{{ user.date_joined|naturaltime }}{{ user.date_joined|naturalday }}
{% endfor %}{{ 1234567|intcomma }} {{ 2|ordinal }} {{ 3|apnumber }} {{ 1200000|intword }}"""
TEMPLATES = {
    "page.html": PAGE,
    "humanized.html": HUMANIZED,
    "flatpages/default.html": "<h1>{{ flatpage.title }}</h1>{{ flatpage.content }}",
}


def templates() -> list[dict[str, Any]]:
    (engine,) = SITE["TEMPLATES"]
    loaders = [
        ("django.template.loaders.locmem.Loader", TEMPLATES),
        "django.template.loaders.app_directories.Loader",
    ]
    options = engine["OPTIONS"] | {
        "loaders": [("django.template.loaders.cached.Loader", loaders)],
    }
    return [engine | {"OPTIONS": options}]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[None]:
    """The project, with the tables of its apps; a test names its database before it."""
    middleware = [
        *SITE["MIDDLEWARE"],
        "django.middleware.locale.LocaleMiddleware",
        "django.contrib.sites.middleware.CurrentSiteMiddleware",
        "django.contrib.flatpages.middleware.FlatpageFallbackMiddleware",
        "django.contrib.redirects.middleware.RedirectFallbackMiddleware",
    ]
    changed = SITE | {
        "ROOT_URLCONF": "tests.integration.contrib_site",
        "INSTALLED_APPS": [*settings.INSTALLED_APPS, *APPS],
        "MIDDLEWARE": [name for name in middleware if "Csrf" not in name],
        "MIGRATION_MODULES": settings.MIGRATION_MODULES
        | {"sites": None, "flatpages": None, "redirects": None},
        "TEMPLATES": templates(),
        "SITE_ID": 1,
        "LANGUAGE_CODE": "en",
        "MEDIA_ROOT": str(tmp_path / "media"),
        "NUAGES": {"SYNC_VIEWS": "loop"},
    }
    with override_settings(**changed):
        from django.contrib.flatpages.models import FlatPage
        from django.contrib.redirects.models import Redirect
        from django.contrib.sites.models import Site

        Site.objects.clear_cache()
        call_command("migrate", run_syncdb=True, verbosity=0)
        here = Site.objects.get(pk=1)
        page = FlatPage.objects.create(url="/about/", title="About", content="us")
        page.sites.add(here)
        page = FlatPage.objects.create(url="/pages/", title="Pages", content="by the view")
        page.sites.add(here)
        Redirect.objects.create(site=here, old_path="/old/", new_path="/list/")
        author = Author.objects.create(name="Ursula", pk=90007)
        Author.objects.create(name="Octavia", pk=90008)
        tag = Tag.objects.create(name="new", pk=90005)
        for number, title in enumerate(("one", "two", "three"), 90001):
            book = Book.objects.create(title=title, author=author, pk=number)
            book.tags.add(tag)
            Note.objects.create(subject=book, text=f"on {title}")
        Note.objects.create(subject=author, text="on her")
        User.objects.create(username="ada", pk=90003, date_joined=datetime(2026, 5, 4, tzinfo=UTC))
        yield
        FlatPage.objects.all().delete()
        Redirect.objects.all().delete()
        Site.objects.clear_cache()


BOOK = {"title": "new", "author": "90007", "tags": ["90005"], "copies": "2"}
ONE_FORM = {"form-TOTAL_FORMS": "1", "form-INITIAL_FORMS": "0"}
MODEL_FORMS = {
    "form-TOTAL_FORMS": "3",
    "form-INITIAL_FORMS": "3",
    **{f"form-{n}-id": f"{90001 + n}" for n in range(3)},
    **{f"form-{n}-title": f"title {n}" for n in range(3)},
    **{f"form-{n}-copies": "4" for n in range(3)},
}
INLINE_FORMS = {
    "books-TOTAL_FORMS": "1",
    "books-INITIAL_FORMS": "0",
    "books-0-title": "inline",
    "books-0-author": "90007",
}

REQUESTS: list[tuple[str, str, dict[str, Any] | None, int, str]] = [
    ("feed", "/feed/", None, 200, "by Ursula"),
    ("atom feed", "/feed/atom/", None, 200, "<entry>"),
    ("feed of an object", "/feed/90007/", None, 200, "Books of Ursula"),
    ("sitemap index", "/sitemap.xml", None, 200, "/sitemap-books.xml?p=2"),
    ("sitemap", "/sitemap-books.xml?p=2", None, 200, "/detail/90003/?by=90007"),
    ("generic sitemap", "/sitemap-users.xml", None, 200, "<lastmod>2026-05-04"),
    ("sitemap of flatpages", "/sitemap-pages.xml", None, 200, "/about/"),
    ("flatpage by the middleware", "/about/", None, 200, "<h1>About</h1>us"),
    ("flatpage by the view", "/pages/pages/", None, 200, "by the view"),
    ("redirect by the middleware", "/old/", None, 301, ""),
    ("neither", "/nothing/", None, 404, ""),
    ("humanize", "/humanized/", None, 200, "1,234,567 2nd three 1.2 million"),
    ("content types", "/contenttypes/", None, 200, "book 3 one two three Ursula one"),
    ("sites", "/site/", None, 200, "example.com example.com"),
    ("TemplateView", "/template/", None, 200, "Home"),
    ("RedirectView", "/redirect/", None, 302, ""),
    ("ListView", "/list/?page=2", None, 200, "two|\npage 2"),
    ("DetailView", "/detail/90001/", None, 200, "one"),
    ("DetailView of none", "/detail/99/", None, 404, ""),
    ("CreateView", "/create/", None, 200, "Ursula</option>"),
    ("CreateView, valid", "/create/", BOOK, 302, ""),
    ("CreateView, wrong", "/create/", BOOK | {"author": "99"}, 200, "errorlist"),
    ("UpdateView", "/update/90001/", None, 200, 'value="one"'),
    ("UpdateView, valid", "/update/90001/", BOOK, 302, ""),
    ("DeleteView", "/delete/90002/", None, 200, "two"),
    ("DeleteView, done", "/delete/90002/", {}, 302, ""),
    ("FormView", "/choice/", None, 200, "Octavia</option>"),
    ("FormView, valid", "/choice/", {"author": "90007", "tags": ["90005"]}, 200, "chosen Ursula"),
    ("FormView, wrong", "/choice/", {"author": "90008"}, 200, "no books"),
    ("formset", "/formset/", None, 200, "Octavia</option>"),
    ("formset, valid", "/formset/", ONE_FORM | {"form-0-author": "90007"}, 200, "valid Ursula"),
    ("model formset", "/modelformset/", None, 200, 'value="three"'),
    ("model formset, valid", "/modelformset/", MODEL_FORMS, 200, "saved 3"),
    ("inline formset", "/inlineformset/", None, 200, 'value="one"'),
    ("inline formset, valid", "/inlineformset/", INLINE_FORMS, 200, "saved 1"),
    ("ArchiveIndexView", "/archive/", None, 200, "ada|"),
    ("YearArchiveView", "/archive/2026/", None, 200, "ada|"),
    ("MonthArchiveView", "/archive/2026/5/", None, 200, "ada|"),
    ("WeekArchiveView", "/archive/2026/week/18/", None, 200, "ada|"),
    ("DayArchiveView", "/archive/2026/5/4/", None, 200, "ada|"),
    ("TodayArchiveView", "/archive/today/", None, 404, ""),
    ("DateDetailView", "/archive/2026/5/4/90003/", None, 200, "ada"),
]
POSTGRESQL = [("search", "/search/?q=ursula+-two", None, 200, "one True, three True")]


async def answer(application: Any, address: str, data: dict[str, Any] | None) -> Exchange:
    if data is None:
        return await fetch(application, address)
    return await post(application, address, data)


async def answers(requests: Any) -> None:
    application = get_asgi_application()
    for name, address, data, status, text in requests:
        got = await answer(application, address, data)
        assert got.status == status, (name, got.text)
        assert text in got.text, (name, got.text)


def test_every_answer_on_both_databases(database: str, site: None, run: Run) -> None:
    run(answers, sorted(REQUESTS + (POSTGRESQL if database == "postgresql" else []), key=changes))


def changes(asked: Any) -> int:
    """What changes rows comes last; and what needs them all first among that."""
    name, _, data, status, text = asked
    changing = data is not None and (status == 302 or "saved" in text)
    return 0 if not changing else 1 if name == "model formset, valid" else 2


def test_no_thread_and_nothing_that_blocks(
    postgresql: dict[str, Any], site: None, threads: Counts
) -> None:
    """The second time: what is loaded at the first use is not for every request."""
    requests = sorted(REQUESTS + POSTGRESQL, key=changes)

    async def main() -> None:
        application = get_asgi_application()
        for asked in requests:
            _, address, data, _, _ = asked
            await answer(application, address, None if changes(asked) else data)
        statistics.reset()
        threads.clear()
        with blockbuster_ctx():
            for name, address, data, status, text in requests:
                got = await answer(application, address, data)
                assert got.status == status, (name, got.text)
                assert text in got.text, (name, got.text)
                assert (statistics.blocked, statistics.worker) == (0, 0), name
                threads.assert_none()

    asyncio.run(main())


def test_the_guard_and_the_counter_would_tell(
    postgresql: dict[str, Any], site: None, threads: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A control: the same request, with a view that blocks and one that takes a thread."""

    def blocking(self: Any) -> Any:
        time.sleep(0)
        return Book.objects.all()

    async def main() -> None:
        application = get_asgi_application()
        with monkeypatch.context() as patch:
            patch.setattr("tests.integration.contrib_site.NewBooks.items", blocking)
            with (
                override_settings(DEBUG_PROPAGATE_EXCEPTIONS=True),
                blockbuster_ctx(),
                pytest.raises(BlockingError),
            ):
                await fetch(application, "/feed/")
        threads.clear()
        await sync_to_async(len)("")
        assert threads.submitted

    asyncio.run(main())


# What is handed to a thread on purpose


@pytest.fixture(autouse=True)
def _nothing_noted() -> None:
    WHERE.take()


def test_a_picture_is_validated_and_stored_in_threads(
    database: str, site: None, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.core.files.storage import FileSystemStorage
    from django.core.files.uploadedfile import SimpleUploadedFile
    from PIL import Image

    monkeypatch.setattr(Image, "open", WHERE.spy(Image.open))
    monkeypatch.setattr(FileSystemStorage, "_save", WHERE.spy(FileSystemStorage._save))  # type: ignore[attr-defined]

    async def main() -> None:
        application = get_asgi_application()
        image = SimpleUploadedFile("a.png", picture((3, 5)), "image/png")
        other = SimpleUploadedFile("a.txt", b"text")
        got = await post(application, "/scan/", {"file": other, "image": image})
        assert got.status == 302, got.text
        assert WHERE.take() == THREAD
        broken = SimpleUploadedFile("a.png", b"no picture", "image/png")
        got = await post(application, "/scan/", {"file": other, "image": broken})
        assert "Upload a valid image" in got.text
        assert WHERE.take() == THREAD
        scan = await Scan.objects.aget()
        assert (scan.file.name, scan.image.name) == ("a.txt", "a.png")

    run(main)


def test_the_admin_stores_and_clears_files(database: str, site: None, run: Run) -> None:
    """`AdminFileWidget` and the field's own, with a file that is kept, replaced and cleared."""
    from django.core.files.uploadedfile import SimpleUploadedFile

    token = "t" * 32
    cookie = {"Cookie": f"sessionid={log_in(make_user())}; csrftoken={token}"}

    async def main() -> None:
        application = get_asgi_application()

        async def send(address: str, data: dict[str, Any]) -> None:
            data = data | {"csrfmiddlewaretoken": token}
            got = await post(application, address, data, headers=cookie)
            assert got.status == 302, got.text

        first = SimpleUploadedFile("a.txt", b"text")
        image = SimpleUploadedFile("a.png", picture((3, 5)), "image/png")
        await send("/admin/library/scan/add/", {"file": first, "image": image})
        scan = await Scan.objects.aget()
        address = f"/admin/library/scan/{scan.pk}/change/"
        page = await fetch(application, address, headers=cookie)
        assert "Currently" in page.text
        assert "a.png" in page.text
        second = SimpleUploadedFile("b.txt", b"more")
        await send(address, {"file": second, "image-clear": "on"})
        await scan.arefresh_from_db()
        assert (scan.file.name, scan.image.name) == ("b.txt", "")
        async with scan.file as file:
            assert await file.aread() == b"more"

    run(main)


def test_signing_up_hashes_in_a_thread(
    database: str, site: None, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from django.contrib.auth import hashers

    # What it computes with, below the method that is handed over.
    md5 = WHERE.spy(hashers.hashlib.md5)
    monkeypatch.setattr(hashers, "hashlib", SimpleNamespace(md5=md5))

    async def main() -> None:
        application = get_asgi_application()
        form = {"username": "grace", "password1": "hopper-1906", "password2": "hopper-1906"}
        wrong = await post(application, "/signup/", form | {"password2": "other"})
        assert "match" in wrong.text
        assert (await post(application, "/signup/", form)).status == 302
        user = await User.objects.aget(username="grace")
        assert await user.acheck_password("hopper-1906")

        assert WHERE.take() == THREAD

    run(main)
