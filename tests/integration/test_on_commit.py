"""Hooks that run after COMMIT."""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, transaction

from nuages import on_loop
from nuages.db import aatomic, aon_commit
from nuages.exceptions import SyncInCoroutine
from tests.integration.conftest import Run
from tests.integration.scope_tools import Failure, names, pool_stats, rolled_back
from tests.library.models import Author

pytestmark = [pytest.mark.every_database, pytest.mark.both_loops]


class Calls(list[str]):
    """Makes hooks that note their call."""

    def sync(self, name: str) -> Any:
        return lambda: self.append(name)

    def coroutine(self, name: str) -> Any:
        async def hook() -> None:
            await asyncio.sleep(0)
            self.append(name)

        return hook


def test_hooks_run_in_their_order_after_commit(database: str, run: Run) -> None:
    calls = Calls()

    async def main() -> None:
        async with aatomic():
            await aon_commit(calls.sync("one"))
            await aon_commit(calls.coroutine("two"))
            async with aatomic():
                await aon_commit(calls.sync("three"))
            await on_loop(lambda: transaction.on_commit(calls.sync("four")))()
            await Author.objects.acreate(name="saved")
            assert calls == []
        assert calls == ["one", "two", "three", "four"]

    run(main)


def test_hooks_of_what_was_rolled_back_do_not_run(database: str, run: Run) -> None:
    calls = Calls()

    async def main() -> None:
        async with rolled_back():
            await aon_commit(calls.sync("rolled back"))
        async with aatomic():
            await aon_commit(calls.sync("before"))
            async with rolled_back():
                await aon_commit(calls.coroutine("inner"))
                async with aatomic():
                    await aon_commit(calls.coroutine("innermost"))
            await aon_commit(calls.coroutine("after"))
        assert calls == ["before", "after"]
        async with aatomic():
            await Author.objects.acreate(name="no hook of before")
        assert calls == ["before", "after"]

    run(main)


def test_outside_a_transaction_a_hook_runs_at_once(database: str, run: Run) -> None:
    calls = Calls()

    async def main() -> None:
        await aon_commit(calls.sync("sync"))
        await aon_commit(calls.coroutine("coroutine"))
        await aon_commit(calls.coroutine("robust"), robust=True)
        assert calls == ["sync", "coroutine", "robust"]
        with pytest.raises(TypeError, match="callable"):
            await aon_commit("no function")  # type: ignore[arg-type]

    run(main)


class AsyncCallable:
    def __init__(self, calls: Calls) -> None:
        self.calls = calls

    async def __call__(self) -> None:
        self.calls.append("object")


def test_an_object_with_an_async_call_is_awaited(database: str, run: Run) -> None:
    calls = Calls()

    async def main() -> None:
        async with aatomic():
            await aon_commit(AsyncCallable(calls))
        assert calls == ["object"]

    run(main)


def test_a_hook_queries_and_opens_transactions(database: str, run: Run) -> None:
    """It is outside the transaction: what it writes is its own."""

    def sync_hook() -> None:
        assert not connection.in_atomic_block
        with transaction.atomic():
            Author.objects.create(name="sync hook")
        assert connection.get_autocommit()

    async def async_hook() -> None:
        assert not connection.in_atomic_block
        assert await Author.objects.acount() == 2
        async with aatomic():
            await Author.objects.acreate(name="async hook")
            await aon_commit(lambda: Author.objects.create(name="hook of a hook"))

    async def main() -> None:
        async with aatomic():
            await Author.objects.acreate(name="saved")
            await aon_commit(sync_hook)
            await aon_commit(async_hook)
        assert await names() == ["async hook", "hook of a hook", "saved", "sync hook"]
        assert pool_stats()["used"] == 0

    run(main)


def test_a_hook_starts_tasks_and_gathers(database: str, run: Run) -> None:
    """Its tasks are outside of the transaction, so they may outlive it."""

    async def main() -> None:
        go = asyncio.Event()
        started: list[asyncio.Task[Any]] = []

        async def later() -> None:
            await go.wait()
            await Author.objects.acreate(name="later")

        async def hook() -> None:
            started.append(asyncio.create_task(later()))
            await asyncio.gather(*(Author.objects.acreate(name=f"{i}") for i in range(3)))

        async with aatomic():
            await Author.objects.acreate(name="saved")
            await aon_commit(hook)
        go.set()
        await started[0]
        assert await names() == ["0", "1", "2", "later", "saved"]
        assert pool_stats()["used"] == 0

    run(main)


def test_a_failing_hook_leaves_what_was_committed(database: str, run: Run) -> None:
    """As in Django: its error comes out of the block, and the hooks after it do not run."""
    calls = Calls()

    async def fail() -> None:
        raise Failure

    async def main() -> None:
        with pytest.raises(Failure):
            async with aatomic():
                await Author.objects.acreate(name="saved")
                await aon_commit(calls.sync("before"))
                await aon_commit(fail)
                await aon_commit(calls.sync("after"))
        assert calls == ["before"]
        assert not connection.in_atomic_block
        assert await names() == ["saved"]
        async with aatomic():
            await Author.objects.acreate(name="next")
        assert calls == ["before"]
        assert await names() == ["next", "saved"]
        assert pool_stats()["used"] == 0

    run(main)


