"""Async management commands, and what stands behind the ones in `management/commands`.

`AsyncBaseCommand` and `acall_command` are for projects; our own commands only parse arguments.

uvicorn is an extra, so the modules that import it (`development`, `production`) are imported by
the commands when they run, after `need_uvicorn()`.
"""

from __future__ import annotations

from importlib.util import find_spec

from django.core.management.base import CommandError

from nuages.management.calling import acall_command
from nuages.management.command import AsyncBaseCommand
from nuages.progress import Progress

__all__ = ["AsyncBaseCommand", "Progress", "acall_command"]


def need_uvicorn(command: str) -> None:
    """Raise CommandError where uvicorn is not installed; `command` is the one that needs it."""
    if find_spec("uvicorn") is None:
        raise CommandError(
            f'`{command}` needs uvicorn, which is not installed: pip install "nuages[server]"'
        )
