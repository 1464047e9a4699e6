"""Reading a request's body (ASGI HTTP specification, "Request - receive event").

A body is kept in memory up to FILE_UPLOAD_MAX_MEMORY_SIZE; a larger one goes to a temporary file,
written by a thread so that a slow disk does not stop the loop.
"""

from __future__ import annotations

import tempfile
from io import BytesIO
from typing import IO, Any

from django.conf import settings
from django.core.exceptions import RequestAborted

from nuages.asgi.types import Receive
from nuages.bridge.threads import in_thread

_SPILL = 2**20
"""How many bytes are gathered for one write to the file."""


async def read_body(receive: Receive) -> IO[bytes]:
    """Return the whole body as a file at its beginning; `close_body()` closes it.

    Raises RequestAborted if the client disconnects before its end.
    """
    message = await receive()
    if message["type"] == "http.disconnect":
        raise RequestAborted()
    if not message.get("more_body", False):
        return BytesIO(message.get("body", b""))
    memory = BytesIO()
    memory.write(message.get("body", b""))
    spilled = _Spilled()
    try:
        while message.get("more_body", False):
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RequestAborted()
            memory.write(message.get("body", b""))
            limit = settings.FILE_UPLOAD_MAX_MEMORY_SIZE if spilled.file is None else _SPILL
            if memory.tell() > limit:
                await in_thread(spilled.write, memory.getvalue())
                memory = BytesIO()
        if spilled.file is None:
            memory.seek(0)
            return memory
        return await in_thread(spilled.rewind, memory.getvalue())
    except BaseException:
        if spilled.file is not None:
            await close_body(spilled.file)
        raise


async def close_body(body: IO[bytes]) -> None:
    """Close what `read_body()` returned, which removes a temporary file."""
    if isinstance(body, BytesIO):
        body.close()
    else:
        await in_thread(body.close)


class _Spilled:
    """A body's temporary file; its methods block."""

    file: Any = None
    """The file; kept here because the result of a thread whose caller is cancelled is dropped."""

    def write(self, data: bytes) -> None:
        if self.file is None:
            self.file = tempfile.TemporaryFile()  # noqa: SIM115 - close_body() closes it
        self.file.write(data)

    def rewind(self, rest: bytes) -> IO[bytes]:
        self.file.write(rest)
        self.file.seek(0)
        whole: IO[bytes] = self.file
        return whole
