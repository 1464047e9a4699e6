"""A database of a stock engine beside ours: its async methods stay in threads, ours are native."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from django.db.models import aprefetch_related_objects
from django.test import override_settings

from nuages import on_loop
from nuages.db import engines
from tests.integration.conftest import Run
from tests.library.models import Author, Book, Tag


class Router:
    """Tags live in the stock database."""

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        return "stock" if model is Tag else None

    db_for_write = db_for_read


@pytest.fixture(autouse=True)
def _stock(database: str, tmp_path: Path) -> Iterator[None]:
    entry = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "stock.sqlite3")}
    settings = connections.configure_settings({"default": {}, "stock": entry})
    connections.settings["stock"] = settings["stock"]
    engines._changed(setting="DATABASES")
    from django.core.management import call_command

    call_command("migrate", run_syncdb=True, verbosity=0, database="stock", skip_checks=True)
    yield
    connections["stock"].close()
    del connections["stock"]
    del connections.settings["stock"]
    engines._changed(setting="DATABASES")


@pytest.fixture
def submissions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What goes to an executor."""
    found: list[str] = []
    submit = concurrent.futures.ThreadPoolExecutor.submit

    def counted(self: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        found.append("submit")
        return submit(self, function, *args, **kwargs)

    monkeypatch.setattr(concurrent.futures.ThreadPoolExecutor, "submit", counted)
    return found


def close_threads_connection() -> None:
    """In asgiref's thread, which outlives the test: its wrapper has this test's file."""
    connections["stock"].close()
    del connections["stock"]


def test_each_database_by_its_own_way(run: Run, submissions: list[str]) -> None:
    from asgiref.sync import sync_to_async

    async def main() -> None:
        author = await Author.objects.acreate(name="ours")
        await Author.objects.aget(pk=author.pk)
        assert [book async for book in Book.objects.all()] == []
        assert submissions == []
        await Tag.objects.using("stock").acreate(name="theirs")
        assert len(submissions) == 1
        assert await Tag.objects.using("stock").acount() == 1
        assert [tag.name async for tag in Tag.objects.using("stock")] == ["theirs"]
        assert [tag.name async for tag in Tag.objects.using("stock").aiterator()] == ["theirs"]
        assert [tag.name for tag in await Tag.objects.using("stock").alist()] == ["theirs"]
        before = len(submissions)
        assert await Tag.objects.acount() == 0  # ours
        assert len(submissions) == before
        await sync_to_async(close_threads_connection)()

    run(main)


def test_saving_and_deleting_follow_the_instances_database(run: Run) -> None:
    from asgiref.sync import sync_to_async

    async def main() -> None:
        tag = Tag(name="theirs")
        await tag.asave(using="stock")
        assert tag._state.db == "stock"
        tag.name = "theirs again"
        await tag.asave()
        await tag.arefresh_from_db()
        assert tag.name == "theirs again"
        assert await Tag.objects.using("stock").filter(name="theirs again").aexists()
        await tag.adelete()
        assert not await Tag.objects.using("stock").aexists()
        await sync_to_async(close_threads_connection)()

    run(main)


def test_relations_follow_the_instances_database(run: Run) -> None:
    from asgiref.sync import sync_to_async

    async def main() -> None:
        author = await Author.objects.using("stock").acreate(name="theirs")
        book = await author.books.acreate(title="theirs")
        assert book._state.db == "stock"
        book = await Book.objects.using("stock").aget()
        assert await book.aauthor == author
        tag = await book.tags.acreate(name="theirs")
        await tag.books.aset([book])
        assert await tag.books.acount() == 1
        await aprefetch_related_objects([book], "tags")
        assert list(book.tags.all()) == [tag]
        await author.afull_clean(exclude=["mentor"])
        assert await Author.objects.acount() == 0
        await sync_to_async(close_threads_connection)()

    run(main)


def test_a_router_decides(run: Run, submissions: list[str]) -> None:
    from asgiref.sync import sync_to_async

    async def main() -> None:
        tag = Tag(name="routed")
        await tag.asave()
        assert tag._state.db == "stock"
        assert await Tag.objects.acount() == 1
        assert await Tag.objects.using("default").acount() == 0
        assert submissions
        await sync_to_async(close_threads_connection)()

    with override_settings(DATABASE_ROUTERS=["tests.integration.test_mixed_engines.Router"]):
        run(main)


def test_the_stock_engine_on_the_loop_is_still_refused(run: Run) -> None:
    from django.core.exceptions import SynchronousOnlyOperation

    async def main() -> None:
        with pytest.raises(SynchronousOnlyOperation):
            await on_loop(lambda: Tag.objects.using("stock").count())()

    run(main)
