"""Files: storages and pictures. Off the loop, because a disk or a network may block.

Our request class (nuages.asgi.request) sees to large uploads, seams/storage.py to the async twins.
Sync reads of a file that is open already stay where they are: they are many and small.
"""

from __future__ import annotations

import functools
from typing import Any

from nuages.seams.table import Seam
from nuages.seams.to_thread import family, handed, in_thread_on_loop

LARGE = 64 * 1024
"""Size in bytes from which a body is worth a thread: below, the hop costs as much as the work."""

_DIMENSIONS = "Reads the picture's head from its file, and unpacks it where it must."


def _compress_string(original: Any) -> Any:
    in_thread = in_thread_on_loop(original)

    @functools.wraps(original)
    def compress_string(s: bytes, *, max_random_bytes: int | None = None) -> bytes:
        compress = in_thread if len(s) >= LARGE else original
        result: bytes = compress(s, max_random_bytes=max_random_bytes)
        return result

    return compress_string


def seams() -> list[Seam]:
    """Return this area's seams."""
    return [
        family(
            "django.core.files.storage.base:Storage",
            (
                *("open", "save", "delete", "exists", "listdir", "size"),
                *("get_accessed_time", "get_created_time", "get_modified_time"),
            ),
            "A disk, or a network for most storages of users. url() is not among them: it is "
            "called for every link of a page and should be computed.",
            ["django.core.files.storage.memory"],
        ),
        handed(
            "django.core.files.images:ImageFile._get_image_dimensions",
            "(self)",
            _DIMENSIONS,
        ),
        handed(
            "django.core.files.images:get_image_dimensions",
            "(file_or_path, close=False)",
            _DIMENSIONS,
        ),
        handed(
            "django.forms.fields:ImageField.to_python",
            "(self, data)",
            "Pillow checks the whole picture.",
        ),
        Seam(
            "django.middleware.gzip:compress_string",
            "Compressing a large body takes milliseconds.",
            _compress_string,
            "(s, *, max_random_bytes=None)",
        ),
    ]
