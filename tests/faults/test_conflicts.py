"""Transactions that the server refuses since another one is in their way: they may be repeated."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from django.db import OperationalError
from psycopg import IsolationLevel

from nuages.db import aatomic
from tests.faults.world import World, fault
from tests.library.models import Tag


class Pair:
    """Two tasks that each come to a point, and go on when they are told to."""

    def __init__(self) -> None:
        self.reached = [asyncio.Event(), asyncio.Event()]
        self.go_on = [asyncio.Event(), asyncio.Event()]

    async def meet(self, number: int) -> None:
        self.reached[number].set()
        await self.go_on[number].wait()

    async def both_are_there(self) -> None:
        for reached in self.reached:
            await reached.wait()


async def _rows() -> tuple[Tag, Tag]:
    return await Tag.objects.acreate(name="one"), await Tag.objects.acreate(name="two")


async def _rename(tag: Tag, suffix: str) -> None:
    await Tag.objects.filter(pk=tag.pk).aupdate(name=f"{tag.name} {suffix}")


@fault("serialization failure (40001) at a statement", deadline=2, on=("postgresql",))
async def test_serialization(world: World) -> None:
    world.settings["OPTIONS"] = {"isolation_level": IsolationLevel.REPEATABLE_READ}
    tag, _ = await _rows()
    pair = Pair()

    async def work() -> None:
        async with aatomic():
            found = await Tag.objects.aget(pk=tag.pk)
            await pair.meet(0)
            await Tag.objects.filter(pk=tag.pk).aupdate(name=found.name + " more")

    task = asyncio.create_task(work())
    await pair.reached[0].wait()
    await Tag.objects.filter(pk=tag.pk).aupdate(name="changed")
    world.strikes()
    pair.go_on[0].set()
    error = await world.raises(task, OperationalError)
    assert error.__cause__.sqlstate == "40001"
    await _again(world, work)
    assert world.database.committed()["changed more"] == 1


@fault("serialization failure (40001) at COMMIT", deadline=2, on=("postgresql",))
async def test_serialization_at_commit(world: World) -> None:
    """Each has read what the other changes. It is known that the second is not committed."""
    world.settings["OPTIONS"] = {"isolation_level": IsolationLevel.SERIALIZABLE}
    pair = Pair()

    async def work(number: int = 1) -> None:
        async def read() -> None:
            await Tag.objects.acount()
            await pair.meet(number)

        await world.write(f"count {number}", then=read)

    tasks = [asyncio.create_task(work(number)) for number in (0, 1)]
    await pair.both_are_there()
    pair.go_on[0].set()
    await tasks[0]
    world.strikes()
    pair.go_on[1].set()
    error = await world.raises(tasks[1], OperationalError)
    assert error.__cause__.sqlstate == "40001"
    assert world.acknowledged == {"count 0"}
    assert world.database.committed() == {"count 0": 1}
    await _again(world, work)


@fault("deadlock", deadline=3)
async def test_deadlock(world: World) -> None:
    """The server rolls one of the two back; it is repeated, and both have had their effect."""
    tags = await _rows()
    pair = Pair()

    async def work(number: int, suffix: str) -> None:
        async with aatomic():
            await _rename(tags[number], suffix)
            await pair.meet(number)
            await _rename(tags[1 - number], suffix)

    tasks = [asyncio.create_task(work(number, f"by {number}")) for number in (0, 1)]
    await pair.both_are_there()
    world.strikes()
    for go_on in pair.go_on:
        go_on.set()
    await asyncio.wait(tasks)
    (loser,) = [number for number in (0, 1) if tasks[number].exception()]
    await world.raises(tasks[loser], OperationalError)
    winner = 1 - loser
    both = {f"one by {winner}": 1, f"two by {winner}": 1}
    assert world.database.committed() == both
    await _again(world, lambda: work(loser, f"by {loser}"))
    assert world.database.committed() == {f"one by {loser}": 1, f"two by {loser}": 1}


@fault("lock not granted in time (lock_timeout)", deadline=3)
async def test_lock_timeout(world: World) -> None:
    world.settings["OPTIONS"] = {
        "postgresql": {"options": "-c lock_timeout=300"},
        "mysql": {"init_command": "SET SESSION innodb_lock_wait_timeout = 1"},
    }[world.database.name]
    tag, _ = await _rows()
    with world.database.client() as other:
        other.execute("BEGIN")
        other.execute("UPDATE library_tag SET name = 'theirs' WHERE name = 'one'")
        world.strikes()
        await world.raises(world.write("half", then=lambda: _rename(tag, "x")), OperationalError)
        other.execute("ROLLBACK")
    world.lost.add("half")
    world.row.note("rolled back")
    await _again(world, lambda: world.write("whole", then=lambda: _rename(tag, "x")))


async def _again(world: World, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    """Repeat the transaction, on the same connection."""
    opened = world.pool.opened
    await work()
    assert world.pool.opened == opened
    world.row.note("repeated")
