"""Transactions: a block's place in its scope; coroutine functions as hooks of a commit."""

from __future__ import annotations

import functools
from typing import Any

from nuages.seams.table import Seam


def _enter(original: Any) -> Any:
    from nuages.db import atomic

    @functools.wraps(original)
    def __enter__(self: Any) -> None:
        atomic.enter_atomic(self)

    return __enter__


def _exit(original: Any) -> Any:
    from nuages.db import atomic

    @functools.wraps(original)
    def __exit__(self: Any, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        atomic.exit_atomic(self, exc_type, exc_value, traceback)

    return __exit__


def _on_commit(original: Any) -> Any:
    from nuages.db.backends.base.on_commit import sync_hook

    @functools.wraps(original)
    def on_commit(self: Any, func: Any, robust: bool = False) -> None:
        original(self, sync_hook(func), robust)

    return on_commit


def seams() -> list[Seam]:
    """Return this area's seams."""
    return [
        Seam(
            "django.db.transaction:Atomic.__enter__",
            "An outermost block makes its connection a scope, a nested one takes its turn in "
            "it, so that concurrent blocks never interleave.",
            _enter,
            "(self)",
        ),
        Seam(
            "django.db.transaction:Atomic.__exit__",
            "Leaving a block seals it against tasks that outlive it.",
            _exit,
            "(self, exc_type, exc_value, traceback)",
        ),
        Seam(
            "django.db.backends.base.base:BaseDatabaseWrapper.on_commit",
            "A hook may be a coroutine function, which stock would call and not await.",
            _on_commit,
            "(self, func, robust=False)",
        ),
    ]
