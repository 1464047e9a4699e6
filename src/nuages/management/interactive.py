"""Code typed at a prompt, run piece by piece on one event loop.

Each piece is a task of its own, in one context that lives on, and a portal: it may await, and sync
code in it awaits its I/O. So a transaction that one piece opens by hand is the next one's too.

Everything happens in the caller's thread, the main one, as people expect of `signal.signal()`, of
`breakpoint()` and of Ctrl-C at the prompt. The price is that tasks in the background do not go on
while `input()` reads a line.
On a terminal they go on until the line's first key is pressed (`going_on`).
"""

from __future__ import annotations

import asyncio
import builtins
import inspect
import signal
import sys
import threading
import types
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from nuages.bridge import on_loop
from nuages.bridge.tasks import wait_for_spawned
from nuages.management.running import SETTLE_TIMEOUT, new_event_loop

T = TypeVar("T")


async def run_code(code: types.CodeType, namespace: dict[str, Any]) -> None:
    """Run compiled code, which awaits if it was compiled with PyCF_ALLOW_TOP_LEVEL_AWAIT."""
    result = builtins.eval(code, namespace)  # noqa: S307 - it is what a shell is for
    if code.co_flags & inspect.CO_COROUTINE:
        await result


def without_our_frames(error: BaseException, filename: str) -> types.TracebackType | None:
    """Return the traceback of `error` from `filename`'s code downwards; all if it has none."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_code.co_filename != filename:
        traceback = traceback.tb_next
    return traceback or error.__traceback__


class PromptLoop:
    """A loop that runs one piece after another; `close` ends tasks, generators and pools.

    Ctrl-C raises KeyboardInterrupt in a piece that computes, and cancels one that waits;
    either way `run()` raises KeyboardInterrupt, unless the piece made something else of it.
    """

    def __init__(self, factory: Callable[[], asyncio.AbstractEventLoop] = new_event_loop) -> None:
        self._runner = asyncio.Runner(loop_factory=factory)
        self.loop = self._runner.get_loop()
        self._task: asyncio.Task[Any] | None = None
        self._interrupted = False

    def __enter__(self) -> PromptLoop:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel and await what is left, close the pools and the loop. Idempotent."""
        if not self.loop.is_closed():
            self._runner.run(wait_for_spawned(SETTLE_TIMEOUT))
            self._runner.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run `coroutine` to its end, with its implicit I/O awaited."""

        async def piece() -> T:
            self._task = asyncio.current_task()
            try:
                return await on_loop(_same)(coroutine)
            finally:
                self._task = None

        self._interrupted = False
        with self._interruptible():
            try:
                return self._runner.run(piece())
            except asyncio.CancelledError:
                if self._interrupted:
                    raise KeyboardInterrupt from None
                raise

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        if (
            threading.current_thread() is not threading.main_thread()
            or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        ):
            yield
            return
        signal.signal(signal.SIGINT, self._interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _interrupt(self, number: int, frame: types.FrameType | None) -> None:
        if self._task is None or asyncio.current_task(self.loop) is self._task:
            raise KeyboardInterrupt
        self._interrupted = True
        self.loop.call_soon_threadsafe(self._task.cancel)

    def busy(self) -> bool:
        """Tell whether tasks are left that would go on if the loop ran."""
        return bool(asyncio.all_tasks(self.loop))

    @contextmanager
    def going_on(self, prompt: str) -> Iterator[None]:
        """Show `prompt` and let tasks go on until a key is pressed; the block reads the line.

        The keys stay where the block finds them: the terminal is put into cbreak mode, in which
        it passes on keys one by one, and readline, by which the block must read, takes over.
        """
        if not self.busy() or not _reads_with_readline():
            yield
            return
        import termios
        import tty

        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
        tty.setcbreak(descriptor, termios.TCSADRAIN)
        try:
            sys.stdout.write(prompt)
            sys.stdout.flush()
            self.run(self._readable(descriptor))
            sys.stdout.write("\r")
            sys.stdout.flush()
            # readline echoes what is typed only where it finds the terminal echoing.
            mode = termios.tcgetattr(descriptor)
            mode[3] |= termios.ECHO
            termios.tcsetattr(descriptor, termios.TCSADRAIN, mode)
            yield
        finally:
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)

    async def _readable(self, descriptor: int) -> None:
        pressed = asyncio.Event()
        self.loop.add_reader(descriptor, pressed.set)
        try:
            await pressed.wait()
        finally:
            self.loop.remove_reader(descriptor)


def _reads_with_readline() -> bool:
    return (
        sys.platform != "win32"
        and "readline" in sys.modules
        and sys.stdin is not None
        and sys.stdin.isatty()
        and sys.stdout.isatty()
    )


async def _same(coroutine: Coroutine[Any, Any, T]) -> T:
    return await coroutine
