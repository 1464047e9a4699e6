"""The calling stack that a guard's error shows, and what a project allows in it."""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

DEPTH = 15
"""How many frames an error shows."""


def frames() -> Iterator[FrameType]:
    """Yield the calling code's frames, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def names_in_stack() -> Iterator[str]:
    """Yield the dotted names of the functions being called, innermost first."""
    for frame in frames():
        yield f"{frame.f_globals.get('__name__', '')}.{frame.f_code.co_qualname}"


def is_allowed(names: Iterable[str], allow: tuple[str, ...]) -> bool:
    """Tell whether one of `names` is, or lies in, one of the dotted names in `allow`."""
    return any(name == entry or name.startswith(f"{entry}.") for name in names for entry in allow)


def stack(mine: str) -> str:
    """Return the calling stack as text, without the frames of the module `mine` at its end."""
    ours = (mine, __name__, "blockbuster.blockbuster")
    found = next(
        (frame for frame in frames() if frame.f_globals.get("__name__") not in ours), None
    )
    return "\n" + "".join(traceback.format_stack(found, limit=DEPTH))


def names_of(value: Any) -> Iterator[str]:
    """Yield the dotted names of a callable, and of what it wraps or carries as an argument."""
    seen: list[Any] = [value]
    for item in seen:
        if isinstance(item, functools.partial):
            seen += [item.func, *item.args]
            continue
        function: Any = getattr(item, "__func__", item)
        name = getattr(function, "__qualname__", None)
        if isinstance(name, str) and isinstance(item, Callable):  # type: ignore[arg-type]
            yield f"{getattr(function, '__module__', '')}.{name}"
        wrapped = getattr(item, "__wrapped__", None)
        owner = getattr(item, "__self__", None)
        carried = getattr(owner, "_function", None)
        seen += [inner for inner in (wrapped, carried) if inner is not None]
        if callable(item) and hasattr(item, "_function"):
            seen.append(item._function)
