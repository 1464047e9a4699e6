"""Wrong settings end in a clear message, in a process of their own as a user would meet it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

BASE: dict[str, Any] = {
    "SECRET_KEY": "x",
    "INSTALLED_APPS": ["django.contrib.contenttypes", "nuages"],
    "DATABASES": {"default": {"ENGINE": "nuages.db.backends.sqlite3", "NAME": "db.sqlite3"}},
    "DEFAULT_AUTO_FIELD": "django.db.models.BigAutoField",
    "USE_TZ": True,
}
POSTGRESQL = {"ENGINE": "nuages.db.backends.postgresql", "NAME": "x", "HOST": "127.0.0.1"}

HIDE_PSYCOPG = """
    from importlib.machinery import PathFinder
    find_spec = PathFinder.find_spec
    def without_psycopg(name, path=None, target=None):
        hidden = name.partition(".")[0] in ("psycopg", "psycopg2")
        return None if hidden else find_spec(name, path, target)
    PathFinder.find_spec = without_psycopg
"""
OLD_PSYCOPG = """
    import psycopg
    psycopg.__version__ = "3.3.5"
"""
CHECK = """
    from django.core.management import execute_from_command_line
    execute_from_command_line(["manage.py", "check", "--fail-level", "WARNING"])
"""
QUERY = """
    import asyncio, django
    django.setup()
    from django.contrib.contenttypes.models import ContentType
    print(asyncio.run(ContentType.objects.acount()))
