"""The async generators that the calling code runs in, and a call when one of them is dropped.

An async generator that is left early (`break`, an exception in the body of `async for`) is closed
by a task of its loop, some time later. What it holds (a transaction, say) is over at once, though:
its consumer goes on as if outside. A weak reference's callback is called at the moment the
generator is dropped, before its finaliser (in CPython, also for a cycle that the garbage collector
finds).

A frame does not tell which generator it belongs to. So generators are noted as they are first
iterated (`sys.set_asyncgen_hooks`), from the first time that somebody asks in the running loop;
generators that were iterated before are searched for among all objects.
"""

from __future__ import annotations

import gc
import inspect
import sys
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nuages.bridge.core import current_bridge

Generators = Sequence[weakref.ref[Any]]
"""Async generators, innermost first; referred to weakly."""

_by_frame: dict[int, weakref.ref[Any]] = {}
"""Generators by the identity of their frames."""


def note(generator: Any) -> None:
    """Note a generator that is about to be iterated for the first time."""
    key = id(generator.ag_frame)

    def forget(reference: weakref.ref[Any]) -> None:
        if _by_frame.get(key) is reference:
            del _by_frame[key]

    _by_frame[key] = weakref.ref(generator, forget)


class _Hook:
    """The hook for first iterations: it notes the generator, and calls the previous hook."""

    def __init__(self, before: Callable[[Any], Any] | None) -> None:
        self._before = before

    def __call__(self, generator: Any) -> None:
        if isinstance(generator, types.AsyncGeneratorType):
            note(generator)
        if self._before is not None:
            self._before(generator)


def is_noting() -> bool:
    """Tell whether first iterations are noted in the calling thread."""
    return isinstance(sys.get_asyncgen_hooks().firstiter, _Hook)


def _generator_of(frame: types.FrameType) -> Any:
    reference = _by_frame.get(id(frame))
    generator = None if reference is None else reference()
    if generator is not None and generator.ag_frame is frame:
        return generator
    if not is_noting():
        # For as long as the loop runs: the loop puts back the hooks that were there before.
        sys.set_asyncgen_hooks(firstiter=_Hook(sys.get_asyncgen_hooks().firstiter))
    for found in gc.get_referrers(frame):
        if isinstance(found, types.AsyncGeneratorType) and found.ag_frame is frame:
            note(found)
            return found
    return None


def _frames() -> Iterator[types.FrameType]:
    """Yield the frames of the calling code, frames that wait for its bridge included."""
    frame: types.FrameType | None = sys._getframe(2)
    bridge = current_bridge()
    parent = None if bridge is None else bridge.greenlet.parent
    while frame is not None or parent is not None:
        if frame is None:
            assert parent is not None
            frame, parent = parent.gr_frame, parent.parent
            continue
        yield frame
        frame = frame.f_back


def generators_around() -> Generators:
    """Return the async generators in whose code the calling code runs, innermost first.

    They are weak references: whoever keeps these must not keep a generator from being dropped.
    """
    return [
        weakref.ref(generator)
        for frame in _frames()
        if frame.f_code.co_flags & inspect.CO_ASYNC_GENERATOR
        and (generator := _generator_of(frame)) is not None
    ]


def when_dropped(generators: Generators, function: Callable[[], object]) -> Generators:
    """Return references that have `function` called, anywhere, once a generator is dropped.

    `function` must do no more than note the drop. Let go of the references to undo this.
    """
    return [
        weakref.ref(generator, lambda _: function())
        for reference in generators
        if (generator := reference()) is not None
    ]
