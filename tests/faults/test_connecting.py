"""Nobody answers at the address, or somebody else does: connecting, starting up, failing over."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import psycopg
import pytest
from django.db import OperationalError

from nuages.db import acursor
from nuages.db.pool.pool import open_pools
from nuages.exceptions import OutcomeUnknown
from nuages.test import FaultProxy
from tests.faults import servers
from tests.faults.databases import MariaDB, Postgres
from tests.faults.world import World, fault, prepare
from tests.integration.pool_tools import Heartbeat, options
from tests.library.models import Tag
from tests.services import free_port

CONNECT = {"connect_timeout": 2}
"""The least that libpq takes."""


@contextmanager
def elsewhere(world: World) -> Iterator[None]:
    """The database is another one for the length of the block, and so are its rows."""
    database, settings = world.database, dict(world.settings)
    yield
    for pool in open_pools():
        pool.close()
    if world.database is not database:
        world.database.rows("DELETE FROM library_tag")
    world.database = database
    world.settings.update(settings)
    for told in (world.acknowledged, world.lost, world.hooks):
        told.clear()


def hosts(world: World, *ports: int) -> None:
    world.settings.update(
        HOST=",".join("127.0.0.1" for _ in ports), PORT=",".join(map(str, ports))
    )


@fault("no answer to the login, connect_timeout 2", deadline=4)
async def test_no_answer(world: World) -> None:
    world.settings["OPTIONS"] = CONNECT
    world.proxy.stall()
    world.strikes()
    async with Heartbeat() as heart:
        await world.raises(Tag.objects.acount(), OperationalError)
        assert heart.beats > 100, "the loop was blocked"
    world.proxy.resume()


@fault("no answer to the login, asyncio.timeout(0.5)", deadline=2)
async def test_no_answer_and_a_timeout(world: World) -> None:
    world.proxy.stall()
    world.strikes()
    await world.raises(world.within(0.5, Tag.objects.acount()), TimeoutError)
    assert world.pool.stats()["size"] == 0
    world.proxy.resume()


@fault("packets to the address are dropped, connect_timeout 2", deadline=4)
async def test_dropped(world: World) -> None:
    world.settings["OPTIONS"] = CONNECT
    with black_hole() as port:
        through, world.settings["PORT"] = world.settings["PORT"], str(port)
        world.strikes()
        async with Heartbeat() as heart:
            await world.raises(Tag.objects.acount(), OperationalError)
            assert heart.beats > 100, "the loop was blocked"
        world.settings["PORT"] = through


@contextmanager
def black_hole() -> Iterator[int]:
    """A port whose queue is full: the system answers no more SYN."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = listener.getsockname()
        for _ in range(2):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(address)
        yield address[1]


# Several hosts


@fault("first of two hosts refuses", deadline=2, on=("postgresql",))
async def test_first_host_refuses(world: World) -> None:
    hosts(world, free_port(), world.proxy.port)
    world.strikes()
    await world.answers(Tag.objects.acount())


@fault("first of two hosts does not answer, connect_timeout 2", deadline=4, on=("postgresql",))
async def test_first_host_does_not_answer(world: World) -> None:
    world.settings["OPTIONS"] = CONNECT
    target = world.database.server.port
    async with FaultProxy("127.0.0.1", target) as silent:
        silent.stall()
        hosts(world, silent.port, world.proxy.port)
        world.strikes()
        await world.answers(Tag.objects.acount())


@fault("both hosts refuse", deadline=2, on=("postgresql",))
async def test_both_hosts_refuse(world: World) -> None:
    ports = free_port(), free_port()
    hosts(world, *ports)
    world.strikes()
    error = await world.raises(Tag.objects.acount(), OperationalError)
    assert all(str(port) in str(error) for port in ports)
    hosts(world, world.proxy.port)


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Postgres, Postgres]]:
    """A primary and its standby, both of a failover that happens once."""
    with servers.postgres() as server:
        primary = Postgres(server)
        prepare(primary)
        with servers.standby_of(server) as standby:
            yield primary, Postgres(standby)


@fault("standby only, target_session_attrs read-write", deadline=2, on=("postgresql",))
async def test_standby_only(world: World) -> None:
    _, standby = await asyncio.to_thread(world.fixture, "pair")
    with elsewhere(world):
        world.settings["OPTIONS"] = {"target_session_attrs": "read-write"}
        hosts(world, standby.server.port, free_port())
        world.strikes()
        await world.raises(Tag.objects.acount(), OperationalError)


