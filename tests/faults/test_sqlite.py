"""SQLite: its file is in somebody else's hands, or gone; a process of ours is killed."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from django.db import OperationalError

from tests.faults.world import World, fault
from tests.library.models import Tag

SQLITE = ("sqlite",)


@asynccontextmanager
async def another_process(world: World, script: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A Python process with the file's path as its argument; at the end it is killed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(world.database.path), stdout=subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


LOCK = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
connection.execute("INSERT INTO library_tag (name) VALUES ('theirs')")
print("locked", flush=True)
time.sleep(60)
"""


@fault("write lock held by another process, OPTIONS timeout 1", deadline=4, on=SQLITE)
async def test_locked(world: World) -> None:
    world.settings["OPTIONS"] = {"timeout": 1}
    async with another_process(world, LOCK) as process:
        await process.stdout.readline()
        world.strikes()
        await world.raises(world.write("half"), OperationalError)
        world.lost.add("half")
        world.row.note("readers go on")
        assert await Tag.objects.acount() == 0


@fault("the process with the write lock is killed in mid-transaction", deadline=5, on=SQLITE)
async def test_lock_of_a_killed_process(world: World) -> None:
    """Who waits for the lock gets it; what the other had written is rolled back."""
    async with another_process(world, LOCK) as process:
        await process.stdout.readline()
        task = asyncio.create_task(world.write("ours"))
        await asyncio.sleep(0.1)
        assert not task.done()
        world.strikes()
        process.send_signal(signal.SIGKILL)
        await world.answers(task)
    world.lost.add("theirs")


@fault("the file is replaced while it is open", deadline=2, on=SQLITE)
async def test_replaced(world: World) -> None:
    """A backup is put back, say. SQLite itself would go on with a file that nobody sees again."""
    await asyncio.gather(*(Tag.objects.acount() for _ in range(3)))
    put_back(world.database.path)
    world.strikes()
    await world.raises(world.write("nowhere"), OperationalError)
    world.lost.add("nowhere")
    await world.answers(world.write("in the new file"))


def put_back(path: Path) -> None:
    backup = path.with_suffix(".backup")
    shutil.copy(path, backup)
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    backup.replace(path)


WRITER = """
import asyncio, sys
import django
from django.conf import settings

settings.configure(
    DATABASES={"default": {"ENGINE": "nuages.db.backends.sqlite3", "NAME": sys.argv[1]}},
    INSTALLED_APPS=["django.contrib.contenttypes", "tests.library", "nuages"],
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
)
django.setup()
from nuages.db import aatomic
from tests.library.models import Tag

async def write(name):
    async with aatomic():
        await Tag.objects.acreate(name=name)
        await Tag.objects.acreate(name=name + " too")
    print(name, flush=True)

async def main():
    for number in range(1_000_000):
        await asyncio.gather(*(write(f"{number}.{part}") for part in range(5)))

asyncio.run(main())
"""


@fault("our own process is killed while it writes", deadline=5, on=SQLITE)
async def test_killed(world: World) -> None:
    """What it said to be committed is there, and no half of a transaction."""
    async with another_process(world, WRITER) as process:
        told = {(await process.stdout.readline()).decode().strip() for _ in range(100)}
        process.send_signal(signal.SIGKILL)
        world.strikes()
        told |= set((await process.stdout.read()).decode().split())
        await process.wait()
    found = await world.answers(Tag.objects.values_list("name", flat=True).alist())
    whole = {name for name in found if not name.endswith(" too")}
    assert len(found) == len(set(found)) == 2 * len(whole)
    assert told <= whole
    world.row.note("all there")
