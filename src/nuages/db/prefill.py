"""Opening a pool's `min_size` connections before the first request needs them."""

from __future__ import annotations

import asyncio

from django.db import connections

from nuages.bridge import on_loop
from nuages.db.backends.base.base import LoopWrapper
from nuages.db.pool.options import PoolOptions
from nuages.db.scopes.scope import Scope, open_scope
from nuages.db.scopes.tree import Kind


async def warm_pools() -> None:
    """Open `min_size` connections of every database, all at once; raises what connecting raises.

    A database without a `min_size` is not touched.
    """
    wanted = []
    for alias in connections:
        wrapper = connections[alias]
        if isinstance(wrapper, LoopWrapper):
            # The project's own setting: a database in memory keeps a connection, but needs none.
            asked = PoolOptions.parse(alias, wrapper.settings_dict).min_size
            wanted += [alias] * min(asked, wrapper.pool_options().max_size)
    barrier = _Barrier(len(wanted))
    await asyncio.gather(*(_open_one(alias, barrier) for alias in wanted))


class _Barrier:
    """A barrier: nobody gives a connection back before everybody has one."""

    def __init__(self, parties: int) -> None:
        self._missing = parties
        self._event = asyncio.Event()

    async def arrive(self) -> None:
        self._missing -= 1
        if self._missing <= 0:
            self._event.set()
        await self._event.wait()


async def _open_one(alias: str, barrier: _Barrier) -> None:
    def hold() -> Scope:
        wrapper = connections[alias]
        assert isinstance(wrapper, LoopWrapper)
        wrapper.ensure_connection()
        return open_scope(wrapper, Kind.PIN)

    scope: Scope | None = None
    try:
        scope = await on_loop(hold)()
    finally:
        try:
            await barrier.arrive()
        finally:
            if scope is not None:
                await on_loop(scope.leave)()
