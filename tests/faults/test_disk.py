"""The disk is full: a real small one, or a file that may not grow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import pytest
from django.db import OperationalError

from nuages.db import acursor
from tests.faults import servers
from tests.faults.world import World, fault
from tests.library.models import Tag
from tests.services import NotInstalled


async def without_end() -> None:
    """Twice as many rows with every statement."""
    await Tag.objects.acreate(name="x" * 40)
    while True:
        async with acursor() as cursor:
            await cursor.execute("INSERT INTO library_tag (name) SELECT name FROM library_tag")


@fault("disk full in mid-transaction", deadline=20, on=("postgresql", "mysql", "sqlite"))
async def test_disk_full(world: World) -> None:
    """The time is mostly that of writing until it is full."""
    with LIMITS[world.database.name](world) as make_room:
        world.strikes()
        await world.raises(world.write("half", then=without_end), OperationalError)
        assert not world.database.committed()
        world.row.note("rolled back")
        assert world.pool.stats()["size"] == 1
        make_room()
        await world.write("there is room again")


@contextmanager
def full_file_system(world: World) -> Iterator[Callable[[], None]]:
    """The table is on a file system of 8 MiB; gives a way to make room there."""
    with ExitStack() as stack:
        try:
            disk = stack.enter_context(servers.small_disk(8))
        except NotInstalled as reason:
            pytest.skip(str(reason))
        world.database.rows(f"CREATE TABLESPACE small LOCATION '{disk}'")
        world.database.rows("ALTER TABLE library_tag SET TABLESPACE small")
        reserve = disk / "reserve"
        reserve.write_bytes(b"x" * 2**20)
        try:
            yield reserve.unlink
        finally:
            world.database.rows("ALTER TABLE library_tag SET TABLESPACE pg_default")
            world.database.rows("DROP TABLESPACE small")


@contextmanager
def full_tablespace(world: World) -> Iterator[Callable[[], None]]:
    """The server's only tablespace has a greatest size (tests.faults.servers.MARIADB)."""
    yield lambda: None  # the rollback has made it


@contextmanager
def full_file(world: World) -> Iterator[Callable[[], None]]:
    """SQLite says of a file that may not grow what it says on a full disk."""
    world.settings["OPTIONS"] = {"init_command": "PRAGMA max_page_count = 500"}
    yield lambda: None


LIMITS: dict[str, Callable[[World], AbstractContextManager[Callable[[], None]]]] = {
    "postgresql": full_file_system,
    "mysql": full_tablespace,
    "sqlite": full_file,
}
