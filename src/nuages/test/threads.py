"""`forbid_threads()`: proof that a block of code uses no thread.

It watches the places that all threads pass: `run_in_executor` of every loop, the `submit` of
thread pools (asgiref's and uvloop's calls end there), and the start of a thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from nuages.exceptions import ThreadForbidden
from nuages.test.stacks import is_allowed, names_in_stack, names_of, stack

_TARGETS = (
    (asyncio.BaseEventLoop, "run_in_executor"),
    (concurrent.futures.ThreadPoolExecutor, "submit"),
    (threading.Thread, "start"),
)
_ALLOWED = (
    # A pool's own thread: the submitted call has been judged already.
    "concurrent.futures.thread.ThreadPoolExecutor._adjust_thread_count",
    # A loop that shuts down joins its executor's threads by a thread.
    "asyncio.base_events.BaseEventLoop.shutdown_default_executor",
    # SQLite's library can only block: every connection has a thread, by design.
    "nuages.db.backends.sqlite3.worker.Worker.__init__",
)


class Threads:
    """The work that was handed to threads in a block."""

    def __init__(self) -> None:
        self.submitted: list[str] = []
        """Calls that were given to executors."""
        self.started: list[str] = []
        """Threads that were started."""

    def clear(self) -> None:
        """Forget what was seen so far."""
        self.submitted.clear()
        self.started.clear()

    def assert_none(self) -> None:
        """Require that no executor got a call and no thread started, but to shut down a loop."""
        found = [call for call in self.submitted + self.started if "shutdown" not in call]
        if found:
            raise AssertionError(f"threads were used: {found}")


@contextmanager
def watch_threads(seen: Callable[[Any, list[str]], None] | None = None) -> Iterator[Threads]:
    """Note what is handed to threads in the block, by any thread of the process.

    `seen(target, names)` is called for each, before it is done, and may raise.
    """
    threads = Threads()

    def watched(owner: Any, name: str) -> Callable[..., Any]:
        original = getattr(owner, name)
        into = threads.started if name == "start" else threads.submitted

        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            what = f"{owner.__name__}.{name} {args or self!r:.80}"
            into.append(what)
            if seen is not None:
                target = getattr(self, "_target", None) if name == "start" else args
                values = target if isinstance(target, tuple) else (target,)
                seen(what, [found for value in values for found in names_of(value)])
            return original(self, *args, **kwargs)

        return method

    with ExitStack() as stacked:
        for owner, name in _TARGETS:
            stacked.enter_context(mock.patch.object(owner, name, watched(owner, name)))
        yield threads


@contextmanager
def forbid_threads(allow: Iterable[str] = ()) -> Iterator[Threads]:
    """Fail where the block, or anything beside it, gives a call to a thread or starts one.

    `ThreadForbidden` is raised there, with the stack, and again at the end of the block if it
    was swallowed. `allow` names functions, classes or modules by their dotted names: the function
    that is handed over, or one that calls for it, may be one of them or lie in one.
    """
    allowed = (*_ALLOWED, *allow)
    found: list[ThreadForbidden] = []

    def seen(what: str, names: list[str]) -> None:
        if is_allowed(names, allowed) or is_allowed(names_in_stack(), allowed):
            return
        name = names[-1] if names else "module.function"
        found.append(ThreadForbidden(what=what, name=name, stack=stack(__name__)))
        raise found[-1]

    with watch_threads(seen) as threads:
        yield threads
    if found:
        raise found[0]
