"""The pool's options, and its decisions about time: plain code, tested without a database."""

from __future__ import annotations

import asyncio
import itertools
import math
from dataclasses import fields
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from nuages.db.pool import options as pool_options
from nuages.db.pool import reconnect
from nuages.db.pool.options import PoolOptions
from nuages.db.pool.pool import Pool
from nuages.exceptions import PoolClosed, PoolTimeout, TooManyWaiting


def parse(pool: Any = None, **entry: Any) -> PoolOptions:
    given = {} if pool is None else {"OPTIONS": {"pool": pool}}
    return PoolOptions.parse("default", given | entry)


def test_the_defaults() -> None:
    assert parse() == parse(True) == parse({}) == PoolOptions()
    assert PoolOptions() == PoolOptions(
        min_size=0,
        max_size=10,
        timeout=30.0,
        max_waiting=0,
        max_lifetime=3600.0,
        max_idle=600.0,
        reconnect_timeout=0.0,
    )


def test_every_option_is_documented_where_it_is_defined() -> None:
    with open(pool_options.__file__) as file:
        lines = file.read().splitlines()
    for field in fields(PoolOptions):
        (number,) = [n for n, line in enumerate(lines) if line.startswith(f"    {field.name}: ")]
        assert lines[number + 1].startswith('    """'), field.name


def test_false_keeps_no_idle_connection() -> None:
    assert parse(False).max_idle == 0
    assert parse({"max_idle": 0}).max_idle == 0


@pytest.mark.parametrize(("age", "expected"), [(0, 3600.0), (5, 5), (2.5, 2.5), (None, None)])
def test_conn_max_age_is_the_greatest_age(age: Any, expected: Any) -> None:
    assert parse(CONN_MAX_AGE=age).max_lifetime == expected


def test_the_pools_own_option_comes_before_conn_max_age() -> None:
    assert parse({"max_lifetime": 7}, CONN_MAX_AGE=5).max_lifetime == 7


