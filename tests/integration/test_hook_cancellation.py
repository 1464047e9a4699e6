"""A cancellation while on-commit hooks run: all of them run, then it is raised."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import anyio
import pytest
from asgiref.sync import sync_to_async
from django.db import connection, transaction
from django.test import override_settings

from nuages import off_loop, on_loop
from nuages.bridge import await_
from nuages.db import aatomic, aon_commit, hold_connection
from nuages.exceptions import HookFailed
from tests.integration.conftest import Run
from tests.integration.scope_tools import Failure, pool_stats, until
from tests.integration.test_hook_failures import (
    asave,
    asave_in_hold,
    asave_in_portal,
    asave_in_request,
    lost,
    save,
    save_by_hand,
)
from tests.judge import authors as committed
from tests.library.models import Author

pytestmark = [pytest.mark.every_database, pytest.mark.every_loop]

STYLES: dict[str, Any] = {
    "aatomic": asave,
    "hold": asave_in_hold,
    "request": asave_in_request,
    "portal": asave_in_portal,
    "bridge": on_loop(save),
    "by hand": on_loop(save_by_hand),
    "thread": sync_to_async(save),
    "off_loop": on_loop(off_loop(save)),
}


class Hooks(list[str]):
    """Hooks that note their call; `waiting` waits until `go` is set."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.go = asyncio.Event()

    async def waiting(self) -> None:
        self.entered.set()
        await self.go.wait()
        self.append("waiting")

    def waiting_sync(self) -> None:
        await_(self.waiting())

    def querying_sync(self) -> None:
        """Entered, and then at a wait of the driver's."""
        self.entered.set()
        Author.objects.create(name="of a sync hook")
        self.append("querying")

    async def querying(self) -> None:
        async with aatomic():
            await Author.objects.acreate(name="of an async hook")
        self.append("async")

    def last(self) -> None:
        self.append("last")


async def cancelled(task: asyncio.Task[Any], times: int = 1) -> None:
    """Cancel `task`, each time when it has had the one before."""
    for _ in range(times):
        task.cancel()
        for _ in range(3):
            await asyncio.sleep(0)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("times", [1, 3])
def test_all_hooks_run_and_then_it_is_raised(
    database: str, run: Run, style: str, times: int
) -> None:
    async def main() -> None:
        hooks = Hooks()
        task = asyncio.create_task(
            STYLES[style]("saved", [hooks.waiting, hooks.querying, hooks.last])
        )
        await hooks.entered.wait()
        await cancelled(task, times)
        assert not task.done()
        hooks.go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert hooks == ["waiting", "async", "last"]
        assert committed() == ["of an async hook", "saved"]
        await until(lambda: pool_stats()["used"] == 0)

    run(main)


@pytest.mark.parametrize("hook", ["waiting_sync", "querying_sync"])
@pytest.mark.parametrize("style", ["aatomic", "portal", "bridge", "hold"])
def test_sync_hooks_go_on_at_every_wait(database: str, run: Run, style: str, hook: str) -> None:
    async def main() -> None:
        hooks = Hooks()
        task = asyncio.create_task(
            STYLES[style]("saved", [getattr(hooks, hook), hooks.querying, hooks.last])
        )
        await hooks.entered.wait()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        hooks.go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert hooks == [hook.removesuffix("_sync"), "async", "last"]
        expected = ["of an async hook", "saved"]
        if hook == "querying_sync":
            expected.insert(0, "of a sync hook")
        assert committed() == sorted(expected)
        await until(lambda: pool_stats()["used"] == 0)

    run(main)


def test_each_of_several_hooks_may_be_cancelled(database: str, run: Run) -> None:
    async def main() -> None:
        first, second = Hooks(), Hooks()
        task = asyncio.create_task(asave("saved", [first.waiting, second.waiting, second.last]))
        for hooks in (first, second):
            await hooks.entered.wait()
            await cancelled(task)
            hooks.go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (first, second) == (["waiting"], ["waiting", "last"])
        assert committed() == ["saved"]

    run(main)


def test_the_code_after_the_block_does_not_run(database: str, run: Run) -> None:
    """It is raised at the end of the block, where the code awaits it."""
    after: list[str] = []

    async def main() -> None:
        hooks = Hooks()

        async def work() -> None:
            await asave("saved", [hooks.waiting])
            after.append("after")

        task = asyncio.create_task(work())
        await hooks.entered.wait()
        await cancelled(task)
        hooks.go.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)
    assert after == []


