"""The network fails between us and a server that is well: cut, reset, stalled, byte by byte."""

from __future__ import annotations

import asyncio
import logging

import pytest
from asgiref.sync import sync_to_async
from django.db import OperationalError, transaction
from django.test import override_settings

from nuages.exceptions import OutcomeUnknown
from tests.faults.world import World, fault
from tests.integration.pool_tools import Heartbeat
from tests.library.models import Tag

TIMEOUT = 0.5
"""Seconds that the code under test gives itself, by `asyncio.timeout()`."""
CANCEL = 1.0
"""CANCEL_TIMEOUT and COMMIT_TIMEOUT here: what cleaning up may take."""
SHORT = override_settings(NUAGES={"CANCEL_TIMEOUT": CANCEL, "COMMIT_TIMEOUT": CANCEL})
BOUND = TIMEOUT + CANCEL + 1.5


# Cut


@fault("connection closed (FIN) in mid-query", deadline=1)
async def test_closed_in_mid_query(world: World) -> None:
    task = await world.asleep(world.sleep())
    world.strikes()
    world.proxy.cut()
    await world.raises(task, OperationalError)


@fault("connection reset (RST) in mid-query", deadline=1)
async def test_reset_in_mid_query(world: World) -> None:
    task = await world.asleep(world.sleep())
    world.strikes()
    world.proxy.cut(reset=True)
    await world.raises(task, OperationalError)


@fault("connection reset in mid-transaction", deadline=1)
async def test_reset_in_mid_transaction(world: World) -> None:
    task = await world.asleep(world.write("half", then=world.sleep))
    world.strikes()
    world.proxy.cut(reset=True)
    await world.raises(task, OperationalError)
    world.database.end_all()
    world.lost.add("half")
    world.row.note("rolled back")


@fault("connections reset while idle in the pool", deadline=1)
async def test_reset_while_idle(world: World) -> None:
    await asyncio.gather(*(Tag.objects.acount() for _ in range(5)))
    world.proxy.cut(reset=True)
    world.strikes()
    await world.answers(asyncio.gather(*(Tag.objects.acount() for _ in range(5))))


@fault("connection reset before COMMIT reached the server", deadline=1)
async def test_reset_before_commit(world: World) -> None:
    task = await world.at_commit("never", arrived=False)
    world.strikes()
    world.proxy.cut(reset=True)
    await world.raises(task, OutcomeUnknown)
    world.lost.add("never")
    world.row.note("was not committed")


@fault("connection reset after COMMIT, before its answer", deadline=1)
async def test_reset_after_commit(world: World) -> None:
    task = await world.at_commit("there", arrived=True)
    world.strikes()
    world.proxy.cut(reset=True)
    await world.raises(task, OutcomeUnknown)
    assert world.database.committed()["there"] == 1
    world.row.note("was committed")


@fault("the same with COMMIT of a sync view's thread", deadline=1)
async def test_reset_after_a_threads_commit(world: World) -> None:
    world.proxy.stall("to_client", at=world.database.commit)
    task = asyncio.create_task(sync_to_async(_write_in_thread)())
    await world.proxy.until_kept()
    world.strikes()
    world.proxy.cut(reset=True)
    await world.raises(task, OutcomeUnknown)
    assert world.database.committed()["of a thread"] == 1
    world.row.note("was committed")


def _write_in_thread() -> None:
    with transaction.atomic():
        Tag.objects.create(name="of a thread")


@fault("connection reset after the answer to COMMIT", deadline=1, on=("mysql",))
async def test_reset_after_the_answer(world: World) -> None:
    """`SET AUTOCOMMIT = 1` follows. The transaction is committed, and that is what is told."""
    world.proxy.stall("to_server", at=b"SET AUTOCOMMIT = 1")
    task = asyncio.create_task(world.write("there"))
    await world.proxy.until_kept()
    world.strikes()
    world.proxy.cut(reset=True)
    world.proxy.resume()
    await world.answers(task)
    assert world.hooks == ["there"]


@fault("connection reset during the login", deadline=1)
async def test_reset_during_the_login(world: World) -> None:
    world.proxy.stall("to_client")
    task = asyncio.create_task(Tag.objects.acount())
    await world.proxy.until_kept()
    world.strikes()
    world.proxy.cut(reset=True)
    await world.raises(task, OperationalError)
    world.proxy.resume()


# Stalled


@fault("network stalled in mid-query, asyncio.timeout(0.5)", deadline=BOUND)
@SHORT
async def test_stalled_in_mid_query(world: World) -> None:
    task = await world.asleep(world.within(TIMEOUT, world.sleep()))
    world.strikes()
    world.proxy.stall()
    async with Heartbeat() as heart:
        await world.raises(task, TimeoutError)
        assert heart.beats > 100, "the loop was blocked"
    assert world.pool.stats()["size"] == 0
    _restore(world)


@fault("network stalled in mid-transaction, asyncio.timeout(0.5)", deadline=BOUND)
@SHORT
async def test_stalled_in_mid_transaction(world: World) -> None:
    task = await world.asleep(world.within(TIMEOUT, world.write("half", then=world.sleep)))
    world.strikes()
    world.proxy.stall()
    await world.raises(task, TimeoutError)
    assert world.pool.stats()["size"] == 0
    world.lost.add("half")
    world.row.note("rolled back")
    _restore(world)


