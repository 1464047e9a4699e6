"""Every session engine of Django by its a* methods: on the loop, and as its sync twin has it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.sessions.backends.base import UpdateError
from django.contrib.sessions.backends.file import SessionStore as FileStore
from django.core.cache import cache
from django.test import override_settings

from nuages import on_loop
from tests.integration.conftest import Counts, Run
from tests.integration.handoff_tools import THREAD, WHERE
from tests.integration.scope_tools import pool_stats

ENGINES = "django.contrib.sessions.backends"
COOKIES = "signed_cookies"
ALL = ["db", "cache", "cached_db", "file", COOKIES]


@pytest.fixture(autouse=True)
def _files(tmp_path: Path) -> Iterator[None]:
    cache.clear()
    with override_settings(SESSION_FILE_PATH=str(tmp_path)):
        yield
    cache.clear()
    WHERE.take()


def store(engine: str, key: str | None = None) -> Any:
    return importlib.import_module(f"{ENGINES}.{engine}").SessionStore(key)


async def life(engine: str) -> None:
    """Every a* method of a session: what it leaves is what the sync methods find."""
    session = store(engine)
    await session.aset("cart", [1])
    await session.aupdate({"name": "Ada"})
    assert await session.aget("cart") == [1]
    assert await session.asetdefault("name", "Grace") == "Ada"
    assert await session.ahas_key("name")
    assert sorted(await session.akeys()) == ["cart", "name"]
    assert dict(await session.aitems()) == {"cart": [1], "name": "Ada"}
    assert len(list(await session.avalues())) == 2
    await session.aset_test_cookie()
    assert await session.atest_cookie_worked()
    await session.adelete_test_cookie()
    await session.aset_expiry(300)
    assert await session.aget_expiry_age() == 300
    assert not await session.aget_expire_at_browser_close()
    assert await session.aget_expiry_date() is not None
    await session.asave()
    key = session.session_key

    again = store(engine, key)
    assert await again.apop("cart") == [1]
    assert await again.apop("cart", None) is None
    assert await on_loop(store(engine, key).get)("name") == "Ada"
    await again.asave()
    if engine == COOKIES:
        key = again.session_key
    assert "cart" not in await store(engine, key).aload()
    if engine != COOKIES:  # whose key is the data itself
        assert await again.aexists(key)

    await again.acycle_key()
    moved = again.session_key
    assert await store(engine, moved).aget("name") == "Ada"
    if engine != COOKIES:
        assert moved != key
        assert not await again.aexists(key)
        assert await store(engine, key).aload() == {}

    gone = store(engine, moved)
    await gone.aset("late", True)
    await again.aflush()
    assert again.session_key is None
    if engine != COOKIES:
        assert not await again.aexists(moved)
        with pytest.raises(UpdateError):
            await gone.asave()

    created = store(engine)
    await created.acreate()
    await created.adelete()
    await type(created).aclear_expired()


@pytest.mark.parametrize("engine", [engine for engine in ALL if engine != "file"])
def test_no_thread_is_used(postgresql: Any, run: Run, threads: Counts, engine: str) -> None:
    async def main() -> None:
        threads.clear()
        await life(engine)
        threads.assert_none()
        if "db" in engine:
            assert pool_stats()["used"] == 0

    run(main)


@pytest.mark.parametrize("engine", ALL)
def test_on_sqlite_and_in_a_bridge(sqlite: Any, run: Run, engine: str) -> None:
    async def main() -> None:
        await life(engine)
        await on_loop(life)(engine)

    run(main)


def test_files_are_touched_in_threads(
    run: Run, threads: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that works on them, the search for expired ones too."""
    for name in ("_key_to_file", "_get_storage_path"):
        original = getattr(FileStore, name)
        if name == "_key_to_file":
            monkeypatch.setattr(FileStore, name, WHERE.spy(original))
        else:
            spied = WHERE.spy(original.__func__)
            monkeypatch.setattr(FileStore, name, classmethod(spied))

    async def main() -> None:
        session = store("file")  # which looks for its folder, in the coroutine
        WHERE.take()
        await session.aset("name", "Ada")
        await session.asave()
        assert await session.aexists(session.session_key)
        await session.aload()
        await FileStore.aclear_expired()
        await on_loop(FileStore.clear_expired)()
        await session.adelete()
        assert WHERE.take() == THREAD
        assert threads.submitted

    run(main)
