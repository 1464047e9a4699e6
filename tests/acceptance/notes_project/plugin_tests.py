"""What the plugin offers, and the marks of pytest-django, for async tests."""

import asyncio
import contextlib
import time

import httpx
import pytest
from django.db import connection
from notes.models import Note

from nuages.db import aatomic, aon_commit
from nuages.exceptions import BlockingCall, ThreadForbidden


def sleep(seconds):
    time.sleep(seconds)


pytestmark = [pytest.mark.asyncio]


@pytest.mark.django_db
async def test_live_server(live_asgi_server):
    await Note.objects.acreate(title="of the test")
    async with httpx.AsyncClient(base_url=live_asgi_server.url) as http:
        answers = await asyncio.gather(*(http.get(f"/add/{n}") for n in range(5)))
    assert {answer.status_code for answer in answers} == {200}
    assert await Note.objects.acount() == 6


@pytest.mark.django_db(transaction=True)
async def test_live_server_that_commits(live_asgi_server):
    assert not connection.in_atomic_block
    async with httpx.AsyncClient(base_url=live_asgi_server.url) as http:
        answers = await asyncio.gather(*(http.get(f"/add/{n}") for n in range(5)))
    assert {answer.status_code for answer in answers} == {200}
    assert await Note.objects.acount() == 5


@pytest.mark.django_db(transaction=True)
async def test_committed():
    assert await Note.objects.acount() == 0
    called = []
    async with aatomic():
        await Note.objects.acreate(title="a")
        await aon_commit(lambda: called.append(1))
    assert called == [1]
    await asyncio.gather(*(Note.objects.acreate(title=str(n)) for n in range(3)))


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.django_db(reset_sequences=True, databases=["default"])
async def test_reset_sequences(again):
    assert (await Note.objects.acreate(title="a")).pk == 1


@pytest.mark.django_db
async def test_counts(django_assert_num_queries, django_assert_max_num_queries):
    async def three():
        await asyncio.gather(*(Note.objects.acount() for _ in range(3)))

    with django_assert_num_queries(3) as captured:
        await three()
    assert all("COUNT" in query["sql"] for query in captured.captured_queries)
    with django_assert_max_num_queries(3):
        await three()
    with pytest.raises(pytest.fail.Exception, match="2 queries"), django_assert_num_queries(2):
        await three()


@pytest.mark.django_db
async def test_on_commit(django_capture_on_commit_callbacks):
    counted = []

    async def count():
        counted.append(await Note.objects.acount())

    async with django_capture_on_commit_callbacks(execute=True) as callbacks, aatomic():
        await Note.objects.acreate(title="a")
        await aon_commit(count)
    assert counted == [1]
    assert len(callbacks) == 1


@pytest.mark.django_db
@pytest.mark.forbid_threads
@pytest.mark.forbid_blocking
async def test_native(async_client):
    assert (await async_client.get("/add/one")).json()["notes"] == 1


@pytest.mark.forbid_threads
@pytest.mark.xfail(raises=ThreadForbidden, strict=True)
async def test_thread():
    await asyncio.to_thread(print)


@pytest.mark.forbid_threads(allow=["asyncio.threads"])
async def test_allowed_thread():
    await asyncio.to_thread(print)


@pytest.mark.forbid_blocking
@pytest.mark.xfail(raises=BlockingCall, strict=True)
async def test_blocks():
    with contextlib.suppress(Exception):  # it fails all the same
        sleep(0)


async def test_guards_of_blocks(forbid_threads, forbid_blocking):
    with pytest.raises(ThreadForbidden, match=r"plugin_tests\.py"), forbid_threads():
        await asyncio.to_thread(print)
    with pytest.raises(BlockingCall, match=r"time\.sleep"), forbid_blocking():
        sleep(0)
    with forbid_blocking(allow=[__name__]), forbid_threads(allow=["builtins.print"]):
        sleep(0)
        await asyncio.to_thread(print)
