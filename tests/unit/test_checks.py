"""Each system check fires for its wrong setting, and stays silent for right ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import django
import pytest
from django.apps import apps
from django.core import checks as django_checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.test import override_settings

from nuages import checks, seams
from nuages.conf import KEYS
from nuages.db import engines
from nuages.seams import installation
from tests.integration.full_site import SITE


@pytest.fixture
def databases() -> Iterator[Any]:
    """Put other entries beside the tests' own one, for the length of a test."""
    original = dict(connections.settings)

    def put(**entries: dict[str, Any]) -> None:
        connections.settings.clear()
        connections.settings.update(connections.configure_settings(entries))
        engines._changed(setting="DATABASES")

    yield put
    connections.settings.clear()
    connections.settings.update(original)
    engines._changed(setting="DATABASES")


def ids(messages: list[Any]) -> list[str]:
    return [message.id for message in messages]


OURS = {"ENGINE": "nuages.db.backends.sqlite3", "NAME": ":memory:"}
MYSQL = {"ENGINE": "nuages.db.backends.mysql", "NAME": "x"}
STOCK = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}


def test_a_right_project_has_no_messages() -> None:
    assert django_checks.run_checks(tags=["nuages"]) == []


@override_settings(MIDDLEWARE=SITE["MIDDLEWARE"], TEMPLATES=SITE["TEMPLATES"])
def test_all_of_djangos_checks_stay_clean() -> None:
    found = [message for message in django_checks.run_checks() if message.id != "nuages.W002"]
    assert found == []


def test_an_engine_without_the_app(databases: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    databases(default=OURS)
    is_installed = apps.is_installed
    monkeypatch.setattr(apps, "is_installed", lambda name: name != "nuages" and is_installed(name))
    assert checks.check_app(None) == []  # the seams are in place all the same
    monkeypatch.setattr(engines, "is_routed", lambda: False)
    (message,) = checks.check_app(None)
    assert message.id == "nuages.E001"
    assert "INSTALLED_APPS" in message.msg
    databases(default=STOCK)
    assert checks.check_app(None) == []


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        ({"max_sise": 3}, ["max_sise", "max_size"]),
        ({"max_size": 0}, ["max_size", "at least 1"]),
        ({"min_size": 5, "max_size": 2}, ["min_size", "max_size"]),
        ({"timeout": -1}, ["timeout", "-1"]),
        ({"max_size": "10"}, ["max_size", "'10'"]),
        ({"max_size": 2.5}, ["max_size"]),
        ({"max_waiting": True}, ["max_waiting"]),
        ({"max_idle": None}, ["max_idle"]),
        ([], ["must be a dict"]),
        ("yes", ["must be a dict"]),
        (10, ["must be a dict"]),
    ],
)
def test_pool_options(databases: Any, pool: Any, words: list[str]) -> None:
    databases(default=OURS | {"OPTIONS": {"pool": pool}})
    (message,) = checks.check_databases(None)
    assert message.id == "nuages.E002"
    for word in words:
        assert word in message.msg


@pytest.mark.parametrize(
    "pool",
    [True, False, None, {}, {"max_lifetime": None}, {"min_size": 20}, {"max_size": 1}],
)
def test_right_pool_options(databases: Any, pool: Any) -> None:
    databases(default=OURS | {"OPTIONS": {"pool": pool}}, other=OURS)
    assert checks.check_databases(None) == []


@pytest.mark.parametrize("max_age", [0, 60, 0.5, None])
def test_right_conn_max_age(databases: Any, max_age: Any) -> None:
    databases(default=OURS | {"CONN_MAX_AGE": max_age})
    assert checks.check_databases(None) == []


@pytest.mark.parametrize("max_age", [-5, "60"])
def test_wrong_conn_max_age(databases: Any, max_age: Any) -> None:
    databases(default=OURS | {"CONN_MAX_AGE": max_age})
    (message,) = checks.check_databases(None)
    assert message.id == "nuages.E002"
    assert "CONN_MAX_AGE" in message.msg


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"CONECTION_PER": "query"}, "CONNECTION_PER"),
        ({"CONNECTION_PER": "session"}, "'request'"),
        ({"CONNECTION_PER": None}, "str"),
        ({"SCOPE_TIMEOUT": "30"}, "float"),
        ({"COMMIT_TIMEOUT": True}, "float"),
        ({"SCOPE_TIMEOUT": -1}, "0 or more"),
        ({"RESET_WARNING": 1}, "bool"),
        ({"LOOP_MIDDLEWARE": "a.string"}, "tuple"),
        ({"LOOP_MIDDLEWARE": ["not.in.Middleware"]}, "not.in.Middleware"),
        ([], "dict"),
    ],
)
def test_nuages_keys(given: Any, word: str) -> None:
    with override_settings(NUAGES=given):
        (message,) = checks.check_settings(None)
    assert message.id == "nuages.E003"
    assert word in message.msg


def test_right_nuages_keys() -> None:
    assert checks.check_settings(None) == []
    for per in ("query", "request"):
        right = {name: key.default for name, key in KEYS.items()} | {"CONNECTION_PER": per}
        with override_settings(NUAGES=right | {"SCOPE_TIMEOUT": 1}):
            assert checks.check_settings(None) == []


def test_seams_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.check_seams(None) == []
    monkeypatch.setattr(installation, "_problems", ["django.db:x is used otherwise"])
    (message,) = checks.check_seams(None)
    assert message.id == "nuages.E004"
    assert "django.db:x" in message.msg


