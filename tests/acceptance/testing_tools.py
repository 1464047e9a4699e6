"""The project in notes_project/, whose own tests are run by a process of their own."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tests import services

ROOT = Path(__file__).parents[2]
SITE = Path(__file__).parent / "notes_project"


class Site:
    """The project on one database, which is kept when its tests have ended."""

    def __init__(self, vendor: str, entry: dict[str, Any], folder: Path, url: str) -> None:
        self.vendor = vendor
        self.entry = entry
        self.folder = folder
        self.url = url

    def run(self, *command: str, stock: bool = False, test: str | None = "") -> Done:
        """Run `python *command` in the project; with `stock`, on Django's engine without us.

        `test` is the name of another test database; None for one in memory.
        """
        engine = f"{'django' if stock else 'nuages'}.db.backends.{self.vendor}"
        entry = {"ENGINE": engine, **self.entry}
        if test != "":
            entry["TEST"] = {"NAME": test}
        paths = [str(SITE), str(self._installed()), os.environ.get("PYTHONPATH", "")]
        report = self.folder / "report"
        report.unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, "-W", "error", *command],
            cwd=SITE,
            env=os.environ
            | {
                "DJANGO_SETTINGS_MODULE": "settings",
                "PYTHONPATH": os.pathsep.join(paths),
                "PYTHONDONTWRITEBYTECODE": "1",
                "SITE_DATABASES": json.dumps({"default": entry}),
                "SITE_REPORT": str(report),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=50,
        )
        left = json.loads(report.read_text()) if report.exists() else None
        return Done(done.returncode, done.stdout, left)

    def _installed(self) -> Path:
        """A folder with the entry point of the package, however it is installed here."""
        told = self.folder / "nuages_entry_point-0.dist-info"
        told.mkdir(exist_ok=True)
        (told / "METADATA").write_text("Metadata-Version: 2.1\nName: nuages-entry-point\n")
        points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
        lines = [f"{name} = {target}\n" for name, target in points["pytest11"].items()]
        (told / "entry_points.txt").write_text("[pytest11]\n" + "".join(lines))
        return self.folder

    def pytest(self, *arguments: str, **options: Any) -> Done:
        reuse = () if "test" in options else ("--reuse-db",)
        return self.run("-m", "pytest", *reuse, *arguments, **options)

    def test(self, *arguments: str, **options: Any) -> Done:
        keep = () if "test" in options else ("--keepdb",)
        return self.run("-m", "django", "test", "--noinput", *keep, *arguments, **options)

    def rows(self) -> list[int]:
        """The rows of the test database, as another process sees them."""
        tables = ["notes_note", "notes_remark", "auth_user"]
        connection: Any
        if self.vendor == "postgresql":
            connection = psycopg.connect(self.url)
        else:
            connection = sqlite3.connect(self.url)
        try:
            return [
                connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                for table in tables
            ]
        finally:
            connection.close()


class Done:
    """What a run of the project's tests came to."""

    def __init__(self, status: int, output: str, left: list[int] | None) -> None:
        self.status = status
        self.output = output
        self.left = left
        """Rows that the run itself saw when its tests had ended."""

    def assert_passed(self, *words: str) -> None:
        assert self.status == 0, self.output
        for word in words:
            assert word in self.output, self.output


def make_site(vendor: str, folder: Path, postgres_url: str | None) -> Iterator[Site]:
    if vendor == "sqlite3":
        path = str(folder / "test.sqlite3")
        options = {"timeout": 0.2}
        entry = {"NAME": str(folder / "db"), "TEST": {"NAME": path}, "OPTIONS": options}
        yield Site(vendor, entry, folder, path)
        return
    assert postgres_url is not None
    with services.fresh_database(postgres_url) as url:
        parts = conninfo_to_dict(url)
        entry = {
            "NAME": "postgres",
            "HOST": parts["host"],
            "PORT": parts.get("port", ""),
            "USER": parts["user"],
            "TEST": {"NAME": parts["dbname"]},
        }
        yield Site(vendor, entry, folder, url)


@pytest.fixture(params=["postgresql", "sqlite3"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """The project on each database in turn."""
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else None
    yield from make_site(request.param, tmp_path, url)
