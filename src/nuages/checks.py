"""System checks, with stable ids.

| id | about |
|---|---|
| nuages.E001 | an engine of ours without "nuages" in INSTALLED_APPS |
| nuages.E002 | OPTIONS["pool"] |
| nuages.E003 | a key or value of NUAGES |
| nuages.E004 | a Django that the seams do not fit |
| nuages.E005 | GeoDjango |
| nuages.E006 | Oracle |
| nuages.E007 | AUTOCOMMIT = False |
| nuages.E008 | an engine that cannot be loaded |
| nuages.E009 | LOCATION or OPTIONS of a Redis cache |
| nuages.E010 | what DATABASES says to the driver |
| nuages.W001 | a Django version that is not known |
| nuages.W002 | a model whose own attribute stands where `a<relation>` would |
| nuages.W003 | a database of another engine beside ours |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import django
from django.apps import AppConfig, apps
from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db.utils import load_backend

from nuages.conf import KEYS
from nuages.db.engines import check_app

_ENGINES = "nuages.db.backends."
_CACHES = "nuages.cache."


def register() -> None:
    """Register the checks. Idempotent: Django keeps a set."""
    checks.register(check_app, "nuages")
    checks.register(check_databases, "nuages")
    checks.register(check_settings, "nuages")
    checks.register(check_caches, checks.Tags.caches)
    checks.register(check_seams, "nuages")
    checks.register(check_models, checks.Tags.models)


def _databases() -> Iterator[tuple[str, dict[str, Any]]]:
    from django.db import connections

    yield from connections.settings.items()


def check_databases(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """Report what DATABASES says that cannot work on the loop."""
    from nuages.db.engines import foreign_aliases
    from nuages.db.pool.options import PoolOptions

    found: list[checks.CheckMessage] = []
    if apps.is_installed("django.contrib.gis"):
        found.append(
            checks.Error(
                "GeoDjango is not supported: its database backends are not bridged.",
                hint="Keep Django's engine for the geographic database, and use it from sync "
                "code.",
                id="nuages.E005",
            )
        )
    try:
        foreign = foreign_aliases()
    except (ImproperlyConfigured, ImportError) as error:
        return [*found, checks.Error(str(error), id="nuages.E008")]
    for alias, entry in _databases():
        engine = entry["ENGINE"]
        if engine.rpartition(".")[2] == "oracle":
            found.append(
                checks.Error(
                    f"DATABASES[{alias!r}]: Oracle is not supported on the event loop.",
                    hint="Use it from sync code, or PostgreSQL or SQLite.",
                    id="nuages.E006",
                )
            )
        elif alias in foreign:
            if engine != "django.db.backends.dummy":
                found.append(
                    checks.Warning(
                        f"DATABASES[{alias!r}] uses {engine!r}: its async queries stay in "
                        "threads, and code on the loop cannot use it.",
                        hint=f"Use an engine of {_ENGINES.rstrip('.')} where there is one.",
                        id="nuages.W003",
                    )
                )
        else:
            found += _check_ours(alias, entry, PoolOptions)
    return found


def _check_ours(alias: str, entry: dict[str, Any], options: Any) -> Iterator[checks.CheckMessage]:
    try:
        options.parse(alias, entry)
    except ImproperlyConfigured as error:
        yield checks.Error(str(error), id="nuages.E002")
    try:
        engine = load_backend(entry["ENGINE"])
    except (ImproperlyConfigured, ImportError) as error:
        yield checks.Error(str(error), id="nuages.E008")
    else:
        try:
            engine.DatabaseWrapper(entry, alias).get_connection_params()
        except ImproperlyConfigured as error:
            yield checks.Error(str(error), id="nuages.E010")
    if not entry["AUTOCOMMIT"]:
        yield checks.Error(
            f"DATABASES[{alias!r}]: AUTOCOMMIT = False would hold a connection in a transaction "
            "for every chain of calls on the loop.",
            hint="Remove it and open transactions where they belong, or set ATOMIC_REQUESTS.",
            id="nuages.E007",
        )


def check_settings(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """Report unknown keys and wrong values of NUAGES."""
    given = getattr(settings, "NUAGES", {})
    if not isinstance(given, dict):
        return [checks.Error("NUAGES must be a dict.", id="nuages.E003")]
    found: list[checks.CheckMessage] = []
    for name, value in given.items():
        key = KEYS.get(name)
        if key is None:
            problem = f"is not a key; the keys are {', '.join(sorted(KEYS))}"
        elif not isinstance(value, key.types) or (
            isinstance(value, bool) and bool not in key.types
        ):
            names = " or ".join(kind.__name__ for kind in key.types)
            problem = f"must be {names}, not {value!r}"
        elif isinstance(value, int | float) and value < 0:
            problem = f"must be 0 or more, not {value!r}"
        elif key.choices and value not in key.choices:
            problem = f"must be one of {', '.join(map(repr, key.choices))}, not {value!r}"
        else:
            continue
        found.append(checks.Error(f"NUAGES[{name!r}] {problem}.", id="nuages.E003"))
    listed = given.get("LOOP_MIDDLEWARE", ())
    if isinstance(listed, list | tuple):
        found += [
            checks.Error(
                f"NUAGES['LOOP_MIDDLEWARE'] names {path!r}, which is not in MIDDLEWARE.",
                hint="Write it as it stands there.",
                id="nuages.E003",
            )
            for path in listed
            if path not in settings.MIDDLEWARE
        ]
    return found


def check_caches(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """Report what CACHES says that a Redis cache of ours cannot work with."""
    from django.core.cache import InvalidCacheBackendError, caches

    found: list[checks.CheckMessage] = []
    for alias, entry in caches.settings.items():
        if not str(entry.get("BACKEND", "")).startswith(_CACHES):
            continue
        try:
            cache: Any = caches.create_connection(alias)
            cache.check()
        except (ImproperlyConfigured, InvalidCacheBackendError, TypeError, ValueError) as error:
            found.append(checks.Error(f"CACHES[{alias!r}]: {error}", id="nuages.E009"))
    return found


def check_seams(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """Report a Django that the seams do not fit, or that nobody has tried."""
    from nuages import seams

    if not apps.is_installed("nuages"):
        return []
    found: list[checks.CheckMessage] = [
        checks.Error(
            f"Django {django.get_version()} does not fit: {problem}. Nothing was overridden.",
            hint="Use a Django that this version of Nuages knows, or a newer Nuages.",
            id="nuages.E004",
        )
        for problem in seams.problems()
    ]
    if django.VERSION[:2] not in seams.DJANGO_VERSIONS:
        known = ", ".join(".".join(map(str, version)) for version in seams.DJANGO_VERSIONS)
        found.append(
            checks.Warning(
                f"Django {django.get_version()} is not one that Nuages was tested with ({known}).",
                id="nuages.W001",
            )
        )
    return found


def check_models(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """Report models whose own attributes stand where `a<relation>` would."""
    from nuages.db.orm.related import shadowed

    models = [
        model
        for config in (apps.get_app_configs() if app_configs is None else app_configs)
        for model in config.get_models()
    ]
    return [
        checks.Warning(
            f"{model._meta.label}.{name} is the model's own, so the related object cannot be "
            f"awaited as {name}.",
            hint=f"Use `await on_loop(getattr)(instance, {name[1:]!r})`, or rename it.",
            obj=model,
            id="nuages.W002",
        )
        for model in models
        for name in shadowed(model)
    ]
