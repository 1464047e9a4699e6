"""What Django reads from files at its first use is read by a thread in a bridge, and once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.template import Engine, TemplateDoesNotExist
from django.template.loaders import filesystem
from django.template.loaders.base import Loader
from django.utils import translation
from django.utils.translation import trans_real

from nuages import on_loop
from tests.integration.conftest import Counts, Run
from tests.integration.handoff_tools import LOOP, THREAD, WHERE


@pytest.fixture(autouse=True)
def _nothing_noted() -> Iterator[None]:
    WHERE.take()
    yield
    translation.deactivate()


def test_a_language_is_loaded_by_a_thread(
    run: Run, threads: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = WHERE.spy(trans_real.DjangoTranslation)
    monkeypatch.setattr(trans_real, "DjangoTranslation", loaded)
    monkeypatch.setattr(trans_real, "_translations", {})

    @on_loop
    def main() -> None:
        with translation.override("fr"):
            assert translation.gettext("Yes") == "Oui"
        assert WHERE.take() == THREAD
        threads.clear()
        with translation.override("fr"):
            assert translation.gettext("No") == "Non"
        assert WHERE.take() == set()
        threads.assert_none()

    run(main)


class Noting(filesystem.Loader):
    def get_contents(self, origin: Any) -> str:
        WHERE.note()
        return super().get_contents(origin)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.html").write_text("[{% block text %}{% endblock %}]")
    (tmp_path / "page.html").write_text(
        "{% extends 'base.html' %}{% block text %}{% include 'part.html' %}{% endblock %}"
    )
    (tmp_path / "part.html").write_text("part")
    return tmp_path


def test_a_cached_template_is_read_by_a_thread_once(
    run: Run, threads: Counts, folder: Path
) -> None:
    loaders = [("django.template.loaders.cached.Loader", [(f"{__name__}.Noting", [folder])])]
    engine = Engine(loaders=loaders)

    @on_loop
    def main() -> None:
        assert engine.render_to_string("page.html") == "[part]"
        assert WHERE.take() == THREAD
        with pytest.raises(TemplateDoesNotExist):
            engine.get_template("none.html")
        assert WHERE.take() == THREAD
        threads.clear()
        assert engine.render_to_string("page.html") == "[part]"
        with pytest.raises(TemplateDoesNotExist):
            engine.get_template("none.html")
        threads.assert_none()

    run(main)
    assert WHERE.take() == set()
    engine.template_loaders[0].reset()
    engine.render_to_string("page.html")
    assert WHERE.take() == LOOP  # outside a loop nothing changes


def test_without_the_cache_each_use_is_a_thread(run: Run, folder: Path) -> None:
    engine = Engine(loaders=[(f"{__name__}.Noting", [folder])])
    assert run(on_loop(engine.render_to_string), "page.html") == "[part]"
    assert WHERE.take() == THREAD


def test_a_loader_of_the_project(run: Run) -> None:
    class Own(Loader):
        def get_template(self, template_name: str, skip: Any = None) -> Any:
            WHERE.note()
            return Engine().from_string("own")

    engine = Engine()
    own = Own(engine)
    run(on_loop(own.get_template), "a.html")
    assert WHERE.take() == THREAD


def test_templates_in_memory_stay_on_the_loop(run: Run, threads: Counts) -> None:
    engine = Engine(loaders=[("django.template.loaders.locmem.Loader", {"a.html": "text"})])
    threads.clear()
    assert run(on_loop(engine.render_to_string), "a.html") == "text"
    threads.assert_none()


SITE = """
    import asyncio, pathlib, sys, threading
    import django
    from django.conf import settings
    folder = pathlib.Path(sys.argv[1])
    settings.configure(
        INSTALLED_APPS=["django.contrib.staticfiles", "nuages"],
        DATABASES={"default": {"ENGINE": "nuages.db.backends.sqlite3", "NAME": ":memory:"}},
        STATIC_ROOT=folder,
        STATIC_URL="/static/",
        STORAGES={"staticfiles": {
            "BACKEND": "django.contrib.staticfiles.storage.ManifestStaticFilesStorage",
        }},
    )
    django.setup()
    from django.templatetags.static import static
    from nuages import on_loop, seams
    opened = []
    from django.contrib.staticfiles.storage import StaticFilesStorage
    original = StaticFilesStorage._open
    def open_(self, *args):
        opened.append(threading.current_thread() is threading.main_thread())
        return original(self, *args)
    StaticFilesStorage._open = open_
    print(seams.problems(), asyncio.run(on_loop(static)("a.css")), opened)
"""


def test_the_static_manifest_is_read_by_a_thread(tmp_path: Path) -> None:
    """In a process of its own, where staticfiles is installed."""
    import subprocess
    import sys
    import textwrap

    manifest = {"paths": {"a.css": "a.123.css"}, "version": "1.1", "hash": "x"}
    (tmp_path / "staticfiles.json").write_text(json.dumps(manifest))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(SITE), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[] /static/a.123.css [False]\n", "")