@fault("answers stalled, cancel requests pass, asyncio.timeout(0.5)", deadline=BOUND)
@SHORT
async def test_answers_stalled(world: World) -> None:
    task = await world.asleep(world.within(TIMEOUT, world.sleep()))
    world.strikes()
    world.proxy.stall("to_client", new=False)
    await world.raises(task, TimeoutError)
    await world.database.until_running(world.database.sleep, 0)
    world.row.note("ended on the server")
    _restore(world)


@fault("network stalled before COMMIT reached the server, asyncio.timeout(0.5)", deadline=BOUND)
@SHORT
async def test_stalled_before_commit(world: World) -> None:
    await _stalled_commit(world, "never", arrived=False)
    world.lost.add("never")
    world.row.note("was not committed")


@fault("network stalled after COMMIT, before its answer, asyncio.timeout(0.5)", deadline=BOUND)
@SHORT
async def test_stalled_after_commit(world: World) -> None:
    await _stalled_commit(world, "there", arrived=True)
    assert world.database.committed()["there"] == 1
    world.row.note("was committed")


async def _stalled_commit(world: World, name: str, *, arrived: bool) -> None:
    world.proxy.stall("to_client" if arrived else "to_server", at=world.database.commit)
    world.strikes()
    error = await world.raises(world.within(TIMEOUT, world.write(name)), TimeoutError)
    assert world.proxy.kept
    causes = []
    while error is not None:
        error = error.__cause__
        causes.append(type(error))
    assert OutcomeUnknown in causes, causes
    world.row.note("`OutcomeUnknown` as its cause")
    _restore(world)


@fault("network stalled while the connection is idle, asyncio.timeout(0.5)", deadline=BOUND)
@SHORT
async def test_stalled_while_idle(world: World) -> None:
    """The pool cannot know. The one who finds out loses the connection, and nobody else does."""
    await Tag.objects.acount()
    world.proxy.stall(new=False)
    world.strikes()
    await world.raises(world.within(TIMEOUT, Tag.objects.acount()), TimeoutError)
    assert world.pool.stats()["size"] == 0
    await world.answers(Tag.objects.acount())
    _restore(world)


@fault("the same with CONN_HEALTH_CHECKS", deadline=BOUND)
@SHORT
async def test_stalled_at_the_health_check(world: World) -> None:
    world.settings["CONN_HEALTH_CHECKS"] = True
    await Tag.objects.acount()
    world.proxy.stall(new=False)
    world.strikes()
    await world.raises(world.within(TIMEOUT, Tag.objects.acount()), TimeoutError)
    assert world.pool.stats()["size"] == 0
    await world.answers(Tag.objects.acount())
    _restore(world)


@fault("network stalled in mid-query, OPTIONS read_timeout 1", deadline=3, on=("mysql",))
async def test_read_timeout(world: World) -> None:
    world.settings["OPTIONS"] = {"read_timeout": 1}
    task = await world.asleep(world.sleep())
    world.strikes()
    world.proxy.stall()
    await world.raises(task, OperationalError)
    _restore(world)


@fault("network stalled during a request, REQUEST_TIMEOUT 0.5", deadline=BOUND)
@override_settings(NUAGES={"CANCEL_TIMEOUT": CANCEL, "REQUEST_TIMEOUT": TIMEOUT})
async def test_stalled_during_a_request(world: World) -> None:
    await Tag.objects.acount()
    world.proxy.stall()
    world.strikes()
    assert await world.outcome(world.next_request("never")) == 504
    world.lost.add("never")
    world.row.note("504")
    _restore(world)


@fault("connection reset during a request", deadline=1)
async def test_reset_during_a_request(world: World) -> None:
    await Tag.objects.acount()
    world.proxy.stall("to_server")
    task = asyncio.create_task(world.next_request("never"))
    await world.proxy.until_kept()
    world.strikes()
    world.proxy.cut(reset=True)
    logging.disable(logging.ERROR)  # Django's report of it
    try:
        assert await world.outcome(task) == 500
    finally:
        logging.disable(logging.NOTSET)
    world.lost.add("never")
    world.row.note("500")
    world.proxy.resume()


def _restore(world: World) -> None:
    """The network is back; what was under way in it is not."""
    world.proxy.cut(reset=True)
    world.proxy.resume()
    world.database.end_all()


# Slow


@fault("everything arrives byte by byte", deadline=10)
async def test_byte_by_byte(world: World) -> None:
    """The login, rows, a transaction, an error of the server."""
    world.proxy.trickle()
    world.strikes()
    await world.answers(world.write("slow"))
    await Tag.objects.abulk_create([Tag(name=f"slow {number}") for number in range(20)])
    await world.answers(Tag.objects.alist())
    with pytest.raises(OperationalError if world.database.name == "mysql" else Exception):
        await Tag.objects.extra(where=["no_such_column = 1"]).acount()
    world.proxy.resume()
