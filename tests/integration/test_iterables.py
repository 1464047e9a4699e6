"""Every kind of iterable that Django's querysets have, iterated asynchronously."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.db import connection
from django.db.models import Count, F, Value
from django.db.models.query import BaseIterable, QuerySet

from nuages import on_loop
from nuages.bridge import tasks
from nuages.db import aatomic
from nuages.exceptions import IterationEnded
from tests.integration.conftest import Run
from tests.integration.pool_tools import assert_whole, the_pool
from tests.library.models import Author, Book

pytestmark = pytest.mark.every_database

MANY = 250
"""More rows than SQLite's worker brings at once."""
DAY = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


class _Pairs(BaseIterable):  # type: ignore[type-arg]
    """A project's iterable whose `__iter__` is no generator: it queries when it is called."""

    def __iter__(self) -> Any:
        compiler = self.queryset.query.get_compiler(self.queryset.db)
        rows = list(
            compiler.results_iter(chunked_fetch=self.chunked_fetch, chunk_size=self.chunk_size)
        )
        return iter([(row[0], "own") for row in rows])


def _with_own_iterable(rows: Any) -> Any:
    rows = rows.values_list("name")
    rows._iterable_class = _Pairs
    return rows


def authors() -> QuerySet[Author]:
    return Author.objects.order_by("name")


KINDS: dict[str, Callable[[], Any]] = {
    "models": authors,
    "only": lambda: authors().only("name"),
    "select_related": lambda: authors().select_related("mentor"),
    "values": lambda: authors().values("name"),
    "values of all": lambda: authors().values(),
    "values with annotation": lambda: authors().values("name").annotate(n=Count("books")),
    "values_list": lambda: authors().values_list("name"),
    "values_list of all": lambda: authors().values_list(),
    "flat": lambda: authors().values_list("name", flat=True),
    "named": lambda: authors().values_list("name", "pk", named=True),
    "values_list with annotation": lambda: authors().annotate(x=Value(1)).values_list("name", "x"),
    "values_list of expressions": lambda: authors().values_list(F("name"), Count("books")),
    "extra": lambda: authors().extra(select={"one": "1"}).values_list("name", "one"),
    "named extra": lambda: authors().extra(select={"one": "1"}).values_list("one", named=True),
    "aggregated": lambda: Book.objects.values("author").annotate(n=Count("pk")).order_by("author"),
    "union": lambda: (
        Author.objects.values_list("name")
        .union(Author.objects.values_list("name"), all=True)
        .order_by("name")
    ),
    "dates": lambda: User.objects.dates("date_joined", "day"),
    "datetimes": lambda: User.objects.datetimes("date_joined", "hour"),
    "distinct": lambda: authors().values_list("mentor").distinct(),
    "sliced": lambda: authors().values_list("name")[3:9],
    "none": lambda: authors().values_list("name").none(),
    "empty": lambda: authors().filter(pk__in=[]).values_list("name"),
    "a project's own": lambda: _with_own_iterable(authors()),
}


def populate() -> None:
    Author.objects.bulk_create([Author(name=f"row{number:03}") for number in range(MANY)])
    first = Author.objects.earliest("pk")
    Book.objects.create(title="b", author=first)
    for number in range(5):
        joined = DAY + datetime.timedelta(days=number)
        User.objects.create(username=str(number), date_joined=joined)


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 2000])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_what_the_sync_one_gives(
    database: str, run: Run, kind: str, chunk_size: int
) -> None:
    populate()
    expected = list(KINDS[kind]().iterator(chunk_size=chunk_size))
    assert expected or kind in ("none", "empty")

    async def main() -> None:
        found = [one async for one in KINDS[kind]().aiterator(chunk_size=chunk_size)]
        assert found == expected
        assert [type(one) for one in found] == [type(one) for one in expected]
        assert [one async for one in KINDS[kind]()] == expected
        async with aatomic():
            assert [
                one async for one in KINDS[kind]().aiterator(chunk_size=chunk_size)
            ] == expected
        assert_whole(the_pool())

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_left_early_every_kind_lets_go_at_once(
    database: str, run: Run, kind: str, nothing_blocks: None
) -> None:
    populate()

    async def main() -> None:
        assert await Author.objects.acount() == MANY
        rows = KINDS[kind]().aiterator(chunk_size=1)
        async for _ in rows:
            break
        await rows.aclose()
        assert the_pool().stats()["used"] == 0
        if database == "postgresql":
            async with aatomic():
                rows = KINDS[kind]().aiterator(chunk_size=1)
                async for _ in rows:
                    break
                await rows.aclose()
                await on_loop(no_cursor_is_open)()
        assert_whole(the_pool())

    run(main)


