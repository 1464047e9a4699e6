"""Files for coroutines: the async twins of storages, files and file fields.

A storage's twin is its method called in a bridge, where blocking calls are handed to a thread
(seams/files.py) and those of `InMemoryStorage` are not. Reads and writes of an open file each go
to a thread, or are done in place where the file is in memory. The threads are those of the loop's
default executor, which bounds their number.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from io import BytesIO, StringIO
from itertools import islice
from tempfile import SpooledTemporaryFile
from typing import Any

from nuages.bridge import run_on_loop
from nuages.bridge.threads import in_thread
from nuages.db.orm.to_async import orm_to_async
from nuages.seams.table import Seam

_LINES = 500
"""How many lines one thread call reads."""
_COMPUTED = ("django.core.files.storage.filesystem", "django.core.files.storage.memory")
"""Modules whose `url()` only computes; others may sign, or look into a manifest."""
_END: Any = object()

STORAGE = (
    *("open", "save", "delete", "exists", "size", "listdir", "get_available_name"),
    *("get_accessed_time", "get_created_time", "get_modified_time"),
)


def _storage_twin(name: str) -> Callable[..., Any]:
    async def twin(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await run_on_loop(getattr(self, name), args, kwargs)

    twin.__name__ = twin.__qualname__ = f"a{name}"
    twin.__doc__ = f"`{name}()`, awaited: in a thread where it blocks. It takes what that takes."
    return twin


async def aurl(self: Any, name: str) -> str:
    """Return the address of a file: `url()`, in a thread unless it only computes."""
    definer = next(base for base in type(self).__mro__ if "url" in vars(base))
    if definer.__module__ in _COMPUTED:
        return str(self.url(name))
    return str(await in_thread(self.url, name))


def in_memory(file: Any) -> bool:
    """Tell whether reading, writing and closing a file can never wait.

    That is known of Django's own files only: a file from somebody else's storage may hold its
    content in memory and send it away in `close()`.
    """
    while _is_of_django(file):
        held = vars(file).get("_file") or vars(file).get("file")
        if held is None:
            return type(file).__module__ == "django.core.files.storage.memory"
        if isinstance(held, SpooledTemporaryFile):
            return not held._rolled  # type: ignore[attr-defined]
        if isinstance(held, (BytesIO, StringIO)):
            return True
        file = held
    return False


def _is_of_django(file: Any) -> bool:
    module = type(file).__module__
    return module.startswith("django.core.files.") or module == "django.db.models.fields.files"


async def _of(file: Any, function: Callable[..., Any], *args: Any) -> Any:
    return function(*args) if in_memory(file) else await in_thread(function, *args)


async def aread(self: Any, *args: Any) -> Any:
    """Read `size` bytes or characters, or all that is left: `read()`, awaited."""
    return await _of(self, lambda: self.read(*args))


async def awrite(self: Any, data: Any) -> Any:
    """Write bytes or text: `write()`, awaited, which returns how much it wrote."""
    return await _of(self, lambda: self.write(data))


async def aclose(self: Any) -> None:
    """Write what is buffered and close: `close()`, awaited."""
    await _of(self, self.close)


async def asize(self: Any) -> int:
    """Return how many bytes the file has: `size`, awaited."""
    if getattr(self, "_committed", False):
        # For a stored file, open or not, the storage is asked.
        return int(await run_on_loop(lambda: self.size, (), {}))
    return int(await _of(self, lambda: self.size))


async def achunks(self: Any, chunk_size: int | None = None) -> AsyncIterator[Any]:
    """Iterate over the whole file in pieces of `chunk_size` bytes: `chunks()`, awaited."""
    pieces = iter(self.chunks(chunk_size))
    while (piece := await _of(self, next, pieces, _END)) is not _END:
        yield piece


async def __aiter__(self: Any) -> AsyncIterator[Any]:
    """Iterate over the lines of the whole file."""
    lines = iter(self)
    while some := await _of(self, lambda: list(islice(lines, _LINES))):
        for line in some:
            yield line


async def __aenter__(self: Any) -> Any:
    """Return the file, which is closed at the end of the block."""
    return self


async def __aexit__(self: Any, *error: Any) -> None:
    """Close the file."""
    await self.aclose()


async def aopen(self: Any, mode: str = "rb") -> Any:
    """Open the field's file, or go to its beginning where it is open; return it."""
    if hasattr(self.storage.open, "_nuages_handed_over") and not in_memory(self):
        await in_thread(self.open, mode)
    else:
        await run_on_loop(self.open, (mode,), {})
    return self


async def asave(self: Any, name: str, content: Any, save: bool = True) -> None:
    """Store `content`, and by default save the model instance, too: `save()`, awaited.

    The file is written in a thread, the instance saved on the loop, in the caller's transaction.
    """
    await orm_to_async(self.save)(name, content, save)


async def adelete(self: Any, save: bool = True) -> None:
    """Delete the file, and by default save the model instance, too: `delete()`, awaited."""
    if not self.closed:
        await self.aclose()
    await orm_to_async(self.delete)(save)


# As for save() and delete(): templates must not call these.
asave.alters_data = adelete.alters_data = aopen.alters_data = True  # type: ignore[attr-defined]


def _put(function: Any) -> Callable[[Any], Any]:
    return lambda original: function


def seams() -> list[Seam]:
    """Return this area's seams."""
    storage = "django.core.files.storage.base:Storage"
    file = "django.core.files.base:File"
    field = "django.db.models.fields.files:FieldFile"
    added: list[tuple[str, Any]] = [
        *((storage, _storage_twin(name)) for name in STORAGE),
        (storage, aurl),
        *((file, twin) for twin in (aread, awrite, aclose, asize, achunks)),
        *((file, twin) for twin in (__aiter__, __aenter__, __aexit__)),
        *((field, twin) for twin in (aopen, asave, adelete)),
    ]
    return [
        Seam(
            f"{owner}.{function.__name__}",
            f"The async twin of {function.__name__.replace('__a', '__').removeprefix('a')}.",
            _put(function),
            new=True,
        )
        for owner, function in added
    ]
