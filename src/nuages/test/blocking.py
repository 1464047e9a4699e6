"""`forbid_blocking()`: proof that a block of code never blocks an event loop's thread.

Most of it is blockbuster's: files, sockets, sleeps, locks, SQLite. What blockbuster does not see
is added: psycopg's waits, which are in C, and waiting for a process. (redis-py waits in sockets.)
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import subprocess
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from nuages.exceptions import BlockingCall
from nuages.test.stacks import frames, is_allowed, names_in_stack, stack

WAITS = ("wait", "wait_conn", "wait_c", "wait_selector", "wait_select", "wait_poll", "wait_epoll")
"""The functions of `psycopg.waiting` that block on a socket."""
_ALLOWED = (
    # What looks at source files to show or to import them.
    "linecache",
    "traceback",
    "importlib._bootstrap",
    "importlib._bootstrap_external",
    # A loop that starts a process, or closes.
    "asyncio.base_events.BaseEventLoop.subprocess_exec",
    "asyncio.base_events.BaseEventLoop.subprocess_shell",
    "asyncio.base_events.BaseEventLoop.shutdown_default_executor",
)


def noting(gen: Generator[Any, Any, Any], note: Callable[[], None]) -> Generator[Any, Any, Any]:
    """Pass psycopg's `gen` through; call `note()` at its first request to wait.

    A generator that has its answer already does not block.
    """
    try:
        wanted = next(gen)
    except StopIteration as end:
        return end.value
    note()
    while True:
        try:
            ready = yield wanted
        except GeneratorExit:
            raise  # psycopg's waits may resume the inner generator later: leave it open
        except BaseException as error:
            step = functools.partial(gen.throw, error)
        else:
            step = functools.partial(gen.send, ready)
        try:
            wanted = step()
        except StopIteration as end:
            return end.value


def watched_wait(
    original: Callable[..., Any],
    what: str,
    applies: Callable[[], bool],
    note: Callable[[str], None],
) -> Callable[..., Any]:
    """Return a wait of psycopg that calls `note(what)` before it blocks, where `applies()`."""

    @functools.wraps(original)
    def wait(gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        if applies():
            gen = noting(gen, functools.partial(note, what))
        return original(gen, *args, **kwargs)

    return wait


def psycopg_waits(
    applies: Callable[[], bool], note: Callable[[str], None]
) -> Iterator[tuple[Any, str, Callable[..., Any]]]:
    """The blocking waits of psycopg as (owner, name, replacement).

    The replacements call `note(what)` before they block, where `applies()`.
    """
    import psycopg
    from psycopg import waiting

    for name in WAITS:
        original = getattr(waiting, name, None)
        if original is not None:
            what = f"psycopg.waiting.{name}"
            yield waiting, name, watched_wait(original, what, applies, note)
    base: Any = psycopg.Connection.__mro__[1]
    original_cancel = base.cancel

    @functools.wraps(original_cancel)
    def cancel(connection: Any) -> None:
        if applies():
            note("psycopg.Connection.cancel")
        original_cancel(connection)

    yield base, "cancel", cancel


def _on_a_loop() -> bool:
    return asyncio._get_running_loop() is not None


@contextmanager
def forbid_blocking(allow: Iterable[str] = ()) -> Iterator[list[BlockingCall]]:
    """Fail where the block, or anything beside it, blocks a thread whose event loop runs.

    `BlockingCall` is raised there, with the stack, and again at the end of the block if it was
    swallowed. `allow` names functions, classes or modules by their dotted names: a call from
    inside one of them may block. It needs blockbuster: `pip install "nuages[test]"`.
    """
    from blockbuster import BlockBuster

    allowed = (*_ALLOWED, *allow)
    found: list[BlockingCall] = []

    def note(what: str) -> None:
        if not is_allowed(names_in_stack(), allowed):
            found.append(BlockingCall(what=what, stack=stack(__name__)))
            raise found[-1]

    def judge(function: Any) -> Callable[..., bool]:
        may_block: Callable[..., bool] = function.can_block_predicate

        def predicate(*args: Any, **kwargs: Any) -> bool:
            if may_block(*args, **kwargs) or _is_known(function.can_block_functions):
                return True
            note(function.full_name)
            return True

        return predicate

    def waits(original: Callable[..., Any], what: str) -> Callable[..., Any]:
        @functools.wraps(original)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            if _on_a_loop() and self.returncode is None:
                note(what)
            return original(self, *args, **kwargs)

        return method

    guard = BlockBuster()
    for function in guard.functions.values():
        function.can_block_predicate = judge(function)
    with ExitStack() as stacked:
        for name in ("wait", "communicate"):
            method = waits(getattr(subprocess.Popen, name), f"subprocess.Popen.{name}")
            stacked.enter_context(mock.patch.object(subprocess.Popen, name, method))
        if importlib.util.find_spec("psycopg") is not None:
            for owner, name, replacement in list(psycopg_waits(_on_a_loop, note)):
                stacked.enter_context(mock.patch.object(owner, name, replacement))
        guard.activate()
        stacked.callback(guard.deactivate)
        yield found
    if found:
        raise found[0]


def _is_known(functions: list[tuple[str, Iterable[str]]]) -> bool:
    """Tell whether blockbuster itself lets these functions block, by the end of a file's name."""
    return any(
        frame.f_code.co_filename.replace("\\", "/").endswith(filename)
        and frame.f_code.co_name in names
        for frame in frames()
        for filename, names in functions
    )