def test_a_timeout_around_is_a_timeout_error(database: str, run: Run) -> None:
    async def main() -> None:
        hooks = Hooks()
        task = asyncio.current_task()
        assert task is not None

        async def until_cancelled() -> None:
            await until(lambda: task.cancelling() == 1)
            hooks.go.set()

        async def elapse() -> None:
            limit.reschedule(asyncio.get_running_loop().time())
            helpers.append(asyncio.create_task(until_cancelled()))
            await hooks.waiting()

        helpers: list[asyncio.Task[None]] = []
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as limit:
                await asave("saved", [elapse, hooks.last])
        await helpers[0]
        assert task.cancelling() == 0
        assert hooks == ["waiting", "last"]
        assert committed() == ["saved"]
        await Author.objects.acreate(name="next")
        assert committed() == ["next", "saved"]

    run(main)


def test_a_task_group_around_reports_what_failed_alone(database: str, run: Run) -> None:
    async def main() -> None:
        hooks = Hooks()
        task = asyncio.current_task()
        assert task is not None

        async def fail() -> None:
            await hooks.entered.wait()
            raise Failure

        async def release() -> None:
            await until(lambda: task.cancelling() == 1)
            hooks.go.set()

        helper = asyncio.create_task(release())
        with pytest.raises(ExceptionGroup) as raised:
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
                await asave("saved", [hooks.waiting, hooks.last])
        await helper
        assert [type(error) for error in raised.value.exceptions] == [Failure]
        assert task.cancelling() == 0
        assert hooks == ["waiting", "last"]
        assert committed() == ["saved"]

    run(main)


def test_anyio_cancels_again_and_again(database: str, run: Run) -> None:
    async def main() -> None:
        hooks = Hooks()
        task = asyncio.current_task()
        assert task is not None
        scope = anyio.CancelScope()

        async def cancel() -> None:
            await hooks.entered.wait()
            scope.cancel()
            await until(lambda: task.cancelling() >= 3)
            hooks.go.set()

        helper = asyncio.create_task(cancel())
        with scope:
            await asave("saved", [hooks.waiting, hooks.querying, hooks.last])
        await helper
        assert scope.cancelled_caught
        assert task.cancelling() == 0
        assert hooks == ["waiting", "async", "last"]
        assert committed() == ["of an async hook", "saved"]

    run(main)


def test_a_hooks_own_timeouts_and_groups_work(database: str, run: Run) -> None:
    """They cancel the code that they are in: that is no cancellation from outside."""

    async def main() -> None:
        hooks = Hooks()

        async def timed_out() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await asyncio.Event().wait()
            hooks.append("timed out")

        async def group_failed() -> None:
            async def fail() -> None:
                raise Failure

            with pytest.raises(ExceptionGroup):
                async with asyncio.TaskGroup() as group:
                    group.create_task(fail())
                    await asyncio.Event().wait()
            hooks.append("group")

        def timed_out_sync() -> None:
            await_(timed_out())

        async def scope_ended() -> None:
            with anyio.move_on_after(0) as scope:
                await anyio.sleep_forever()
            assert scope.cancelled_caught
            hooks.append("scope")

        own = [timed_out, group_failed, scope_ended, timed_out_sync]
        await asave("not cancelled", list(own))
        assert hooks == ["timed out", "group", "scope", "timed out"]
        hooks.clear()
        task = asyncio.create_task(asave("cancelled", [hooks.waiting, *own]))
        await hooks.entered.wait()
        await cancelled(task, 2)
        hooks.go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert hooks == ["waiting", "timed out", "group", "scope", "timed out"]

    run(main)


