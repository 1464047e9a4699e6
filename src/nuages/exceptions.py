"""Every exception of Nuages; each says what happened, why, and what to do.

A class's docstring is its default message, so the two cannot drift apart. Where Django has a
class for the situation, ours derives from it, so that `except OperationalError` keeps working.
"""

from __future__ import annotations

import inspect
from typing import Any

from django.core.exceptions import SynchronousOnlyOperation
from django.db import InterfaceError, OperationalError
from django.db.transaction import TransactionManagementError

DOCS = "https://nuages.readthedocs.io/errors/"


class NuagesError(Exception):
    """Something went wrong in Nuages."""

    code = "nuages.error"

    def __init__(self, message: str | None = None, **details: Any) -> None:
        text = message or inspect.cleandoc(type(self).__doc__ or "").replace("\n", " ")
        if details:
            text = text.format(**details)
        super().__init__(text)

    def __str__(self) -> str:
        return f"{super().__str__()} [{self.code}]"


class NotInBridge(NuagesError, RuntimeError):
    """
    await_() was called outside a bridge, so there is nothing to await with. Call this code
    through on_loop(): `await on_loop(function)(...)`.
    """

    code = "nuages.not-in-bridge"


class BridgeClosed(NuagesError, RuntimeError):
    """
    Nothing can be awaited any more: the coroutine that drives this code was closed
    (GeneratorExit). Do no I/O while it unwinds.
    """

    code = "nuages.bridge-closed"


class SyncInCoroutine(NuagesError, SynchronousOnlyOperation):
    """
    The database was used by sync code in a coroutine, where it would block the event loop.
    Three ways out: await the async method (`await Article.objects.aget(...)`,
    `await article.aauthor`); decorate the async function with `@on_loop`, then implicit I/O
    is awaited; or `await on_loop(function)(...)` for a sync function of yours.
    """

    code = "nuages.sync-in-coroutine"


class AtomicInCoroutine(SyncInCoroutine):
    """
    A sync transaction.atomic() block was entered in a coroutine, where it would block the event
    loop. Use `async with transaction.atomic():` or, the same, `async with aatomic():`; as a
    decorator put it on an `async def`. Or decorate the coroutine function with `@on_loop`.
    """

    code = "nuages.atomic-in-coroutine"


class NeedsAsyncWith(NuagesError, TypeError):
    """
    {name}() was used in a sync `with`, which cannot await its beginning and its end. In a
    coroutine write `async with {name}():`. {sync}.
    """

    code = "nuages.needs-async-with"


class CommandInCoroutine(NuagesError, RuntimeError):
    """
    call_command() of the async command {name!r} in a coroutine, where it could only block the
    event loop. Await it: `await acall_command({name!r}, ...)`, from nuages.management.
    """

    code = "nuages.command-in-coroutine"


class SendInCoroutine(NuagesError, RuntimeError):
    """
    send() was called in a coroutine, and the signal has async receivers, which sync code cannot
    await there. No receiver was called. `await signal.asend(...)`, or decorate the coroutine
    function with `@on_loop`.
    """

    code = "nuages.send-in-coroutine"


class PoolTimeout(NuagesError, OperationalError):
    """
    No connection of database {alias!r} came free within {timeout:g} s: {stats}. Raise
    OPTIONS["pool"]["max_size"], hold connections for less time (a transaction or an open
    aiterator() holds one), or start less work at once.
    """

    code = "nuages.pool-timeout"


class TooManyWaiting(NuagesError, OperationalError):
    """
    {waiting} tasks already wait for a connection of database {alias!r}, which is
    OPTIONS["pool"]["max_waiting"]. Refused at once, so that the load does not pile up.
    """

    code = "nuages.too-many-waiting"


class PoolClosed(NuagesError, InterfaceError):
    """
    The connection pool of database {alias!r} is closed: its event loop is shutting down.
    Finish database work before the loop ends.
    """

    code = "nuages.pool-closed"


class ConnectionBusy(NuagesError, InterfaceError):
    """
    This connection is in the middle of a statement of {holder}, and waiting for it here would
    block the event loop. Use the connection inside on_loop() code, or take one of your own.
    """

    code = "nuages.connection-busy"


class ScopeEnded(NuagesError, TransactionManagementError):
    """
    The transaction that {task} was started in has ended, so this statement would run outside
    it. Await the task inside the block, or start its work in `async with detached():`.
    """

    code = "nuages.scope-ended"


class ForeignConnection(NuagesError, InterfaceError):
    """
    {caller} used a connection object of a transaction that {owner} opened, without being in
    that transaction. Look the connection up where it is used (`django.db.connection`).
    """

    code = "nuages.foreign-connection"


class ForkedBlock(NuagesError, TransactionManagementError):
    """
    This process was forked inside a transaction block, or with autocommit switched off, of its
    parent, whose connection is not the child's to use: the transaction goes on in the parent
    alone, and nothing of what the child does belongs to it. Fork outside of blocks, or let the
    child leave them before it queries; where autocommit was off, call close() on the connection.
    """

    code = "nuages.forked-block"


class ForkedDatabase(NuagesError, OperationalError):
    """
    This process was forked while {database!r} was in use in its parent: a statement, a
    transaction or a cursor with rows left. SQLite's own state in this process says so for ever,
    and its locks are the parent's, so opening the file here could destroy it. Fork while nothing
    is under way, or start the process anew (the start method "spawn" of multiprocessing).
    """

    code = "nuages.forked-database"


