"""The form of values in Redis: as Django's own backend writes them, or compressed.

Django's `RedisSerializer` keeps integers as text, so that INCR works, and pickles the rest. With
OPTIONS["compress"] longer values are compressed by zlib behind a mark that neither a number nor a
pickle begins with, so that values written without the mark are read as ever.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

from django.core.cache.backends.redis import RedisSerializer
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.utils.module_loading import import_string

from nuages.bridge import run_on_loop
from nuages.bridge.threads import in_thread

MARK = b"\x00nz\x01"
IN_THREAD = 64 * 1024
"""Size in bytes from which (de)compression (a millisecond or so) is better done off the loop."""


@dataclass(frozen=True)
class Compression:
    """OPTIONS["compress"]: from how many bytes, and how hard."""

    min_size: int = 1024
    level: int = 1


def compression(option: Any) -> Compression | None:
    """Return what OPTIONS["compress"] asks for: True, or a dict of `min_size` and `level`."""
    if option is None or option is False:
        return None
    given = {} if option is True else option
    if not isinstance(given, dict) or set(given) - {"min_size", "level"}:
        raise ImproperlyConfigured(
            "OPTIONS['compress'] of a Redis cache is True, or a dict of 'min_size' (bytes) and "
            f"'level' (1 to 9), not {option!r}."
        )
    found = Compression(**given)
    if type(found.min_size) is not int or found.min_size < 0:
        raise ImproperlyConfigured(
            f"OPTIONS['compress']['min_size'] is a number of bytes, not {found.min_size!r}."
        )
    if type(found.level) is not int or not 1 <= found.level <= 9:
        raise ImproperlyConfigured(f"OPTIONS['compress']['level'] is 1 to 9, not {found.level!r}.")
    return found


def serializer(option: Any) -> Any:
    """Return the serializer that OPTIONS["serializer"] names, as Django's backend does."""
    if isinstance(option, str):
        option = import_string(option)
    if callable(option):
        option = option()
    return option or RedisSerializer()


class Serializer:
    """A serializer of Django's kind that compresses; the interface is Django's."""

    def __init__(self, inner: Any, compress: Compression | None) -> None:
        self.inner = inner
        self.compress = compress

    def dumps(self, value: Any) -> Any:
        """Return `value` as it is stored: an int, or bytes."""
        data = self.inner.dumps(value)
        return self._compressed(data) if self._is_long(data) else data

    def loads(self, data: Any) -> Any:
        """Return the value that is stored as `data`, compressed or not."""
        if isinstance(data, bytes) and data.startswith(MARK):
            data = zlib.decompress(memoryview(data)[len(MARK) :])
        return self.inner.loads(data)

    async def adumps(self, value: Any) -> Any:
        """Do as `dumps` does, with a thread for what takes long to compress.

        A queryset queries when it is pickled, which is possible in a bridge.
        """
        try:
            data = self.inner.dumps(value)
        except SynchronousOnlyOperation:
            data = await run_on_loop(self.inner.dumps, (value,), {})
        if not self._is_long(data):
            return data
        if len(data) < IN_THREAD:
            return self._compressed(data)
        return await in_thread(self._compressed, data)

    async def aloads(self, data: Any) -> Any:
        """Do as `loads` does, with a thread for what takes long to decompress."""
        if isinstance(data, bytes) and len(data) >= IN_THREAD and data.startswith(MARK):
            data = await in_thread(zlib.decompress, memoryview(data)[len(MARK) :])
        try:
            return self.loads(data)
        except SynchronousOnlyOperation:
            return await run_on_loop(self.loads, (data,), {})

    def _is_long(self, data: Any) -> bool:
        return (
            self.compress is not None
            and isinstance(data, (bytes, str))
            and len(data) >= self.compress.min_size
        )

    def _compressed(self, data: bytes | str) -> bytes:
        assert self.compress is not None
        raw = data.encode() if isinstance(data, str) else data
        packed = MARK + zlib.compress(raw, self.compress.level)
        # Data that cannot be compressed stays as it is: reading it is cheaper.
        return packed if len(packed) < len(raw) else raw
