"""The event loop of a test class, from its set-up to its tear-down.

Django gives every async test a loop of its own, in a thread, while the test's own thread runs what
`sync_to_async` is given. Here the loop stays for the class, so that what is bound to it lives on
from one test to the next; all else is as it was, because asgiref finds the loop where it looks for
that of an outer `sync_to_async`: everything that the test's thread gives to `async_to_sync` runs
on the class's loop.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Any

from asgiref.sync import SyncToAsync

_MAIN = ("main_event_loop", "main_event_loop_pid")
_MISSING: Any = object()


class ClassLoop:
    """An event loop in a thread of its own, for the `async_to_sync` calls of another thread."""

    def __init__(self, name: str, loop_factory: Callable[[], Any] | None = None) -> None:
        self._ready = threading.Event()
        self._factory = loop_factory
        self.loop: asyncio.AbstractEventLoop
        self._thread = threading.Thread(target=self._run, name=f"loop of {name}", daemon=True)
        self._before: dict[str, Any] = {}
        self._kept: set[asyncio.Task[Any]] = set()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=self._factory) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        self._main = asyncio.current_task()
        self._ready.set()
        await self._end.wait()

    def start(self) -> None:
        """Start the loop, and have the calling thread's `async_to_sync` use it."""
        self._thread.start()
        self._ready.wait()
        local = SyncToAsync.threadlocal
        self._before = {name: getattr(local, name, _MISSING) for name in _MAIN}
        self.adopt()

    def adopt(self) -> None:
        """Have the calling thread's `async_to_sync` use this loop (again: asgiref notes each)."""
        local = SyncToAsync.threadlocal
        local.main_event_loop = self.loop
        local.main_event_loop_pid = os.getpid()

    def keep_tasks(self) -> None:
        """Remember the tasks there are: they belong to the class, not to the next test."""
        self._kept = set(self._call(lambda: asyncio.all_tasks(self.loop)))

    def end_tasks(self, look: Callable[[], list[str]]) -> tuple[list[str], list[str]]:
        """Cancel the tasks of the test and wait for their end.

        Returns what `look()` saw before (it is called on the loop, while every task stands still)
        and the tasks' names.
        """
        done = asyncio.run_coroutine_threadsafe(self._end_tasks(look), self.loop)
        return done.result()

    async def _end_tasks(self, look: Callable[[], list[str]]) -> tuple[list[str], list[str]]:
        names: list[str] = []
        seen = look()
        mine = {asyncio.current_task(), self._main}
        while left := asyncio.all_tasks() - self._kept - mine:
            for task in left:
                names.append(f"{task.get_name()!r} ({_name(task)})")
                task.cancel()
            await asyncio.wait(left)
            for task in left:
                if not task.cancelled() and (error := task.exception()) is not None:
                    self.loop.call_exception_handler(
                        {
                            "message": "a task that its test left running failed when cancelled",
                            "exception": error,
                            "task": task,
                        }
                    )
        return seen, names

    def _call(self, function: Callable[[], Any]) -> Any:
        async def call() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result()

    def stop(self) -> None:
        """End the loop, with everything on it, and wait for its end."""
        local = SyncToAsync.threadlocal
        for name, value in self._before.items():
            if value is not _MISSING:
                setattr(local, name, value)
            elif hasattr(local, name):
                delattr(local, name)
        self.loop.call_soon_threadsafe(self._end.set)
        self._thread.join()


def _name(task: asyncio.Task[Any]) -> str:
    coroutine = task.get_coro()
    return getattr(coroutine, "__qualname__", repr(coroutine))
