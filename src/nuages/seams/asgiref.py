"""asgiref's two bridges between sync and async, where they meet ours."""

from __future__ import annotations

import asyncio
import functools
import weakref
from contextlib import nullcontext
from typing import Any

from nuages.bridge import await_, current_bridge
from nuages.bridge.threads import call_apart, noted_call
from nuages.db.scopes.chain import current_chain, thread_chain, thread_task
from nuages.db.scopes.tree import forget_left
from nuages.seams.table import Seam


def _async_to_sync_call(original: Any) -> Any:
    @functools.wraps(original)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        from nuages.db.atomic import published_scopes
        from nuages.db.published import published_connections

        if current_bridge() is not None and not self.force_new_loop:
            return await_(self.awaitable(*args, **kwargs))
        chain = current_chain()
        if chain is not None:
            # In a thread of sync_to_async: its idle leases are not kept while it waits.
            chain.give_back()
        if chain is not None or asyncio._get_running_loop() is not None:
            with published_scopes():
                return original(self, *args, **kwargs)
        with published_connections():
            return original(self, *args, **kwargs)

    return __call__


def _note_task() -> None:
    """Note the running task for the thread that it is about to await."""
    task = asyncio.current_task()
    # Weakly, because the task has the context that this reference is in.
    thread_task.set(None if task is None else weakref.ref(task))


def _sync_to_async_call(original: Any) -> Any:
    @functools.wraps(original)
    async def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        _note_task()
        forget_left()
        return await original(self, *args, **kwargs)

    return __call__


def _thread_handler(original: Any) -> Any:
    @functools.wraps(original)
    def thread_handler(
        self: Any,
        loop: Any,
        exc_info: Any,
        task_context: Any,
        func: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        (child,) = args

        def with_chain() -> Any:
            # Inside the context that asgiref copies back, so that the scope is left in it.
            with noted_call() if self._thread_sensitive else nullcontext(), thread_chain(loop):
                return call_apart(child)

        return original(self, loop, exc_info, task_context, func, with_chain, **kwargs)

    return thread_handler


def seams() -> list[Seam]:
    """Return this area's seams."""
    return [
        Seam(
            "asgiref.sync:AsyncToSync.__call__",
            "Inside a bridge the coroutine is awaited by the bridge instead of refused; in a "
            "sync program the coroutine uses its thread's connections, as in stock.",
            _async_to_sync_call,
            "(self, *args, **kwargs)",
        ),
        Seam(
            "asgiref.sync:SyncToAsync.__call__",
            "The thread knows the task that awaits it: manual mode (`set_autocommit(False)`) that "
            "is left on in the thread ends with that task.",
            _sync_to_async_call,
            "(self, *args, **kwargs)",
        ),
        Seam(
            "asgiref.sync:SyncToAsync.thread_handler",
            "The thread borrows connections from the loop's pools for the length of the call; "
            "left to Django's request signals they would stay open.",
            _thread_handler,
            "(self, loop, exc_info, task_context, func, *args, **kwargs)",
        ),
    ]
