"""AsyncTestCase, counts and captures, for Django's runner."""

import asyncio
import contextlib
from typing import Any

from asgiref.sync import async_to_sync
from django.db import connection, transaction
from django.test import TestCase, TransactionTestCase
from notes.models import Note

from nuages import on_loop
from nuages.db import aatomic, aon_commit, detached
from nuages.test import AsyncTestCase, AsyncTransactionTestCase


class Steps(AsyncTestCase):
    """Every step on one loop, in the order of the standard library's case."""

    order: list[str]

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.order = []
        cls.loop, cls.task = async_to_sync(cls.begin)()

    @staticmethod
    async def begin() -> Any:
        """What is bound to the loop lives as long as the class: a task that goes on, say."""
        return asyncio.get_running_loop(), asyncio.create_task(asyncio.Event().wait())

    @classmethod
    async def setUpTestData(cls) -> None:
        cls.note = await Note.objects.acreate(title="of the class")

    def setUp(self) -> None:
        type(self).order = ["setUp"]

    @contextlib.asynccontextmanager
    async def resource(self) -> Any:
        yield await Note.objects.acreate(title="resource")
        self.order.append("leave")
        # Still in the test's transaction.
        assert await Note.objects.acount() >= 2

    async def asyncSetUp(self) -> None:
        self.order.append("asyncSetUp")
        self.addCleanup(self.order.append, "cleanup")
        self.addAsyncCleanup(self.append, "async cleanup")
        self.entered = await self.enterAsyncContext(self.resource())

    async def append(self, word: str) -> None:
        self.order.append(word)

    async def asyncTearDown(self) -> None:
        self.order.append("asyncTearDown")
        assert asyncio.get_running_loop() is self.loop
        assert not self.task.done()

    def tearDown(self) -> None:
        self.order.append("tearDown")

    @classmethod
    def tearDownClass(cls) -> None:
        expected = ["setUp", "asyncSetUp", "asyncTearDown", "tearDown"]
        assert cls.order == [*expected, "leave", "async cleanup", "cleanup"], cls.order
        super().tearDownClass()

    async def test_one(self) -> None:
        assert asyncio.get_running_loop() is self.loop
        assert await Note.objects.acount() == 2
        await Note.objects.aupdate(title="changed")

    async def test_two(self) -> None:
        assert asyncio.get_running_loop() is self.loop
        assert {note.title async for note in Note.objects.all()} == {"of the class", "resource"}

    def test_sync(self) -> None:
        assert Note.objects.count() == 2


class Inherits(Steps):
    @classmethod
    async def setUpTestData(cls) -> None:
        await super().setUpTestData()
        cls.second = await Note.objects.acreate(title="second")

    async def test_one(self) -> None:
        assert await Note.objects.acount() == 3

    async def test_two(self) -> None:
        assert await Note.objects.acount() == 3

    def test_sync(self) -> None:
        assert Note.objects.count() == 3


class NotAContext(AsyncTestCase):
    async def test_it(self) -> None:
        with self.assertRaisesMessage(TypeError, "is no async context manager"):
            await self.enterAsyncContext(object())


class Counts(TestCase):
    """On Django's own TestCase."""

    async def three(self) -> None:
        await Note.objects.acount()
        await asyncio.gather(Note.objects.acount(), asyncio.to_thread(Note.objects.count))

    async def test_with(self) -> None:
        with self.assertNumQueries(3):
            await self.three()
        async with self.assertNumQueries(3):
            await self.three()
        await self.assertNumQueries(3, self.three)

    async def test_wrong(self) -> None:
        with self.assertRaisesMessage(AssertionError, "3 queries executed, 2 expected"):
            await self.assertNumQueries(2, self.three)

    async def test_apart(self) -> None:
        """Tasks of their own count their own queries, on one connection."""

        async def count(number: int) -> None:
            async with self.assertNumQueries(number):
                for _ in range(number):
                    await Note.objects.acount()

        await asyncio.gather(*(count(number) for number in range(4)))

    def test_sync_code_that_calls_async(self) -> None:
        with self.assertNumQueries(2):
            assert self.client.get("/add/one").json()["notes"] == 1

    async def test_client(self) -> None:
        async with self.assertNumQueries(2):
            await self.async_client.get("/add/one")


