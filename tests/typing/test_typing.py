"""What type checkers know of the package: in a project of their own, line by line.

`assert_type` says in the snippets what must be known, and a comment what must be refused, with the
codes of the errors: `# error: mypy arg-type, pyright reportArgumentType`. Any other error fails,
and an error that does not come. `both` and what pyright is told by hand (`helpers`, `magazines`)
are read by both checkers, `plugin` by mypy with its plugins.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import nuages

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".mypy_cache" / "typing"
PLUGINS = ("nuages.mypy", "mypy_django_plugin.main")
EVERYWHERE = ("both", "helpers", "magazines")

MODEL = """
from django.db import models

class {name}(models.Model):
    {fields}
"""

_EXPECTED = re.compile(r"# error: ([^#]*)")

Errors = dict[str, Counter[str]]
"""The codes of the errors, by `file:line`."""

pytestmark = pytest.mark.timeout(400)


def expected(checker: str, *folders: str) -> Errors:
    found: Errors = {}
    for folder in folders:
        for path in sorted((HERE / folder).rglob("*.py")):
            for number, line in enumerate(path.read_text().splitlines(), 1):
                if (match := _EXPECTED.search(line)) is None:
                    continue
                codes: Counter[str] = Counter()
                for part in match[1].strip().split(", "):
                    name, code, times = re.fullmatch(r"(\w+) ([\w-]+)(?: x(\d))?", part).groups()
                    if name == checker:
                        codes[code] += int(times or 1)
                if codes:
                    found[f"{path.relative_to(HERE)}:{number}"] = codes
    return found


def compare(checker: str, actual: dict[str, list[tuple[str, str]]], *folders: str) -> None:
    """Fail, with every difference, unless all is as the comments say."""
    wanted = expected(checker, *folders)
    assert wanted, "no snippet expects an error: these tests would say nothing"
    lines = []
    for place in sorted({*wanted, *actual}):
        errors = actual.get(place, [])
        codes = Counter(code for code, _ in errors)
        if codes != wanted.get(place, Counter()):
            lines.append(f"{place}: expected {dict(wanted.get(place, {}))}, found {errors}")
    if lines:
        pytest.fail("\n".join(lines), pytrace=False)


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    source = str(Path(nuages.__file__).parents[1])
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    environment.pop("DJANGO_SETTINGS_MODULE", None)
    return subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True)


def mypy(*arguments: str, config: str = "mypy.ini") -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-m", "mypy", "--config-file", config, *arguments])


def test_mypy_with_the_plugin_finds_what_the_comments_say() -> None:
    folders = (*EVERYWHERE, "plugin", "shop")
    done = mypy("--cache-dir", str(CACHE), "--output", "json", *folders)
    assert done.returncode == 1, done.stdout + done.stderr
    actual: dict[str, list[tuple[str, str]]] = {}
    for line in done.stdout.splitlines():
        error = json.loads(line)
        if error["severity"] == "error":
            place = f"{error['file']}:{error['line']}"
            actual.setdefault(place, []).append((error["code"], error["message"]))
    compare("mypy", actual, *folders)


def configured(
    folder: Path, *plugins: str, settings: str = "shop.settings", root: Path = HERE
) -> str:
    """Write a configuration for mypy, for a project in `root`; return its path."""
    path = folder / "mypy.ini"
    path.write_text(
        f"[mypy]\nmypy_path = {root}\nplugins = {', '.join(plugins)}\n"
        f"[mypy.plugins.django-stubs]\ndjango_settings_module = {settings}\n"
    )
    return str(path)


@pytest.mark.parametrize(
    "plugins", [["mypy_django_plugin.main", "nuages.mypy"], ["nuages.mypy"]], ids=len
)
def test_plugins_in_an_order_that_does_not_work_are_refused(
    plugins: list[str], tmp_path: Path
) -> None:
    done = mypy("shop", "--cache-dir", str(tmp_path), config=configured(tmp_path, *plugins))
    assert done.returncode == 1
    assert 'plugins = ["nuages.mypy", "mypy_django_plugin.main"]' in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_a_project_without_nuages_is_told_that_nothing_would_be_there(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("INSTALLED_APPS = ['django.contrib.contenttypes']\n")
    config = configured(tmp_path, *PLUGINS, settings="plain", root=tmp_path)
    done = mypy(str(tmp_path / "plain.py"), "--cache-dir", str(tmp_path), config=config)
    assert done.returncode == 1
    assert '"nuages" is not in INSTALLED_APPS' in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_a_relation_that_is_new_is_known_with_a_cache_of_before(tmp_path: Path) -> None:
    """Where the model with the new attribute is in a file that has not changed."""
    app = tmp_path / "app"
    app.mkdir()
    (app / "__init__.py").touch()
    (app / "models.py").write_text("from app.book import Book\nfrom app.cover import Cover\n")
    (app / "book.py").write_text(MODEL.format(name="Book", fields="pass"))
    cover = app / "cover.py"
    cover.write_text(MODEL.format(name="Cover", fields="pass"))
    (app / "use.py").write_text(
        "from app.book import Book\nfrom app.cover import Cover\n"
        "async def cover_of(book: Book) -> Cover:\n    return await book.acover\n"
    )
    (tmp_path / "settings.py").write_text("INSTALLED_APPS = ['app', 'nuages']\n")
    config = configured(tmp_path, *PLUGINS, settings="settings", root=tmp_path)

    def check() -> subprocess.CompletedProcess[str]:
        return mypy(str(app), "--cache-dir", str(tmp_path / "cache"), config=config)

    before = check()
    assert '"Book" has no attribute "acover"' in before.stdout, before.stdout + before.stderr
    cover.write_text(
        MODEL.format(name="Cover", fields='book = models.OneToOneField("Book", models.CASCADE)')
    )
    after = check()
    assert after.returncode == 0, after.stdout + after.stderr
    cover.write_text(MODEL.format(name="Cover", fields="pass"))
    assert '"Book" has no attribute "acover"' in check().stdout


def test_pyright_finds_what_the_comments_say() -> None:
    done = run(
        [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "--outputjson"]
    )
    assert done.returncode == 1, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    actual: dict[str, list[tuple[str, str]]] = {}
    for error in report["generalDiagnostics"]:
        if error["severity"] == "error":
            path = Path(error["file"]).relative_to(HERE)
            place = f"{path}:{error['range']['start']['line'] + 1}"
            actual.setdefault(place, []).append((error.get("rule", ""), error["message"]))
    compare("pyright", actual, *EVERYWHERE)
