"""Ten async tests that write, for Django's runner: its own TestCase, as it is."""

import asyncio
from typing import Any

from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.db import transaction
from django.test import AsyncClient, TestCase
from notes.models import Note, Remark


class Ten(TestCase):
    loops: set[Any] = set()

    @classmethod
    def setUpTestData(cls) -> None:
        cls.note = Note.objects.create(title="of the class")

    def setUp(self) -> None:
        Remark.objects.create(note=self.note, text="of setUp")

    def tearDown(self) -> None:
        # The test's rows, seen from outside the loop.
        assert Note.objects.count() == self.notes

    async def check(self, notes: int) -> None:
        self.loops.add(asyncio.get_running_loop())
        self.notes = notes
        assert await Note.objects.acount() == notes
        assert await Remark.objects.filter(text="of setUp").acount() == 1

    async def test_create(self) -> None:
        await Note.objects.acreate(title="a")
        await self.check(2)

    async def test_class_data(self) -> None:
        assert (await Note.objects.aget()).pk == self.note.pk
        await Note.objects.aupdate(title="changed")
        await self.check(1)

    async def test_class_data_again(self) -> None:
        assert (await Note.objects.aget()).title == "of the class"
        await self.note.remarks.acreate(text="b")
        await self.check(1)

    async def test_gather(self) -> None:
        await asyncio.gather(*(Note.objects.acreate(title=str(n)) for n in range(10)))
        await self.check(11)

    async def test_sync_to_async(self) -> None:
        await sync_to_async(Note.objects.create)(title="in a thread")
        await sync_to_async(Note.objects.create, thread_sensitive=False)(title="in another")
        await self.check(3)

    async def test_atomic_in_sync_code(self) -> None:
        def write() -> None:
            with transaction.atomic():
                Note.objects.create(title="stays")
            try:
                with transaction.atomic():
                    Note.objects.create(title="goes")
                    raise ValueError
            except ValueError:
                pass

        await sync_to_async(write)()
        await self.check(2)

    async def test_async_client(self) -> None:
        response = await self.async_client.get("/add/one")
        assert response.json()["notes"] == 2
        response = await AsyncClient().get("/add/two")
        assert response.json()["notes"] == 3
        assert (await self.async_client.get("/titles")).json()["titles"][1:] == ["one", "two"]
        await self.check(3)

    async def test_sync_client(self) -> None:
        response = await sync_to_async(self.client.get)("/add/one")
        assert response.json()["notes"] == 2
        await self.check(2)

    async def test_login(self) -> None:
        user = await User.objects.acreate_user("ann", password="secret")
        await self.async_client.aforce_login(user)
        assert await self.async_client.alogin(username="ann", password="secret")
        await self.check(1)

    async def test_tasks(self) -> None:
        async with asyncio.TaskGroup() as group:
            for n in range(3):
                group.create_task(self.note.remarks.acreate(text=str(n)))
        assert await self.note.remarks.acount() == 4
        await self.check(1)

    def test_sync(self) -> None:
        self.notes = 3
        Note.objects.create(title="sync")
        assert self.client.get("/add/two").json()["notes"] == 3
