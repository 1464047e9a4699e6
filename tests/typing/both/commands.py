"""Commands, migrations, test tools."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, assert_type

from django.apps.registry import Apps
from django.db.migrations.operations.base import Operation
from django.db.models import F, Model, Q, QuerySet

from nuages.db.migrations import Backfill
from nuages.management import AsyncBaseCommand, Progress, acall_command
from nuages.test import AsyncLiveServerTestCase, AsyncTestCase, FaultProxy, LiveServer

from nuages.test import forbid_blocking, forbid_threads  # isort: skip


async def numbers() -> AsyncIterator[float]:
    yield 1.0


class Command(AsyncBaseCommand):
    stop_timeout = 3.0

    async def handle(self, *args: Any, **options: Any) -> str | None:
        for name in self.progress(["a"], description="Names"):
            assert_type(name, str)
        async for number in Progress(numbers(), total=3, output=self.stderr):
            assert_type(number, float)
        with Progress[int](total=3) as progress:
            progress.advance("1")  # error: mypy arg-type, pyright reportArgumentType
        return None


class Sync(AsyncBaseCommand):
    def handle(self, *args: Any, **options: Any) -> None:  # error: mypy override, pyright reportIncompatibleMethodOverride # fmt: skip
        pass


async def commands() -> None:
    await acall_command("migrate", "shop", verbosity=0)
    await acall_command(Command(), stdout=None)
    await acall_command(3)  # error: mypy arg-type, pyright reportArgumentType


async def fill(apps: Apps, rows: QuerySet[Model]) -> None:
    await rows.aupdate(title="")


def fill_sync(apps: Apps, rows: QuerySet[Model]) -> None: ...


async def lag() -> float:
    return 0.5


operations: list[Operation] = [
    Backfill("book", {"title": F("subtitle")}, where=Q(title=""), batch_size=10, wait=lag),
    Backfill("book", fill, reverse=Backfill.noop, wait=lambda: None),
    Backfill("book", fill_sync, load=0.5),
]

Backfill("book", 3)  # error: mypy arg-type, pyright reportArgumentType
Backfill("book", fill, where=True)  # error: mypy arg-type, pyright reportArgumentType
Backfill("book", fill, wait=3)  # error: mypy arg-type, pyright reportArgumentType
Backfill("book", lag)  # error: mypy arg-type, pyright reportArgumentType


class Tests(AsyncTestCase):
    @classmethod
    async def setUpTestData(cls) -> None:
        await super().setUpTestData()

    async def asyncSetUp(self) -> None:
        self.proxy = await self.enterAsyncContext(FaultProxy("127.0.0.1", 5432))
        assert_type(self.proxy, FaultProxy)
        self.addAsyncCleanup(self.release, 3)
        self.addAsyncCleanup(self.release)  # error: mypy call-arg, pyright reportCallIssue

    async def release(self, number: int) -> None: ...

    async def test_tools(self) -> None:
        with forbid_threads(allow=["shop"]) as threads:
            assert_type(threads.started, list[str])
        with forbid_blocking():
            self.proxy.stall("to_server")
        self.proxy.stall("up")  # error: mypy arg-type, pyright reportArgumentType
        with LiveServer() as server:
            assert_type(server.url, str)


class SyncData(AsyncTestCase):
    @classmethod
    def setUpTestData(cls) -> None: ...


class Live(AsyncLiveServerTestCase):
    def test_url(self) -> None:
        assert_type(self.live_server_url, str)
        self.live_server_ulr  # error: mypy attr-defined, pyright reportAttributeAccessIssue
