"""Signals of the request's cycle, sent from its bridge."""

from __future__ import annotations

import weakref
from typing import Any

from django.core.signals import request_finished
from django.dispatch import Signal
from django.http import HttpResponseBase

from nuages.bridge import await_, on_loop
from nuages.bridge.tasks import to_its_end
from nuages.handling import placement
from nuages.handling import receivers as dispatch


def has_foreign_receivers(signal: Signal, sender: Any = None) -> bool:
    """Tell whether the project has sync receivers of `signal` that must not run on the loop."""
    if placement.all_on_loop() or _is_inline(signal):
        return False
    receivers, _ = signal._live_receivers(sender)
    return not all(placement.is_known(receiver) for receiver in receivers)


_inline: dict[Signal, tuple[list[Any], bool]] = {}
"""By signal: its receivers when last looked at, and whether all were known and sync."""


def _is_inline(signal: Signal) -> bool:
    """Tell whether every receiver of `signal`, for any sender, is known and sync."""
    seen = _inline.get(signal)
    if seen is not None and seen[0] == signal.receivers:
        return seen[1]
    inline = True
    entries: list[Any] = list(signal.receivers)
    for entry in entries:
        # Django 6.1 has one more value between these two.
        receiver, is_async = entry[1], entry[-1]
        function = receiver() if isinstance(receiver, weakref.ReferenceType) else receiver
        if is_async or (function is not None and not placement.is_known(function)):
            inline = False
    _inline[signal] = entries, inline
    return inline


def send(signal: Signal, sender: Any, **named: Any) -> None:
    """Send `signal` as `asend()` does, without a thread where nobody needs one."""
    if _is_inline(signal):
        signal.send(sender, **named)
        return
    dispatch.send_placed(signal, sender, named)


def finished(sender: Any) -> None:
    """Send `request_finished` for a request that has no response, despite cancellations."""
    if has_foreign_receivers(request_finished, sender) or _has_async_receivers(sender):
        await_(to_its_end(on_loop(send)(request_finished, sender)))
    else:
        send(request_finished, sender)


def close(response: HttpResponseBase, threaded: bool) -> None:
    """Close a response, which sends `request_finished`; in a thread where the project needs one.

    A client that goes away now does not cut this short.
    """
    sender = response._handler_class  # type: ignore[attr-defined]
    call = response.close
    in_thread = threaded or has_foreign_receivers(request_finished, sender)
    if in_thread:
        call = placement.in_request_thread(call)
    if in_thread or _has_async_receivers(sender):
        await_(to_its_end(on_loop(call)()))
    else:
        call()


def _has_async_receivers(sender: Any) -> bool:
    return not _is_inline(request_finished) and bool(request_finished._live_receivers(sender)[1])
