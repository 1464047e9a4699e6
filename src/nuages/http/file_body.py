"""The bytes of a file response: read in chunks, in threads or in a WSGI server's own thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from nuages.bridge.threads import in_thread
from nuages.exceptions import FileTruncated
from nuages.http.byte_ranges import ByteRange


class FileBody:
    """The bytes of a response, in pieces: bytes, or ranges of a file. Iterate it once."""

    def __init__(self, chunk_size: int) -> None:
        self.chunk_size = chunk_size
        self.file: Any = None
        self.plan: deque[bytes | ByteRange] = deque()
        self.ahead = b""
        """The bytes that were read already when the file was opened."""

    def read(self) -> bytes:
        """Read the next chunk; b"" is the end. Blocks. Closes the file with the last chunk.

        Raises FileTruncated when the file has become shorter than it was.
        """
        if self.ahead:
            chunk, self.ahead = self.ahead, b""
            return chunk
        chunks: list[bytes] = []
        room = self.chunk_size
        while self.plan and room > 0:
            piece = self.plan.popleft()
            if isinstance(piece, ByteRange):
                self.file.seek(piece.start)
                found = self.file.read(min(piece.stop - piece.start, room))
                if not found:
                    raise FileTruncated(path=self.file.name)
                if (start := piece.start + len(found)) < piece.stop:
                    self.plan.appendleft(ByteRange(start, piece.stop))
                piece = found
            chunks.append(piece)
            room -= len(piece)
        if not self.plan:
            self.close()
        return b"".join(chunks)

    def close(self) -> None:
        """Close the file, if it is open; more cannot be read."""
        self.plan.clear()
        self.ahead = b""
        if self.file is not None:
            self.file.close()


class BlockingChunks:
    """The chunks of a body for WSGI, where the thread is the request's own."""

    def __init__(self, body: FileBody) -> None:
        self.body = body
        self.close = body.close

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if chunk := self.body.read():
            return chunk
        raise StopIteration


class Chunks:
    """The chunks of a body, each read in a thread."""

    def __init__(self, body: FileBody) -> None:
        self.body = body
        self.close = body.close

    def __aiter__(self) -> Chunks:
        return self

    async def __anext__(self) -> bytes:
        body = self.body
        try:
            if chunk := body.read() if body.ahead or not body.plan else await in_thread(body.read):
                return chunk
        except BaseException:
            body.close()
            raise
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Close the file."""
        self.body.close()
