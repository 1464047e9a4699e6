"""The list of everything that is overridden in Django, and why.

A `Seam` names its target, checks that it is what we know, and replaces it. `install()` checks
all of them first: where one does not fit, nothing at all is replaced, `problems()` tells, and
`manage.py check` reports it. Never a silent half-patch.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import django

DJANGO_VERSIONS = ((5, 2), (6, 0), (6, 1))
"""The Django versions that the seams are known to fit."""

_MISSING: Any = object()


@dataclass(frozen=True)
class Seam:
    """One override: `make(original)` returns what takes its place."""

    target: str
    """`module:attribute.path`"""
    reason: str
    make: Callable[[Any], Any]
    signature: str | None = None
    """The target's signature without annotations; None for what is not callable."""
    new: bool = False
    """Whether the attribute is an addition, which must not exist yet."""
    callers: frozenset[str] | None = None
    """For a module-level name: every function that uses it. All of them are replaced with it,
    so one that is not in the list would be replaced unseen."""
    since: tuple[int, int] = (5, 2)

    def applies(self) -> bool:
        """Tell whether this Django has the target."""
        return django.VERSION[:2] >= self.since

    def owner(self) -> tuple[Any, str]:
        """Return the object that has the target as an attribute, and the attribute's name."""
        module, _, path = self.target.partition(":")
        owner: Any = import_module(module)
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        return owner, name

    def problem(self) -> str | None:
        """Say what about the target is not as expected; None where all is well."""
        try:
            owner, name = self.owner()
        except (ImportError, AttributeError) as error:
            return f"{self.target} cannot be found ({error})"
        found = inspect.getattr_static(owner, name, _MISSING)
        if self.new:
            own = vars(owner).get(name, _MISSING) if isinstance(owner, type) else found
            if own is not _MISSING:
                return f"{self.target} exists already"
        elif found is _MISSING:
            return f"{self.target} does not exist"
        if self.signature is not None:
            actual = shape(getattr(found, "__func__", found))
            if actual != self.signature:
                return f"{self.target} has the signature {actual}, not {self.signature}"
        if self.callers is not None:
            try:
                actual_callers = users_of(owner, name)
            except OSError as error:
                return f"{self.target}: the module's source cannot be read ({error})"
            if actual_callers != self.callers:
                added = sorted(actual_callers - self.callers)
                gone = sorted(self.callers - actual_callers)
                return f"{self.target} is used otherwise: new in {added}, no more in {gone}"
        return None

    def install(self) -> None:
        """Put the replacement in place."""
        owner, name = self.owner()
        original = inspect.getattr_static(owner, name, None)
        setattr(owner, name, self.make(original))


class _Sentinel:
    def __repr__(self) -> str:
        return "object()"


def shape(function: Any) -> str:
    """Return the signature of `function` without annotations.

    A default that is a bare `object()` is shown without its address.
    """
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(
            annotation=parameter.empty,
            default=_Sentinel() if type(parameter.default) is object else parameter.default,
        )
        for parameter in signature.parameters.values()
    ]
    return str(signature.replace(parameters=parameters, return_annotation=signature.empty))


def users_of(module: types.ModuleType, name: str) -> frozenset[str]:
    """Return the names of the functions in `module` whose code uses the global `name`."""
    found: set[str] = set()

    def visit(code: types.CodeType, path: str) -> None:
        if name in code.co_names:
            found.add(path)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                visit(constant, constant.co_name)

    source = inspect.getsource(module)
    visit(compile(source, module.__name__, "exec"), "<module>")
    found.discard("<module>")
    return frozenset(found)
