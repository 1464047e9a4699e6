"""`manage.py shell`: code that is typed may await, and shares the loop's connections.

Django's command is changed in place, so that a project's own `shell`, which derives from it to
import more, has all of this, too. A prompt has a loop of its own; a prompt opened by code on a
running loop, which it blocks, is plain Django's.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from django.utils.module_loading import import_string

from nuages.seams.table import Seam


def _exec(original: Any) -> Any:
    def exec(source: Any, namespace: dict[str, Any]) -> None:
        if namespace.get("exec") is exec:
            # The code gets the globals of Django's module, but means the builtin `exec`.
            del namespace["exec"]
        import_string("nuages.management.console.run_given")(source, namespace)

    return exec


def _python(original: Any) -> Any:
    @functools.wraps(original)
    def python(self: Any, options: dict[str, Any]) -> None:
        if asyncio._get_running_loop() is not None:
            original(self, options)
            return
        interact = import_string("nuages.management.console.interact")
        interact(self.get_namespace(**options), startup=not options["no_startup"])

    return python


def _ipython(original: Any) -> Any:
    @functools.wraps(original)
    def ipython(self: Any, options: dict[str, Any]) -> None:
        if asyncio._get_running_loop() is not None:
            original(self, options)
            return
        from IPython import start_ipython

        start_ipython(argv=["--ext=nuages.ipython"], user_ns=self.get_namespace(**options))

    return ipython


def seams() -> list[Seam]:
    """Return this area's seams."""
    shell = "django.core.management.commands.shell"
    return [
        Seam(
            f"{shell}:exec",
            "Code of --command and of stdin may await at its top level. The builtin's name in "
            "Django's module.",
            _exec,
            new=True,
            callers=frozenset(["handle", "python"]),
        ),
        Seam(
            f"{shell}:Command.python",
            "The prompt: input may await, sync code too runs on the loop.",
            _python,
            "(self, options)",
        ),
        Seam(
            f"{shell}:Command.ipython",
            "The same in IPython, by an extension that is loaded at its start.",
            _ipython,
            "(self, options)",
        ),
    ]
