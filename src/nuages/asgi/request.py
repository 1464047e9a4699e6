"""The request of ASGI: Django's, whose large bodies are parsed by a thread."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from django.conf import settings
from django.core.handlers.asgi import ASGIRequest as DjangoASGIRequest

from nuages.bridge import off_loop

PARSED_INLINE = 64 * 1024
"""Bytes of a body that are parsed on the loop; a larger one takes longer than a thread does."""


class ASGIRequest(DjangoASGIRequest):
    """Django's ASGIRequest with the lifespan's `state`."""

    @property
    def state(self) -> dict[str, Any]:
        """What the project's `on_startup` hooks put there: `scope["state"]`.

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

    def _is_parsed_inline(self) -> bool:
        stream = self._stream
        if not isinstance(stream, BytesIO) or stream.getbuffer().nbytes > PARSED_INLINE:
            return False
        # The project's own upload handlers may send what they get anywhere.
        return self.content_type != "multipart/form-data" or all(
            path.startswith("django.") for path in settings.FILE_UPLOAD_HANDLERS
        )
