"""`captureOnCommitCallbacks()` for sync and async tests alike."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections

from nuages.bridge import on_loop
from nuages.db.backends.base.on_commit import call_and_await

logger = logging.getLogger("django.test")


class CaptureOnCommit:
    """A context manager, sync and async, that gives the list of callbacks registered in it.

    As in Django, the list is filled at the end of the block, including callbacks that callbacks
    register. With `execute` they are called then; by `async with` they run on the loop, where they
    may query. What a callback returns is awaited.
    """

    def __init__(self, using: str = DEFAULT_DB_ALIAS, execute: bool = False) -> None:
        self._using = using
        self._execute = execute
        self._callbacks: list[Callable[[], Any]] = []
        self._start = 0

    def __enter__(self) -> list[Callable[[], Any]]:
        self._start = len(connections[self._using].run_on_commit)
        return self._callbacks

    def __exit__(self, *exc_info: object) -> None:
        hooks = connections[self._using].run_on_commit
        while self._start < len(hooks):
            new, self._start = hooks[self._start :], len(hooks)
            for hook in new:
                self._callbacks.append(hook[1])
                if self._execute:
                    self._call(hook[1], robust=bool(hook[-1]))
            hooks = connections[self._using].run_on_commit

    @staticmethod
    def _call(callback: Callable[[], Any], *, robust: bool) -> None:
        try:
            call_and_await(callback, None)
        except Exception as error:
            if not robust:
                raise
            name = getattr(callback, "__qualname__", callback)
            logger.exception("Error calling %s in on_commit() (%s).", name, error)

    async def __aenter__(self) -> list[Callable[[], Any]]:
        return await on_loop(self.__enter__)()

    async def __aexit__(self, *exc_info: object) -> None:
        await on_loop(self.__exit__)(*exc_info)
