"""One transfer: what is read from its URL, and the statements that make it, sync and async."""

from __future__ import annotations

from dataclasses import dataclass

from django.db.models import F

from tests.bank.models import Account, Told, Transfer, Tried


@dataclass(frozen=True)
class Move:
    """So much from one account to another, by a key that nobody else has."""

    key: str
    source: int
    target: int
    amount: int

    def changes(self) -> list[tuple[int, int]]:
        """Accounts with what each gets, in the order in which they are locked."""
        return sorted([(self.source, -self.amount), (self.target, self.amount)])

    def audit(self) -> Transfer:
        """Its audit row."""
        return Transfer(key=self.key, source=self.source, target=self.target, amount=self.amount)


async def achange(number: int, amount: int) -> None:
    """Change one balance."""
    await Account.objects.filter(number=number).aupdate(balance=F("balance") + amount)


async def apply(move: Move) -> None:
    """Change both balances and write the audit row."""
    for number, amount in move.changes():
        await achange(number, amount)
    await move.audit().asave()


def apply_sync(move: Move) -> None:
    """Change both balances and write the audit row."""
    for number, amount in move.changes():
        Account.objects.filter(number=number).update(balance=F("balance") + amount)
    move.audit().save()


async def tell(move: Move) -> None:
    """Write what a hook writes."""
    await Told.objects.acreate(key=move.key)


def tell_sync(move: Move) -> None:
    """Write what a hook writes."""
    Told.objects.create(key=move.key)


async def note(move: Move) -> None:
    """Write what detached code writes."""
    await Tried.objects.acreate(key=move.key)
