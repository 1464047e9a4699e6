"""Transactions: a block's place in its scope; blocks and hooks that are coroutines."""

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


def _call(original: Any) -> Any:
    from nuages.db import transaction

    @functools.wraps(original)
    def __call__(self: Any, func: Any) -> Any:
        return transaction.decorate(self, func, original)

    return __call__


def _async_enter(original: Any) -> Any:
    from nuages.db import transaction

    async def __aenter__(self: Any) -> Any:
        return await transaction.enter_async(self)

    return __aenter__


def _async_exit(original: Any) -> Any:
    from nuages.db import transaction

    async def __aexit__(self: Any, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        await transaction.exit_async(self, exc_type, exc_value, traceback)

    return __aexit__


def _on_commit(original: Any) -> Any:
    from nuages.db.backends.base.base import LoopWrapper
    from nuages.db.backends.base.on_commit import AwaitingHook, kept_hook

    @functools.wraps(original)
    def on_commit(self: Any, func: Any, robust: bool = False) -> None:
        if isinstance(self, LoopWrapper) and self.in_atomic_block:
            func = kept_hook(func)
        elif callable(func):
            # The hook is due at once, or called by stock Django's wrapper.
            func = AwaitingHook(func)
        original(self, func, robust)

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
            "django.db.transaction:Atomic.__call__",
            "Of a coroutine function stock wraps the call, which makes a coroutine; its body ran "
            "outside the transaction.",
            _call,
            "(self, func)",
        ),
        Seam(
            "django.db.transaction:Atomic.__aenter__",
            "`async with transaction.atomic():` is `async with aatomic():`.",
            _async_enter,
            new=True,
        ),
        Seam(
            "django.db.transaction:Atomic.__aexit__",
            "As `__aenter__`.",
            _async_exit,
            new=True,
        ),
        Seam(
            "django.db.backends.base.base:BaseDatabaseWrapper.on_commit",
            "A hook may be a coroutine function or return something to await, which stock would "
            "drop.",
            _on_commit,
            "(self, func, robust=False)",
        ),
    ]
