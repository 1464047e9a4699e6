"""The removal of frames that hold a password from tracebacks.

Error reports show the variables of every frame: Django's page with DEBUG all of them, its mails
to admins those that no decorator hides. Drivers have passwords at hand while they connect.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType


def hide_frames(error: BaseException, packages: tuple[str, ...]) -> None:
    """Take the frames of `packages` out of the tracebacks of `error` and of all that caused it.

    Call it in an `except` block that raises `error` anew; frames further out come back then.
    """
    for each in _chain(error):
        each.__traceback__ = _without(each.__traceback__, packages)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [each.__cause__, each.__context__]
            if isinstance(each, BaseExceptionGroup):
                waiting += each.exceptions


def _without(traceback: TracebackType | None, packages: tuple[str, ...]) -> TracebackType | None:
    kept: list[TracebackType] = []
    while traceback is not None:
        module = str(traceback.tb_frame.f_globals.get("__name__", ""))
        if not any(module == name or module.startswith(f"{name}.") for name in packages):
            kept.append(traceback)
        traceback = traceback.tb_next
    rebuilt = None
    for each in reversed(kept):
        rebuilt = TracebackType(rebuilt, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return rebuilt


PASSWORD_FRAMES = (
    "django.db.backends",
    "django.utils.asyncio",  # its wrapper has the arguments of the function it guards
    "nuages.db.backends",
    "nuages.seams.backends",
    "psycopg",
    "psycopg_binary",
    "pymysql",
)
"""Packages whose frames hold a password while they connect."""
