"""Tasks, threads, bridges, cancellations and forks."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from asgiref.sync import async_to_sync, sync_to_async
from django.db import connections

from nuages import off_loop, on_loop
from nuages.exceptions import ForkedBlock, ForkedDatabase
from tests.integration.sweep_tools import Cut
from tests.search.program import ASYNC, SYNC, Node
from tests.search.running import Frame, run_async, run_sync, run_task, statement

TICK = 0.0007
"""Seconds; where a cut is by timer, its numbers count these."""
CHILD_SECONDS = 5
"""A forked child that takes longer hangs; the kernel ends it."""


@statement("cut", ASYNC)
async def cut(node: Node, frame: Frame) -> Any:
    """Cancel the body at some of its waits, and swallow the cancellations outside."""
    task = asyncio.current_task()
    assert task is not None
    for block in frame.blocks.values():
        block.trouble()
    body = run_async(node.body, replace(frame, cancelled=True))
    at, timing = node.args["at"], node.args["timing"]
    timers: list[asyncio.TimerHandle] = []
    if timing == "timer":
        loop = asyncio.get_running_loop()
        timers = [loop.call_later(number * TICK, task.cancel) for number in at]
    else:
        body = Cut(body, frozenset(at), timing).run()
    before = task.cancelling()
    result = None
    try:
        try:
            result = await body
        finally:
            for timer in timers:
                timer.cancel()
            # One that came when the body had ended arrives here.
            for _ in range(2):
                await asyncio.sleep(0)
    except asyncio.CancelledError as error:
        frame.swallow(error)
    finally:
        while task.cancelling() > before:
            task.uncancel()
    return result


@statement("spawn", ASYNC)
async def spawn(node: Node, frame: Frame) -> None:
    """Start a task and do not await it."""
    inside = replace(frame.outliving(), cancelled=False)
    frame.run.tasks.append(asyncio.create_task(run_task(node.body, inside)))


@statement("gather", ASYNC)
async def gather(node: Node, frame: Frame) -> None:
    """Await all branches; where one fails, the others go on without anybody awaiting them."""
    inside = frame.outliving()
    branches = [asyncio.create_task(run_async(b.body, inside)) for b in node.body]
    frame.run.tasks += [asyncio.ensure_future(_swallowed(branch)) for branch in branches]
    await asyncio.gather(*branches)


async def _swallowed(branch: asyncio.Task[Any]) -> None:
    await asyncio.wait([branch])
    if not branch.cancelled():
        branch.exception()


@statement("group", ASYNC)
async def group(node: Node, frame: Frame) -> None:
    """Await all branches; where one fails, the others are cancelled."""
    inside = replace(frame.outliving(), cancelled=True)
    async with asyncio.TaskGroup() as tasks:
        for branch in node.body:
            tasks.create_task(run_async(branch.body, inside))


def _noted(node: Node, frame: Frame) -> Callable[[], Any]:
    """The body as a function for a thread, whose end the run waits for."""
    inside = frame.outliving().at("thread")
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()

    def body() -> Any:
        frame.run.threads.append(over)
        try:
            return run_sync(node.body, inside)
        finally:
            loop.call_soon_threadsafe(over.set_result, None)

    return body


@statement("thread", ASYNC)
async def thread(node: Node, frame: Frame) -> Any:
    """Run the body in a thread."""
    return await sync_to_async(
        _noted(node, frame), thread_sensitive=node.args["thread_sensitive"]
    )()


@statement("off_loop", SYNC)
def in_thread(node: Node, frame: Frame) -> Any:
    """Run the body in a thread, from sync code on the loop."""
    return off_loop(_noted(node, frame))()


@statement("bridged", ASYNC)
async def bridged(node: Node, frame: Frame) -> Any:
    """Run the body as sync code on the loop."""
    return await on_loop(lambda: run_sync(node.body, frame.at("sync")))()


@statement("portal", ASYNC)
async def portal(node: Node, frame: Frame) -> Any:
    """Run the body as a coroutine in which I/O may be implicit."""

    async def body() -> Any:
        return await run_async(node.body, frame.at("portal"))

    return await on_loop(body)()


@statement("back", SYNC)
def back(node: Node, frame: Frame) -> Any:
    """Run the body as a coroutine by async_to_sync()."""

    async def body() -> Any:
        return await run_async(node.body, frame.at("coroutine"))

    return async_to_sync(body)()


@statement("fork", SYNC)
def fork(node: Node, frame: Frame) -> None:
    """Fork a child that queries and exits."""
    refused = bool(frame.blocks) or frame.run.tainted or bool(frame.around)
    child = os.fork()
    if child == 0:
        _live_as_child(node.args["alias"], refused=refused)
    _, status = os.waitpid(child, 0)
    if status:
        ended = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {status}"
        frame.run.faults.append(f"a forked child that queries ended by {ended}")


def _live_as_child(alias: str, *, refused: bool) -> None:
    """Query; `refused`: the child may be told that it is in a block of its parent."""
    status = 1
    try:
        signal.alarm(CHILD_SECONDS)
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 41 + 1")
            status = 0 if cursor.fetchone() == (42,) else 2
    except (ForkedBlock, ForkedDatabase):
        status = 0 if refused else 3
    finally:
        os._exit(status)