"""


class Project:
    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, *parts: str, **settings: Any) -> subprocess.CompletedProcess[str]:
        lines = [f"{name} = {value!r}" for name, value in (BASE | settings).items()]
        (self.path / "own_settings.py").write_text("\n".join(lines))
        script = "\n".join(textwrap.dedent(part) for part in parts)
        environment = os.environ | {
            "DJANGO_SETTINGS_MODULE": "own_settings",
            "PYTHONPATH": str(self.path),
        }
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", script],
            cwd=self.path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=50,
        )


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode != 0
    last = done.stderr.strip()
    for word in words:
        assert word in last, last


def refused_in_one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """The last line of a traceback is the error that tells, not a follow-up."""
    refused(done)
    line = done.stderr.strip().splitlines()[-1]
    for word in words:
        assert word in line, done.stderr


def test_a_right_project_checks_clean(project: Project) -> None:
    done = project.run(CHECK)
    assert done.returncode == 0, done.stderr
    assert "no issues" in done.stdout


@pytest.mark.parametrize("way", [CHECK, QUERY])
def test_no_driver(project: Project, way: str) -> None:
    done = project.run(HIDE_PSYCOPG, way, DATABASES={"default": POSTGRESQL})
    refused_in_one_line(done, "ImproperlyConfigured", "psycopg 3", "nuages[postgresql]")


def test_a_driver_that_is_too_old(project: Project) -> None:
    done = project.run(OLD_PSYCOPG, CHECK, DATABASES={"default": POSTGRESQL})
    refused_in_one_line(done, "ImproperlyConfigured", "psycopg 3.3.6", "3.3.5")


def test_sqlite_needs_no_psycopg(project: Project) -> None:
    done = project.run(HIDE_PSYCOPG, CHECK)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("pool", [{"max_sise": 5}, {"max_size": 0}])
def test_pool_options(project: Project, pool: dict[str, int]) -> None:
    entry = BASE["DATABASES"]["default"] | {"OPTIONS": {"pool": pool}}
    name = next(iter(pool))
    refused(project.run(CHECK, DATABASES={"default": entry}), "nuages.E002", name)
    done = project.run(QUERY, DATABASES={"default": entry})
    refused_in_one_line(done, "ImproperlyConfigured", name)


def test_an_engine_without_the_app(project: Project) -> None:
    """`check` need not load an engine, so nothing of ours is there: the first use tells."""
    apps = ["django.contrib.contenttypes"]
    words = ("ImproperlyConfigured", "'default'", "INSTALLED_APPS")
    refused_in_one_line(project.run(QUERY, INSTALLED_APPS=apps), *words)
    migrate = CHECK.replace('"check", "--fail-level", "WARNING"', '"migrate"')
    refused_in_one_line(project.run(migrate, INSTALLED_APPS=apps), *words)
    loaded = "from django.db import connection\nconnection.vendor"
    refused(project.run(loaded, CHECK, INSTALLED_APPS=apps), "nuages.E001", "INSTALLED_APPS")


def test_the_asgi_application_without_the_app(project: Project) -> None:
    done = project.run(
        "from nuages.asgi import get_asgi_application\nget_asgi_application()",
        INSTALLED_APPS=["django.contrib.contenttypes"],
    )
    refused_in_one_line(done, "ImproperlyConfigured", "INSTALLED_APPS")


def test_a_wrong_key_of_nuages(project: Project) -> None:
    done = project.run(CHECK, NUAGES={"SYNC_VEWS": "loop"})
    refused(done, "nuages.E003", "SYNC_VEWS")


def test_geodjango(project: Project) -> None:
    script = """
        import django.apps
        original = django.apps.apps.is_installed
        django.apps.apps.is_installed = lambda n: n == "django.contrib.gis" or original(n)
    """
    refused(project.run(script, CHECK), "nuages.E005")


def test_oracle(project: Project) -> None:
    databases = BASE["DATABASES"] | {
        "old": {"ENGINE": "django.db.backends.oracle", "NAME": "x"},
    }
    script = """
        import django
        django.setup()
        from nuages.checks import check_databases
        from django.core.checks import Error
        print([message.id for message in check_databases(None)])
    """
    done = project.run(script, DATABASES=databases)
    assert done.stdout.strip() == "['nuages.E006']", done.stderr


def test_autocommit_off(project: Project) -> None:
    entry = BASE["DATABASES"]["default"] | {"AUTOCOMMIT": False}
    refused(project.run(CHECK, DATABASES={"default": entry}), "nuages.E007")


def test_a_seam_that_does_not_fit_changes_nothing_and_is_told(project: Project) -> None:
    script = """
        from django.db.models import query
        def aiterator(self, chunk_size=2000, more=None): ...
        query.QuerySet.aiterator = aiterator
    """
    refused(project.run(script, CHECK), "nuages.E004", "QuerySet.aiterator")


def test_importing_the_package_has_no_side_effects(project: Project) -> None:
    script = """
        import sys, nuages
        assert "django.db.models" not in sys.modules
        assert "psycopg" not in sys.modules
        print("fine")
    """
    done = project.run(script)
    assert done.stdout.strip() == "fine", done.stderr


def test_a_server_that_is_not_there(project: Project) -> None:
    entry = POSTGRESQL | {"PORT": "1"}
    done = project.run(QUERY, DATABASES={"default": entry})
    refused(done, "OperationalError", "refused")


def test_the_same_project_runs_in_sync_code_and_threads(project: Project) -> None:
    script = """
        import django
        django.setup()
        from concurrent.futures import ThreadPoolExecutor
        from django.core.management import call_command
        from django.contrib.contenttypes.models import ContentType
        from django.db import connection
        call_command("migrate", verbosity=0)
        def count():
            try:
                return ContentType.objects.count()
            finally:
                connection.close()
        with ThreadPoolExecutor(2) as threads:
            assert list(threads.map(lambda _: count(), range(4))) == [1] * 4
        assert count() == 1
        print("fine")
    """
    done = project.run(script)
    assert done.stdout.strip() == "fine", done.stderr


def test_asyncio_run_again_and_again(project: Project) -> None:
    script = """
        import asyncio, django
        django.setup()
        from django.core.management import call_command
        from django.contrib.contenttypes.models import ContentType
        call_command("migrate", verbosity=0)
        for _ in range(3):
            assert asyncio.run(ContentType.objects.acount()) == 1
        print("fine")
    """
    done = project.run(script)
    assert (done.stdout.strip(), done.stderr) == ("fine", "")
