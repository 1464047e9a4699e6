"""The ways to make a transfer in async code: each is a coroutine function that commits it.

`STYLES` has them by name; `plain.py` adds those in sync code.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from asgiref.sync import sync_to_async
from django.db import OperationalError, connection

from nuages import on_loop
from nuages.db import aatomic, acursor, aon_commit, detached, hold_connection
from nuages.exceptions import NuagesError
from tests.bank.models import Account, Transfer
from tests.bank.moving import Move, achange, apply, apply_sync, note, tell

Style = Callable[[Move], Awaitable[Any]]
STYLES: dict[str, Style] = {}
HOOKED = ("hook", "hook_in_task", "hook_on_loop", "hook_in_thread")
"""Styles that write a row by a hook."""
TRIES = 4


class Given(Exception):
    """The view gave the transfer up: it was not acknowledged."""


class Planned(Exception):
    """What is raised to have a savepoint rolled back."""


def style(function: Style) -> Style:
    """Decorate a way to make a transfer."""
    STYLES[function.__name__] = function
    return function


@style
async def block(move: Move) -> None:
    """As the guide shows it."""
    async with aatomic():
        await apply(move)


@style
async def decorated(move: Move) -> None:
    await aatomic(apply)(move)


@style
async def durable(move: Move) -> None:
    async with aatomic(durable=True):
        await apply(move)


@contextlib.asynccontextmanager
async def _in_block() -> AsyncIterator[None]:
    async with aatomic():
        yield


@style
async def context_manager(move: Move) -> None:
    async with _in_block():
        await apply(move)


@style
async def exit_stack(move: Move) -> None:
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(aatomic())
        await apply(move)


@style
async def savepoints(move: Move) -> None:
    """One savepoint that is rolled back, with everything in it, and one that is kept."""
    async with aatomic():
        with contextlib.suppress(Planned):
            async with aatomic():
                await apply(move)
                raise Planned
        # Where the connection was lost in that rollback, this query says so.
        await Account.objects.filter(number=move.source).aexists()
        async with aatomic():
            await apply(move)


@style
async def gathered(move: Move) -> None:
    async with aatomic():
        first, second = move.changes()
        await achange(*first)
        await asyncio.gather(achange(*second), move.audit().asave())


@style
async def task_group(move: Move) -> None:
    async with aatomic():
        first, second = move.changes()
        await achange(*first)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(achange(*second))
            tasks.create_task(move.audit().asave())


@style
async def nested_in_tasks(move: Move) -> None:
    async def change(number: int, amount: int) -> None:
        async with aatomic():
            await achange(number, amount)

    async with aatomic():
        first, second = move.changes()
        await change(*first)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(change(*second))
            tasks.create_task(move.audit().asave())


@style
async def thread_inside(move: Move) -> None:
    async with aatomic():
        await sync_to_async(apply_sync, thread_sensitive=False)(move)


@style
async def bridge_inside(move: Move) -> None:
    async with aatomic():
        await on_loop(apply_sync)(move)


@style
async def iterator_left(move: Move) -> None:
    async for _ in Account.objects.order_by("number").aiterator(chunk_size=2):
        break
    async with aatomic():
        await apply(move)


async def _first() -> Any:
    async for account in Account.objects.order_by("number").aiterator(chunk_size=2):
        return account
    return None


@style
async def iterator_returned(move: Move) -> None:
    await _first()
    await _first()
    async with aatomic():
        await apply(move)


@style
async def iterator_inside(move: Move) -> None:
    async with aatomic():
        async for _ in Account.objects.order_by("number").aiterator(chunk_size=2):
            break
        await apply(move)


async def _numbers(manager: Any) -> AsyncIterator[int]:
    async with manager:
        for number in range(3):
            yield number


@style
async def generator_with_hold_left(move: Move) -> None:
    async for _ in _numbers(hold_connection()):
        break
    async with aatomic():
        await apply(move)


@style
async def generator_with_cursor_left(move: Move) -> None:
    async for _ in _numbers(acursor()):
        break
    async with aatomic():
        await apply(move)


@style
async def raw_sql(move: Move) -> None:
    async with aatomic(), acursor() as cursor:
        for number, amount in move.changes():
            await cursor.execute(
                "UPDATE bank_account SET balance = balance + %s WHERE number = %s",
                [amount, number],
            )
        await cursor.execute(
            "INSERT INTO bank_transfer (source, target, amount, reference)"
            " VALUES (%s, %s, %s, %s)",
            [move.source, move.target, move.amount, move.key],
        )


@style
async def cursor_around(move: Move) -> None:
    async with acursor() as cursor:
        await cursor.execute("SELECT number FROM bank_account")
        async with aatomic():
            await apply(move)


@style
async def held(move: Move) -> None:
    async with hold_connection(), aatomic():
        await apply(move)


async def _locked(move: Move) -> list[Account]:
    numbers = [move.source, move.target]
    return list(
        await Account.objects.select_for_update()
        .filter(number__in=numbers)
        .order_by("number")
        .alist()
    )


@style
async def locked_rows(move: Move) -> None:
    async with aatomic():
        changes = dict(move.changes())
        for account in await _locked(move):
            account.balance += changes[account.number]
            await account.asave()
        await move.audit().asave()


@style
async def bulk_update(move: Move) -> None:
    async with aatomic():
        changes = dict(move.changes())
        accounts = await _locked(move)
        for account in accounts:
            account.balance += changes[account.number]
        await Account.objects.abulk_update(accounts, ["balance"])
        await Transfer.objects.abulk_create([move.audit()])


@style
async def get_or_create(move: Move) -> None:
    async with aatomic():
        for number, amount in move.changes():
            await achange(number, amount)
        audit = {"source": move.source, "target": move.target, "amount": move.amount}
        await Transfer.objects.aget_or_create(key=move.key, defaults=audit)


@style
async def hook(move: Move) -> None:
    async with aatomic():
        await apply(move)
        await aon_commit(lambda: None)

        async def after() -> None:
            await tell(move)

        await aon_commit(after)


@style
async def hook_in_task(move: Move) -> None:
    async def work() -> None:
        await apply(move)

        async def after() -> None:
            await tell(move)

        await aon_commit(after)

    async with aatomic():
        await asyncio.create_task(work())


@style
async def detached_audit(move: Move) -> None:
    """On SQLite, where the transaction has the lock, what is detached only reads."""
    async with aatomic():
        await apply(move)
        async with detached():
            if connection.vendor == "sqlite":
                await Account.objects.acount()
            else:
                await note(move)


@style
async def retried(move: Move) -> None:
    """As docs/faults.md says: what raised an error of the database was not applied."""
    for _ in range(TRIES):
        try:
            await block(move)
        except OperationalError as error:
            # OutcomeUnknown, and what else has a code of its own, says something else.
            if isinstance(error, NuagesError):
                raise
        else:
            return
    raise Given


@style
async def deadline(move: Move) -> None:
    try:
        async with asyncio.timeout(0.004), aatomic():
            await apply(move)
    except TimeoutError:
        raise Given from None


@style
async def cancelled_often(move: Move) -> None:
    """Cancelled at once, twice and again, while a thread may be in the block."""

    async def work() -> None:
        async with aatomic():
            await apply(move)
            await sync_to_async(Account.objects.count, thread_sensitive=False)()

    task = asyncio.create_task(work())
    for _ in range(3):
        await asyncio.wait([task], timeout=0.004)
        task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        if task.cancelled():
            raise Given from None
        raise


@style
@on_loop
async def implicit(move: Move) -> None:
    """A coroutine whose I/O is implicit."""
    async with aatomic():
        apply_sync(move)
