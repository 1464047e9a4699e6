"""Responses that stream: server-sent events and files; how long a view may take."""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["Event", "EventStream", "afile_response", "last_event_id", "request_timeout"]

_WHERE = {
    "Event": "event",
    "EventStream": "event_stream",
    "afile_response": "files",
    "last_event_id": "event_stream",
    "request_timeout": "timeouts",
}

if TYPE_CHECKING:
    from nuages.http.event import Event
    from nuages.http.event_stream import EventStream, last_event_id
    from nuages.http.files import afile_response
    from nuages.http.timeouts import request_timeout
else:

    def __getattr__(name: str) -> object:
        # Looked up when first used, so that importing the package needs none of Django.
        if name in _WHERE:
            from importlib import import_module

            return getattr(import_module(f"nuages.http.{_WHERE[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
