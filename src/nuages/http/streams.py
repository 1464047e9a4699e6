"""A streaming response that hands its own iterator to the server.

Django's response wraps it in async generators that do not close what they iterate, so a `finally`
in a source would wait for the garbage collector. Here `aclose()` reaches the source.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from django.http import StreamingHttpResponse


class DirectStreamingResponse(StreamingHttpResponse):
    """A response whose content yields bytes and is closed with `aclose()`.

    GZipMiddleware leaves it alone: that would hold back events, turn ranges into something else,
    and make a gzip member of every chunk, of which some browsers read only the first.
    """

    _iterator: Any

    def __init__(self, content: Any, **kwargs: Any) -> None:
        self.direct_content = content
        super().__init__(content, **kwargs)

    @property
    def unwrapped(self) -> bool:
        """Tell whether no middleware has put another iterator around the content."""
        return self._iterator is self.direct_content

    @property
    def streaming_content(self) -> Any:
        """The iterator of bytes itself, unless a middleware has wrapped it."""
        return self._iterator if self.unwrapped else super().streaming_content

    @streaming_content.setter
    def streaming_content(self, value: Any) -> None:
        self._set_streaming_content(value)  # type: ignore[attr-defined]

    def __aiter__(self) -> AsyncIterator[bytes]:
        if not self.is_async:
            return super().__aiter__()
        if self.unwrapped:
            return self.direct_content  # type: ignore[no-any-return]
        return _Wrapped(self._iterator, self.direct_content, self.make_bytes)

    def has_header(self, header: str) -> bool:
        """Do as Django does, but Content-Encoding counts as set: that is how GZipMiddleware asks.

        To set it to "identity" would do as well, but RFC 9110 (8.4.1) reserves that for
        Accept-Encoding.
        """
        return header.lower() == "content-encoding" or super().has_header(header)

    __contains__ = has_header


class _Wrapped:
    """An iterator that a middleware put around the content; closing it closes the content, too."""

    def __init__(self, outer: Any, content: Any, make_bytes: Callable[[Any], bytes]) -> None:
        self.outer, self.content, self.make_bytes = outer, content, make_bytes

    def __aiter__(self) -> _Wrapped:
        return self

    async def __anext__(self) -> bytes:
        return self.make_bytes(await self.outer.__anext__())

    async def aclose(self) -> None:
        try:
            await aclose(self.outer)
        finally:
            await aclose(self.content)


async def aclose(iterator: Any) -> None:
    """Close an async iterator if it can be closed: generators can, other iterators may not."""
    if (close := getattr(iterator, "aclose", None)) is not None:
        await close()
