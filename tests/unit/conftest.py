"""Async tests of the bridge run on every kind of loop: variants are parameters."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping

import pytest
import uvloop

_MODULES = {"test_bridge", "test_portal", "test_off_loop", "test_event_stream"}


def _debug() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_debug(True)
    return loop


def _eager() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    return loop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]] | None:
    """asyncio's loop in debug mode and, where Python has them, with eager tasks, and uvloop.

    test_bridge.py has one test that is skipped, with the reason, where Python has none.
    """
    if item.module.__name__.rpartition(".")[2] not in _MODULES:
        return {"asyncio": asyncio.new_event_loop}
    loops = {"debug": _debug, "uvloop": uvloop.new_event_loop}
    return loops if sys.version_info < (3, 12) else loops | {"eager": _eager}
