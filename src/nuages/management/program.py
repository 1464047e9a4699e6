"""A sync command that runs on an event loop where it is a program of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand

from nuages import seams
from nuages.bridge import core as bridge
from nuages.db.engines import foreign_aliases
from nuages.management.running import run

if TYPE_CHECKING:
    _Base = BaseCommand
else:
    _Base = object


class LoopProgram(_Base):
    """Mixin before a command's class: from `manage.py` it runs in a bridge on a loop of its own.

    Called by `call_command()` it runs where the caller is: in a bridge on the caller's loop, else
    as in stock Django. In a project with a database of a foreign engine it always runs so.
    """

    _called_from_command_line: bool

    def execute(self, *args: Any, **options: Any) -> str | None:
        """Check and run; on an event loop as a program."""
        if not self._called_from_command_line or foreign_aliases() or not seams.installed():
            return super().execute(*args, **options)
        execute = super().execute

        async def main() -> tuple[str | None, SystemExit | None]:
            try:
                return await bridge.run_on_loop(execute, args, options), None
            except SystemExit as end:
                # Raised in a task, SystemExit would end the loop before the clean-up.
                return None, end

        output, end = run(main)
        if end is not None:
            raise end
        return output
