"""The place where a signal's receivers run: behind `send`, `asend` and their robust twins.

Sync receivers come first, in the order in which they were connected. Where the sender is sync
code (`send`) they are called right there, by the seam itself: in the sender's bridge or thread.
Where the sender is async (`asend`) they are placed as all code is (`placement.py`), neighbours in
one hop.

Async receivers run concurrently, each in a task of its own, so that they see the sender's
transaction and take turns in it. They end as in the Django version that is installed:

* Up to 6.0 (`asyncio.gather`): each has a copy of the context. One that fails stops no other. Its
  error is raised when all have ended; stock raises it at once and leaves the others behind.
* From 6.1 (`asyncio.TaskGroup`): they share a context, and what they set is set for the sender.
  One that fails cancels the others. Several errors are raised as a group.

In both cases a cancellation of the sender cancels all receivers, is raised when they have ended,
and is never replaced by an error of theirs. Errors that are not raised are logged.
"""

from __future__ import annotations

import asyncio
import contextvars
import types
from collections.abc import Callable, Coroutine, Generator, Sequence
from itertools import groupby
from typing import Any

from asgiref.sync import async_to_sync
from django.dispatch import Signal, dispatcher

from nuages.bridge import await_, current_bridge, run_on_loop
from nuages.db.backends.base.query_log import records
from nuages.db.scopes.tree import context_variables
from nuages.exceptions import SendInCoroutine
from nuages.handling import placement

LIKE_TASK_GROUP = hasattr(dispatcher, "_run_parallel")
"""Whether this Django runs async receivers in a TaskGroup that shares one context."""

Receiver = Callable[..., Any]
Responses = list[tuple[Receiver, Any]]

_BLOCKS = (*context_variables, records)
"""The variables that blocks (a transaction, a hold, a capture of queries) set for their own code.
Receivers that share a context must not find each other's values."""

_MISSING: Any = object()


def require_way() -> None:
    """Raise `SendInCoroutine` where sync code has no way to await receivers."""
    if current_bridge() is None and asyncio._get_running_loop() is not None:
        raise SendInCoroutine()


def await_receivers(
    signal: Signal, sender: Any, named: dict[str, Any], receivers: Sequence[Receiver], robust: bool
) -> Responses:
    """Call async receivers from sync code and return their responses.

    The bridge awaits them, where there is one; else `async_to_sync` does.
    """
    args = signal, sender, named, receivers, robust
    if current_bridge() is not None:
        responses: Responses = await_(_call_async(*args))
        return responses
    return async_to_sync(_call_async)(*args)


async def asend(signal: Signal, sender: Any, named: dict[str, Any], robust: bool) -> Responses:
    """Send from async code: `Signal.asend()` and `Signal.asend_robust()`."""
    receivers, async_receivers = signal._live_receivers(sender)
    responses: Responses = []
    if receivers:
        args = signal, sender, named, receivers, robust
        responses = await run_on_loop(_call_placed, args, {})
    if async_receivers:
        responses += await _call_async(signal, sender, named, async_receivers, robust)
    return responses


def send_placed(signal: Signal, sender: Any, named: dict[str, Any]) -> None:
    """Send as `asend()` does (in a bridge)."""
    receivers, async_receivers = signal._live_receivers(sender)
    _call_placed(signal, sender, named, receivers, robust=False)
    if async_receivers:
        await_(_call_async(signal, sender, named, async_receivers, robust=False))


def _call(
    signal: Signal, sender: Any, named: dict[str, Any], receivers: Sequence[Receiver], robust: bool
) -> Responses:
    responses: Responses = []
    for receiver in receivers:
        try:
            response = receiver(signal=signal, sender=sender, **named)
        except Exception as error:
            if not robust:
                raise
            signal._log_robust_failure(receiver, error)  # type: ignore[attr-defined]
            response = error
        responses.append((receiver, response))
    return responses


def _call_placed(
    signal: Signal, sender: Any, named: dict[str, Any], receivers: Sequence[Receiver], robust: bool
) -> Responses:
    """Call sync receivers where each of them belongs, in their order (in a bridge)."""
    responses: Responses = []
    for inline, neighbours in groupby(receivers, placement.runs_on_loop):
        call = _call if inline else placement.in_request_thread(_call)
        responses += call(signal, sender, named, list(neighbours), robust)
    return responses


