"""The project's own work at start-up and shutdown: `on_startup` and `on_shutdown`."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from nuages.bridge import on_loop
from nuages.bridge.wrapping import is_async

logger = logging.getLogger("nuages.asgi")

State = Mapping[str, object] | None
"""What a start-up hook gives to `request.state`."""
Startup = Callable[
    [],
    State | Awaitable[State] | AsyncIterator[State] | AbstractAsyncContextManager[State],
]
Shutdown = Callable[[], object]

S = TypeVar("S", bound=Startup)
F = TypeVar("F", bound=Shutdown)

startup: list[Startup] = []
shutdown: list[Shutdown] = []


def on_startup(function: S) -> S:
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
    _require_function(function, "on_startup")
    startup.append(function)
    return function


def on_shutdown(function: F) -> F:
    """Run `function()`, sync or async, when the server has stopped taking requests.

    Requests in flight have ended by then. Returns the function, so it is a decorator. The last
    function registered runs first; one that fails is reported and does not stop the others.
    """
    _require_function(function, "on_shutdown")
    shutdown.append(function)
    return function


def _require_function(function: object, name: str) -> None:
    if not callable(function):
        raise TypeError(f"{name}() takes a function, not {type(function).__name__}.")


class Entered:
    """The start-up hooks that were entered, and what must run at shutdown."""

    def __init__(self) -> None:
        self._exits: list[Callable[[], Any]] = []

    async def enter(self, state: dict[str, Any]) -> None:
        """Run every start-up hook; what they give is put into `state`."""
        for function in startup:
            given = await self._entered(function)
            if given is None:
                continue
            if not isinstance(given, Mapping):
                raise TypeError(
                    f"The start-up hook {function.__qualname__} gave {type(given).__name__}; it "
                    "may give None or a dict, which becomes part of request.state."
                )
            state.update(given)
        # They run before what the start-up hooks opened is left, so that it is still there.
        self._exits += [functools.partial(_call, function) for function in shutdown]

    async def leave(self) -> list[Exception]:
        """Run the shutdown hooks and leave the start-up hooks; return, and log, what failed.

        Each hook is left as if all were well: one that fails is no reason for another to give up
        what it has.
        """
        failures: list[Exception] = []
        while self._exits:
            try:
                await self._exits.pop()()
            except Exception as error:
                logger.error("A shutdown hook failed.", exc_info=error)
                failures.append(error)
        return failures

    async def _entered(self, function: Callable[[], Any]) -> Any:
        result: Any
        if inspect.isasyncgenfunction(function):
            result = contextlib.asynccontextmanager(function)()
        else:
            result = await _call(function)
            if not hasattr(type(result), "__aenter__"):
                return result
        given = await result.__aenter__()
        self._exits.append(functools.partial(result.__aexit__, None, None, None))
        return given


async def _call(function: Callable[[], Any]) -> Any:
    call: Any = function if is_async(function) else on_loop(function)
    return await call()
