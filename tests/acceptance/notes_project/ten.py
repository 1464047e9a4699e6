"""Ten async tests that write; `ten_asyncio` and `ten_anyio` run them, each with its plugin."""

import asyncio

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.db import connection, transaction
from notes.models import Note


@pytest.fixture
def sync_note(db):
    return Note.objects.create(title="of a sync fixture")


async def live_note():
    """For a fixture of the plugin's own kind."""
    note = await Note.objects.acreate(title="of an async fixture")
    yield note
    assert await Note.objects.filter(pk=note.pk).aexists()
    await note.adelete()


@pytest.fixture
def in_atomic(db):
    with transaction.atomic():
        yield Note.objects.create(title="in an atomic fixture")


async def test_create():
    assert await Note.objects.acount() == 0
    await Note.objects.acreate(title="a")
    assert await Note.objects.acount() == 1


async def test_sync_fixture(sync_note):
    assert (await Note.objects.aget()).pk == sync_note.pk
    await sync_note.adelete()
    assert await Note.objects.acount() == 0


async def test_async_fixture(async_note):
    assert (await Note.objects.aget()).pk == async_note.pk


async def test_both(sync_note, async_note, in_atomic):
    assert await Note.objects.acount() == 3
    await Note.objects.acreate(title="a")


async def test_gather():
    await asyncio.gather(*(Note.objects.acreate(title=str(n)) for n in range(10)))
    assert await Note.objects.acount() == 10


async def test_sync_to_async(sync_note):
    await sync_to_async(Note.objects.create)(title="in a thread")
    await sync_to_async(Note.objects.create, thread_sensitive=False)(title="in another")
    await asyncio.to_thread(Note.objects.create, title="in a third")
    await sync_to_async(connection.close)()
    assert await Note.objects.acount() == 4


async def test_async_client(async_client, sync_note):
    response = await async_client.get("/add/one")
    assert response.json()["notes"] == 2
    assert (await async_client.get("/titles")).json()["titles"] == ["of a sync fixture", "one"]


async def test_sync_client(client, async_note):
    response = await sync_to_async(client.get)("/add/one")
    assert response.json()["notes"] == 2


async def test_login(async_client, admin_user):
    await User.objects.acreate_user("ann", password="secret")
    await async_client.aforce_login(admin_user)
    assert await async_client.alogin(username="ann", password="secret")


async def test_tasks(async_note):
    async with asyncio.TaskGroup() as group:
        for n in range(3):
            group.create_task(async_note.remarks.acreate(text=str(n)))
    assert await async_note.remarks.acount() == 3
