"""Files that Django loads at their first use: translations, templates, the static manifest.

The first use goes to a thread if it is in a bridge; every later use stays in place.
"""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any

from nuages.seams.table import Seam
from nuages.seams.to_thread import family, handed, in_thread_on_loop


def _translation(original: Any) -> Any:
    loads = in_thread_on_loop(original)
    module = import_module("django.utils.translation.trans_real")

    @functools.wraps(original)
    def translation(language: str) -> Any:
        return (original if language in module._translations else loads)(language)

    return translation


def _get_template(original: Any) -> Any:
    loads = in_thread_on_loop(original)

    @functools.wraps(original)
    def get_template(self: Any, template_name: str, skip: Any = None) -> Any:
        known = self.cache_key(template_name, skip) in self.get_template_cache
        return (original if known else loads)(self, template_name, skip)

    return get_template


def seams() -> list[Seam]:
    """Return this area's seams; the manifest's where staticfiles is installed."""
    from django.apps import apps

    table: list[Seam] = [
        Seam(
            "django.utils.translation.trans_real:translation",
            "A language's catalogues are read and merged, from every app.",
            _translation,
            "(language)",
        ),
        Seam(
            "django.template.loaders.cached:Loader.get_template",
            "A template that is not in the cache is looked for, read and compiled.",
            _get_template,
            "(self, template_name, skip=None)",
        ),
        family(
            "django.template.loaders.base:Loader",
            ("get_template",),
            "Without the cache every use of a template reads its file; a loader of the project's "
            "may read it from anywhere.",
            ("django.template.loaders.cached", "django.template.loaders.locmem"),
        ),
    ]
    if apps.is_installed("django.contrib.staticfiles"):
        table.append(
            handed(
                "django.contrib.staticfiles.storage:ManifestFilesMixin.read_manifest",
                "(self)",
                "The manifest is read when the first static file's address is asked for.",
            )
        )
    return table
