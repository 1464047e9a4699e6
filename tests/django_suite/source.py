"""The suite of the installed Django: its files, and the packages that its tests can use.

Owns ``.cache/django-suite/<version>/``. The source distribution comes from the package index by
pip itself, so that the user's index, proxy and credentials apply; the tests, and what they need of
Django's documentation, are unpacked once and never changed.
"""

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from collections.abc import Iterable
from importlib import metadata, util
from pathlib import Path

# What the tests skip without, and a wheel of a few MB brings: image fields, YAML serializers, the
# second template engine, a mail server, password hashers, psycopg's own pool. Databases' drivers,
# memcached, GeoIP, watchman and browsers stay the user's choice; the tests that need them skip on
# both sides.
CHEAP_REQUIREMENTS = (
    "aiosmtpd",
    "argon2-cffi",
    "bcrypt",
    "docutils",
    "jinja2",
    "Pillow",
    "psycopg-pool",
    "PyYAML",
    "tblib",
    "tzdata",
)

# GeoDjango needs engines of its own. The tests in test_runner_apps are samples for those of
# test_runner, some fail on purpose, and Django's runtests.py leaves them out, too.
LEFT_OUT = {"gis_tests", "test_runner_apps"}

# The tests, and the extension of Sphinx that some of them import.
_UNPACKED = ("tests", "docs/_ext")

_REQUIREMENTS_OF = {"postgresql": ["postgres.txt"], "sqlite": [], "mysql": []}

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*")


class SourceError(RuntimeError):
    """Django's tests could not be had."""


def fetch(version: str, cache: Path) -> Path:
    """Return the ``tests`` folder of Django ``version``, fetched into ``cache`` when not there."""
    suite = cache / "tests"
    if _is_whole(cache):
        return suite
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as work:
        archive = _download(version, Path(work))
        unpacked = _unpack(archive, Path(work) / "unpacked")
        try:
            # The tests last: they say that all is there.
            for name in reversed(_UNPACKED):
                (cache / name).parent.mkdir(exist_ok=True)
                (unpacked / name).rename(cache / name)
        except OSError:  # another run of this tool was quicker
            if not _is_whole(cache):
                raise
    return suite


def _is_whole(cache: Path) -> bool:
    return (cache / "tests" / "runtests.py").is_file() and (cache / "docs" / "_ext").is_dir()


def all_modules(suite: Path) -> list[str]:
    """Return every folder of the suite that has tests, but those that are left out."""
    found = {path.relative_to(suite).parts[0] for path in suite.glob("*/**/test*.py")}
    return sorted(name for name in found - LEFT_OUT if (suite / name).is_dir())


def requirements(suite: Path, database: str) -> dict[str, str | None]:
    """Return the packages that the suite's own lists name, with the version installed or None."""
    names: dict[str, None] = {}
    for file in ("py3.txt", *_REQUIREMENTS_OF[database]):
        text = (suite / "requirements" / file).read_text(encoding="utf-8")
        names |= dict.fromkeys(requirement_names(text))
    return {name: _version(name) for name in names}


def requirement_names(text: str) -> list[str]:
    """Return the names in a requirements file, less those of other platforms."""
    names = []
    for line in text.splitlines():
        match = _NAME.match(line.strip())
        if match and "sys_platform == 'win32'" not in line:
            names.append(match[0])
    return names


def install(names: Iterable[str]) -> None:
    """Install ``names`` into the environment that runs this tool."""
    if util.find_spec("pip"):
        command = [sys.executable, "-m", "pip", "install", "--quiet"]
    elif uv := shutil.which("uv"):
        command = [uv, "pip", "install", "--quiet", "--python", sys.executable]
    else:
        raise SourceError(f"neither pip nor uv is there to install {', '.join(names)}")
    _run([*command, *names])


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _download(version: str, work: Path) -> Path:
    # pip reads an sdist's metadata before it keeps the file, in a build environment of its own.
    # Only Django is asked for as source: its build tool may come as a wheel.
    _run(
        [
            *(_python_with_pip(work), "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--no-binary", "django", "--dest", str(work), f"django=={version}"),
        ]
    )
    archives = list(work.glob("[dD]jango-*.tar.gz"))
    if len(archives) != 1:
        raise SourceError(f"expected one source archive of Django {version}, got {archives}")
    return archives[0]


def _python_with_pip(work: Path) -> str:
    if util.find_spec("pip"):
        return sys.executable
    environment = work / "pip"  # an environment made by uv has no pip
    venv.create(environment, with_pip=True)
    return str(environment / "bin" / "python")


def _unpack(archive: Path, target: Path) -> Path:
    """Unpack what is needed of the archive; return the folder that has it."""
    with tarfile.open(archive) as bundle:
        top = bundle.next()
        if top is None:
            raise SourceError(f"{archive.name} is empty")
        root = top.name.split("/")[0]
        for name in _UNPACKED:
            prefix = f"{root}/{name}/"
            members = [member for member in bundle.getmembers() if member.name.startswith(prefix)]
            if not members:
                raise SourceError(f"{archive.name} carries no {name}")
            for member in members:
                if not (member.isreg() or member.isdir()) or ".." in member.name.split("/"):
                    raise SourceError(f"{archive.name} carries {member.name}, which is no file")
            # Before 3.11.4, which Debian's is, Python knows no `filter=`.
            bundle.extraction_filter = getattr(tarfile, "data_filter", None)
            bundle.extractall(target, members=members)
    return target / root


def _run(command: list[str], pauses: Iterable[float] = (5, 20)) -> None:
    """Run what asks the package index; again after each of `pauses`, in seconds, if it fails."""
    for pause in (*pauses, None):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not done.returncode:
            return
        failure = f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}"
        if pause is None:
            raise SourceError(failure)
        print(f"{failure}\nIt is tried again in {pause:g} s.", flush=True)
        time.sleep(pause)
