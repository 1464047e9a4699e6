"""In which kind of thread code runs, and calls that are made both ways: plainly, in a bridge."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from nuages import on_loop
from nuages.db.pool.pool import open_pools
from tests.integration.conftest import Run


class Where:
    """Notes in which kind of thread code runs."""

    def __init__(self) -> None:
        self.on_loop: list[bool] = []

    def note(self) -> None:
        self.on_loop.append(threading.current_thread() is threading.main_thread())

    def spy(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            self.note()
            return function(*args, **kwargs)

        return noted

    def take(self) -> set[bool]:
        found, self.on_loop = set(self.on_loop), []
        return found


WHERE = Where()
THREAD, LOOP = {False}, {True}


def both_ways(run: Run, function: Callable[[], Any], inside: set[bool] = THREAD) -> Any:
    """Call `function` plainly, where nothing changes, and in a bridge; return the latter's."""
    function()
    assert WHERE.take() == LOOP
    result = run(on_loop(function))
    assert WHERE.take() == inside
    return result


def close_pools() -> None:
    for pool in open_pools():
        pool.close()
