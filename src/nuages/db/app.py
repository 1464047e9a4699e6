"""An engine of ours without the app: said clearly, since its queries would run in threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig, apps
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from nuages.db.connections import Storage

_ENGINES = "nuages.db.backends."


def is_routed() -> bool:
    """Whether `django.db.connections` asks us: the seams, which the app installs, are in place."""
    return isinstance(vars(connections).get("_connections"), Storage)


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
    ours = [
        alias
        for alias, entry in connections.settings.items()
        if entry["ENGINE"].startswith(_ENGINES)
    ]
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