def test_a_robust_hook_that_fails_is_logged(
    database: str, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    calls = Calls()

    async def fail() -> None:
        raise Failure("of a hook")

    async def main() -> None:
        async with aatomic():
            await aon_commit(fail, robust=True)
            await aon_commit(calls.coroutine("after"))
        assert calls == ["after"]

    with caplog.at_level(logging.ERROR, "django.db.backends.base"):
        run(main)
    assert "of a hook" in caplog.text


def test_hooks_of_gathered_tasks_run_once_after_the_commit(database: str, run: Run) -> None:
    calls = Calls()

    async def work(name: str) -> None:
        async with aatomic():
            await Author.objects.acreate(name=name)
            await aon_commit(calls.coroutine(name))
            if name == "b":
                raise Failure

    async def main() -> None:
        async with aatomic():
            await asyncio.gather(*map(work, "abc"), return_exceptions=True)
            assert calls == []
        assert sorted(calls) == ["a", "c"]

    run(main)


def test_hooks_from_a_sync_function_on_the_loop(database: str, run: Run) -> None:
    """`transaction.on_commit` in code that knows nothing of loops, with a hook that queries."""
    calls = Calls()

    def work() -> None:
        with transaction.atomic():
            Author.objects.create(name="saved")
            transaction.on_commit(lambda: calls.append(str(Author.objects.count())))
            with transaction.atomic():
                transaction.on_commit(calls.sync("inner"))
            assert calls == []
        assert calls == ["1", "inner"]
        transaction.on_commit(calls.sync("at once"))
        assert calls[-1] == "at once"

    async def main() -> None:
        await on_loop(work)()
        calls.clear()
        async with aatomic():
            await on_loop(Author.objects.all().delete)()
            inner = asyncio.create_task(on_loop(transaction.on_commit)(calls.sync("task")))
            await inner
            assert calls == []
        assert calls == ["task"]

    run(main)


class Tried(list[str]):
    """Hooks of a transaction, sync and async in turn, that note what they see of it."""

    async def awaited(self) -> None:
        assert not connection.in_atomic_block
        await asyncio.sleep(0)
        assert await Author.objects.filter(name="saved").aexists()
        self.append("async")

    def called(self) -> None:
        self.append("sync")

    async def failing(self) -> None:
        await asyncio.sleep(0)
        raise Failure("of a hook")

    def save(self, *, robust: bool) -> None:
        """What a sync program does."""
        with transaction.atomic():
            Author.objects.create(name="saved")
            transaction.on_commit(self.awaited)
            transaction.on_commit(self.called)
            transaction.on_commit(self.failing, robust=robust)
            transaction.on_commit(functools.partial(self.awaited))
            assert self == []


@pytest.fixture(params=["bridge", "thread", "sync program"])
def where_saved(request: pytest.FixtureRequest, run: Run) -> Any:
    """Calls a sync function in a bridge, in a thread of sync_to_async, and plainly."""

    def call(function: Any) -> None:
        if request.param == "sync program":
            function()
            return
        place = on_loop if request.param == "bridge" else sync_to_async
        run(place(function))

    return call


def test_djangos_on_commit_awaits_coroutine_functions(
    database: str, where_saved: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """In order, after the commit, outside the transaction; a robust one's error is logged."""
    tried = Tried()
    with caplog.at_level(logging.ERROR, "django.db.backends.base"):
        where_saved(lambda: tried.save(robust=True))
    assert tried == ["async", "sync", "async"]
    assert "of a hook" in caplog.text


def test_its_error_comes_out_of_the_block_and_ends_the_hooks(
    database: str, where_saved: Any
) -> None:
    tried = Tried()
    with pytest.raises(Failure):
        where_saved(lambda: tried.save(robust=False))
    assert tried == ["async", "sync"]
    assert Author.objects.filter(name="saved").exists()


def test_no_coroutine_is_made_for_what_was_rolled_back(database: str, where_saved: Any) -> None:
    """One that is made and not awaited is a warning, so an error."""
    tried = Tried()

    def work() -> None:
        with transaction.atomic():
            transaction.on_commit(tried.awaited)
            raise Failure

    with pytest.raises(Failure):
        where_saved(work)
    assert tried == []


def test_on_commit_of_a_coroutine_function_in_a_coroutine(database: str, run: Run) -> None:
    """In a transaction it waits for the commit; outside nobody could await it."""
    tried = Tried()

    async def main() -> None:
        async with aatomic():
            await Author.objects.acreate(name="saved")
            transaction.on_commit(tried.awaited)
            assert tried == []
        assert tried == ["async"]
        with pytest.raises(SyncInCoroutine, match="aon_commit"):
            transaction.on_commit(tried.awaited)
        assert tried == ["async"]

    run(main)


def test_the_same_hooks_work_without_a_loop(database: str) -> None:
    calls = Calls()

    def work() -> None:
        with transaction.atomic():
            Author.objects.create(name="saved")
            transaction.on_commit(calls.sync("sync"))
        assert calls == ["sync"]

    work()
