"""The kind of callable that a decorator was given, and a result that looks like it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar, cast, overload

from asgiref.sync import iscoroutinefunction

from nuages.bridge.core import _drive, current_bridge, run_on_loop
from nuages.bridge.portal import SteppedGenerator, run_steps

P = ParamSpec("P")
T = TypeVar("T")

Run = Callable[[Callable[..., Any], Any, Any], Coroutine[Any, Any, Any]]
"""Runs a function with its positional and keyword arguments."""


def wrap(function: Any, run_sync: Run, run_async: Run) -> Any:
    """Return `function` made awaitable: through `run_sync`, or `run_async` if it is async.

    An async generator function gives generators whose every step goes through `run_async`.
    Raises TypeError for a callable that cannot be awaited.
    """
    if isinstance(function, (staticmethod, classmethod)):
        return type(function)(wrap(function.__func__, run_sync, run_async))
    if not callable(function):
        raise TypeError(f"on_loop() takes a callable, not {type(function).__name__}.")
    if _is(inspect.isgeneratorfunction, function):
        raise TypeError(
            "on_loop() cannot take a generator function, whose body runs when somebody iterates: "
            "make it an async generator function, or await on_loop(list) with the generator."
        )
    if getattr(function, "_nuages_stepped", False):
        return function
    wrapper: Any
    if _is(inspect.isasyncgenfunction, function):

        async def run_step(step: Awaitable[Any]) -> Any:
            return await run_async(_same, (step,), {})

        def generate(*args: Any, **kwargs: Any) -> Any:
            return SteppedGenerator(function(*args, **kwargs), run_step)

        generate._nuages_stepped = True  # type: ignore[attr-defined]
        wrapper = generate
    else:
        run = run_async if is_async(function) else run_sync

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await run(function, args, kwargs)

        wrapper = call
    # A partial or a callable object has no __name__; update_wrapper skips what is missing. A
    # class's __dict__ is about its instances.
    updated = () if isinstance(function, type) else functools.WRAPPER_UPDATES
    functools.update_wrapper(wrapper, function, updated=updated)
    wrapper._nuages_target = function
    return wrapper


def on_loop_target(function: Any) -> Any:
    """Return what `on_loop` made `function` from; None where `on_loop` did not make it.

    A decorator on top copies the attributes of what it wraps, but `function` is not `on_loop`'s
    wrapper itself then.
    """
    target = getattr(function, "_nuages_target", None)
    return target if target is not None and function.__wrapped__ is target else None


def require_sync(function: Any, name: str) -> None:
    """Raise TypeError unless `function` is a sync callable; `name` is the function that asks."""
    if not callable(function):
        raise TypeError(f"{name} takes a callable, not {type(function).__name__}.")
    if is_async(function) or _is(inspect.isasyncgenfunction, function):
        raise TypeError(f"{name} takes a sync callable; await the coroutine function instead.")


def is_async(function: Any) -> bool:
    """Tell whether calling `function` gives something to await, as far as it can be told."""
    return _is(iscoroutinefunction, function)


def _is(check: Callable[[Any], bool], function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return check(function) or check(getattr(type(function), "__call__", None))  # noqa: B004


def _same(awaitable: Awaitable[T]) -> Awaitable[T]:
    return awaitable


async def _portal(function: Callable[..., Awaitable[T]], args: Any, kwargs: Any) -> T:
    if current_bridge() is not None:
        return await function(*args, **kwargs)
    return await _drive(_run_portal, (function, args, kwargs), {})


def _run_portal(function: Callable[..., Awaitable[T]], args: Any, kwargs: Any) -> T:
    bridge = current_bridge()
    assert bridge is not None
    return run_steps(bridge, function(*args, **kwargs))


@overload
def on_loop(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]: ...  # fmt: skip  # noqa: E501
@overload
def on_loop(function: Callable[P, AsyncGenerator[T, Any]]) -> Callable[P, AsyncGenerator[T, Any]]: ...  # type: ignore[overload-overlap]  # fmt: skip  # noqa: E501
@overload
def on_loop(function: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]: ...
def on_loop(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a callable run on the event loop, with its I/O awaited.

    A sync function, method, class-based view (`on_loop(View.as_view())`) or other callable
    becomes a coroutine function that runs in a greenlet on the loop: the counterpart of
    `asgiref.sync.sync_to_async`, which runs it in a thread. A coroutine function or an async
    generator function stays what it is, and code in it may do implicit I/O (`post.author.name`).

    What runs on the loop must not block it: wrap a blocking call in `off_loop`.
    """
    return cast("Callable[..., Any]", wrap(function, run_on_loop, _portal))
