"""As broken_tests.py, for pytest-django with pytest-asyncio."""

import asyncio

import pytest
from broken_tests import long_statement
from django.db import connection
from notes.models import Note

from nuages import on_loop
from nuages.db import aatomic

pytestmark = [pytest.mark.django_db, pytest.mark.asyncio]
kept = []


@pytest.fixture(autouse=True)
def clean(db):
    assert Note.objects.count() == 0
    Note.objects.create(title="a")


async def test_fails():
    async with aatomic():
        await Note.objects.acreate(title="b")
        raise AssertionError("it fails")


async def test_is_cancelled():
    asyncio.current_task().cancel()
    await Note.objects.acount()


async def test_times_out():
    async with asyncio.timeout(0.05):
        await on_loop(long_statement)()


async def test_leaves_task():
    async def forever():
        while True:
            await Note.objects.acreate(title="too late")

    kept.append(asyncio.create_task(forever()))
    await asyncio.sleep(0)


async def test_leaves_statement():
    kept.append(asyncio.create_task(on_loop(long_statement)()))
    await asyncio.sleep(0)


async def test_leaves_block():
    kept.append(aatomic())
    await kept[-1].__aenter__()
    await Note.objects.acreate(title="b")


async def test_breaks_connection():
    await on_loop(lambda: connection.connection.terminate())()


@pytest.mark.django_db(transaction=True)
async def test_leaves_transaction():
    kept.append(aatomic())
    await kept[-1].__aenter__()
    await Note.objects.acreate(title="b")


async def test_last():
    assert await Note.objects.acount() == 1
