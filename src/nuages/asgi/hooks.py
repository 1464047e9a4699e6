"""The project's own work at start-up and shutdown: `on_startup` and `on_shutdown`."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from asgiref.sync import iscoroutinefunction

from nuages.bridge import on_loop

F = TypeVar("F", bound=Callable[[], Any])

startup: list[Callable[[], Any]] = []
shutdown: list[Callable[[], Any]] = []


def on_startup(function: F) -> F:
    """Run `function()` when the server starts, before it takes requests.

    An async generator function that yields once, or one made by `asynccontextmanager`, is left
    at shutdown, in the reverse order; a coroutine function or a sync function (on the loop) just
    runs. What it yields or returns is None or a dict, which becomes part of `request.state`. An
    exception stops the server's start.

        @on_startup
        async def http_client():
            async with httpx.AsyncClient() as client:
                yield {"http": client}

    Returns the function, so it is a decorator. Register it where the project is set up: in
    asgi.py, or in an AppConfig's `ready()`. Without the lifespan protocol (daphne, `uvicorn
    --lifespan off`) it runs before the first request.
    """
    startup.append(_checked(function, "on_startup"))
    return function


def on_shutdown(function: F) -> F:
    """Run `function()`, sync or async, when the server has stopped taking requests.

    Those in flight have ended by then. Returns the function, so it is a decorator. The last one
    registered runs first; one that fails is reported and does not stop the others.
    """
    shutdown.append(_checked(function, "on_shutdown"))
    return function


def _checked(function: Any, name: str) -> Any:
    if not callable(function):
        raise TypeError(f"{name}() takes a function, not {type(function).__name__}.")
    return function


async def enter(stack: contextlib.AsyncExitStack, state: dict[str, Any]) -> None:
    """Run every start-up hook; `stack` leaves them and runs the shutdown hooks."""
    for function in startup:
        given = await _entered(function, stack)
        if given is None:
            continue
        if not isinstance(given, Mapping):
            raise TypeError(
                f"The start-up hook {function.__qualname__} gave {type(given).__name__}; it may "
                "give None or a dict, which becomes part of request.state."
            )
        state.update(given)
    # Below what the start-up hooks opened, so that it is still there.
    for function in shutdown:
        stack.push_async_callback(_call, function)


async def _entered(function: Callable[[], Any], stack: contextlib.AsyncExitStack) -> Any:
    if inspect.isasyncgenfunction(function):
        return await stack.enter_async_context(_managed(function))
    result = await _call(function)
    if hasattr(type(result), "__aenter__"):
        return await stack.enter_async_context(result)
    return result


def _managed(function: Any) -> Any:
    manager: Any = contextlib.asynccontextmanager(function)
    return manager()


async def _call(function: Callable[[], Any]) -> Any:
    call: Any = function if iscoroutinefunction(function) else on_loop(function)
    return await call()
