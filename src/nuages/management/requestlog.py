"""The lines that `runserver` writes for its requests, in Django's form and through its logger.

`[20/Nov/2026 10:00:00] "GET / HTTP/1.1" 200 12` comes from the logger `django.server`, whose
formatter colours it, with the attributes that Django documents (`status_code`, `server_time`).
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any
from urllib.parse import quote

from nuages.asgi.types import Message, Receive, Scope, Send

logger = logging.getLogger("django.server")


class RequestLog:
    """An ASGI application around another that logs each request when its answer has ended.

    A WebSocket gets its line when it is accepted (101) or refused (403).
    """

    def __init__(self, application: Any) -> None:
        self.application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "lifespan":
            await self.application(scope, receive, send)
            return
        status = 0
        size = 0

        async def send_and_note(message: Message) -> None:
            nonlocal status, size
            kind = message["type"]
            if kind in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
            elif kind == "http.response.body":
                size += len(message.get("body", b""))
            elif kind in ("websocket.accept", "websocket.close") and not status:
                status = 101 if kind == "websocket.accept" else 403
                log(scope, status, 0)
            await send(message)

        try:
            await self.application(scope, receive, send_and_note)
        except Exception:
            # The server answers with 500 where nothing was sent yet.
            status = status or 500
            raise
        finally:
            # There was no answer: the client had gone before.
            if status and scope["type"] == "http":
                log(scope, status, 0 if scope["method"] == "HEAD" else size)


def log(scope: Scope, status: int, size: int) -> None:
    """Write the line of one request; `size` is the body's, in bytes."""
    level = logging.ERROR if status >= 500 else logging.WARNING if status >= 400 else logging.INFO
    target = scope.get("raw_path") or quote(scope["path"]).encode("ascii")
    if query := scope.get("query_string"):
        target += b"?" + query
    method = scope.get("method", "GET")
    line = f"{method} {target.decode('latin-1')} HTTP/{scope.get('http_version', '1.1')}"
    if not line.isascii() or not line.isprintable():
        # A terminal would obey what a client put there.
        line = line.encode("unicode_escape").decode("ascii")
    extra = {
        "request": scope,
        "server_time": datetime.now().strftime("%d/%b/%Y %H:%M:%S"),
        "status_code": status,
    }
    logger.log(level, '"%s" %s %s', line, status, size, extra=extra)
