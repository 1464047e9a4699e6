"""Statements that begin and end transactions, holds and cursors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from django.db import DatabaseError, OperationalError, connections, transaction

from nuages.db import aatomic, acursor, detached, hold_connection
from nuages.exceptions import OutcomeUnknown
from tests.search.model import OTHER_TASK, HookFailed, says_committed
from tests.search.program import ASYNC, SYNC, Node
from tests.search.running import Frame, run_async, run_sync, statement, tell


class Watched:
    """Notes in the journal how a block ends: `with Watched(...)` stands around the block."""

    def __init__(self, node: Node, frame: Frame) -> None:
        alias = node.args["alias"]
        self.frame = frame
        self.block = frame.run.journal.open(
            alias,
            frame.blocks.get(alias),
            kind=node.kind,
            savepoint=node.args.get("savepoint", True),
        )
        self.inside = frame.within(self.block)
        self.entered = False
        self.left = False
        """Whether the body came to its end, or to a return."""

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        block = self.block
        if isinstance(error, DatabaseError) and block.troubled:
            error.search_interrupted = True  # type: ignore[attr-defined]
        if error is None and self.frame.run.tainted:
            block.outcome = "unknown"
            block.root.hooks_lost = True
        elif error is None:
            block.outcome = "committed"
        elif not self.left:
            block.outcome = "rolled back"
        else:
            self._failed_at_its_end(error)
        if block.parent is not None and not block.savepoint and block.outcome != "committed":
            block.parent.trouble()
        if block.parent is not None and block.troubled and not block.savepoint:
            block.parent.trouble()

    def _failed_at_its_end(self, error: BaseException) -> None:
        block = self.block
        if has_cause(error, OutcomeUnknown):
            block.outcome = "unknown"
            block.root.hooks_lost = True
        elif isinstance(error, asyncio.CancelledError):
            block.outcome = "unknown"
        elif (block.parent is None and isinstance(error, HookFailed)) or (
            block.parent is None and says_committed(error)
        ):
            block.outcome = "committed"
        else:
            block.outcome = "rolled back"


def has_cause(error: BaseException, kind: type[BaseException]) -> bool:
    """Find `kind` among an error and its causes."""
    step: BaseException | None = error
    while step is not None:
        if isinstance(step, kind):
            return True
        step = step.__cause__ or step.__context__
    return False


def _made(node: Node) -> Any:
    return aatomic(node.args["alias"], node.args["savepoint"], node.args["durable"])


@asynccontextmanager
async def _by_contextmanager(node: Node) -> AsyncIterator[None]:
    async with _made(node):
        yield


@asynccontextmanager
async def _in_other_task(node: Node) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        await asyncio.create_task(stack.enter_async_context(_made(node)))
        yield


def _manager(node: Node) -> Any:
    match node.args["how"]:
        case "contextmanager":
            return _by_contextmanager(node)
        case how if how == OTHER_TASK:
            return _in_other_task(node)
        case "django":
            return transaction.atomic(
                node.args["alias"], node.args["savepoint"], node.args["durable"]
            )
    return _made(node)


@statement("atomic", ASYNC)
async def atomic_async(node: Node, frame: Frame) -> Any:
    """Run the body in a transaction or savepoint."""
    with Watched(node, frame) as watched:

        async def body() -> Any:
            watched.entered = True
            outside = node.args["how"] == OTHER_TASK
            result = await run_async(node.body, frame if outside else watched.inside)
            watched.left = True
            return result

        match node.args["how"]:
            case "decorator":
                return await _made(node)(body)()
            case "django_decorator":
                return await transaction.atomic(
                    node.args["alias"], node.args["savepoint"], node.args["durable"]
                )(body)()
            case "stack":
                async with AsyncExitStack() as stack:
                    await stack.enter_async_context(_made(node))
                    return await body()
        async with _manager(node):
            return await body()


@statement("atomic", SYNC)
def atomic_sync(node: Node, frame: Frame) -> Any:
    """Run the body in a transaction or savepoint."""
    with (
        Watched(node, frame) as watched,
        transaction.atomic(node.args["alias"], node.args["savepoint"], node.args["durable"]),
    ):
        result = run_sync(node.body, watched.inside)
        watched.left = True
        return result


@statement("hold", ASYNC)
async def hold(node: Node, frame: Frame) -> Any:
    """Run the body with one connection held."""
    async with hold_connection(node.args["alias"]):
        return await run_async(node.body, frame.holding("hold"))


@statement("acursor", ASYNC)
async def cursor(node: Node, frame: Frame) -> Any:
    """Run the body in the block of a cursor that has sent something."""
    async with acursor(node.args["alias"]) as cursor:
        await cursor.execute("SELECT name FROM library_author WHERE name LIKE 'seed%%'")
        return await run_async(node.body, frame.holding("acursor"))


@statement("detached", ASYNC)
async def outside(node: Node, frame: Frame) -> Any:
    """Run the body outside of every block on purpose."""
    async with detached():
        return await run_async(node.body, frame.outside(list(frame.blocks)))


@statement("crossed", ASYNC)
async def crossed(node: Node, frame: Frame) -> Any:
    """Open a transaction in a cursor's or hold's block, and leave that block first."""
    make: Callable[[str], Any] = acursor if node.args["outer"] == "acursor" else hold_connection
    with Watched(node, frame) as watched:
        async with AsyncExitStack() as outer:
            await outer.enter_async_context(make(node.args["alias"]))
            async with aatomic(node.args["alias"]):
                first, second = node.body[:1], node.body[1:]
                inside = watched.inside.holding("crossed")
                await run_async(first, inside)
                await outer.aclose()
                result = await run_async(second, inside)
                watched.left = True
                return result


@statement("manual", SYNC)
def manual(node: Node, frame: Frame) -> Any:
    """Run the body with autocommit off and end it by hand."""
    alias = node.args["alias"]
    with Watched(node, frame) as watched:
        transaction.set_autocommit(False, alias)
        try:
            result = run_sync(node.body, watched.inside)
            if node.args["end"] == "rollback":
                transaction.rollback(alias)
            else:
                watched.left = True
                transaction.commit(alias)
        except BaseException:
            _roll_back(alias, frame)
            raise
        finally:
            transaction.set_autocommit(True, alias)
    if not watched.left:
        watched.block.outcome = "rolled back"
    return result


def _roll_back(alias: str, frame: Frame) -> None:
    """Roll back by hand; a connection that is lost has nothing to roll back."""
    try:
        transaction.rollback(alias)
    except OperationalError as error:
        if connections[alias].connection is not None:
            frame.run.faults.append(f"transaction.rollback() raised {tell(error)}")
