"""A live server in the test's transaction, for Django's runner."""

import asyncio

import httpx
from notes.models import Note

from nuages.test import AsyncLiveServerTestCase, AsyncLiveServerTransactionTestCase


class Live(AsyncLiveServerTestCase):
    @classmethod
    async def setUpTestData(cls) -> None:
        await Note.objects.acreate(title="of the class")

    async def asyncSetUp(self) -> None:
        self.http = await self.enterAsyncContext(httpx.AsyncClient(base_url=self.live_server_url))

    async def test_shared(self) -> None:
        await Note.objects.acreate(title="of the test")
        assert (await self.http.get("/add/one")).json()["notes"] == 3
        assert await Note.objects.acount() == 3
        assert (await self.http.get("/titles")).json()["titles"][2] == "one"

    async def test_many(self) -> None:
        answers = await asyncio.gather(*(self.http.get(f"/add/{n}") for n in range(10)))
        assert {answer.status_code for answer in answers} == {200}
        assert await Note.objects.acount() == 11

    def test_sync(self) -> None:
        assert httpx.get(f"{self.live_server_url}/add/one").json()["notes"] == 2
        assert Note.objects.count() == 2


class LiveAndCommitted(AsyncLiveServerTransactionTestCase):
    serialized_rollback = True

    async def test_one(self) -> None:
        async with httpx.AsyncClient(base_url=self.live_server_url) as http:
            answers = await asyncio.gather(*(http.get(f"/add/{n}") for n in range(5)))
        assert {answer.status_code for answer in answers} == {200}
        assert await Note.objects.acount() == 5

    async def test_two(self) -> None:
        assert await Note.objects.acount() == 0
