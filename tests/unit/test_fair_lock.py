"""FairLock: a fair lock for tasks and threads that never blocks a loop's thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from nuages import on_loop
from nuages.bridge import await_
from nuages.bridge import core as bridge
from nuages.db.scopes.fair_lock import FairLock, caller_label
from nuages.exceptions import BridgeClosed, ConnectionBusy, ScopeEnded


class Named:
    def __init__(self, label: str) -> None:
        self.label = label


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    assert not bridge._bridges, "a bridge was left behind"


async def until_waiting(turns: FairLock, number: int) -> None:
    while len(turns._queue) != number:  # noqa: ASYNC110
        await asyncio.sleep(0)


def acquire(turns: FairLock, name: str = "somebody", timeout: float | None = None) -> bool:
    return turns.acquire(Named(name), timeout)


async def test_a_free_turn_is_taken_at_once_anywhere() -> None:
    turns = FairLock()
    holder = Named("me")
    assert not turns.locked()
    assert turns.acquire(holder)
    assert turns.locked()
    assert turns.holder is holder
    turns.release()
    assert turns.holder is None
    assert await on_loop(acquire)(turns)


async def test_tasks_take_turns_in_the_order_they_came() -> None:
    turns = FairLock()
    order: list[int] = []
    inside = 0

    def call(number: int) -> None:
        nonlocal inside
        acquire(turns)
        inside += 1
        assert inside == 1
        await_(asyncio.sleep(0))
        order.append(number)
        inside -= 1
        turns.release()

    await asyncio.gather(*(on_loop(call)(number) for number in range(10)))
    assert order == list(range(10))
    assert not turns.locked()


async def test_a_turn_that_is_released_goes_to_who_waits_not_to_who_comes() -> None:
    turns = FairLock()
    acquire(turns, "first")
    waiting = asyncio.ensure_future(on_loop(acquire)(turns, "second"))
    await until_waiting(turns, 1)
    turns.release()
    assert turns.holder.label == "second"
    with pytest.raises(ConnectionBusy):
        acquire(turns, "third")
    assert await waiting


async def test_bare_coroutine_code_is_refused_instead_of_blocking_the_loop() -> None:
    turns = FairLock()
    acquire(turns, "task 'other'")
    with pytest.raises(ConnectionBusy, match=r"task 'other'.*\[nuages.connection-busy\]"):
        acquire(turns)


async def test_a_wait_ends_at_its_deadline() -> None:
    turns = FairLock()
    acquire(turns)
    assert await on_loop(acquire)(turns, timeout=0) is False
    assert not turns._queue
    turns.release()
    assert not turns.locked()


def test_a_threads_wait_ends_at_its_deadline() -> None:
    turns = FairLock()
    acquire(turns)
    assert acquire(turns, timeout=0) is False
    assert not turns._queue


async def test_a_cancelled_wait_leaves_the_queue() -> None:
    turns = FairLock()
    acquire(turns)
    tasks = [asyncio.ensure_future(on_loop(acquire)(turns, str(n))) for n in range(3)]
    await until_waiting(turns, 3)
    tasks[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[1]
    turns.release()
    assert await tasks[0]
    turns.release()
    assert await tasks[2]
    assert turns.holder.label == "2"


async def test_a_turn_given_to_a_task_that_is_cancelled_at_the_same_time_goes_on() -> None:
    turns = FairLock()
    acquire(turns)
    first = asyncio.ensure_future(on_loop(acquire)(turns, "first"))
    second = asyncio.ensure_future(on_loop(acquire)(turns, "second"))
    await until_waiting(turns, 2)
    turns.release()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await second
    assert turns.holder.label == "second"


async def test_threads_and_tasks_share_a_queue() -> None:
    turns = FairLock()
    order: list[str] = []
    acquire(turns)

    def call(name: str) -> None:
        acquire(turns, name)
        order.append(name)
        turns.release()

    tasks: list[Any] = []
    for number, start in enumerate((on_loop, lambda f: lambda *a: asyncio.to_thread(f, *a)) * 2):
        tasks.append(asyncio.ensure_future(start(call)(str(number))))
        await until_waiting(turns, number + 1)
    turns.release()
    await asyncio.gather(*tasks)
    assert order == ["0", "1", "2", "3"]
    assert not turns.locked()


async def test_who_waits_may_be_refused_each_with_an_error_of_its_own() -> None:
    turns = FairLock()
    acquire(turns)
    waiting = [on_loop(acquire)(turns), asyncio.to_thread(acquire, turns), on_loop(acquire)(turns)]
    gathered = asyncio.gather(*waiting, return_exceptions=True)
    await until_waiting(turns, 3)
    turns.refuse_waiting(ScopeEnded(task="a task"))
    errors = await gathered
    assert [type(error) for error in errors] == [ScopeEnded] * 3
    assert len({id(error) for error in errors}) == 3
    assert {str(error) for error in errors} == {str(ScopeEnded(task="a task"))}
    assert turns.locked()
    turns.release()
    assert not turns.locked()


async def test_code_that_unwinds_is_refused_instead_of_waiting() -> None:
    turns = FairLock()
    acquire(turns)
    steps: list[str] = []

    def call() -> None:
        try:
            await_(asyncio.sleep(0))
        finally:
            with pytest.raises(BridgeClosed):
                acquire(turns)
            steps.append("refused")

    loop = asyncio.get_running_loop()
    for running in (loop, None):
        coroutine = on_loop(call)()
        coroutine.send(None)
        asyncio._set_running_loop(running)
        try:
            coroutine.close()
        finally:
            asyncio._set_running_loop(loop)
    assert steps == ["refused", "refused"]
    assert not turns._queue


def test_code_that_unwinds_after_its_loop_was_closed_is_refused_too() -> None:
    turns = FairLock()
    acquire(turns)
    steps: list[str] = []

    def call() -> None:
        try:
            await_(asyncio.sleep(0))
        finally:
            with pytest.raises(BridgeClosed):
                acquire(turns, timeout=30)
            steps.append("refused")

    coroutine = on_loop(call)()

    async def park() -> None:
        coroutine.send(None)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(park())
    loop.close()
    coroutine.close()
    assert steps == ["refused"]


async def test_a_waiting_coroutine_that_is_closed_leaves_the_queue() -> None:
    turns = FairLock()
    acquire(turns)
    coroutine = on_loop(acquire)(turns)
    coroutine.send(None)
    assert len(turns._queue) == 1
    coroutine.close()
    assert not turns._queue


def test_who_waited_on_a_loop_that_was_closed_is_passed_over() -> None:
    turns = FairLock()
    acquire(turns)
    loop = asyncio.new_event_loop()
    coroutine = on_loop(acquire)(turns, "gone")

    async def park() -> None:
        coroutine.send(None)

    loop.run_until_complete(park())
    loop.close()
    taken = threading.Thread(target=acquire, args=(turns, "thread"))
    taken.start()
    asyncio.run(until_waiting(turns, 2))
    turns.release()
    taken.join(30)
    assert turns.holder.label == "thread"
    coroutine.close()
    assert turns.holder.label == "thread"


async def test_as_a_context_manager_it_names_its_holder() -> None:
    turns = FairLock()
    with turns:
        task = asyncio.current_task()
        assert task is not None
        assert turns.holder.label == f"task {task.get_name()!r}"
    assert not turns.locked()


async def test_a_caller_is_named_by_task_and_function() -> None:
    async def work() -> str:
        return caller_label()

    label = await asyncio.create_task(work(), name="my task")
    assert label.startswith("task 'my task' (")
    assert label.endswith("work)")
    assert await asyncio.to_thread(caller_label) != label
    assert "thread" in await asyncio.to_thread(caller_label)
