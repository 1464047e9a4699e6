"""`manage.py migrate`: Django's, on the event loop."""

from __future__ import annotations

from typing import Any

from django.core.management.commands.migrate import Command as DjangoCommand

from nuages import bridge, seams
from nuages.db.native import foreign_aliases
from nuages.management.running import run


class Command(DjangoCommand):
    """Django's `migrate`, run on an event loop where it is a program of its own.

    Called by `call_command()` it runs where the caller is: in a bridge on its loop, else as in
    stock Django. So it does in a project with a database of a foreign engine.
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
                # In a task it would end the loop before its clean-up.
                return None, end

        output, end = run(main)
        if end is not None:
            raise end
        return output
