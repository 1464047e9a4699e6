"""`acall_command`: Django's `call_command` for async code."""

from __future__ import annotations

import functools
from typing import Any

from django.core import management
from django.core.management.base import BaseCommand, CommandError

from nuages.bridge import on_loop
from nuages.bridge.threads import in_sensitive_thread
from nuages.handling.placement import is_known, runs_on_loop
from nuages.management.command import AsyncBaseCommand

_BLOCKING = frozenset(
    [
        "compilemessages",
        "dbshell",
        "makemessages",
        "runserver",
        "serve",
        "shell",
        "test",
        "testserver",
    ]
)
"""Commands of Django's, and ours, that wait for a process, a server's end or a keyboard."""


async def acall_command(
    command_name: str | BaseCommand, /, *arguments: object, **options: object
) -> Any:
    """Call a management command from async code; arguments and result are `call_command`'s.

    An `AsyncBaseCommand`, and Django's own commands, run on the running loop, in the caller's
    task, context and transaction. A sync command of the project's may block, so it runs in a
    thread, in the caller's context and transaction, unless NUAGES["SYNC_VIEWS"] is "loop"; those
    of Django's commands that block by their nature (`runserver`, `shell`, `test`, ...) always run
    in one. A thread cannot be stopped: a call that is cancelled ends when the command has ended.
    """
    command = _load(command_name)
    call = functools.partial(management.call_command, command, *arguments, **options)
    if isinstance(command, AsyncBaseCommand) or _on_loop(type(command)):
        return await on_loop(call)()
    return await in_sensitive_thread(call)


def _load(name: str | BaseCommand) -> BaseCommand:
    if isinstance(name, BaseCommand):
        return name
    try:
        found = management.get_commands()[name]
    except KeyError:
        raise CommandError(f"Unknown command: {name!r}") from None
    return found if isinstance(found, BaseCommand) else management.load_command_class(found, name)


def _on_loop(command: type[BaseCommand]) -> bool:
    if is_known(command) and command.__module__.rpartition(".")[2] in _BLOCKING:
        return False
    return runs_on_loop(command)
