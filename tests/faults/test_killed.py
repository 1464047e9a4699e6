"""The server dies by SIGKILL, and is started again on the same data and port."""

from __future__ import annotations

import asyncio
import errno

import psutil
from django.db import OperationalError

from nuages.exceptions import OutcomeUnknown
from tests.faults.world import World, fault
from tests.integration.pool_tools import options
from tests.library.models import Tag


@fault("server killed and restarted, connections idle", deadline=2)
async def test_between_two_queries(world: World) -> None:
    await asyncio.gather(*(Tag.objects.acount() for _ in range(5)))
    await asyncio.to_thread(world.database.server.restart)
    world.strikes()
    await world.answers(asyncio.gather(*(Tag.objects.acount() for _ in range(5))))


@fault("server killed in mid-query", deadline=2)
async def test_in_mid_query(world: World) -> None:
    task = await world.asleep(world.sleep())
    world.strikes()
    world.database.server.kill()
    await world.raises(task, OperationalError)
    await asyncio.to_thread(world.database.server.start)


@fault("server killed in mid-transaction", deadline=2)
async def test_in_mid_transaction(world: World) -> None:
    task = await world.asleep(world.write("half", then=world.sleep))
    world.strikes()
    world.database.server.kill()
    await world.raises(task, OperationalError)
    await asyncio.to_thread(world.database.server.start)
    world.lost.add("half")
    world.row.note("rolled back")


@fault("server killed and restarted, transaction idle", deadline=2)
async def test_between_two_statements(world: World) -> None:
    """No statement of the transaction may reach the new server outside of it."""
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def second_statement() -> None:
        reached.set()
        await go_on.wait()
        await Tag.objects.acreate(name="second")

    task = asyncio.create_task(world.write("first", then=second_statement))
    await reached.wait()
    await asyncio.to_thread(world.database.server.restart)
    world.strikes()
    go_on.set()
    await world.raises(task, OperationalError)
    world.lost |= {"first", "second"}
    world.row.note("rolled back")


@fault("server killed before COMMIT reached it", deadline=2)
async def test_before_commit(world: World) -> None:
    task = await world.at_commit("never", arrived=False)
    world.strikes()
    world.database.server.kill()
    await world.raises(task, OutcomeUnknown)
    await asyncio.to_thread(world.database.server.start)
    world.lost.add("never")
    world.row.note("was not committed")


@fault("server killed after COMMIT, before its answer", deadline=2)
async def test_after_commit(world: World) -> None:
    task = await world.at_commit("there", arrived=True)
    world.strikes()
    world.database.server.kill()
    world.proxy.cut()
    await world.raises(task, OutcomeUnknown)
    await asyncio.to_thread(world.database.server.start)
    assert world.database.committed()["there"] == 1
    world.row.note("was committed")
    await world.write_surely("another")


@fault("COMMIT lost or unanswered, repeated as docs say", deadline=10)
async def test_repeated_once(world: World) -> None:
    """`write_surely` looks before it repeats: once in the table, whichever of the two it was."""
    world.strikes()
    for arrived in (False, True):
        name = f"arrived {arrived}"
        world.proxy.stall("to_client" if arrived else "to_server", at=world.database.commit)
        task = asyncio.create_task(world.write_surely(name))
        await world.proxy.until_kept()
        world.proxy.cut(reset=True)
        world.proxy.resume()
        await world.answers(task)
        assert name in world.acknowledged


@fault("server away, no reconnect_timeout", deadline=2)
async def test_refused(world: World) -> None:
    world.settings["PORT"] = str(world.database.server.port)
    await Tag.objects.acount()
    world.database.server.kill()
    world.strikes()
    error = await world.raises(Tag.objects.acount(), OperationalError)
    assert "refused" in str(error) or f"[Errno {errno.ECONNREFUSED}]" in str(error)
    await asyncio.to_thread(world.database.server.start)


@fault("server away, reconnect_timeout", deadline=8)
async def test_waited_for(world: World) -> None:
    """The time is that of the restart, and of a pause between two attempts."""
    options(reconnect_timeout=30)
    world.settings["PORT"] = str(world.database.server.port)
    await Tag.objects.acount()
    world.database.server.kill()
    world.strikes()
    task = asyncio.create_task(Tag.objects.acount())
    await asyncio.to_thread(world.database.server.start)
    await world.answers(task)


@fault("server killed three times under 20 writers", deadline=30)
async def test_under_load(world: World) -> None:
    """Every write is repeated until it is known to be there, and all are there once."""
    options(reconnect_timeout=30)
    world.settings["PORT"] = str(world.database.server.port)
    names = [f"row {number}" for number in range(400)]
    rest = iter(names)

    async def writer() -> None:
        for name in rest:
            await world.write_surely(name)

    world.strikes()
    task = asyncio.gather(*(writer() for _ in range(20)))
    for count in (50, 150, 250):
        while len(world.acknowledged) < count:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await asyncio.to_thread(world.database.server.restart)
    await world.answers(task)
    assert set(names) == world.acknowledged
    assert world.pool.opened > 3
    world.row.note("400 rows, each there once")


@fault("another session's process crashes", deadline=5, on=("postgresql",))
async def test_a_crash_of_another_session(world: World) -> None:
    """PostgreSQL ends all sessions and recovers, refusing connections meanwhile."""
    options(reconnect_timeout=30)
    task = await world.asleep(world.write("half", then=world.sleep))
    await Tag.objects.acount()
    (busy,) = world.database.sessions(world.database.sleep)
    (pid,) = {*world.database.sessions()} - {busy}
    world.strikes()
    psutil.Process(pid).kill()
    await world.raises(task, OperationalError)
    world.lost.add("half")
    world.row.note("rolled back")
    await world.answers(Tag.objects.acount())
