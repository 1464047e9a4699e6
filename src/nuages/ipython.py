"""The IPython extension: every cell runs on the loop, in a portal.

    %load_ext nuages.ipython

In a cell `await` and sync code that queries may stand side by side, in IPython on a terminal
(`manage.py shell` loads it by itself) and in Jupyter. IPython runs only cells with an `await` on
its loop, and in Jupyter, where the kernel's loop always runs, sync queries would be refused: this
extension takes the place of DJANGO_ALLOW_ASYNC_UNSAFE, which would let them block the loop on
connections of another kind.

It sets IPython's own option, `loop_runner`, and two methods of the one shell it is loaded into.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import signal
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nuages.bridge import current_bridge, on_loop
from nuages.management.interactive import PromptLoop

_LOADED = "_nuages_originals"


def load_ipython_extension(shell: Any) -> None:
    """Take the shell's cells onto the loop: `%load_ext nuages.ipython`."""
    if hasattr(shell, _LOADED):
        return
    runner = shell.loop_runner
    should_run_async, run_cell_async = shell.should_run_async, shell.run_cell_async

    @functools.wraps(should_run_async)
    def always(*args: Any, **kwargs: Any) -> Any:
        if not shell.autoawait or current_bridge() is not None or _broken(kwargs):
            # Inside a cell there is no loop to run: `%run` and the like go on in its bridge.
            return should_run_async(*args, **kwargs)
        return True

    in_bridge: Any = on_loop(run_cell_async)

    @functools.wraps(run_cell_async)
    async def in_portal(*args: Any, **kwargs: Any) -> Any:
        if asyncio._get_running_loop() is None or not shell.autoawait or _broken(kwargs):
            return await run_cell_async(*args, **kwargs)
        with _interruptible():
            return await in_bridge(*args, **kwargs)

    setattr(shell, _LOADED, (runner, should_run_async, run_cell_async))
    shell.should_run_async = always
    shell.run_cell_async = in_portal
    if asyncio._get_running_loop() is None:
        _own_loop(shell)


def unload_ipython_extension(shell: Any) -> None:
    """Undo `load_ipython_extension`: `%unload_ext nuages.ipython`."""
    runner, _, _ = getattr(shell, _LOADED)
    delattr(shell, _LOADED)
    del shell.should_run_async, shell.run_cell_async
    shell.loop_runner = runner


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt in a cell that computes.

    A kernel takes a cell that runs on its loop for a cell that waits, and only cancels it.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    loop, task, waiting = asyncio.get_running_loop(), asyncio.current_task(), before

    def interrupt(number: int, frame: types.FrameType | None) -> None:
        if asyncio.current_task(loop) is task:
            raise KeyboardInterrupt
        waiting(number, frame)
        # The kernel's handler schedules a callback and leaves the loop asleep.
        loop.call_soon_threadsafe(_nothing)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _nothing() -> None:
    """Wake the loop."""


def _broken(kwargs: dict[str, Any]) -> bool:
    return kwargs.get("preprocessing_exc_tuple") is not None


def _own_loop(shell: Any) -> None:
    """Run cells so that Ctrl-C cancels what they wait for (on a terminal)."""
    from IPython.core.async_helpers import get_asyncio_loop

    factory: Any = get_asyncio_loop
    loop = PromptLoop(factory)
    atexit.register(loop.close)
    shell.loop_runner = loop.run
    if not getattr(shell, "simple_prompt", True):
        # The prompt waits on the same loop, so tasks in the background go on meanwhile.
        shell.enable_gui("asyncio")
