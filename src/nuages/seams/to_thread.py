"""The hand-over of blocking code inside Django, and in users' subclasses of it, to a thread.

Django's backends of one kind (hashers, storages, caches, ...) are classes with a common base and
known methods, and any of these classes may be the user's. Wrapping the methods of Django's classes
would miss an override that does not call `super()`; wrapping every caller would miss the user's
callers. So the methods are wrapped class by class: a `Family` does so for every subclass of the
base that exists and, by `__init_subclass__`, for every later one.

They are wrapped as by `off_loop`: inside a bridge the call runs in a thread and is awaited,
anywhere else it is just called. That holds for methods that a handed-over one calls in turn: in
the thread there is no bridge, so one call from outside takes one thread, however deep it goes.

Passwords pass through here, and Django's error reports show the variables of every frame but
those that `sensitive_variables` hides. So no frame of ours has the arguments among its variables,
and what is hidden below the caller's frames stays hidden in the thread, where those are missing.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from importlib import import_module
from inspect import getattr_static, iscoroutinefunction
from typing import Any

from django.views.decorators.debug import sensitive_variables

from nuages.bridge import await_, current_bridge, on_loop
from nuages.bridge.threads import in_thread
from nuages.seams.table import Seam

_HANDED = "_nuages_handed_over"


class _HiddenCall:
    """A call with its arguments, which neither its frames nor its repr show."""

    __slots__ = ("args", "function", "kwargs")

    def __init__(self, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs

    def run(self) -> Any:
        return self.function(*self.args, **self.kwargs)

    async def arun(self) -> Any:
        return await self.function(*self.args, **self.kwargs)

    def run_in_thread(self, run_in: RunIn | None = None, owner: Any = None) -> Any:
        """Run the call as `off_loop` does."""
        if current_bridge() is None:
            return self.run()
        hidden = hidden_variables()
        run = self.run if hidden is None else sensitive_variables(*hidden)(self.run)
        return await_(in_thread(run) if run_in is None else run_in(owner, run))


def hidden_variables() -> tuple[str, ...] | None:
    """Return what `sensitive_variables` hides in the calling code; an empty tuple is everything.

    Found as `SafeExceptionReporterFilter.get_traceback_frame_variables` does; None for nothing.
    """
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "sensitive_variables_wrapper":
            wrapper = frame.f_locals.get("sensitive_variables_wrapper")
            found: Any = getattr(wrapper, "sensitive_variables", None)
            if found is not None:
                return () if found == "__ALL__" else tuple(found)
        frame = frame.f_back
    return None


RunIn = Callable[[Any, Callable[[], Any]], Coroutine[Any, Any, Any]]
"""A caller of functions in a thread of some kind; its first argument is the method's object."""


def in_thread_on_loop(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `function` as `off_loop` does, with its arguments kept out of error reports."""

    @functools.wraps(function)
    def handed_over(*args: Any, **kwargs: Any) -> Any:
        call = _HiddenCall(function, args, kwargs)
        del args, kwargs
        return call.run_in_thread()

    return handed_over


def with_hidden_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a coroutine function as `on_loop` does, with its arguments kept out of reports."""

    @functools.wraps(function)
    async def hiding(*args: Any, **kwargs: Any) -> Any:
        call = _HiddenCall(function, args, kwargs)
        del args, kwargs
        return await on_loop(call.arun)()

    return hiding


def hand_over(
    cls: type,
    methods: Iterable[str],
    stays: frozenset[str] = frozenset(),
    run_in: RunIn | None = None,
) -> None:
    """Wrap the blocking `methods` of `cls`, inherited ones too. Idempotent.

    A method defined in one of the modules `stays` does not block, or awaits by itself, and is left
    alone. What an inherited name stands for is looked up at each call: `cls` may be a mixin, and
    in an object's class another class may stand between it and the base.
    """
    for name in methods:
        function = getattr_static(cls, name, None)
        if not isinstance(function, types.FunctionType) or iscoroutinefunction(function):
            continue
        if hasattr(function, _HANDED):
            continue
        definer = next(base for base in cls.__mro__ if name in vars(base))
        if definer.__module__ not in stays:
            if definer is cls:
                handed = _own(function, run_in)
            else:
                handed = _inherited(cls, name, function, stays, run_in)
            setattr(handed, _HANDED, "own" if definer is cls else "inherited")
            setattr(cls, name, handed)


def _own(function: Callable[..., Any], run_in: RunIn | None) -> Callable[..., Any]:
    @functools.wraps(function)
    def handed_over(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = _HiddenCall(function, (self, *args), kwargs)
        del args, kwargs
        return call.run_in_thread(run_in, self)

    return handed_over


def _inherited(
    cls: type,
    name: str,
    function: Callable[..., Any],
    stays: frozenset[str],
    run_in: RunIn | None,
) -> Callable[..., Any]:
    @functools.wraps(function)
    def handed_over(self: Any, *args: Any, **kwargs: Any) -> Any:
        classes = type(self).__mro__
        after = classes[classes.index(cls) + 1 :]
        definer = next(base for base in after if name in vars(base))
        found = vars(definer)[name]
        if isinstance(found, types.FunctionType):
            call = _HiddenCall(found, (self, *args), kwargs)
        else:
            call = _HiddenCall(getattr(super(cls, self), name), args, kwargs)
        del args, kwargs
        if definer.__module__ in stays or is_handed_over(found) or iscoroutinefunction(found):
            return call.run()
        return call.run_in_thread(run_in, self)

    return handed_over


def is_handed_over(function: Any) -> bool:
    """Tell whether `function` is what `hand_over` made of a method."""
    return hasattr(function, _HANDED)


def is_inherited(function: Any) -> bool:
    """Tell whether `hand_over` made `function` from a method that the class only inherits."""
    return getattr(function, _HANDED, None) == "inherited"


@dataclass(frozen=True)
class Family(Seam):
    """The seam that hands over `methods` of the subclasses of a base class.

    Its target is the base's `__init_subclass__`, an addition. The methods are checked by name
    only, because arguments are passed on as they are.
    """

    methods: tuple[str, ...] = ()

    def problem(self) -> str | None:
        """Say what about the base class is not as expected; None where all is well."""
        if found := super().problem():
            return found
        base, _ = self.owner()
        missing = [name for name in self.methods if not callable(getattr(base, name, None))]
        return f"{self.target}: {base.__name__} has no {', '.join(missing)}" if missing else None


def family(
    base: str,
    methods: tuple[str, ...],
    reason: str,
    stays: Iterable[str] = (),
    run_in: RunIn | None = None,
) -> Family:
    """Return the seam of the family of `base` (`module:Class`); see `hand_over` for the rest."""
    modules = frozenset(stays)

    def make(original: Any) -> Any:
        module, _, name = base.partition(":")
        root = getattr(import_module(module), name)

        def __init_subclass__(cls: Any, /, **kwargs: Any) -> None:
            super(root, cls).__init_subclass__(**kwargs)
            if cls.__module__ not in modules:
                hand_over(cls, methods, modules, run_in)

        def walk(above: type) -> None:
            cls: Any
            for cls in above.__subclasses__():
                if cls.__module__ not in modules:
                    hand_over(cls, methods, modules, run_in)
                walk(cls)

        walk(root)
        return classmethod(__init_subclass__)

    return Family(f"{base}.__init_subclass__", reason, make, new=True, methods=methods)


def handed(target: str, signature: str, reason: str) -> Seam:
    """Return the seam that hands over one function or method."""
    return Seam(target, reason, in_thread_on_loop, signature)
