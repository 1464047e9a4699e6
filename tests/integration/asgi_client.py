"""Requests whose every step is in the test's hand: the strict exchange, in a task of its own."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from django.test import RequestFactory

from tests.integration import asgi_tools


def where() -> str:
    """Where the calling code runs: on the "loop" (the tests' main thread) or in a "thread"."""
    return "loop" if threading.current_thread() is threading.main_thread() else "thread"


class Exchange(asgi_tools.Exchange):
    """One request; `start()` begins it, `end()` waits for its end.

    Headers are a dict, and the path may have a query.
    """

    def __init__(
        self,
        application: Any,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        content: bytes = b"",
        **options: Any,
    ) -> None:
        path, _, query = path.partition("?")
        given = [
            (name.lower().encode(), value.encode("latin1"))
            for name, value in (headers or {}).items()
        ]
        if content:
            given.append((b"content-length", str(len(content)).encode()))
        super().__init__(
            application, path, query=query.encode(), headers=given, body=[content], **options
        )
        self._message = asyncio.Event()

    def start(self) -> Exchange:
        """Start the application's task."""
        self.task = asyncio.create_task(self())
        return self

    async def _send(self, message: Any) -> None:
        await super()._send(message)
        self._message.set()

    async def messages(self, count: int) -> None:
        """Wait until `count` messages were sent; fail where the application ends before."""
        while len(self.sent) < count:
            self._message.clear()
            waiting = asyncio.ensure_future(self._message.wait())
            await asyncio.wait({waiting, self.task}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                waiting.cancel()
                await asyncio.wait({waiting})
                assert len(self.sent) >= count, f"ended after {self.sent}"

    async def end(self) -> Exchange:
        """Wait for the end of the application, which must not raise."""
        await self.task
        return self

    @property
    def headers(self) -> dict[str, str]:
        """The response's headers, by their names in lower case."""
        return {
            name.decode().lower(): value.decode("latin1")
            for name, value in self.sent[0]["headers"]
        }

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies that the response sets."""
        found = [v.decode() for n, v in self.sent[0]["headers"] if n.lower() == b"set-cookie"]
        return dict(cookie.split(";")[0].split("=", 1) for cookie in found)


async def fetch(application: Any, path: str, **options: Any) -> Exchange:
    """Send one request and return the exchange at its end."""
    return await Exchange(application, path, **options).start().end()


async def post(application: Any, path: str, data: dict[str, Any], **options: Any) -> Exchange:
    """Send a form."""
    made = RequestFactory().post("/", data)
    headers = {"Content-Type": made.headers["Content-Type"]} | options.pop("headers", {})
    return await fetch(
        application, path, method="POST", content=made.body, headers=headers, **options
    )
