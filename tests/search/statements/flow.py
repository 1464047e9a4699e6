"""Statements that raise, catch, return and collect garbage."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

from nuages import off_loop
from tests.search.model import Planned
from tests.search.program import ASYNC, SYNC, Node
from tests.search.running import RETURN, Frame, run_async, run_sync, statement


@statement("raise", ASYNC)
async def raise_async(node: Node, frame: Frame) -> None:
    """Raise on purpose."""
    raise Planned


@statement("raise", SYNC)
def raise_sync(node: Node, frame: Frame) -> None:
    """Raise on purpose."""
    raise Planned


@statement("return", ASYNC)
async def return_async(node: Node, frame: Frame) -> str:
    """Return out of every block around, up to the function's beginning."""
    return RETURN


@statement("return", SYNC)
def return_sync(node: Node, frame: Frame) -> str:
    """Return out of every block around, up to the function's beginning."""
    return RETURN


@statement("try", ASYNC)
async def try_async(node: Node, frame: Frame) -> Any:
    """Swallow every error of the body, but no cancellation."""
    try:
        return await run_async(node.body, frame)
    except Exception as error:
        frame.swallow(error)


@statement("try", SYNC)
def try_sync(node: Node, frame: Frame) -> Any:
    """Swallow every error of the body, but no cancellation."""
    try:
        return run_sync(node.body, frame)
    except Exception as error:
        frame.swallow(error)


@statement("pause", ASYNC)
async def pause(node: Node, frame: Frame) -> None:
    """Let other tasks run."""
    for _ in range(node.args["times"]):
        await asyncio.sleep(0)


@statement("collect", ASYNC)
async def collect_async(node: Node, frame: Frame) -> None:
    """Collect garbage, here or in another thread."""
    if node.args["where"] == "here":
        gc.collect()
    else:
        await asyncio.get_running_loop().run_in_executor(None, gc.collect)


@statement("collect", SYNC)
def collect_sync(node: Node, frame: Frame) -> None:
    """Collect garbage, here or in another thread."""
    if node.args["where"] == "here" or frame.place == "thread":
        gc.collect()
    else:
        off_loop(gc.collect)()