async def _call_async(
    signal: Signal, sender: Any, named: dict[str, Any], receivers: Sequence[Receiver], robust: bool
) -> Responses:
    async def call(receiver: Receiver) -> Any:
        try:
            return await receiver(signal=signal, sender=sender, **named)
        except Exception as error:
            if not robust:
                raise
            signal._log_robust_failure(receiver, error)  # type: ignore[attr-defined]
            return error

    def log(position: int, error: BaseException) -> None:
        dispatcher.logger.error(
            "Error calling %s in a signal that had failed or was cancelled (%s)",
            getattr(receivers[position], "__qualname__", receivers[position]),
            error,
            exc_info=error,
        )

    results = await _together([call(receiver) for receiver in receivers], log)
    return list(zip(receivers, results, strict=True))


async def _together(
    coroutines: Sequence[Coroutine[Any, Any, Any]], log: Callable[[int, BaseException], None]
) -> list[Any]:
    """Run `coroutines` concurrently to their ends and return their results."""
    group = LIKE_TASK_GROUP
    context = contextvars.copy_context() if group else None
    loop = asyncio.get_running_loop()
    failed: list[asyncio.Task[Any]] = []

    def note(task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            if not group:  # a TaskGroup takes a cancellation for an end like any other
                failed.append(task)
        elif task.exception() is not None:
            failed.append(task)

    tasks = []
    for coroutine in coroutines:
        work = _with_own_blocks(coroutine) if group else coroutine
        task = loop.create_task(work, context=context)
        task.add_done_callback(note)  # before wait()'s callback, so that `failed` is complete
        tasks.append(task)
    try:
        cancelled = await _end_of(tasks, failed if group else None)
        errors = [(task, error) for task in failed if (error := _error_of(task)) is not None]
        if cancelled is None and failed:
            if group and len(errors) > 1:
                found = [error for _, error in errors]
                raise BaseExceptionGroup("unhandled errors in a TaskGroup", found)
            errors = [(task, error) for task, error in errors if task is not failed[0]]
        for task, error in errors:
            log(tasks.index(task), error)
        if cancelled is not None:
            raise cancelled
        if failed:
            failed[0].result()
        return [None if task.cancelled() else task.result() for task in tasks]
    finally:
        # An error refers to this frame, which would refer to the error by its task.
        tasks.clear()
        failed.clear()
        if context is not None:
            for variable, value in context.items():
                if variable.get(_MISSING) is not value:
                    variable.set(value)


async def _end_of(
    tasks: Sequence[asyncio.Task[Any]], failed: list[asyncio.Task[Any]] | None
) -> asyncio.CancelledError | None:
    """Wait until all tasks have ended; return the last cancellation of the caller meanwhile.

    Such a cancellation cancels the tasks, and so does a failure, where `failed` tells of it.
    """
    cancelled = None
    stopping = False
    pending = set(tasks)
    while pending:
        until = asyncio.ALL_COMPLETED if failed is None or stopping else asyncio.FIRST_EXCEPTION
        try:
            _, pending = await asyncio.wait(pending, return_when=until)
        except asyncio.CancelledError as error:
            cancelled = error
        else:
            if stopping or not failed:
                continue
        stopping = True
        for task in pending:
            task.cancel()
    return cancelled


def _error_of(task: asyncio.Task[Any]) -> BaseException | None:
    return None if task.cancelled() else task.exception()


async def _with_own_blocks(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return await _steps_with_own_blocks(coroutine)


@types.coroutine
def _steps_with_own_blocks(coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Drive `coroutine`; between its steps the context keeps its own values of `_BLOCKS`."""
    own = [variable.get() for variable in _BLOCKS]
    advance: Callable[[Any], Any] = coroutine.send
    value: Any = None
    while True:
        outside = _exchange(own)
        try:
            step = advance(value)
        except StopIteration as stop:
            return stop.value
        finally:
            value = None  # an error in it would refer to itself by this frame
            own = _exchange(outside)
        try:
            value, advance = (yield step), coroutine.send
        except BaseException as error:
            value, advance = error, coroutine.throw


def _exchange(values: list[Any]) -> list[Any]:
    """Set the variables of `_BLOCKS` and return their previous values."""
    before = []
    for variable, value in zip(_BLOCKS, values, strict=True):
        held: Any = variable.get()
        before.append(held)
        if held is not value:
            variable.set(value)
    return before
