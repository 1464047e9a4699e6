"""The server ends sessions or statements of ours, or has no room for more."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import psycopg
import pymysql  # type: ignore[import-untyped]
from django.db import OperationalError
from django.test import override_settings

from nuages.db import acursor
from nuages.exceptions import OutcomeUnknown, PoolTimeout
from tests.faults.world import World, fault
from tests.integration.pool_tools import occupied, options
from tests.integration.scope_tools import until
from tests.library.models import Tag


@fault("session ended by an administrator in mid-query", deadline=2)
async def test_ended_in_mid_query(world: World) -> None:
    task = await world.asleep(world.sleep())
    world.strikes()
    world.database.end_all()
    await world.raises(task, OperationalError)


@fault("session ended by an administrator, transaction idle", deadline=2)
async def test_ended_between_two_statements(world: World) -> None:
    async def second_statement() -> None:
        world.database.end_all()
        await _until_no_session(world)
        await Tag.objects.acreate(name="second")

    world.strikes()
    await world.raises(world.write("first", then=second_statement), OperationalError)
    world.lost |= {"first", "second"}
    world.row.note("rolled back")


@fault("sessions ended by an administrator, connections idle", deadline=2)
async def test_ended_while_idle(world: World) -> None:
    await asyncio.gather(*(Tag.objects.acount() for _ in range(5)))
    world.database.end_all()
    await until(lambda: world.pool.size == 0)  # the news is here
    world.strikes()
    await world.answers(asyncio.gather(*(Tag.objects.acount() for _ in range(5))))


@fault("session ended by an administrator before COMMIT reached it", deadline=2)
async def test_ended_before_commit(world: World) -> None:
    task = await world.at_commit("never", arrived=False)
    world.database.end_all()
    await _until_no_session(world)
    world.strikes()
    world.proxy.resume()
    await world.raises(task, OutcomeUnknown)
    world.lost.add("never")
    world.row.note("was not committed")


@fault("statement cancelled by an administrator, in a transaction", deadline=2)
async def test_cancelled(world: World) -> None:
    """The connection goes on."""
    task = await world.asleep(world.write("half", then=world.sleep))
    (number,) = world.database.sessions(world.database.sleep)
    world.strikes()
    kill = {"postgresql": "SELECT pg_cancel_backend(%s)", "mysql": "KILL QUERY %s"}
    world.database.rows(kill[world.database.name], number)
    await world.raises(task, OperationalError)
    world.lost.add("half")
    world.row.note("rolled back")
    assert world.pool.stats()["size"] == 1


@fault("OPTIONS statement_timeout 0.3", deadline=2)
async def test_statement_timeout(world: World) -> None:
    world.settings["OPTIONS"] = {"statement_timeout": 0.3}
    await Tag.objects.acount()
    world.strikes()
    await world.raises(world.write("half", then=_long), OperationalError)
    world.lost.add("half")
    world.row.note("rolled back")


async def _long() -> None:
    """A query that takes longer, and not by sleeping: MariaDB ends SLEEP() without an error."""
    columns = ", ".join(f"information_schema.columns AS c{number}" for number in range(4))
    async with acursor() as cursor:
        await cursor.execute(f"SELECT count(*) FROM {columns}")


# No room


@fault("too many connections", deadline=2)
async def test_too_many(world: World) -> None:
    with no_room(world):
        world.strikes()
        await world.raises(Tag.objects.acount(), OperationalError)


@fault("too many connections, reconnect_timeout", deadline=3)
async def test_too_many_for_a_while(world: World) -> None:
    options(reconnect_timeout=30)
    with no_room(world) as others:
        world.strikes()
        task = asyncio.create_task(Tag.objects.acount())
        await world.proxy.ended.wait()  # it was refused
        assert not task.done()
        others.close()
        await world.answers(task)


@fault("too many connections for one more, others are in use", deadline=2)
async def test_too_many_while_working(world: World) -> None:
    """Who has a connection goes on; who needs a new one is told."""
    task = await world.asleep(world.sleep())
    with no_room(world):
        world.strikes()
        await world.raises(Tag.objects.acount(), OperationalError)
        assert not task.done()
    world.database.end_all()
    await asyncio.wait([task])
    assert task.exception()


@fault("no room for the KILL of asyncio.timeout(0.5)", deadline=3, on=("mysql",))
@override_settings(NUAGES={"CANCEL_TIMEOUT": 1.0})
async def test_no_room_for_a_kill(world: World) -> None:
    task = await world.asleep(world.within(0.5, world.write("half", then=world.sleep)))
    with no_room(world):
        world.strikes()
        await world.raises(task, TimeoutError)
        assert world.pool.stats()["size"] == 0
    world.database.end_all()
    world.lost.add("half")
    world.row.note("rolled back")


@fault("no connection of the pool free, pool timeout 0.5", deadline=2)
async def test_pool_timeout(world: World) -> None:
    options(max_size=1, timeout=0.5)
    async with occupied():
        world.strikes()
        await world.raises(Tag.objects.acount(), PoolTimeout)


@contextmanager
def no_room(world: World) -> Iterator[ExitStack]:
    """Take every connection that the server has room for, until closed."""
    errors: Any = (psycopg.OperationalError, pymysql.OperationalError)
    with world.database.client() as admin, ExitStack() as others:
        if world.database.name == "mysql":
            admin.execute("SET GLOBAL max_connections = 10")
        try:
            while True:
                try:
                    others.enter_context(closing(world.database.connect()))
                except errors:
                    break
            yield others
        finally:
            if world.database.name == "mysql":
                admin.execute("SET GLOBAL max_connections = 151")


async def _until_no_session(world: World) -> None:
    async with asyncio.timeout(20):
        while world.database.sessions():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
