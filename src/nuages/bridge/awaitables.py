"""Tools that take an awaitable apart: its steps, and its end where nobody awaits it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any


def steps_of(awaitable: Any) -> Any:
    """Return the iterator that awaits `awaitable`, for `yield from`."""
    if hasattr(type(awaitable), "__await__"):
        return awaitable.__await__()
    # A generator-based coroutine, or not an awaitable at all: Python complains of that then.
    return _await(awaitable).__await__()


async def _await(awaitable: Any) -> Any:
    return await awaitable


def discard(awaitable: Awaitable[Any]) -> None:
    """Close an awaitable that will never be awaited, so that Python does not complain."""
    if isinstance(awaitable, Coroutine):
        awaitable.close()
    elif isinstance(awaitable, asyncio.Future):
        awaitable.cancel()