def test_a_larger_min_size_raises_the_default_max_size() -> None:
    assert parse({"min_size": 25}).max_size == 25


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        (5, ["must be a dict, True or False", "5"]),
        ("yes", ["must be a dict, True or False", "'yes'"]),
        ({"size": 5}, ["unknown options: size", "Known are", "max_size"]),
        ({1: 5}, ["unknown options: 1"]),
        ({"max_size": 0}, ["max_size", "at least 1"]),
        ({"max_size": -1}, ["max_size", "0 or more", "-1"]),
        ({"max_size": 2.5}, ["max_size", "whole number", "2.5"]),
        ({"max_size": "5"}, ["max_size", "whole number", "'5'"]),
        ({"max_size": True}, ["max_size", "True"]),
        ({"max_size": None}, ["max_size", "None"]),
        ({"min_size": "3"}, ["min_size", "whole number", "'3'"]),
        ({"min_size": 3, "max_size": 2}, ["min_size", "greater than", "max_size"]),
        ({"max_waiting": -1}, ["max_waiting", "-1"]),
        ({"timeout": -1}, ["timeout", "seconds, 0 or more", "-1"]),
        ({"timeout": None}, ["timeout", "None"]),
        ({"timeout": math.inf}, ["timeout", "inf"]),
        ({"max_idle": math.nan}, ["max_idle", "nan"]),
        ({"max_lifetime": "1h"}, ["max_lifetime", "'1h'"]),
        ({"reconnect_timeout": "1"}, ["reconnect_timeout", "'1'"]),
    ],
)
def test_a_wrong_option_is_named_with_what_it_may_be(pool: Any, words: list[str]) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        parse(pool)
    for word in ['DATABASES[\'default\']["OPTIONS"]["pool"]', *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("age", [-1, "5", True, math.inf])
def test_a_wrong_conn_max_age_is_named(age: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match=r'"CONN_MAX_AGE"\] must be seconds'):
        parse(CONN_MAX_AGE=age)


# Pauses between attempts


def test_pauses_grow_up_to_a_limit_and_are_spread() -> None:
    now = itertools.repeat(0.0)
    found = list(itertools.islice(reconnect.pauses(1000.0, lambda: next(now)), 12))
    for number, pause in enumerate(found):
        middle = min(reconnect.FIRST_PAUSE * 2**number, reconnect.LONGEST_PAUSE)
        assert middle * 0.8 <= pause <= middle * 1.2
    again = list(itertools.islice(reconnect.pauses(1000.0, lambda: next(now)), 12))
    assert found != again


def test_pauses_end_with_the_time() -> None:
    clock = [0.0]
    for pause in reconnect.pauses(2.0, lambda: clock[0]):
        clock[0] += pause
    assert clock[0] == pytest.approx(2.0)
    assert list(reconnect.pauses(0.0)) == []


# What the pool decides; its connections here are the least it asks of one


class Raw:
    """The least that the pool asks of a connection."""

    def __init__(self) -> None:
        self.alive = True
        self.terminated = asyncio.Event()

    def is_alive(self) -> bool:
        return self.alive

    def terminate(self) -> None:
        self.alive = False
        self.terminated.set()


def make(**options: Any) -> Pool:
    return Pool("default", asyncio.get_running_loop(), PoolOptions(**options))


async def opened(pool: Pool) -> Any:
    session = await pool.acquire()
    if session.raw is None:
        session.opened(Raw())
    return session


async def test_a_place_is_taken_first_then_an_idle_connection_and_the_latest_of_those() -> None:
    pool = make(max_size=2)
    first, second = await opened(pool), await opened(pool)
    pool.release(first)
    pool.release(second)
    assert await pool.acquire() is second
    assert pool.stats() == {
        "size": 2, "idle": 1, "used": 1, "waiting": 0, "max_size": 2,
        "requests": 3, "waited": 0, "opened": 0,
    }  # fmt: skip
    assert "size=2, idle=1, used=1" in repr(pool)
    pool.close()
    assert repr(pool) == "<Pool 'default': closed>"


async def test_who_waits_is_served_before_who_comes() -> None:
    pool = make(max_size=1)
    session = await opened(pool)
    waiting = asyncio.create_task(pool.acquire())
    await asyncio.sleep(0)
    assert pool.acquire_nowait() is None
    pool.release(session)
    assert pool.acquire_nowait() is None
    assert await waiting is session
    pool.close()


async def test_a_dead_connection_gives_its_place_to_who_waits() -> None:
    pool = make(max_size=1)
    session = await opened(pool)
    waiting = asyncio.create_task(pool.acquire())
    await asyncio.sleep(0)
    session.raw.alive = False
    pool.release(session)
    fresh = await waiting
    assert fresh.raw is None
    assert pool.size == 1
    pool.discard(fresh)
    assert pool.size == 0
    pool.close()


async def test_a_holder_that_was_cancelled_in_line_gives_nobody_a_place() -> None:
    """Its request is in line until its task runs; places are counted for those who wait."""
    pool = make(max_size=1)
    first = await opened(pool)
    second = await pool.acquire(1)
    holder, waiting = pool.enqueue(1), pool.enqueue()
    holder.cancel()
    pool.discard(second)
    assert not waiting.done()
    pool.withdraw(holder)
    pool.discard(first)
    assert pool.size == 1
    pool.discard(waiting.result())
    assert pool.size == 0
    pool.close()


async def test_dead_requests_do_not_pile_up_in_the_queue() -> None:
    pool = make(max_size=1, timeout=1000)
    await opened(pool)
    for _ in range(100):
        task = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert len(pool._queue) == 0
    pool.close()


async def test_a_session_handed_to_a_cancelled_task_after_the_pool_closed_is_closed() -> None:
    pool = make(max_size=1)
    session = await opened(pool)
    raw = session.raw
    task = asyncio.create_task(pool.acquire())
    await asyncio.sleep(0)
    pool.release(session)
    pool.close()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert raw.terminated.is_set()
    assert pool.size == 0


async def test_closing_refuses_who_waits_and_who_comes() -> None:
    pool = make(max_size=1)
    session = await opened(pool)
    waiting = asyncio.create_task(pool.acquire())
    await asyncio.sleep(0)
    pool.close()
    with pytest.raises(PoolClosed):
        await waiting
    with pytest.raises(PoolClosed):
        await pool.acquire()
    raw = session.raw
    pool.release(session)
    assert raw.terminated.is_set()
    pool.close()


async def test_too_many_waiting_and_too_long() -> None:
    pool = make(max_size=1, max_waiting=1, timeout=0.01)
    await opened(pool)
    waiting = asyncio.create_task(pool.acquire())
    await asyncio.sleep(0)
    with pytest.raises(TooManyWaiting, match="1 tasks already wait"):
        await pool.acquire()
    with pytest.raises(PoolTimeout, match="size=1, idle=0, used=1"):
        await waiting
    assert pool.stats()["waiting"] == 0
    pool.close()


async def test_idle_connections_end_oldest_first_down_to_min_size() -> None:
    pool = make(max_size=3, min_size=1, max_idle=0.01)
    sessions = [await opened(pool) for _ in range(3)]
    raws = [session.raw for session in sessions]
    for session in sessions:
        pool.release(session)
    await raws[0].terminated.wait()
    await raws[1].terminated.wait()
    assert not raws[2].terminated.is_set()
    assert pool.size == 1
    pool.close()
    assert raws[2].terminated.is_set()


async def test_an_expired_connection_is_closed_when_it_comes_back() -> None:
    pool = make(max_lifetime=0)
    session = await opened(pool)
    raw = session.raw
    pool.release(session)
    assert raw.terminated.is_set()
    unlimited = make(max_lifetime=None)
    session = await opened(unlimited)
    assert session.expires is None
    pool.close()
    unlimited.close()


async def test_clear_closes_what_is_idle_now_and_the_rest_as_it_comes_back() -> None:
    pool = make(max_size=2)
    used, idle = await opened(pool), await opened(pool)
    kept, dropped = used.raw, idle.raw
    pool.release(idle)
    pool.clear()
    assert dropped.terminated.is_set()
    assert not kept.terminated.is_set()
    pool.release(used)
    assert kept.terminated.is_set()
    assert pool.size == 0
    pool.close()
