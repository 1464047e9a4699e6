"""How blocking code inside Django is handed to a thread, the user's subclasses of it included.

Django's backends of one kind (hashers, storages, caches, ...) are classes with a common base and
known methods, and any of them may be the user's. Wrapping the methods of Django's classes would
miss an override that does not call `super()`; wrapping every caller would miss the user's. So the
methods are wrapped class by class: a `Family` does so for every subclass of the base that exists
and, by `__init_subclass__`, for every later one.

`off_loop` is what they are wrapped in. Inside a bridge the call runs in a thread and is awaited,
anywhere else it is just called. That holds for what a handed-over method calls in turn: in the
thread there is no bridge, so one call from outside is one thread, however deep it goes.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from inspect import getattr_static, iscoroutinefunction
from typing import Any

from nuages.bridge import off_loop
from nuages.seams.table import Seam

_HANDED = "_nuages_handed_over"


def hand_over(cls: type, methods: Iterable[str], stays: frozenset[str] = frozenset()) -> None:
    """Wrap the blocking `methods` of `cls` in `off_loop`, inherited ones too. Idempotent.

    What is defined in one of the modules `stays` does not block, or awaits by itself, and is left
    alone.
    """
    for name in methods:
        function = getattr_static(cls, name, None)
        if not isinstance(function, types.FunctionType) or iscoroutinefunction(function):
            continue
        if hasattr(function, _HANDED):
            continue
        definer = next(base for base in cls.__mro__ if name in vars(base))
        if definer.__module__ not in stays:
            handed = off_loop(function)
            setattr(handed, _HANDED, True)
            setattr(cls, name, handed)


@dataclass(frozen=True)
class Family(Seam):
    """The seam that hands over `methods` of the subclasses of a base class.

    Its target is the base's `__init_subclass__`, an addition. The methods are checked by name
    only, since arguments are passed on as they are.
    """

    methods: tuple[str, ...] = ()

    def problem(self) -> str | None:
        """Say what about the base class is not as expected; None where all is well."""
        if found := super().problem():
            return found
        base, _ = self.owner()
        missing = [name for name in self.methods if not callable(getattr(base, name, None))]
        return f"{self.target}: {base.__name__} has no {', '.join(missing)}" if missing else None


def family(base: str, methods: tuple[str, ...], reason: str, stays: Iterable[str] = ()) -> Family:
    """Return the seam of the family of `base` (`module:Class`); see `hand_over` for the rest."""
    modules = frozenset(stays)

    def make(original: Any) -> Any:
        module, _, name = base.partition(":")
        root = getattr(import_module(module), name)

        def __init_subclass__(cls: type, **kwargs: Any) -> None:
            super(root, cls).__init_subclass__(**kwargs)
            if cls.__module__ not in modules:
                hand_over(cls, methods, modules)

        def walk(above: type) -> None:
            for cls in above.__subclasses__():
                if cls.__module__ not in modules:
                    hand_over(cls, methods, modules)
                walk(cls)

        walk(root)
        return classmethod(__init_subclass__)

    return Family(f"{base}.__init_subclass__", reason, make, new=True, methods=methods)


def handed(target: str, signature: str, reason: str) -> Seam:
    """Return the seam that hands over one function or method."""
    make: Callable[[Any], Any] = off_loop
    return Seam(target, reason, make, signature)
