"""What is left in the process when a program is over."""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import Any

from nuages.bridge.core import _bridges
from nuages.db.pool.pool import open_pools
from tests.integration.sweep_tools import settled

PAUSE = 0.1
"""Seconds between two looks."""


async def look(seconds: float) -> list[str]:
    """Wait until nothing is left and pools are idle; return what is left after `seconds`."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                await settled()
                break
        except TimeoutError:
            return [f"left behind: {_tasks()}; {_waiting()}"]
        except AssertionError as error:
            # A connection is being reset, say.
            if asyncio.get_running_loop().time() > deadline:
                return [f"left behind: {error}; {_waiting()}"]
            await asyncio.sleep(0.01)
    while busy := _busy_pools():
        if asyncio.get_running_loop().time() > deadline:
            return busy
        # An error that a thread raised is in a cycle with asgiref's future of it.
        gc.collect()
        await asyncio.sleep(PAUSE)
    return []


def _busy_pools() -> list[str]:
    return [
        f"the pool of {pool.alias!r} is not idle: {pool.stats()}"
        for pool in open_pools()
        if pool.stats()["used"] or pool.stats()["waiting"] or pool.scopes or pool.parked
    ]


def _tasks() -> str:
    return f"tasks {asyncio.all_tasks() - {asyncio.current_task()}}"


def _waiting() -> list[str]:
    """Where each bridge waits."""
    return [
        " < ".join(f"{frame.f_code.co_name}:{frame.f_lineno}" for frame in bridge.frames())
        for bridge in _bridges.values()
    ]


async def until_gone(judge: Any, alias: str, seconds: float) -> list[str]:
    """Wait until nothing is in a transaction; return what is after `seconds`."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        await asyncio.sleep(PAUSE)
        found = judge.open_transactions()
        if not found:
            return []
        if asyncio.get_running_loop().time() > deadline:
            return [f"in a transaction on {alias!r}: {found}"]


def dump_tasks() -> None:
    """Write every task's stack, and those of the bridges."""
    print("The program hangs. Its tasks:", file=sys.stderr)
    for task in asyncio.all_tasks():
        task.print_stack(file=sys.stderr)
    for bridge in _bridges.values():
        print("A bridge waits at:", file=sys.stderr)
        for frame in bridge.frames():
            code = frame.f_code
            print(f"  {code.co_filename}:{frame.f_lineno} {code.co_name}", file=sys.stderr)
    sys.stderr.flush()
