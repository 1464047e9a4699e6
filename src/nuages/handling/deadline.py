"""The time a request may take until its response begins: `REQUEST_TIMEOUT`, `request_timeout`.

Past that time the work is cancelled as by a disconnect, its database work on the server too, and
the answer is 504.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from django.http import HttpRequest, HttpResponse

from nuages.conf import setting
from nuages.handling import errors

F = TypeVar("F", bound=Callable[..., Any])

_ATTRIBUTE = "_nuages_request_timeout"


class Deadline:
    """A timer that cancels the request's task when the time is over, unless the request is.

    `expired` then says whose cancellation it is; `take()` withdraws it.
    """

    __slots__ = (
        *("_before", "_begun", "_is_over", "_loop", "_task", "_timer"),
        *("expired", "over", "seconds"),
    )

    def __init__(
        self,
        task: asyncio.Task[Any],
        loop: asyncio.AbstractEventLoop,
        is_over: Callable[[], bool],
    ) -> None:
        self._task: asyncio.Task[Any] | None = task
        self._is_over = is_over
        self._loop = loop
        self._begun = loop.time()
        self._before = 0
        """How many cancellations the task had before the deadline's; see `DisconnectWatch`."""
        self._timer: asyncio.TimerHandle | None = None
        self.expired = False
        self.over = False
        """Whether the request was given up, here or by a disconnect, so that nothing may begin."""
        self.set(setting["REQUEST_TIMEOUT"])

    def set(self, seconds: float) -> None:
        """Let the request take `seconds` since its beginning; 0 means no limit."""
        self.stop()
        self.seconds = seconds
        if seconds:
            self._timer = self._loop.call_at(self._begun + seconds, self._expire)

    def stop(self) -> None:
        """Expire no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def end(self) -> None:
        """Expire no more, and let go of the task, which refers to the request in turn."""
        self.stop()
        self._task = None
        del self._is_over

    def _expire(self) -> None:
        self._timer = None
        if self._task is not None and not self._is_over():
            self.expired = True
            self._before = self._task.cancelling()
            self._task.cancel("the request's deadline passed")

    def withdraw_if_swallowed(self) -> None:
        """Withdraw a cancellation that the work has swallowed: the work's answer stands."""
        if self.expired:
            self.take()

    def take(self) -> bool:
        """Withdraw the cancellation at hand if it is the deadline's alone; tell whether it was."""
        if not self.expired or self._task is None:
            return False
        self.expired = False
        return self._task.uncancel() <= self._before


def limit(view: Any) -> float | None:
    """The seconds that `request_timeout` gave to `view`, or None."""
    seconds: float | None = getattr(view, _ATTRIBUTE, None)
    return seconds


def give_limit(view: F, seconds: float) -> F:
    """Mark `view` with the seconds that it may take."""
    setattr(view, _ATTRIBUTE, seconds)
    return view


def timed_out(request: HttpRequest, deadline: Deadline) -> HttpResponse:
    """Return the answer to a request whose time is over (RFC 9110, 15.6.5); from a bridge."""
    response = HttpResponse(
        "504 Gateway Timeout: the request took too long.\n",
        status=504,
        content_type="text/plain; charset=utf-8",
    )
    message = "Request took more than %g s: %s"
    errors.log(response, request, message, deadline.seconds, request.path)
    return response