def test_what_a_hook_cancels_of_itself_is_its_own_end(
    database: str, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """As ever it comes out of the block; what did not run is logged."""

    async def main() -> None:
        hooks = Hooks()

        async def give_up() -> None:
            raise asyncio.CancelledError

        with pytest.raises(asyncio.CancelledError):
            await asave("saved", [give_up, hooks.last])
        assert hooks == []
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    with caplog.at_level(logging.ERROR, "nuages.db"):
        run(main)
    assert "Hooks.last" in caplog.text
    assert committed() == ["saved"]


def test_an_error_of_a_later_hook_is_the_cancellations_cause(database: str, run: Run) -> None:
    async def main() -> None:
        hooks = Hooks()
        task = asyncio.create_task(asave("saved", [hooks.waiting, lost, hooks.last]))
        await hooks.entered.wait()
        await cancelled(task)
        hooks.go.set()
        with pytest.raises(asyncio.CancelledError) as raised:
            await task
        assert isinstance(raised.value.__cause__, HookFailed)
        assert hooks == ["waiting"]
        assert committed() == ["saved"]

    run(main)


class Deadlines:
    """Hooks that a cancellation finds, and that do not end by themselves."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.ended: list[str] = []

    async def forever(self) -> None:
        self.entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise

    def forever_sync(self) -> None:
        await_(self.forever())

    async def swallowing(self) -> None:
        try:
            await self.forever()
        except asyncio.CancelledError:
            self.ended.append("swallowed")

    def first_later(self) -> None:
        self.ended.append("first later")

    async def second_later(self) -> None:
        self.ended.append("second later")


@pytest.mark.parametrize(
    ("style", "hook"),
    [
        (style, hook)
        for style in STYLES
        for hook in ("forever", "forever_sync", "swallowing")
        if hook != "forever_sync" or style not in ("thread", "off_loop")  # which have no bridge
    ],
)
def test_past_the_deadline_the_hook_is_cancelled_and_the_others_named(
    database: str, run: Run, style: str, hook: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        hooks = Deadlines()
        task = asyncio.create_task(
            STYLES[style]("saved", [getattr(hooks, hook), hooks.first_later, hooks.second_later])
        )
        await hooks.entered.wait()
        await cancelled(task, 2)
        with pytest.raises(asyncio.CancelledError):
            await task
        expected = ["cancelled", "swallowed"] if hook == "swallowing" else ["cancelled"]
        assert hooks.ended == expected
        await until(lambda: pool_stats()["used"] == 0)
        assert not connection.in_atomic_block
        await Author.objects.acreate(name="next")

    with (
        override_settings(NUAGES={"HOOKS_TIMEOUT": 0.05}),
        caplog.at_level(logging.ERROR, "nuages.db"),
    ):
        run(main)
    assert committed() == ["next", "saved"]
    (record,) = [one for one in caplog.records if one.name == "nuages.db"]
    text = record.getMessage()
    assert record.levelno == logging.ERROR
    assert "HOOKS_TIMEOUT" in text
    assert "Deadlines.first_later" in text
    assert "Deadlines.second_later" in text
    assert (f"Deadlines.{hook}" in text) == (hook != "swallowing")


def test_without_a_cancellation_hooks_have_all_the_time(database: str, run: Run) -> None:
    async def main() -> None:
        hooks = Hooks()
        task = asyncio.create_task(asave("saved", [hooks.waiting, hooks.last]))
        await hooks.entered.wait()
        await asyncio.sleep(0.05)  # past the deadline that a cancellation would have
        hooks.go.set()
        await task
        assert hooks == ["waiting", "last"]

    with override_settings(NUAGES={"HOOKS_TIMEOUT": 0.01}):
        run(main)


@pytest.mark.parametrize("leave", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("is_async", [True, False])
def test_what_ends_the_program_comes_out_of_the_block(
    database: str, run: Run, leave: type[BaseException], is_async: bool
) -> None:
    caught: list[BaseException] = []

    async def main() -> None:
        def stop() -> None:
            raise leave

        async def astop() -> None:
            raise leave

        hooks = Hooks()
        try:
            await asave("saved", [astop if is_async else stop, hooks.last])
        except leave as error:
            caught.append(error)
        assert hooks == []

    run(main)
    assert len(caught) == 1
    assert committed() == ["saved"]


def test_a_hooks_context_is_the_committing_codes(database: str, run: Run) -> None:
    """What it sets is seen by later hooks and after the block."""
    from contextvars import ContextVar

    seen: ContextVar[str] = ContextVar("seen", default="nothing")

    async def main() -> None:
        async def put() -> None:
            await asyncio.sleep(0)
            seen.set("something")

        found: list[str] = []
        await asave("saved", [put, lambda: found.append(seen.get())])
        assert found == ["something"]
        assert seen.get() == "something"

    run(main)


def test_code_outside_a_transaction_is_cancelled_as_ever(database: str, run: Run) -> None:
    """A hook that is due at once is a call like any other."""

    async def main() -> None:
        hooks = Deadlines()
        task = asyncio.create_task(aon_commit(hooks.forever))
        await hooks.entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert hooks.ended == ["cancelled"]

    run(main)


def test_hooks_of_a_transaction_in_a_hold_leave_the_hold_whole(database: str, run: Run) -> None:
    async def main() -> None:
        hooks = Hooks()

        async def work() -> None:
            async with hold_connection() as held:
                try:
                    await asave("saved", [hooks.waiting, hooks.querying, hooks.last])
                except asyncio.CancelledError:
                    assert not held.in_atomic_block
                    await Author.objects.acreate(name="in the hold")
                    raise

        task = asyncio.create_task(work())
        await hooks.entered.wait()
        await cancelled(task, 2)
        hooks.go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert hooks == ["waiting", "async", "last"]
        assert committed() == ["in the hold", "of an async hook", "saved"]

    run(main)


def test_a_block_of_a_hook_whose_hooks_are_cancelled(database: str, run: Run) -> None:
    """The shield covers the hooks of hooks."""

    async def main() -> None:
        hooks = Hooks()

        def inner_sync() -> None:
            with transaction.atomic():
                Author.objects.create(name="inner")
                transaction.on_commit(hooks.waiting)
                transaction.on_commit(hooks.last)

        task = asyncio.create_task(asave("saved", [inner_sync, hooks.last]))
        await hooks.entered.wait()
        await cancelled(task, 2)
        hooks.go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert hooks == ["waiting", "last", "last"]
        assert committed() == ["inner", "saved"]

    run(main)
