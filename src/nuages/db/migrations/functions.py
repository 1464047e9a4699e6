"""RunPython with an async function: run in place, in the migration's transaction."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

from asgiref.sync import async_to_sync

from nuages.bridge import current_bridge, on_loop
from nuages.bridge.portal import run_steps
from nuages.bridge.wrapping import is_async


def awaited(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return an async `function` as a sync one that runs it to its end.

    In a bridge its steps run there; elsewhere they run on a loop of its own, which joins the
    calling thread's transaction. Implicit I/O (`schema_editor.execute()`, say) is awaited in both.
    """

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        bridge = current_bridge()
        if bridge is not None:
            return run_steps(bridge, function(*args))
        return async_to_sync(on_loop(function))(*args)

    return run


def with_sync_code(operation: Any) -> Any:
    """Return a RunPython as it is, or, where it has async functions, a copy that runs them.

    The operation keeps its own functions, which are what `makemigrations` writes.
    """
    found = {
        name: awaited(code)
        for name in ("code", "reverse_code")
        if is_async(code := getattr(operation, name))
    }
    if found:
        operation = copy.copy(operation)
        vars(operation).update(found)
    return operation
