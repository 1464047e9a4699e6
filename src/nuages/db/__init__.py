"""Connections, transactions and raw SQL in async code."""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["aatomic", "acursor", "aon_commit", "detached", "hold_connection"]

_WHERE = {
    "aatomic": "transaction",
    "aon_commit": "transaction",
    "detached": "transaction",
    "hold_connection": "transaction",
    "acursor": "cursor",
}

if TYPE_CHECKING:
    from nuages.db.cursor import acursor
    from nuages.db.transaction import aatomic, aon_commit, detached, hold_connection
else:

    def __getattr__(name: str) -> object:
        # A backend of this package is imported while Django's models load; the names in `_WHERE`
        # need Django's connections, so they are looked up when first used.
        if name in _WHERE:
            from importlib import import_module

            return getattr(import_module(f"nuages.db.{_WHERE[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
