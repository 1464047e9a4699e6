"""`detached`: code that is outside the transaction around it, on purpose."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.db import connection

from nuages.db import aatomic, detached
from tests.integration.conftest import Run
from tests.integration.scope_tools import (
    Failure,
    names,
    pool_stats,
    rolled_back,
)
from tests.library.models import Author

pytestmark = [pytest.mark.every_database, pytest.mark.both_loops]


def test_detached_reads_what_is_committed(database: str, run: Run) -> None:
    async def main() -> None:
        await Author.objects.acreate(name="before")
        async with aatomic():
            await Author.objects.acreate(name="inside")
            async with detached():
                assert not connection.in_atomic_block
                assert await Author.objects.acount() == 1
                async with detached():
                    assert await Author.objects.acount() == 1
                assert await Author.objects.acount() == 1
            assert connection.in_atomic_block
            assert await Author.objects.acount() == 2

    run(main)


def test_detached_writes_stay_whatever_becomes_of_the_transaction(
    postgresql: dict[str, Any], run: Run
) -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def outlives() -> None:
            await go.wait()
            await Author.objects.acreate(name="by a task")

        async with rolled_back():
            await Author.objects.acreate(name="inside")
            async with detached():
                await Author.objects.acreate(name="detached")
                async with aatomic():
                    await Author.objects.acreate(name="its own transaction")
                    async with detached():
                        await Author.objects.acreate(name="nested")
                with pytest.raises(Failure):
                    async with aatomic():
                        await Author.objects.acreate(name="its own failure")
                        raise Failure
                task = asyncio.create_task(outlives())
            assert await Author.objects.acount() == 4
        go.set()
        await task
        assert await names() == ["by a task", "detached", "its own transaction", "nested"]
        assert pool_stats()["used"] == 0

    run(main)


def test_detached_is_left_by_an_error_too(database: str, run: Run) -> None:
    async def main() -> None:
        async with aatomic():
            with pytest.raises(Failure):
                async with detached():
                    raise Failure
            assert connection.in_atomic_block
            await Author.objects.acreate(name="inside")
        assert await names() == ["inside"]

    run(main)
