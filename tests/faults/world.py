"""A fault and what is around it: the database behind its proxy, the rows, the clock, the check.

A test is `@fault("what happens", deadline=seconds)` on an `async def test_...(world)`. It brings
work of ours to a known point, calls `world.strikes()`, breaks something, and says how the work
must end: `await world.raises(task, OperationalError)`, `await world.answers(task)`. Afterwards,
without being told, everything must be whole again: the pool, the next request, and the rows.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop
from django.db import OperationalError, connection, connections
from django.test import override_settings

from nuages.asgi.handler import ASGIHandler
from nuages.bridge import core as bridge
from nuages.bridge import tasks
from nuages.db import aatomic, acursor, aon_commit
from nuages.db.pool import pool as pools
from nuages.db.pool.pool import Pool, open_pools
from nuages.exceptions import OutcomeUnknown
from nuages.test import FaultProxy
from tests.faults.databases import Database
from tests.faults.matrix import Matrix, Row
from tests.integration.asgi_client import fetch
from tests.integration.conftest import use
from tests.integration.pool_tools import assert_whole
from tests.library.models import Tag

SERVERS = ("postgresql", "mysql")
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
AFTERWARDS = 15.0
"""Seconds for everything to be whole again."""


class World:
    """What a fault test works with."""

    def __init__(
        self,
        database: Database,
        proxy: FaultProxy | None,
        row: Row,
        fixture: Callable[[str], Any],
    ) -> None:
        self.database = database
        self.fixture = fixture
        """Gives a fixture by its name."""
        self.row = row
        self._proxy = proxy
        self._struck: float | None = None
        self._limits: list[tuple[asyncio.Timeout, float]] = []
        self.acknowledged: set[str] = set()
        """Names whose transaction was told to be committed."""
        self.lost: set[str] = set()
        """Names that must not be there."""
        self.hooks: list[str] = []
        """Names whose on-commit hook has run."""

    @property
    def proxy(self) -> FaultProxy:
        assert self._proxy is not None, "there is no proxy before a file"
        return self._proxy

    @property
    def settings(self) -> dict[str, Any]:
        """The entry of DATABASES that is used now."""
        return connections.settings["default"]

    @property
    def pool(self) -> Pool:
        """The loop's pool."""
        (pool,) = [pool for pool in open_pools() if pool.alias == "default"]
        return pool

    # What is worked at

    async def write(self, name: str, then: Callable[[], Awaitable[Any]] | None = None) -> None:
        """Write a row in a transaction, `then` do something in it; note what was told."""
        async with aatomic():
            await Tag.objects.acreate(name=name)
            await aon_commit(lambda: self.hooks.append(name))
            if then is not None:
                await then()
        self.acknowledged.add(name)

    async def write_surely(self, name: str) -> None:
        """Write it once, whatever happens: what docs/faults.md tells users to do."""
        looked_for = False
        while name not in self.acknowledged:
            try:
                if looked_for and await Tag.objects.filter(name=name).aexists():
                    self.acknowledged.add(name)
                    return
                looked_for = False
                await self.write(name)
            except OutcomeUnknown:
                looked_for = True
            except OperationalError:
                continue

    async def sleep(self) -> None:
        """A query that takes a minute."""
        async with acursor() as cursor:
            await cursor.execute(self.database.sleep)

    async def within(self, seconds: float, work: Coroutine[Any, Any, Any]) -> Any:
        """Await `work` in an `asyncio.timeout()`, which begins when the fault strikes."""
        async with asyncio.timeout(seconds if self._struck is not None else None) as limit:
            if self._struck is None:
                self._limits.append((limit, seconds))
            return await work

    async def asleep(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start work that comes to such a query, and wait until the server executes it."""
        task = asyncio.create_task(work)
        await self.database.until_running(self.database.sleep)
        return task

    async def at_commit(self, name: str, *, arrived: bool) -> asyncio.Task[Any]:
        """Start a write, wait until the proxy has its COMMIT; or, if `arrived`, the answer."""
        self.proxy.stall("to_client" if arrived else "to_server", at=self.database.commit)
        task = asyncio.create_task(self.write(name))
        await self.proxy.until_kept()
        if arrived:
            assert self.database.committed()[name] == 1
        return task

    # The clock

    def strikes(self) -> None:
        """The fault happens now."""
        self._struck = time.monotonic()
        for limit, seconds in self._limits:
            limit.reschedule(asyncio.get_running_loop().time() + seconds)
        self._limits.clear()

    async def outcome(self, work: Awaitable[Any]) -> Any:
        """Wait for the end of `work`: what it returns or raises. Notes the time."""
        assert self._struck is not None, "strikes() was not called"
        task = asyncio.ensure_future(work)
        rest = self._struck + self.row.deadline - time.monotonic()
        await asyncio.wait([task], timeout=rest)
        took = time.monotonic() - self._struck
        if not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=AFTERWARDS)
        self.row.took(took)
        return task.exception() or task.result()

    async def raises(self, work: Awaitable[Any], kind: type[BaseException]) -> Any:
        """What `work` ends with must be exactly a `kind`; returned."""
        found = await self.outcome(work)
        assert type(found) is kind, f"{found!r} is no {kind.__name__}" + _trace(found)
        package = kind.__module__.partition(".")[0]
        self.row.note(f"`{'redis.' if package == 'redis' else ''}{kind.__name__}`")
        return found

    async def answers(self, work: Awaitable[Any]) -> Any:
        """`work` must end without an error."""
        found = await self.outcome(work)
        assert not isinstance(found, BaseException), repr(found) + _trace(found)
        self.row.note("answered")
        return found

    # Afterwards

    async def next_request(self, name: str) -> int:
        """Send a request that writes; its status."""
        with override_settings(ROOT_URLCONF="tests.faults.site", DEBUG_PROPAGATE_EXCEPTIONS=False):
            exchange = await fetch(ASGIHandler(), f"/write/?name={name}")
        status = int(exchange.sent[0]["status"])
        if status == 200:
            self.acknowledged.add(name)
        return status

    async def is_whole(self) -> None:
        """The pool, the next request and every row are as they must be."""
        while tasks._spawned:
            await asyncio.wait(list(tasks._spawned))
        for pool in open_pools():
            assert_whole(pool)
        assert await self.next_request("afterwards") == 200
        for pool in open_pools():
            assert_whole(pool)
        committed = self.database.committed()
        for name in self.acknowledged:
            assert committed[name] == 1, (
                f"{name} was acknowledged, and is there {committed[name]}x"
            )
        for name in self.lost:
            assert not committed[name], f"{name} was rolled back, and is there"
        twice = [name for name, count in committed.items() if count > 1]
        assert not twice, f"applied twice: {twice}"
        assert set(self.hooks) <= self.acknowledged, "a hook ran of what was not acknowledged"
        assert len(self.hooks) == len(set(self.hooks)), "a hook ran twice"


def _trace(found: object) -> str:
    import traceback

    return (
        "\n" + "".join(traceback.format_exception(found))
        if isinstance(found, BaseException)
        else ""
    )


@asynccontextmanager
async def world_of(
    database: Database, row: Row, fixture: Callable[[str], Any]
) -> AsyncIterator[World]:
    """The database behind a proxy, as the default one."""
    address = database.address()
    if address is None:
        yield World(database, None, row, fixture)
        return
    async with FaultProxy(*address) as proxy:
        database.through(proxy.port)
        yield World(database, proxy, row, fixture)


def prepare(database: Database) -> None:
    """Create the database and its table."""
    before = dict(connections.settings["default"])
    database.create()
    use(database.entry())
    with connection.schema_editor() as editor:
        editor.create_model(Tag)
    use(before)


Test = Callable[[World], Coroutine[Any, Any, None]]


def fault(
    name: str, *, deadline: float, on: tuple[str, ...] = SERVERS
) -> Callable[[Test], Callable[..., None]]:
    """Make a test of an async function that is given a World, for each of these databases."""

    def decorate(function: Test) -> Callable[..., None]:
        def test(
            database: Database, loop: str, matrix: Matrix, request: pytest.FixtureRequest
        ) -> None:
            row = matrix.row(name, database.name, deadline)
            try:
                _play(function, database, LOOPS[loop], row, request.getfixturevalue)
            except pytest.skip.Exception as skipped:
                matrix.skip(row, str(skipped))
                raise
            except BaseException:
                row.failed = True
                raise

        # Not __wrapped__, whose arguments pytest would ask for.
        for attribute in ("__name__", "__qualname__", "__doc__", "__module__"):
            setattr(test, attribute, getattr(function, attribute))
        return pytest.mark.parametrize("database", on, indirect=True)(test)

    return decorate


def _play(
    function: Test,
    database: Database,
    factory: Callable[[], Any],
    row: Row,
    fixture: Callable[[str], Any],
) -> None:
    async def main() -> None:
        async with world_of(database, row, fixture) as world:
            await function(world)
            async with asyncio.timeout(AFTERWARDS):
                await world.is_whole()
            for pool in open_pools():
                pool.close()
        while tasks._spawned:
            await asyncio.wait(list(tasks._spawned))
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks were left behind: {left}"

    database.rows("DELETE FROM library_tag")
    use(database.entry())
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())
            loop = runner.get_loop()
    finally:
        database.up()
    gc.collect()
    assert not bridge._bridges, "a bridge was left behind"
    assert not pools._pools.get(loop), "a pool was left behind"
    database.end_all()
