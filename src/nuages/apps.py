"""The Django app: installs the seams and registers the checks."""

from __future__ import annotations

from django.apps import AppConfig


class NuagesConfig(AppConfig):
    """`"nuages"` in INSTALLED_APPS."""

    name = "nuages"
    verbose_name = "Nuages"

    def ready(self) -> None:
        """Install the seams; where they do not fit, `manage.py check` says so."""
        from nuages import checks, seams

        seams.install()
        checks.register()