class OpenBlock(NuagesError, TransactionManagementError):
    """
    A transaction block ended while a block inside it, opened by {child}, was still open; the
    outer block was rolled back. Await the tasks you start in a transaction before it ends.
    """

    code = "nuages.open-block"


class EnteredElsewhere(NuagesError, TransactionManagementError):
    """
    A block that {opener} entered is not one that {caller} is in: a context manager that is entered
    in a task of its own (`create_task`, `gather`, before Python 3.12 `wait_for`) leaves its body
    outside. What ran in the block is rolled back; what ran in its body is not. Enter it where its
    body runs.
    """

    code = "nuages.entered-elsewhere"


class BlockInterrupted(NuagesError, TransactionManagementError):
    """
    A statement of this transaction block was interrupted (a timeout, a cancellation), or the
    database ended the transaction (a deadlock), and what that raised was caught in the block: it
    was rolled back. Catch it outside of the block, or put what may fail into a block of its own.
    """

    code = "nuages.block-interrupted"


class NotCommitted(NuagesError, OperationalError):
    """
    The block ended without an error, but its connection is gone, and COMMIT was not sent: nothing
    of it was committed.
    """

    code = "nuages.not-committed"


class IterationEnded(NuagesError, InterfaceError):
    """
    An iterator() was continued after the call that began it had ended: its rows are in a cursor
    of that call's connection, which went back to the pool. That is so where each step is a call
    of its own, `await sync_to_async(next)(rows)`. Use `async for row in queryset.aiterator()`, or
    run the whole loop in one function that sync_to_async() or on_loop() calls.
    """

    code = "nuages.iteration-ended"


class ScopeDeadlock(NuagesError, TransactionManagementError):
    """
    {waiter} waited {timeout:g} s for its turn on the connection of the transaction it is in,
    which {holder} holds. If {holder} waits for {waiter} in turn, neither can go on: do not
    await a task from inside a block that the task needs too. The limit is
    NUAGES["SCOPE_TIMEOUT"].
    """

    code = "nuages.scope-deadlock"


class TestLeftOpen(NuagesError, AssertionError):
    """
    {test} ended and left behind: {what}. It was rolled back, so the next test starts clean; end
    it in the test.
    """

    __test__ = False
    code = "nuages.test-left-open"


class TestConnectionLost(NuagesError, OperationalError):
    """
    The connection of this class's transaction to {alias!r} was lost in {test}, and with it the
    rows of setUpTestData(). Look at that test first; the other tests of the class cannot run.
    """

    __test__ = False
    code = "nuages.test-connection-lost"


class ThreadForbidden(NuagesError, AssertionError):
    """
    A thread was used in a forbid_threads() block: {what}. Use the async or on_loop() way to do
    it, or allow it: forbid_threads(allow=["{name}"]). {stack}.
    """

    code = "nuages.thread-forbidden"


class BlockingCall(NuagesError, AssertionError):
    """
    {what} blocked the event loop's thread in a forbid_blocking() block. Await it, hand it to a
    thread with off_loop(), or allow what calls it: forbid_blocking(allow=["module"]). {stack}.
    """

    code = "nuages.blocking-call"


class OutcomeUnknown(NuagesError, OperationalError):
    """
    The connection was lost, or did not answer in time, after COMMIT was sent: the transaction
    may or may not have been committed. Look at the data before you repeat the work.
    """

    code = "nuages.outcome-unknown"


class HookFailed(NuagesError, RuntimeError):
    """
    The transaction was committed, and after that its on-commit hook {hook} failed with a
    database's error ({error}). Do not repeat the work, it is done; what is missing is the
    hook's. {later}. Register a hook with robust=True where its failure should be logged instead.
    """

    code = "nuages.hook-failed"


class EventStreamNeedsASGI(NuagesError, RuntimeError):
    """
    An EventStream was iterated by sync code: under WSGI it would hold a thread for as long as
    the client listens. Serve the project through its ASGI application; in a test read it with
    django.test.AsyncClient and `async for`.
    """

    code = "nuages.event-stream-needs-asgi"


class FileTruncated(NuagesError, OSError):
    """
    The file {path!r} became shorter while it was sent, so the connection is cut: the client was
    promised more. Replace files by renaming a new one over them instead of writing into them.
    """

    code = "nuages.file-truncated"


class MigrationLockTimeout(NuagesError, OperationalError):
    """
    {migration} did not get a lock within {timeout:g} s, {tries} times; what it had begun was
    rolled back each time, and other sessions could go on. Somebody holds the table in a long
    transaction: find it in pg_stat_activity (oldest xact_start) and end it, or run migrate again
    at a quieter time or with more --lock-retries.
    """

    code = "nuages.migration-lock-timeout"


class MigrationNotRepeatable(NuagesError, OperationalError):
    """
    {migration} has `atomic = False`, and did not get a lock in a transaction of its own, or in a
    statement with many rows. What came before has been committed and stays, so it cannot be
    repeated unseen: see that what it did is harmless when done again, or undo it, then run
    migrate again. Better, put what needs the lock into a migration that is atomic.
    """

    code = "nuages.migration-not-repeatable"


class BackfillError(NuagesError, RuntimeError):
    """A Backfill cannot run."""

    code = "nuages.backfill"


class CachePoolTimeout(NuagesError, TimeoutError):
    """
    No connection to the cache came free within {timeout:g} s; all {max_connections} are in use.
    Raise OPTIONS["max_connections"] or OPTIONS["pool_timeout"] of the cache, or start less work
    at once.
    """

    code = "nuages.cache-pool-timeout"
