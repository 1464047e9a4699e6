"""Messages: the storage is made for the requests that use it."""

from __future__ import annotations

import functools
from typing import Any

from django.utils.functional import SimpleLazyObject, empty

from nuages.conf import setting
from nuages.seams.table import Seam

_OURS = "django.contrib.messages."


def _process_request(original: Any) -> Any:
    from django.conf import settings
    from django.contrib.messages.storage import default_storage

    @functools.wraps(original)
    def process_request(self: Any, request: Any) -> None:
        # A storage of the project's own may do some work when it is made.
        lazy = setting["SHORTCUTS"] and settings.MESSAGE_STORAGE.startswith(_OURS)
        # The session's storage complains at once where there is no session.
        if lazy and hasattr(request, "session"):
            request._messages = SimpleLazyObject(functools.partial(default_storage, request))
        else:
            original(self, request)

    return process_request


def _process_response(original: Any) -> Any:
    @functools.wraps(original)
    def process_response(self: Any, request: Any, response: Any) -> Any:
        messages = getattr(request, "_messages", None)
        # Through the type: isinstance() would make the storage.
        if type(messages) is SimpleLazyObject and messages._wrapped is empty:
            return response
        return original(self, request, response)

    return process_response


def seams() -> list[Seam]:
    """Return this area's seams."""
    owner = "django.contrib.messages.middleware:MessageMiddleware"
    return [
        Seam(
            f"{owner}.process_request",
            "Making three storages and a signer is a tenth of a small request, and most requests "
            "neither read nor add a message. They are made at the first use.",
            _process_request,
            "(self, request)",
        ),
        Seam(
            f"{owner}.process_response",
            "A storage that was never made has nothing to store.",
            _process_response,
            "(self, request, response)",
        ),
    ]
