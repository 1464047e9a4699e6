"""`django.urls.base`: the URLconf and the script prefix of the request."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from nuages.seams.table import Seam

_UNSET: Any = object()


class ContextValue:
    """One `value` of the context, which raises AttributeError where it is not set.

    It does what an asgiref `Local` with one attribute does, without a copied dict and a lock.
    """

    def __init__(self, name: str) -> None:
        self._variable: ContextVar[Any] = ContextVar(name, default=_UNSET)

    @property
    def value(self) -> Any:
        """The value that was set in this context."""
        value = self._variable.get()
        if value is _UNSET:
            raise AttributeError("value")
        return value

    @value.setter
    def value(self, value: Any) -> None:
        self._variable.set(value)

    @value.deleter
    def value(self) -> None:
        if self._variable.get() is _UNSET:
            raise AttributeError("value")
        self._variable.set(_UNSET)


def _context_value(name: str) -> Callable[[Any], ContextValue]:
    return lambda original: ContextValue(name)


def seams() -> list[Seam]:
    """Return this area's seams."""
    return [
        Seam(
            f"django.urls.base:{name}",
            "A request sets and resets it, and an asgiref Local copies a dict under a lock each "
            "time: together a twentieth of a small request.",
            _context_value(f"nuages{name}"),
            callers=frozenset(callers),
        )
        for name, callers in (
            ("_urlconfs", ("set_urlconf", "get_urlconf")),
            ("_prefixes", ("set_script_prefix", "get_script_prefix", "clear_script_prefix")),
        )
    ]
