"""The one listener for a client that goes away (ASGI HTTP specification, "Disconnect")."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Generator
from typing import Any

from nuages.asgi.types import Message, Receive, Send
from nuages.bridge.tasks import ended

PATIENCE = 0.02
"""Seconds a request may take before a task that listens is started."""


class DisconnectWatch:
    """A listener that cancels the request's task when the client disconnects.

    `receive()` is begun at once, so that what the server already knows is seen before any work
    is done; a task goes on with the call only for a request that takes longer.
    """

    __slots__ = (
        *("_before", "_begun", "_listener", "_loop", "_task", "_timer"),
        *("disconnected", "failure"),
    )

    def __init__(
        self, receive: Receive, task: asyncio.Task[Any], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._task = task
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._listener: asyncio.Task[Any] | None = None
        self._begun: Any = None
        self._before = 0
        """How many cancellations the task had before the watch's."""
        self.disconnected = False
        self.failure: BaseException | None = None
        """The error that `receive()` raised, or an error for a message that it must not give."""
        awaitable: Any = receive()
        if isinstance(awaitable, types.CoroutineType):
            try:
                waits_for = awaitable.send(None)
            except StopIteration as stop:
                self._take(stop.value)
                return
            awaitable = _Resumed(awaitable, waits_for)
        self._begun = awaitable
        self._timer = loop.call_later(PATIENCE, self._listen)

    def _take(self, message: Message) -> None:
        if message["type"] == "http.disconnect":
            self.disconnected = True
        else:
            self.failure = AssertionError(
                f"Invalid ASGI message after request body: {message['type']}"
            )

    def _listen(self) -> None:
        self._timer = None
        self._listener = self._loop.create_task(self._wait())

    async def _wait(self) -> None:
        begun, self._begun = self._begun, None
        try:
            self._take(await begun)
        except Exception as error:
            self.failure = error
        self._listener = None
        self._before = self._task.cancelling()
        self._task.cancel("the client disconnected")

    def guard(self, send: Send) -> Send:
        """Return `send`, after whose OSError nothing is cancelled any more.

        By that error some servers tell of the disconnect (ASGI HTTP specification 2.4). The
        cleanup that follows must not be interrupted by the same news from `receive()`.
        """

        async def guarded(message: Message) -> None:
            try:
                await send(message)
            except OSError:
                listener = self.stop()
                if listener is not None:
                    await ended(listener)
                if self.is_over():
                    try:
                        await asyncio.sleep(0)  # where the cancellation under way arrives
                    except asyncio.CancelledError:
                        self._task.uncancel()
                raise

        return guarded

    def is_over(self) -> bool:
        """Tell whether nobody waits for the response any more."""
        return self.disconnected or self.failure is not None

    def cancelled(self) -> bool:
        """Tell whether the cancellation at hand is the watch's alone; if so, it is withdrawn.

        Earlier cancellations do not count: until Python 3.13 a `TaskGroup` whose task failed
        leaves one behind (https://github.com/python/cpython/issues/116720).

        Raises what the server's `receive()` raised.
        """
        if not self.is_over() or self._task.uncancel() > self._before:
            return False
        if self.failure is not None:
            raise self.failure
        return True

    def stop(self) -> asyncio.Task[Any] | None:
        """Stop listening; return the task that has yet to end, if one listened."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.cancel()
        if self._begun is not None and hasattr(self._begun, "close"):
            self._begun.close()
        self._begun = None
        return listener


class _Resumed:
    """The rest of a coroutine whose first step was taken by hand."""

    __slots__ = ("_coroutine", "_waits_for")

    def __init__(self, coroutine: Any, waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, Any]:
        send, value = self._coroutine.send, None
        waits_for = self._waits_for
        while True:
            try:
                value, send = (yield waits_for), self._coroutine.send
            except BaseException as error:
                value, send = error, self._coroutine.throw
            try:
                waits_for = send(value)
            except StopIteration as stop:
                return stop.value

    def close(self) -> None:
        self._coroutine.close()