@fault("session ended while COMMIT waits for its standby", deadline=2, on=("postgresql",))
async def test_ended_while_commit_waits(world: World) -> None:
    """PostgreSQL has committed by then, and says that it ends the session."""
    primary, standby = await asyncio.to_thread(world.fixture, "pair")
    with elsewhere(world):
        world.database = primary
        hosts(world, primary.server.port)
        await Tag.objects.acount()
        standby.server.suspend()
        task = asyncio.create_task(world.write("there"))
        waits = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        async with asyncio.timeout(20):
            while not (waiting := primary.rows(waits)):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        world.strikes()
        primary.end_session(waiting[0][0])
        await world.raises(task, OutcomeUnknown)
        assert primary.committed()["there"] == 1
        world.row.note("was committed")
        standby.server.resume()
        await world.is_whole()


@fault("failover to the standby under 20 writers", deadline=30, on=("postgresql",))
async def test_failover(world: World) -> None:
    """COMMIT waits for the standby, so what was acknowledged is there when the primary is gone."""
    primary, standby = await asyncio.to_thread(world.fixture, "pair")
    with elsewhere(world):
        world.settings["OPTIONS"] = {"target_session_attrs": "read-write"}
        options(reconnect_timeout=30)
        # The standby comes first: it is asked, and left alone as long as it is one.
        hosts(world, standby.server.port, primary.server.port)
        names = iter(f"row {number}" for number in range(200))

        async def writer() -> None:
            for name in names:
                await world.write_surely(name)

        assert await _port() == primary.server.port
        task = asyncio.gather(*(writer() for _ in range(20)))
        while len(world.acknowledged) < 100:  # noqa: ASYNC110
            await asyncio.sleep(0)
        primary.server.kill()
        world.strikes()
        with standby.client() as client:
            client.execute("SELECT pg_promote()")
        await world.answers(task)
        assert len(world.acknowledged) == 200
        assert await _port() == standby.server.port
        world.row.note("200 rows, each there once")
        world.database = standby
        await world.is_whole()


async def _port() -> int:
    async with acursor() as cursor:
        await cursor.execute("SELECT inet_server_port()")
        (port,) = await cursor.fetchone()
        return int(port)


@fault("failover to another server behind the address", deadline=5, on=("mysql",))
async def test_another_server(world: World) -> None:
    """As a load balancer does it: the sessions end, the address stays."""
    options(reconnect_timeout=30)
    with ExitStack() as stack:
        second = MariaDB(await asyncio.to_thread(stack.enter_context, servers.mariadb()))
        await asyncio.to_thread(prepare, second)
        task = await world.asleep(world.write("half", then=world.sleep))
        world.strikes()
        world.database.server.kill()
        await world.raises(task, OperationalError)
        world.proxy.target = ("127.0.0.1", second.server.port)
        assert await world.next_request("second") == 200
        assert second.committed() == {"second": 1}
        world.row.note("next request answered")
        world.lost.add("half")
        world.acknowledged.remove("second")  # not here
        world.proxy.target = ("127.0.0.1", world.database.server.port)
        world.pool.clear()
        await asyncio.to_thread(world.database.server.start)


# Starting up


@fault("server starting up", deadline=2, on=("postgresql",))
async def test_starting_up(world: World) -> None:
    with starting_up(world):
        world.strikes()
        error = await world.raises(Tag.objects.acount(), OperationalError)
        assert "starting up" in str(error)


@fault("server starting up, reconnect_timeout", deadline=5, on=("postgresql",))
async def test_started_up(world: World) -> None:
    options(reconnect_timeout=30)
    with starting_up(world) as go_on:
        world.strikes()
        task = asyncio.create_task(Tag.objects.acount())
        await world.proxy.ended.wait()  # it was told that the server is starting up
        assert not task.done()
        go_on()
        await world.answers(task)


@contextmanager
def starting_up(world: World) -> Iterator[Callable[[], None]]:
    """A server that reads its log, and comes to nothing until it is let: it asks an archive."""
    server = world.database.server
    held = server.home / "held"
    held.touch()
    archive = f"while [ -e {held} ]; do sleep 0.02; done; false"
    world.database.rows(f"ALTER SYSTEM SET restore_command = '{archive}'")
    world.database.rows("ALTER SYSTEM SET hot_standby = off")
    server.kill()
    (server.home / "data" / "recovery.signal").touch()
    server.start(wait=False)
    try:
        _until_it_says(server, "starting up")
        yield held.unlink
    finally:
        held.unlink(missing_ok=True)
        server.until_it_answers()
        world.database.rows("ALTER SYSTEM RESET ALL")


def _until_it_says(server: servers.Server, words: str) -> None:
    deadline = time.monotonic() + servers.PATIENCE
    while time.monotonic() < deadline:
        try:
            servers.connect_to_postgres(server.port).close()
        except psycopg.OperationalError as error:
            if words in str(error):
                return
        time.sleep(0.01)
    raise AssertionError(f"it never said {words!r}: {server.log()}")
