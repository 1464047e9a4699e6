"""Tests that go wrong, each followed by one that must find all as it should be.

`python -m django test broken_tests`; the tests beside this project look at what is reported.
"""

import asyncio
from typing import Any

from asgiref.sync import async_to_sync
from django.db import connection, transaction
from django.test import TestCase, TransactionTestCase
from notes.models import Note

from nuages import on_loop
from nuages.db import aatomic


class Clean:
    """The tests of a class run by name: a broken one, then `test_z`."""

    notes = 1

    @classmethod
    def setUpTestData(cls) -> None:
        Note.objects.create(title="of the class")

    async def test_z_next(self) -> None:
        assert await Note.objects.acount() == self.notes
        async with aatomic():
            await Note.objects.acreate(title="a")
        assert await Note.objects.acount() == self.notes + 1


class Fails(Clean, TestCase):
    async def test_a(self) -> None:
        await Note.objects.acreate(title="a")
        async with aatomic():
            await Note.objects.acreate(title="b")
            raise AssertionError("it fails")


class Cancelled(Clean, TestCase):
    async def test_a(self) -> None:
        await Note.objects.acreate(title="a")
        asyncio.current_task().cancel()  # type: ignore[union-attr]
        await Note.objects.acount()


class TimesOut(Clean, TestCase):
    async def test_a(self) -> None:
        async with asyncio.timeout(0.05):
            await on_loop(long_statement)()


def long_statement() -> None:
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT pg_sleep(30)")
        else:
            cursor.execute(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n "
                "WHERE i < 500000000) SELECT max(i) FROM n"
            )


class LeavesTask(Clean, TestCase):
    async def test_a(self) -> None:
        self.task = asyncio.create_task(self.forever(), name="the forgotten task")

    async def forever(self) -> None:
        while True:
            await Note.objects.acreate(title="too late")


class LeavesStatement(Clean, TestCase):
    async def test_a(self) -> None:
        self.task = asyncio.create_task(on_loop(long_statement)(), name="the long statement")
        await asyncio.sleep(0)


class LeavesBlock(Clean, TestCase):
    async def test_a(self) -> None:
        self.atomic = aatomic()
        await self.atomic.__aenter__()
        await Note.objects.acreate(title="a")


class LeavesSyncBlock(Clean, TestCase):
    async def test_a(self) -> None:
        await Note.objects.acreate(title="a")

    def tearDown(self) -> None:
        if self._testMethodName == "test_a":
            transaction.atomic().__enter__()
            Note.objects.create(title="b")


class LeavesBlockInTask(Clean, TestCase):
    async def test_a(self) -> None:
        self.entered = asyncio.Event()
        self.task = asyncio.create_task(self.block(), name="the task in a block")
        await self.entered.wait()

    async def block(self) -> None:
        async with aatomic():
            self.entered.set()
            await asyncio.Event().wait()


class BreaksConnection(Clean, TestCase):
    async def test_a(self) -> None:
        await Note.objects.acreate(title="a")
        await on_loop(lambda: connection.connection.terminate())()
        await Note.objects.acount()


class LeavesTransaction(Clean, TransactionTestCase):
    serialized_rollback = True
    notes = 0

    async def test_a(self) -> None:
        self.atomic = aatomic()
        await self.atomic.__aenter__()
        await Note.objects.acreate(title="a")


class SyncLeaves(Clean, TestCase):
    def test_a(self) -> None:
        async def enter() -> None:
            self.atomic = aatomic()
            await self.atomic.__aenter__()

        async_to_sync(enter)()


class Unrelated(Clean, TestCase):
    kept: dict[str, Any] = {}

    async def test_a(self) -> None:
        await Note.objects.acreate(title="a")
