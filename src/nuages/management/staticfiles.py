"""Static files for `runserver`: found, checked and read by one thread call for each request.

Django's ASGIStaticFilesHandler takes a thread to find the file, another to read all of it into
memory, and one for the request signals. Here a small file is one call, and a large one is read in
pieces as the client takes them. What is served, and its headers, are Django's own
(`django.contrib.staticfiles.views.serve`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from io import BytesIO
from typing import Any
from urllib.parse import urlparse

from django.contrib.staticfiles.handlers import StaticFilesHandlerMixin
from django.core.handlers.asgi import ASGIRequest
from django.core.handlers.exception import response_for_exception
from django.http import FileResponse, HttpResponseBadRequest
from django.http.response import HttpResponseBase

from nuages.asgi.streaming import start_message
from nuages.asgi.types import Receive, Scope, Send

PIECE = 256 * 1024
"""Bytes read by one thread call; a file up to this size needs only one."""


class StaticFiles(StaticFilesHandlerMixin):
    """An ASGI application around another, for what lies under STATIC_URL."""

    application: Any

    def __init__(self, application: Any) -> None:
        self.application = application
        self.base_url = urlparse(self.get_base_url())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "http" and self._should_handle(scope["path"]):
            await self.send_file(scope, send)
        else:
            await self.application(scope, receive, send)

    async def send_file(self, scope: Scope, send: Send) -> None:
        """Answer a request for a static file."""
        response, pieces, piece = await asyncio.to_thread(self.find, scope)
        try:
            await send(start_message(response))
            while piece and scope["method"] != "HEAD":
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                # A piece shorter than PIECE is the last one.
                piece = b"" if len(piece) < PIECE else await asyncio.to_thread(next, pieces, b"")
            await send({"type": "http.response.body", "body": b""})
        finally:
            response.close()

    def find(self, scope: Scope) -> tuple[HttpResponseBase, Iterator[bytes], bytes]:
        """Return the response, its pieces, and the first of them; runs in a thread."""
        response: HttpResponseBase
        try:
            request = ASGIRequest(scope, BytesIO())
        except UnicodeDecodeError:  # as Django's handler does
            response = HttpResponseBadRequest()
        else:
            try:
                response = self.serve(request)
            except Exception as error:  # a page, as for an error in a view
                response = response_for_exception(request, error)
        if isinstance(response, FileResponse):
            response.block_size = PIECE
        pieces = iter(response)
        return response, pieces, next(pieces, b"")
