"""Whether errors are freed with the last reference to them, without the garbage collector.

A traceback refers to every frame that its error came through. A frame that refers to the error, or
to the task that ends with it, makes a cycle of these: what their variables hold (a generator with
a connection) is then closed when somebody collects garbage, in the middle of something else.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import nuages

OURS = str(Path(nuages.__file__).parent)


@contextmanager
def no_cycles(where: str = "") -> Iterator[None]:
    """Fail if the block leaves an error in a cycle with a frame of ours."""
    gc.collect()
    gc.freeze()  # what is there already is not looked at
    gc.disable()
    try:
        yield
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        errors = [found for found in gc.garbage if isinstance(found, BaseException)]
        found = [text for error in errors if OURS in (text := _cycle_of(error))]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
        gc.unfreeze()
    assert not found, (where, found)


def _cycle_of(error: BaseException) -> str:
    """Say by which references the error refers to itself, on the shortest way."""
    garbage = {id(item) for item in gc.garbage}
    before: dict[int, Any] = {id(error): None}
    found: list[Any] = [error]
    for item in found:
        for referent in gc.get_referents(item):
            if referent is error:
                return " > ".join(reversed(list(_way_to(item, before))))
            if id(referent) in garbage and id(referent) not in before:
                before[id(referent)] = item
                found.append(referent)
    return "no cycle of its own"


def _way_to(item: Any, before: dict[int, Any]) -> Iterator[str]:
    while item is not None:
        if isinstance(item, FrameType):
            code = item.f_code
            yield f"{code.co_filename}:{item.f_lineno} {code.co_qualname}"
        elif isinstance(item, BaseException):
            yield repr(item)
        else:
            yield type(item).__name__
        item = before[id(item)]
