"""Iterators and generators of every kind, and every way to leave them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

from django.db import connections

from nuages.db import aatomic, acursor, hold_connection
from tests.library.models import Author
from tests.search.model import Planned
from tests.search.program import ASYNC, SYNC, Node
from tests.search.running import RETURN, Frame, run_async, run_sync, statement

ROWS = "SELECT name FROM library_author WHERE name LIKE 'seed%%' ORDER BY name"
HOLDING = ("with_atomic", "with_hold", "with_cursor")
"""Generators of the program's own that yield inside such a block."""


def _authors(alias: str) -> Any:
    return Author.objects.using(alias).filter(name__startswith="seed").order_by("name")


async def _cursor_rows(alias: str) -> AsyncIterator[Any]:
    async with acursor(alias) as cursor:
        await cursor.execute(ROWS)
        async for row in cursor:
            yield row


async def _numbers(manager: Any) -> AsyncIterator[int]:
    async with manager:
        for number in range(6):
            yield number


async def _with_iterator(alias: str) -> AsyncIterator[Any]:
    async for author in _authors(alias).aiterator(chunk_size=2):
        yield author.name


def _source(node: Node) -> Any:
    alias = node.args["alias"]
    match node.args["source"]:
        case "aiterator":
            return _authors(alias).aiterator(chunk_size=2)
        case "prefetch":
            return _authors(alias).prefetch_related("books").aiterator(chunk_size=2)
        case "values_list":
            return _authors(alias).values_list("name").aiterator(chunk_size=2)
        case "queryset":
            return aiter(_authors(alias))
        case "acursor_rows":
            return _cursor_rows(alias)
        case "with_aiterator":
            return _with_iterator(alias)
        case "with_atomic":
            return _numbers(aatomic(alias))
        case "with_hold":
            return _numbers(hold_connection(alias))
    return _numbers(acursor(alias))


def _may_be_dropped(node: Node, frame: Frame) -> None:
    """Note that the code after this may be in the transaction of a generator that is left."""
    if node.args["source"] == "with_atomic" and not node.args["closing"]:
        frame.run.tainted = True


@statement("iterate", ASYNC)
async def iterate(node: Node, frame: Frame) -> Any:
    """Run the body for each row up to the one where it is left."""
    inside = frame.holding("iterate")
    if node.args["leave"] == "cycle":
        return await _abandon(node, inside)
    if not node.args["closing"]:
        _may_be_dropped(node, frame)
        return await _loop(_source(node), node, inside)
    async with aclosing(_source(node)) as rows:
        return await _loop(rows, node, inside)


async def _loop(rows: Any, node: Node, frame: Frame) -> Any:
    number = 0
    async for _ in rows:
        number += 1
        if number == 1 and await run_async(node.body, frame) is RETURN:
            return RETURN
        if number >= node.args["after"]:
            match node.args["leave"]:
                case "break":
                    break
                case "return":
                    return RETURN
                case "raise":
                    raise Planned
    return None


async def _abandon(node: Node, frame: Frame) -> Any:
    """Leave the iterator in a cycle, where only the garbage collector finds it."""
    rows = _source(node)
    _may_be_dropped(node, frame)
    cycle: list[Any] = [rows]
    cycle.append(cycle)
    for _ in range(node.args["after"]):
        await anext(rows, None)
    return await run_async(node.body, frame)


def _sync_source(node: Node) -> Iterator[Any]:
    alias = node.args["alias"]
    if node.args["source"] == "iterator":
        return iter(_authors(alias).iterator(chunk_size=2))
    cursor = connections[alias].cursor()
    cursor.execute(ROWS)
    return iter(cursor)


@statement("iterate_sync", SYNC)
def iterate_sync(node: Node, frame: Frame) -> Any:
    """Run the body for the first row, and leave the iterator as the node says."""
    frame = frame.holding("iterate_sync")
    rows = _sync_source(node)
    if node.args["leave"] == "cycle":
        cycle: list[Any] = [rows]
        cycle.append(cycle)
        for _ in itertools.islice(rows, node.args["after"]):
            pass
        return run_sync(node.body, frame)
    for number, _ in enumerate(rows, 1):
        if number == 1 and run_sync(node.body, frame) is RETURN:
            return RETURN
        if number >= node.args["after"]:
            match node.args["leave"]:
                case "break":
                    break
                case "return":
                    return RETURN
                case "raise":
                    raise Planned
    return None
