"""The databases that are ours: by the engine's name, or by its class.

An engine of ours without the app is reported clearly, because its queries would run in threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django.apps import AppConfig, apps
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.db import connections

PREFIX = "nuages.db.backends."
"""What the names of our engines begin with."""


class OwnEngine:
    """The wrappers of our engines, and of engines that are built on ours."""


class RoutedStorage:
    """The storage in `django.db.connections` once the app has installed its seams."""


def is_named_ours(entry: Mapping[str, Any]) -> bool:
    """Tell whether an entry of DATABASES names one of our engines."""
    engine: str = entry["ENGINE"]
    return engine.startswith(PREFIX)


def is_routed() -> bool:
    """Tell whether `django.db.connections` asks us: whether the app has installed the seams."""
    return isinstance(vars(connections).get("_connections"), RoutedStorage)


def require_app(alias: str) -> None:
    """Raise ImproperlyConfigured where the engine is used without the app.

    `manage.py check` cannot say it: it need not load an engine, and nothing else of ours is there.
    """
    if is_routed() or not apps.apps_ready or apps.is_installed("nuages"):
        return
    raise ImproperlyConfigured(
        f'DATABASES[{alias!r}] uses an engine of Nuages, but "nuages" is not in INSTALLED_APPS: '
        "async queries would run in threads. Add it."
    )


def check_app(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[checks.CheckMessage]:
    """Report an engine of ours without the app, whose seams make it async."""
    ours = [alias for alias, entry in connections.settings.items() if is_named_ours(entry)]
    if not ours or apps.is_installed("nuages") or is_routed():
        return []
    return [
        checks.Error(
            f'DATABASES {", ".join(map(repr, ours))} use an engine of Nuages, but "nuages" is '
            "not in INSTALLED_APPS: async queries would run in threads.",
            hint='Add "nuages" to INSTALLED_APPS.',
            id="nuages.E001",
        )
    ]


def register() -> None:
    """Register the check. Idempotent: Django keeps a set."""
    checks.register(check_app, "nuages")


_foreign: frozenset[str] | None = None


def foreign_aliases() -> frozenset[str]:
    """The aliases whose engine is not one of ours."""
    global _foreign
    if _foreign is None:
        _foreign = frozenset(
            alias for alias in connections if alias not in _ours_by_class(connections.settings)
        )
    return _foreign


def _ours_by_class(databases: dict[str, Any]) -> set[str]:
    from django.db.utils import load_backend

    found = set()
    for alias, entry in databases.items():
        engine = entry["ENGINE"]
        if engine.startswith("django."):
            continue  # without loading it: its driver need not be installed
        if is_named_ours(entry) or issubclass(load_backend(engine).DatabaseWrapper, OwnEngine):
            found.add(alias)
    return found


def _changed(*, setting: str, **kwargs: Any) -> None:
    global _foreign
    if setting == "DATABASES":
        _foreign = None


setting_changed.connect(_changed, dispatch_uid="nuages.db.engines")
