"""On-commit hooks: those that are coroutine functions, and those that are due at once."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Any

from asgiref.sync import async_to_sync

from nuages.bridge import await_, current_bridge
from nuages.bridge.wrapping import is_async
from nuages.exceptions import SyncInCoroutine

logger = logging.getLogger("django.db.backends.base")


def call_hook(function: Callable[[], Any], robust: bool) -> None:
    """Call a hook outside a transaction; with `robust` an error of it is logged, not raised.

    As `BaseDatabaseWrapper.on_commit` does, which goes by the whole connection's transaction.
    """
    hook = sync_hook(function)
    if not robust:
        hook()
        return
    try:
        hook()
    except Exception as error:
        name = getattr(function, "__qualname__", repr(function))
        logger.error("Error calling %s in on_commit() (%s).", name, error, exc_info=True)


def sync_hook(func: Any) -> Any:
    """Return a hook for `on_commit()`, which calls it: `func`, or what awaits it if it is async.

    It is awaited by the bridge that commits; in sync code elsewhere, by `async_to_sync`.
    """
    if not is_async(func):
        return func

    @functools.wraps(func)
    def hook() -> Any:
        if current_bridge() is not None:
            return await_(func())
        if asyncio._get_running_loop() is not None:
            raise SyncInCoroutine(
                "on_commit() was given a coroutine function in a coroutine outside a transaction: "
                "it is due at once, and sync code cannot await it there. `await aon_commit(...)`."
            )
        return async_to_sync(func)()

    return hook
