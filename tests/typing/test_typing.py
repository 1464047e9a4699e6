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
EVERYWHERE = ("both", "helpers", "magazines")

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
