"""Signals: async receivers awaited where the sender runs, sync ones placed as other code is."""

from __future__ import annotations

import functools
from typing import Any

from django.dispatch.dispatcher import NO_RECEIVERS

from nuages.seams.table import Seam


def _sync(robust: bool) -> Any:
    from nuages.handling import receivers as dispatch

    def make(original: Any) -> Any:
        @functools.wraps(original)
        def send(self: Any, sender: Any, **named: Any) -> Any:
            # Every instance of a model sends two signals that hardly anybody receives.
            if not self.receivers or self.sender_receivers_cache.get(sender) is NO_RECEIVERS:
                return []
            receivers, async_receivers = self._live_receivers(sender)
            if async_receivers:
                dispatch.require_way()
            responses: dispatch.Responses = []
            # Called from this frame, as stock does: a warning's stacklevel counts frames.
            for receiver in receivers:
                try:
                    response = receiver(signal=self, sender=sender, **named)
                except Exception as error:
                    if not robust:
                        raise
                    self._log_robust_failure(receiver, error)
                    response = error
                responses.append((receiver, response))
            if async_receivers:
                responses += dispatch.await_receivers(self, sender, named, async_receivers, robust)
            return responses

        return send

    return make


def _async(robust: bool) -> Any:
    from nuages.handling import receivers as dispatch

    def make(original: Any) -> Any:
        @functools.wraps(original)
        async def asend(self: Any, sender: Any, **named: Any) -> Any:
            if not self.receivers or self.sender_receivers_cache.get(sender) is NO_RECEIVERS:
                return []
            return await dispatch.asend(self, sender, named, robust)

        return asend

    return make


def seams() -> list[Seam]:
    """Return this area's seams."""
    signature = "(self, sender, **named)"
    sync = (
        "Async receivers are awaited by the bridge that sends, in its context and transaction; "
        "none is left running when another fails or the sender is cancelled."
    )
    asynchronous = (
        "Stock calls every sync receiver in a thread. Django's own are called in a bridge, the "
        "project's where the project places them."
    )
    signal = "django.dispatch.dispatcher:Signal"
    return [
        Seam(f"{signal}.send", sync, _sync(robust=False), signature),
        Seam(f"{signal}.send_robust", sync, _sync(robust=True), signature),
        Seam(f"{signal}.asend", asynchronous, _async(robust=False), signature),
        Seam(f"{signal}.asend_robust", asynchronous, _async(robust=True), signature),
    ]