class Hooks(TestCase):
    called: list[str]

    async def on_commit(self) -> None:
        self.called.append(f"async {await Note.objects.acount()}")

    def then(self) -> None:
        self.called.append("sync")
        transaction.on_commit(lambda: self.called.append("by a hook"))

    async def write(self) -> None:
        async with aatomic():
            await Note.objects.acreate(title="a")
            await aon_commit(self.on_commit)
            await aon_commit(self.then)

    async def test_async_with(self) -> None:
        self.called = []
        async with self.captureOnCommitCallbacks(execute=True) as callbacks:
            await self.write()
            assert self.called == []
        assert self.called == ["async 1", "sync", "by a hook"]
        assert len(callbacks) == 3

    async def test_not_executed(self) -> None:
        self.called = []
        with self.captureOnCommitCallbacks() as callbacks:
            await self.write()
        assert len(callbacks) == 2
        assert self.called == []

    def test_sync(self) -> None:
        self.called = []
        with self.captureOnCommitCallbacks(execute=True) as callbacks:
            transaction.on_commit(self.then)
        assert self.called == ["sync", "by a hook"]
        assert len(callbacks) == 2

    async def test_errors(self) -> None:
        def fail() -> None:
            raise ValueError("from the hook")

        with self.assertLogs("django.test", "ERROR"):
            async with self.captureOnCommitCallbacks(execute=True):
                await aon_commit(fail, robust=True)
        with self.assertRaisesMessage(ValueError, "from the hook"):
            async with self.captureOnCommitCallbacks(execute=True):
                await aon_commit(fail)


class Scopes(TestCase):
    async def test_blocks_of_tasks_nest_and_never_interleave(self) -> None:
        async def write(n: int) -> None:
            try:
                async with aatomic():
                    await Note.objects.acreate(title=str(n))
                    await asyncio.sleep(0)
                    assert await Note.objects.acount() == 1 + n // 2
                    if n % 2 == 0:
                        raise ValueError
            except ValueError:
                pass

        await asyncio.gather(*(write(n) for n in range(6)))
        assert await Note.objects.acount() == 3

    async def test_durable(self) -> None:
        async with aatomic(durable=True):
            await Note.objects.acreate(title="a")

    async def test_detached(self) -> None:
        async with aatomic():
            async with detached():
                await Note.objects.acreate(title="a")
            assert await Note.objects.acount() == 1

    async def test_sync_code_on_the_loop(self) -> None:
        def write() -> int:
            with transaction.atomic():
                Note.objects.create(title="a")
            return Note.objects.count()

        assert await on_loop(write)() == 1
        assert connection.in_atomic_block

    def test_sync_code_around(self) -> None:
        async def write() -> None:
            async with aatomic():
                await Note.objects.acreate(title="b")

        with transaction.atomic():
            Note.objects.create(title="a")
            async_to_sync(write)()
            transaction.set_rollback(True)
        assert Note.objects.count() == 0


class Committed(AsyncTransactionTestCase):
    serialized_rollback = True

    async def asyncSetUp(self) -> None:
        self.note = await Note.objects.acreate(title="of asyncSetUp")

    async def test_one(self) -> None:
        assert await Note.objects.acount() == 1
        await asyncio.gather(*(Note.objects.acreate(title=str(n)) for n in range(3)))
        assert not connection.in_atomic_block
        called: list[int] = []
        async with aatomic():
            await aon_commit(lambda: called.append(1))
        assert called == [1]

    async def test_two(self) -> None:
        assert await Note.objects.acount() == 1


class CommittedByDjangos(TransactionTestCase):
    serialized_rollback = True

    async def test_one(self) -> None:
        await Note.objects.acreate(title="one")
        assert await Note.objects.acount() == 1

    async def test_two(self) -> None:
        assert await Note.objects.acount() == 0
        assert (await self.async_client.get("/add/one")).json()["notes"] == 1
