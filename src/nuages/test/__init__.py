"""Tools for a project's tests. Django's own test classes need none of them (docs/testing.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

_WHERE = {
    "AsyncTestCase": "cases",
    "AsyncTransactionTestCase": "cases",
    "forbid_blocking": "blocking",
    "forbid_threads": "threads",
    "AsyncLiveServerTestCase": "live",
    "AsyncLiveServerTransactionTestCase": "live",
    "LiveServer": "live",
    "FaultProxy": "proxy",
}

__all__ = [
    "AsyncLiveServerTestCase",
    "AsyncLiveServerTransactionTestCase",
    "AsyncTestCase",
    "AsyncTransactionTestCase",
    "FaultProxy",
    "LiveServer",
    "forbid_blocking",
    "forbid_threads",
]

if TYPE_CHECKING:
    from nuages.test.blocking import forbid_blocking
    from nuages.test.cases import AsyncTestCase, AsyncTransactionTestCase
    from nuages.test.live import (
        AsyncLiveServerTestCase,
        AsyncLiveServerTransactionTestCase,
        LiveServer,
    )
    from nuages.test.proxy import FaultProxy
    from nuages.test.threads import forbid_threads
else:

    def __getattr__(name: str) -> object:
        # The guards and the proxy need neither Django nor its settings; the cases need both.
        if name in _WHERE:
            from importlib import import_module

            return getattr(import_module(f"nuages.test.{_WHERE[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
