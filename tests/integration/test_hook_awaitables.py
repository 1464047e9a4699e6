"""Hooks that are not coroutine functions, and return something to await: it is awaited."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, connections, transaction

from nuages import on_loop
from nuages.db import aatomic, aon_commit
from nuages.db.testing.on_commit import CaptureOnCommit
from nuages.exceptions import HookFailed, SyncInCoroutine
from tests.integration.conftest import Run
from tests.integration.scope_tools import Failure, rolled_back
from tests.integration.test_hook_failures import Hook, no_connection
from tests.judge import authors as committed
from tests.library.models import Author

pytestmark = [pytest.mark.every_database, pytest.mark.both_loops]


class Returning:
    """An object that is called and returns a coroutine."""

    def __init__(self, notified: Notified) -> None:
        self.notified = notified

    def __call__(self) -> Any:
        return self.notified.notify("object")


class Notified(list[str]):
    """Async work that notes what it sees of the transaction."""

    async def notify(self, name: str) -> None:
        assert not connection.in_atomic_block
        await asyncio.sleep(0)
        assert await Author.objects.filter(name="saved").aexists()
        self.append(name)

    async def fail(self, name: str) -> None:
        await asyncio.sleep(0)
        raise Failure(name)

    def hooks(self) -> list[Hook]:
        """Every way to return a coroutine without being a coroutine function."""

        def function() -> Any:
            return self.notify("function")

        return [
            lambda: self.notify("lambda"),
            function,
            functools.partial(lambda name: self.notify(name), "partial of a lambda"),
            functools.partial(self.notify, "partial"),
            Returning(self),
        ]


ALL = ["lambda", "function", "partial of a lambda", "partial", "object"]


def save(hooks: list[Hook], *, robust: bool = False) -> None:
    with transaction.atomic():
        Author.objects.create(name="saved")
        for hook in hooks:
            transaction.on_commit(hook, robust=robust)


async def asave(hooks: list[Hook], *, robust: bool = False) -> None:
    async with aatomic():
        await Author.objects.acreate(name="saved")
        for hook in hooks:
            await aon_commit(hook, robust=robust)


async def asave_by_djangos(hooks: list[Hook], *, robust: bool = False) -> None:
    """`transaction.on_commit` in a coroutine, where a transaction is open."""
    async with aatomic():
        await Author.objects.acreate(name="saved")
        for hook in hooks:
            transaction.on_commit(hook, robust=robust)


@on_loop
async def asave_in_portal(hooks: list[Hook], *, robust: bool = False) -> None:
    with transaction.atomic():
        await Author.objects.acreate(name="saved")
        for hook in hooks:
            transaction.on_commit(hook, robust=robust)


STYLES: dict[str, Any] = {
    "aatomic": asave,
    "on_commit in a coroutine": asave_by_djangos,
    "portal": asave_in_portal,
    "bridge": on_loop(save),
    "thread": sync_to_async(save),
}


@pytest.fixture(params=[*STYLES, "sync program"])
def saved(request: pytest.FixtureRequest, run: Run) -> Callable[..., None]:
    if request.param == "sync program":
        return save

    def call(hooks: list[Hook], **kwargs: Any) -> None:
        async def main() -> None:
            await STYLES[request.param](hooks, **kwargs)
            gc.collect()  # what was never awaited says so

        run(main)

    return call


def test_what_a_hook_returns_is_awaited(database: str, saved: Callable[..., None]) -> None:
    notified = Notified()
    saved(notified.hooks())
    assert notified == ALL
    assert committed() == ["saved"]


def test_so_is_a_robust_hooks(
    database: str, saved: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    notified = Notified()
    hooks = [lambda: notified.fail("of a hook"), *notified.hooks()]
    with caplog.at_level(logging.ERROR, "django.db.backends.base"):
        saved(hooks, robust=True)
    assert notified == ALL
    assert "of a hook" in caplog.text


def test_its_error_comes_out_of_the_block(database: str, saved: Callable[..., None]) -> None:
    notified = Notified()
    with pytest.raises(Failure):
        saved([lambda: notified.fail("of a hook"), *notified.hooks()])
    assert notified == []
    assert committed() == ["saved"]


def test_a_databases_error_of_it_says_committed(database: str, saved: Callable[..., None]) -> None:
    with pytest.raises(HookFailed):
        saved([lambda: no_connection()])
    assert committed() == ["saved"]


def test_of_what_is_rolled_back_nothing_is_made(database: str, run: Run) -> None:
    notified = Notified()

    async def main() -> None:
        async with rolled_back():
            await aon_commit(lambda: notified.notify("rolled back"))

    run(main)
    assert notified == []


def test_outside_a_transaction_it_is_awaited_at_once(database: str, run: Run) -> None:
    notified = Notified()

    def work() -> None:
        for hook in notified.hooks():
            transaction.on_commit(hook)

    async def main() -> None:
        await Author.objects.acreate(name="saved")
        for hook in notified.hooks():
            await aon_commit(hook)
        assert notified == ALL
        await aon_commit(lambda: notified.fail("logged"), robust=True)
        for place in (on_loop, sync_to_async):
            notified.clear()
            await place(work)()
            assert notified == ALL

    run(main)
    notified.clear()
    work()
    assert notified == ALL


def test_outside_a_transaction_a_coroutine_cannot_await_it(database: str, run: Run) -> None:
    notified = Notified()

    async def main() -> None:
        with pytest.raises(SyncInCoroutine, match="aon_commit"):
            transaction.on_commit(lambda: notified.notify("never"))
        gc.collect()
        assert notified == []

    run(main)


def test_a_task_is_left_to_run(database: str, run: Run) -> None:
    """It runs by itself: who starts one in a hook wants no one to wait for it."""

    async def main() -> None:
        go = asyncio.Event()
        started: list[asyncio.Task[Any]] = []

        async def later() -> None:
            await go.wait()

        def start() -> asyncio.Task[Any]:
            started.append(asyncio.create_task(later()))
            return started[0]

        await asave([start])
        assert not started[0].done()
        go.set()
        await started[0]

    run(main)


def test_captured_callbacks_are_awaited_where_they_are_executed(database: str, run: Run) -> None:
    notified: list[str] = []

    async def notify(name: str) -> None:
        await asyncio.sleep(0)
        notified.append(name)

    def work() -> None:
        hook = functools.partial(lambda: notify("sync"))
        with transaction.atomic():
            with CaptureOnCommit(execute=True) as callbacks:
                transaction.on_commit(hook)
            assert callbacks == [hook]
            transaction.set_rollback(True)

    async def main() -> None:
        async with aatomic():
            async with CaptureOnCommit(execute=True):
                await aon_commit(lambda: notify("async"))
            assert notified == ["sync", "sync", "async"]
            connections["default"].run_on_commit.clear()

    work()
    run(on_loop(work))
    run(main)
