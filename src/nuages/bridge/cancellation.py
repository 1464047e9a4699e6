"""Cancellations of a task that wait for what must end first: a COMMIT, say."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nuages.bridge.grace import GracePeriod


class Cancellable:
    """The part of a bridge that says when a cancellation is raised in it."""

    __slots__ = ("closing", "deferred_cancel", "grace", "shields", "task")

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.task = task
        self.closing = False
        self.shields = 0
        self.deferred_cancel: asyncio.CancelledError | None = None
        """The cancellation that a driver caught inside a shield."""
        self.grace: GracePeriod | None = None
        """The period in which what is awaited goes on."""

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Keep a cancellation (in `deferred_cancel`) until what must end inside has ended.

        The driver's wait catches the cancellation; it is raised at the next wait outside, or at
        the end.
        """
        self.shields += 1
        try:
            yield
        finally:
            self.shields -= 1

    @contextmanager
    def graced(self, period: GracePeriod) -> Iterator[None]:
        """Let what is awaited inside go on for `period`, although the task is cancelled.

        A cancellation that is caught meanwhile, or that a shield caught before, is due afterwards.
        """
        caught, self.deferred_cancel = self.deferred_cancel, None
        if caught is not None and self.task.cancelling():
            period.note(caught)
        self.grace = period
        try:
            yield
        except asyncio.CancelledError:
            raise  # nothing is left to raise
        except BaseException:
            self.deferred_cancel = period.cancelled
            raise
        else:
            self.deferred_cancel = period.cancelled
        finally:
            self.grace = None

    def take_cancel(self) -> asyncio.CancelledError | None:
        """Return the deferred cancellation that is due now and was not withdrawn meanwhile."""
        if self.deferred_cancel is None or self.shields or self.closing:
            return None
        cancelled, self.deferred_cancel = self.deferred_cancel, None
        # Withdrawn: the `asyncio.timeout` that asked for it has ended.
        return cancelled if self.task.cancelling() else None

    def deliver(self, error: Exception | None = None) -> None:
        """Raise the deferred cancellation that is due, over `error` if there is one."""
        if (cancelled := self.take_cancel()) is not None:
            try:
                raise cancelled from error
            finally:
                del cancelled, error  # which refer to this frame
