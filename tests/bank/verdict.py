"""Accounts and audit rows against what the clients were told. Knows neither Django nor Nuages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

ACCOUNTS = 12
BALANCE = 1_000_000


@dataclass(frozen=True)
class Asked:
    """A transfer that a client asked for."""

    style: str
    source: int
    target: int
    amount: int


@dataclass
class Ledger:
    """What was asked for, and what was acknowledged of it, by key."""

    asked: dict[str, Asked] = field(default_factory=dict)
    acknowledged: set[str] = field(default_factory=set)
    committed: set[str] = field(default_factory=set)
    """Those of which it was said that they are, and that their hook failed."""


@dataclass(frozen=True)
class Found:
    """What is in the database."""

    balances: Mapping[int, int]
    transfers: Iterable[tuple[str, int, int, int]]
    """Key, source, target and amount of each audit row."""
    told: Mapping[str, int]
    """How often each key was written by a hook."""
    tried: Mapping[str, int]
    """How often each key was written by detached code."""


def judge(
    ledger: Ledger, found: Found, hooked: Iterable[str], detached: Iterable[str]
) -> list[str]:
    """Return what is wrong; `hooked` and `detached` are the styles that write such rows."""
    transfers = list(found.transfers)
    wrong = _judge_balances(found.balances, transfers)
    there = Counter(key for key, *_ in transfers)
    for key, source, target, amount in transfers:
        asked = ledger.asked.get(key)
        if asked is None or (asked.source, asked.target, asked.amount) != (source, target, amount):
            wrong.append(f"{key} is there with {source, target, amount}, asked was {asked}")
    for key, asked in ledger.asked.items():
        acknowledged = key in ledger.acknowledged
        count = there[key]
        said = acknowledged or key in ledger.committed
        if count > 1 or (said and count != 1):
            how = "acknowledged" if said else "not acknowledged"
            wrong.append(f"{asked.style} {key}: {how}, and there {count} times")
        wrong += _judge_rows("hook", key, asked.style in hooked, found.told, count, acknowledged)
        if acknowledged and asked.style in detached and found.tried.get(key, 0) != 1:
            wrong.append(f"{asked.style} {key}: detached row {found.tried.get(key, 0)} times")
    return wrong


def _judge_balances(
    balances: Mapping[int, int], transfers: Iterable[tuple[str, int, int, int]]
) -> list[str]:
    expected = dict.fromkeys(range(ACCOUNTS), BALANCE)
    for _, source, target, amount in transfers:
        expected[source] -= amount
        expected[target] += amount
    wrong = [
        f"account {number} has {balances.get(number)}, its audit rows say {balance}"
        for number, balance in expected.items()
        if balances.get(number) != balance
    ]
    if sum(balances.values()) != ACCOUNTS * BALANCE:
        wrong.append(f"all accounts have {sum(balances.values())}, not {ACCOUNTS * BALANCE}")
    return wrong


def _judge_rows(
    what: str,
    key: str,
    writes: bool,
    rows: Mapping[str, int],
    transfers: int,
    acknowledged: bool,
) -> list[str]:
    """Judge the rows of a hook, which runs after the commit: the process may end between."""
    count = rows.get(key, 0)
    if count > min(transfers, int(writes)) or (acknowledged and writes and count != 1):
        return [f"{key}: the {what} wrote {count} rows, the transfer is there {transfers} times"]
    return []
