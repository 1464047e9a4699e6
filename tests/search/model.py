"""The errors that a statement may raise where it stands; any other one is a fault.

- `Planned` and `HookFailed`: where the program raises them.
- `CancelledError`: in what is cancelled, and in tasks of a group whose sibling failed.
- `IntegrityError`: from a write that is made to violate a constraint.
- `ScopeEnded`: in tasks and threads that may outlive their block, and in a program that drops a
  generator with a transaction in it, or leaves one with a hold in a cycle.
- `OpenBlock`: from a block in which such tasks or threads ran, and from one that was opened in the
  block of a cursor or hold and left after it.
- `TransactionManagementError`, a `DatabaseError`: in a block in which something failed and
  was swallowed; the first also in a program that drops a generator with a transaction in it, and
  in what may outlive a block that is cancelled.
- `PoolTimeout`: where the program may use more connections at once than the pool has.
- `BlockInterrupted`: from a block in which a cancellation was swallowed.
- `EnteredElsewhere`: in a program that enters a block in a task of its own.
- `OutcomeUnknown`: where a cancellation comes while a COMMIT is awaited.
- `RuntimeError` about `durable`: from a durable block in another one.
- an `OperationalError`: in a thread whose task was cancelled, and with it the statement; and on a
  connection that is shared with what is cancelled twice, which closes it.
- `IterationEnded`: of an iteration whose block has ended, in what may outlive that, or in a thread
  whose task was cancelled.
- an `InterfaceError`, of sqlite3 a `ProgrammingError`: of a cursor whose block has ended, in what
  may outlive that.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from django.db import (
    DatabaseError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    ProgrammingError,
)
from django.db.transaction import TransactionManagementError

from nuages import exceptions
from nuages.exceptions import (
    BlockInterrupted,
    EnteredElsewhere,
    IterationEnded,
    NuagesError,
    OpenBlock,
    OutcomeUnknown,
    PoolTimeout,
    ScopeEnded,
)
from tests.search.program import Node, Program

if TYPE_CHECKING:
    from tests.search.running import Frame

HOLDERS = {
    *("spawn", "gather", "group", "thread", "off_loop", "detached", "iterate", "iterate_sync"),
    *("cut", "hold", "acursor", "crossed", "hook"),
}
"""Kinds beside which another statement may need a connection."""
OTHER_TASK = "other_task"
"""How a block is entered in a task of its own, so that its body is outside."""
BY_HOOK = "raised by a hook on purpose"
CLOSED_CURSOR = "Cannot operate on a closed cursor"
DURABLE = "A durable atomic block cannot be nested"


class Planned(Exception):
    """What a program raises on purpose."""


class HookFailed(Exception):
    """What a hook raises on purpose: its block is committed."""


def says_committed(error: BaseException) -> bool:
    """Tell by the error that a hook raised that the block it comes out of is committed.

    A database's own error says the opposite (docs/faults.md), so it must be one with a code.
    """
    return isinstance(error, exceptions.HookFailed)


def most_connections(program: Program) -> int:
    """How many connections of an alias it may use at once, at most."""
    return 1 + sum(
        max(len(n.body), 1)
        for n in program.walk()
        if n.kind in HOLDERS or n.args.get("how") == OTHER_TASK
    )


def cancels_twice(program: Program) -> bool:
    """Whether something in it may be cancelled twice: the first one waits for the server."""
    count = 0
    for node in program.walk():
        count += len(node.args["at"]) if node.kind == "cut" else node.kind == "group"
    return count > 1


def is_expected(error: BaseException, node: Node, frame: Frame) -> bool:
    """Decide whether `node` may raise `error` in `frame`."""
    if isinstance(error, BaseExceptionGroup):
        return all(
            getattr(each, "search_has_seen", False) or is_expected(each, node, frame)
            for each in error.exceptions
        )
    if isinstance(error, (Planned, HookFailed, GeneratorExit)):
        return True
    if isinstance(error, asyncio.CancelledError):
        return frame.cancelled
    return _is_expected_database_error(error, node, frame)


def _is_expected_database_error(error: BaseException, node: Node, frame: Frame) -> bool:
    program = frame.run.program
    if isinstance(error, PoolTimeout):
        return program.pool < most_connections(program)
    if isinstance(error, OutcomeUnknown):
        return frame.cancelled or cancels_twice(program)
    if isinstance(error, ScopeEnded):
        # A task may be in a hold that was left in a cycle, and ends when that is collected.
        in_cycle = any(
            each.args.get("leave") == "cycle" and each.args.get("source") == "with_hold"
            for each in program.walk()
        )
        return frame.late or frame.run.tainted or in_cycle
    if isinstance(error, IterationEnded):
        return frame.late or (frame.cancelled and frame.place == "thread")
    if isinstance(error, OpenBlock):
        return node.kind == "crossed" or frame.run.tainted or node.kind in frame.run.shared_kinds
    if node.kind == "hook" and node.args["alias"] not in frame.blocks and BY_HOOK in str(error):
        return True
    if node.kind in ("atomic", "crossed", "manual") and says_committed(error):
        return True
    if node.kind == "violate" and isinstance(error, IntegrityError):
        return True
    if node.kind == "atomic" and DURABLE in str(error):
        return node.args["alias"] in frame.blocks or frame.run.tainted
    if isinstance(error, EnteredElsewhere):
        return any(each.args.get("how") == OTHER_TASK for each in program.walk())
    if getattr(error, "search_interrupted", False):
        return True
    if isinstance(error, BlockInterrupted):
        return frame.run.tainted
    if isinstance(error, ScopeEnded) and node.kind == "iterate_sync":
        # A hold that was begun meanwhile has its connection, and was dropped.
        return any(each.kind == "iterate" for each in program.walk())
    troubled = any(block.is_troubled for block in frame.blocks.values())
    if isinstance(error, TransactionManagementError):
        # Late: in a block that was cancelled, and is still to end.
        cancelled = any(each.kind in ("cut", "group") for each in program.walk())
        if troubled or frame.run.tainted or (frame.late and cancelled):
            return True
    if isinstance(error, NuagesError):
        return False
    # A generator that is not collected yet keeps its consumer on the connection that it holds; and
    # what is called in one bridge has one connection as long as nothing else is awaited.
    shares = (
        frame.run.tainted
        or bool(frame.around)
        or node.kind in (*HOLDERS, "atomic")
        or any(each.kind in ("iterate", "bridged", "back") for each in program.walk())
    )
    if isinstance(error, (OperationalError, TransactionManagementError)) and shares:
        return cancels_twice(program)
    if isinstance(error, InterfaceError) and frame.late:
        return True
    if isinstance(error, ProgrammingError) and CLOSED_CURSOR in str(error):
        return frame.late
    if isinstance(error, DatabaseError) and troubled:
        return True
    return isinstance(error, OperationalError) and frame.cancelled and frame.place == "thread"