def no_cursor_is_open() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_cursors")
        assert cursor.fetchone() == (0,)


def test_raw(database: str, run: Run) -> None:
    populate()

    def raw() -> Any:
        return Author.objects.raw("SELECT id, name, 1 AS one FROM library_author ORDER BY name")

    expected = [one.name for one in raw()]

    async def main() -> None:
        assert [one.name async for one in raw()] == expected
        assert [one.name for one in await raw().alist()] == expected
        if hasattr(raw(), "aiterator"):
            assert [one.name async for one in raw().aiterator()] == expected
        assert_whole(the_pool())

    run(main)


def test_it_asks_nothing_before_the_first_step(database: str, run: Run) -> None:
    """And what the query is wrong with comes out of that step."""

    async def main() -> None:
        rows = Author.objects.values_list("name").extra(where=["no_such_column = 1"]).aiterator()
        with pytest.raises(Exception, match="no_such_column"):
            await anext(rows)
        assert await Author.objects.acount() == 0
        assert_whole(the_pool())

    run(main)


# A sync iterator whose steps are calls of their own


@pytest.mark.parametrize("steps", ["thread", "thread of its own", "bridge"])
def test_a_sync_iterator_that_is_continued_in_another_call_says_what_to_do(
    database: str, run: Run, steps: str
) -> None:
    """`sync_to_async(next)(rows)`: each step is a call, with a connection of its own."""
    populate()

    def step(rows: Any) -> Any:
        return next(rows, None)

    async def main() -> None:
        advance: Any = on_loop(step)
        if steps != "bridge":
            advance = sync_to_async(step, thread_sensitive=steps == "thread")
        rows = Author.objects.order_by("name").iterator(chunk_size=2)
        assert [(await advance(rows)).name, (await advance(rows)).name] == ["row000", "row001"]
        if database == "mysql":
            # All of its rows have come.
            assert (await advance(rows)).name == "row002"
            return
        with pytest.raises(IterationEnded, match=r"aiterator\(\)"):
            await advance(rows)
        await tasks.wait_for_spawned(10)
        assert_whole(the_pool())
        assert await Author.objects.acount() == MANY

    run(main)


@pytest.mark.parametrize("steps", ["thread", "bridge"])
def test_in_one_call_a_sync_iterator_goes_through(database: str, run: Run, steps: str) -> None:
    populate()

    def whole_loop() -> list[str]:
        rows = Author.objects.order_by("name").iterator(chunk_size=2)
        return [row.name for row in rows]

    async def main() -> None:
        work = on_loop(whole_loop) if steps == "bridge" else sync_to_async(whole_loop)
        assert await work() == [f"row{number:03}" for number in range(MANY)]
        assert_whole(the_pool())

    run(main)


@pytest.mark.parametrize("prefetch", [False, True])
def test_an_iterable_that_is_not_djangos_iterates_as_it_says(
    database: str, run: Run, prefetch: bool
) -> None:
    closed: list[str] = []

    class Everyone:
        """Of no class of Django's."""

        def __init__(self, queryset: Any, chunked_fetch: bool, chunk_size: int) -> None:
            self.queryset = queryset

        def __aiter__(self) -> AsyncIterator[Any]:
            return self._generate()

        async def _generate(self) -> AsyncIterator[Any]:
            try:
                for author in await Author.objects.order_by("name").alist():
                    yield author
            finally:
                closed.append("closed")

    async def main() -> None:
        await Author.objects.abulk_create([Author(name=name) for name in "abcde"])
        authors = Author.objects.all()
        authors._iterable_class = Everyone  # type: ignore[assignment]
        if prefetch:
            authors = authors.prefetch_related("books")
        assert [a.name async for a in authors.aiterator(chunk_size=2)] == list("abcde")
        async with contextlib.aclosing(authors.aiterator(chunk_size=2)) as rows:
            assert (await anext(rows)).name == "a"
        assert closed == ["closed", "closed"]

    run(main)
