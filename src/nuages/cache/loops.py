"""One client for each event loop and configuration, closed when the loop ends.

A socket belongs to a loop, and Django makes a cache object for each context, so each request has
a cache object of its own. Therefore clients are kept here, by loop; cache objects come and go.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nuages.cache.clients import LoopClient
    from nuages.cache.config import Config

_clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Any, LoopClient]] = (
    weakref.WeakKeyDictionary()
)
_guards: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncGenerator[None, None]] = (
    weakref.WeakKeyDictionary()
)
_of_the_parent: list[Any] = []
"""After a fork: objects whose sockets the parent uses. Collecting one would close its socket."""


def client_for(config: Config) -> LoopClient:
    """Return the client of `config` on the running loop; make it where there is none."""
    loop = asyncio.get_running_loop()
    try:
        return _clients[loop][config.key]
    except KeyError:
        pass
    from nuages.cache.clients import make_client

    clients = _clients.get(loop)
    if clients is None:
        _forget_closed_loops()
        clients = _clients[loop] = {}
        _close_with_loop(loop)
    client = clients[config.key] = make_client(config)
    return client


def open_clients(loop: asyncio.AbstractEventLoop | None = None) -> list[LoopClient]:
    """Return the clients of `loop` (by default the running one)."""
    return list(_clients.get(loop or asyncio.get_running_loop(), {}).values())


def _close_with_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Have `loop.shutdown_asyncgens()`, and so `asyncio.run()`, close the loop's clients."""
    guard = _guards[loop] = _closing(weakref.ref(loop))
    with suppress(StopIteration):
        guard.__anext__().send(None)


async def _closing(loop: weakref.ref[asyncio.AbstractEventLoop]) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        if (ending := loop()) is not None:
            for client in _clients.pop(ending, {}).values():
                await client.aclose()


def _forget_closed_loops() -> None:
    """Let go of the connections of loops that were closed without a shutdown.

    Connections refer to their loop, so weak keys do not free them.
    """
    for loop in [known for known in _clients if known.is_closed()]:
        del _clients[loop]


def _after_fork() -> None:
    _of_the_parent.extend((dict(_clients), dict(_guards)))
    _clients.clear()
    _guards.clear()


os.register_at_fork(after_in_child=_after_fork)
