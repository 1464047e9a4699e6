"""The ASGI request: Django's, but large bodies are parsed by a thread."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from django.conf import settings
from django.core.files.uploadedfile import TemporaryUploadedFile
from django.core.files.uploadhandler import MemoryFileUploadHandler
from django.core.handlers.asgi import ASGIRequest as DjangoASGIRequest

from nuages.bridge.offloading import off_loop

PARSED_INLINE = 64 * 1024
"""Largest body that is parsed on the loop, in bytes; past it parsing costs more than a thread."""

_MEMORY = "django.core.files.uploadhandler.MemoryFileUploadHandler"
"""The handler that is first by default, and takes files up to FILE_UPLOAD_MAX_MEMORY_SIZE."""


class ASGIRequest(DjangoASGIRequest):
    """Django's ASGIRequest with the lifespan's `state`."""

    @property
    def state(self) -> dict[str, Any]:
        """The state that the project's `on_startup` hooks made: `scope["state"]`.

        A copy of the lifespan's for each request (ASGI lifespan specification, "Lifespan
        State"), which shares the values.
        """
        scope: Any = self.scope
        state: dict[str, Any] = scope.setdefault("state", {})
        return state

    def _load_post_and_files(self) -> None:
        load = super()._load_post_and_files
        if self._is_parsed_inline():
            load()
        else:
            off_loop(load)()

    def parses_in_thread(self) -> bool:
        """Tell whether the first look at POST or FILES is to come, and too slow for the loop."""
        return (
            self.method == "POST"
            and not hasattr(self, "_post")
            and self.content_type in ("multipart/form-data", "application/x-www-form-urlencoded")
            and not self._is_parsed_inline()
        )

    def has_temporary_files(self) -> bool:
        """Tell whether uploads lie in files, which are removed when the request is closed."""
        files: Any = getattr(self, "_files", None)
        return bool(files) and any(
            isinstance(file, TemporaryUploadedFile) for _, list_ in files.lists() for file in list_
        )

    def _is_parsed_inline(self) -> bool:
        stream = self._stream
        if not isinstance(stream, BytesIO):
            return False
        size = stream.getbuffer().nbytes
        if size > PARSED_INLINE:
            return False
        if self.content_type != "multipart/form-data":
            return True
        # Any other handler may write its input to a file, or send it anywhere.
        handlers: Any = getattr(self, "_upload_handlers", None)
        if handlers:  # the view's
            in_memory = type(handlers[0]) is MemoryFileUploadHandler
        else:
            in_memory = list(settings.FILE_UPLOAD_HANDLERS[:1]) == [_MEMORY]
        return in_memory and size <= settings.FILE_UPLOAD_MAX_MEMORY_SIZE