@pytest.mark.parametrize(
    ("seam", "word"),
    [
        (seams.Seam("django.nowhere:x", "", lambda o: o), "cannot be found"),
        (seams.Seam("django.db:nothing", "", lambda o: o), "does not exist"),
        (seams.Seam("django.db:Nothing.here", "", lambda o: o), "cannot be found"),
        (seams.Seam("django.db:reset_queries", "", lambda o: o, "(self)"), "signature"),
        (seams.Seam("django.db:connections", "", lambda o: o, new=True), "exists already"),
        (
            seams.Seam("django.shortcuts:redirect", "", lambda o: o, callers=frozenset({"x"})),
            "used otherwise",
        ),
    ],
)
def test_a_seams_target_is_looked_at(seam: seams.Seam, word: str) -> None:
    problem = seam.problem()
    assert problem is not None
    assert word in problem
    assert seam.target in problem


def test_one_seam_that_does_not_fit_keeps_all_from_being_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed: list[Any] = []
    good = seams.Seam("django.db:reset_queries", "", installed.append, "(**kwargs)")
    bad = seams.Seam("django.db:nothing", "", installed.append)
    monkeypatch.setattr(installation, "_installed", False)
    monkeypatch.setattr(installation, "_problems", [])
    monkeypatch.setattr(installation, "all_seams", lambda: [good, bad])
    seams.install()
    assert installed == []
    assert not seams.installed()
    assert ids(checks.check_seams(None)) == ["nuages.E004"]


def test_geodjango(databases: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    databases(default=OURS)
    is_installed = apps.is_installed
    monkeypatch.setattr(
        apps, "is_installed", lambda name: name == "django.contrib.gis" or is_installed(name)
    )
    assert ids(checks.check_databases(None)) == ["nuages.E005"]


def test_oracle(databases: Any) -> None:
    databases(default=OURS, old={"ENGINE": "django.db.backends.oracle", "NAME": "x"})
    assert ids(checks.check_databases(None)) == ["nuages.E006"]


def test_autocommit_off(databases: Any) -> None:
    databases(default=OURS | {"AUTOCOMMIT": False})
    (message,) = checks.check_databases(None)
    assert message.id == "nuages.E007"
    assert "default" in message.msg


def test_an_engine_that_cannot_be_loaded(databases: Any) -> None:
    databases(default=OURS, other={"ENGINE": "no.such.engine", "NAME": "x"})
    (message,) = checks.check_databases(None)
    assert message.id == "nuages.E008"
    assert "no.such.engine" in message.msg


def test_an_unknown_django(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(django, "VERSION", (9, 0, 0, "final", 0))
    assert "nuages.W001" in ids(checks.check_seams(None))


def test_another_engine_beside_ours(databases: Any) -> None:
    databases(default=OURS, stock=STOCK)
    (message,) = checks.check_databases(None)
    assert message.id == "nuages.W003"
    assert "'stock'" in message.msg
    databases(default=OURS, dummy={})
    assert checks.check_databases(None) == []


@pytest.mark.parametrize(
    ("location", "options", "problem"),
    [
        ("redis://a/b", {}, "the database is a number"),
        ("redis://a", {"stampede": 1}, "stampede"),
        ("redis://a", {"sokcet_timeout": 1}, "sokcet_timeout"),
        ("redis+cluster://a", {"colour": 1}, "colour"),
        ("redis+sentinel://a/s", {"CLIENT_CLASS": "x"}, "CLIENT_CLASS"),
    ],
)
def test_a_redis_cache(location: str, options: dict[str, Any], problem: str) -> None:
    """It looks at our caches only, and connects to nothing."""
    ours = "nuages.cache.redis.RedisCache"
    entries = {
        "default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": "x"},
        "good": {"BACKEND": ours, "LOCATION": "redis://a", "OPTIONS": {"socket_timeout": 1}},
        "bad": {"BACKEND": ours, "LOCATION": location, "OPTIONS": options},
    }
    with override_settings(CACHES=entries):
        [found] = checks.check_caches(None)
    assert found.id == "nuages.E009"
    assert found.msg.startswith("CACHES['bad']")
    assert problem in found.msg


def test_every_id_is_in_the_table_and_tested_here() -> None:
    import re
    from pathlib import Path

    documented = set(re.findall(r"^\| (nuages\.[EW]\d+)", checks.__doc__ or "", re.MULTILINE))
    sources = "".join(Path(module.__file__ or "").read_text() for module in (checks, engines))
    used = set(re.findall(r'id="(nuages\.[EW]\d+)"', sources))
    tested = set(re.findall(r"nuages\.[EW]\d+", Path(__file__).read_text()))
    assert used == documented
    assert documented <= tested  # W002: tests/integration/test_related.py


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ssl_mode": "REQUIRED"}, "ssl_verify_cert"),
        ({"no_such_option": 1}, "PyMySQL does not know: no_such_option"),
        ({"isolation_level": "none"}, "isolation level"),
        ({"statement_timeout": "soon"}, "statement_timeout"),
    ],
)
def test_what_is_said_to_mysqls_driver(
    databases: Any, options: dict[str, Any], words: str
) -> None:
    databases(default=OURS, other=MYSQL | {"OPTIONS": options})
    (message,) = checks.check_databases(None)
    assert message.id == "nuages.E010"
    assert words in message.msg
    databases(default=OURS, other=MYSQL | {"OPTIONS": {"charset": "utf8mb4", "pool": True}})
    assert checks.check_databases(None) == []


def test_an_engine_whose_driver_is_missing(
    databases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise ImproperlyConfigured(f"{name} needs PyMySQL")

    monkeypatch.setattr(checks, "load_backend", missing)
    databases(default=MYSQL)
    (message,) = checks.check_databases(None)
    assert message.id == "nuages.E008"
    assert "PyMySQL" in message.msg
