"""The ways to make a transfer in sync code, on the loop and in threads."""

from __future__ import annotations

from typing import Any

from asgiref.sync import async_to_sync
from django.db import connection, transaction

from nuages import off_loop
from tests.bank.models import Account
from tests.bank.moving import Move, apply, apply_sync, tell_sync


def block(move: Move) -> None:
    with transaction.atomic():
        apply_sync(move)


def nested(move: Move) -> None:
    with transaction.atomic(), transaction.atomic(), transaction.atomic(savepoint=False):
        apply_sync(move)


def async_inside(move: Move) -> None:
    """The coroutine is in the transaction."""
    with transaction.atomic():
        async_to_sync(apply)(move)


def thread_inside(move: Move) -> None:
    with transaction.atomic():
        off_loop(apply_sync)(move)


def iterator_left(move: Move) -> None:
    for _ in Account.objects.order_by("number").iterator(chunk_size=2):
        break
    with transaction.atomic():
        apply_sync(move)


def iterator_in_cycle(move: Move) -> None:
    """Only the garbage collector finds the iterator, whenever that is, in whatever task."""
    rows = iter(Account.objects.order_by("number").iterator(chunk_size=2))
    next(rows)
    cycle: list[Any] = [rows]
    cycle.append(cycle)
    with transaction.atomic():
        apply_sync(move)


def cursor_in_cycle(move: Move) -> None:
    cursor = connection.cursor()
    cursor.execute("SELECT number FROM bank_account")
    cycle: list[Any] = [cursor]
    cycle.append(cycle)
    with transaction.atomic():
        apply_sync(move)


def locked_rows(move: Move) -> None:
    changes = dict(move.changes())
    with transaction.atomic():
        for account in (
            Account.objects.select_for_update().filter(number__in=changes).order_by("number")
        ):
            account.balance += changes[account.number]
            account.save(update_fields=["balance"])
        move.audit().save()


def hook(move: Move) -> None:
    with transaction.atomic():
        apply_sync(move)
        transaction.on_commit(lambda: tell_sync(move))


def by_hand(move: Move) -> None:
    """Autocommit off, commit(), autocommit on."""
    transaction.set_autocommit(False)
    try:
        apply_sync(move)
        transaction.commit()
    except BaseException:
        transaction.rollback()
        raise
    finally:
        transaction.set_autocommit(True)


ON_LOOP = {
    "block": block,
    "nested": nested,
    "async_inside": async_inside,
    "thread_inside": thread_inside,
    "iterator_left": iterator_left,
    "iterator_in_cycle": iterator_in_cycle,
    "cursor_in_cycle": cursor_in_cycle,
    "locked_rows": locked_rows,
    "hook": hook,
    "by_hand": by_hand,
}
IN_THREADS = ("block", "nested", "async_inside", "iterator_left", "hook", "by_hand")
