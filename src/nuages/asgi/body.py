"""Reading a request's body (ASGI HTTP specification, "Request - receive event").

A body is kept in memory up to FILE_UPLOAD_MAX_MEMORY_SIZE; what is larger goes to a temporary
file, written by a thread so that a slow disk does not stop the loop.
"""

from __future__ import annotations

import tempfile
from io import BytesIO
from typing import IO, Any

from django.conf import settings
from django.core.exceptions import RequestAborted

from nuages.asgi.types import Receive
from nuages.background import in_thread

_SPILL = 2**20
"""Bytes that are gathered for one write to the file."""


async def read_body(receive: Receive) -> IO[bytes]:
    """Return the whole body as a file at its beginning; the caller closes it.

    Raises RequestAborted if the client disconnects before its end.
    """
    message = await receive()
    if message["type"] == "http.disconnect":
        raise RequestAborted()
    if not message.get("more_body", False):
        return BytesIO(message.get("body", b""))
    memory = BytesIO()
    memory.write(message.get("body", b""))
    file: Any = None
    try:
        while message.get("more_body", False):
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RequestAborted()
            memory.write(message.get("body", b""))
            limit = settings.FILE_UPLOAD_MAX_MEMORY_SIZE if file is None else _SPILL
            if memory.tell() > limit:
                if file is None:
                    file = await in_thread(tempfile.TemporaryFile)
                await in_thread(file.write, memory.getvalue())
                memory = BytesIO()
        if file is None:
            file = memory
        elif memory.tell():
            await in_thread(file.write, memory.getvalue())
        file.seek(0)
    except BaseException:
        if file is not None:
            file.close()
        raise
    whole: IO[bytes] = file
    return whole
