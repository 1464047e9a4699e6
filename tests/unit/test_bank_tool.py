"""The bank's own judgement: what it must not let pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.bank.load import Load
from tests.bank.verdict import ACCOUNTS, BALANCE, Asked, Found, Ledger, judge
from tests.soak.client import Answer

HOOKED, DETACHED = ("hook",), ("detached_audit",)
NOTHING = Found(dict.fromkeys(range(ACCOUNTS), BALANCE), [], {}, {})


def one(style: str = "block", *, acknowledged: bool = True) -> tuple[Ledger, Found]:
    """A transfer of 5 from account 0 to account 1, made as it should be."""
    ledger = Ledger({"k": Asked(style, 0, 1, 5)}, {"k"} if acknowledged else set())
    balances = dict.fromkeys(range(ACCOUNTS), BALANCE) | {0: BALANCE - 5, 1: BALANCE + 5}
    told = {"k": 1} if style in HOOKED else {}
    tried = {"k": 1} if style in DETACHED else {}
    return ledger, Found(balances, [("k", 0, 1, 5)], told, tried)


def wrong(ledger: Ledger, found: Found, **changes: Any) -> list[str]:
    return judge(ledger, replace(found, **changes), HOOKED, DETACHED)


@pytest.mark.parametrize("style", ["block", "hook", "detached_audit"])
def test_an_acknowledged_transfer_is_there_once(style: str) -> None:
    ledger, found = one(style)
    assert wrong(ledger, found) == []
    assert "acknowledged, and there 0 times" in wrong(ledger, NOTHING)[0]


def test_a_transfer_that_was_applied_twice_is_wrong_though_the_sums_are_right() -> None:
    for acknowledged in (True, False):
        ledger, found = one(acknowledged=acknowledged)
        balances = {**found.balances, 0: BALANCE - 10, 1: BALANCE + 10}
        (twice,) = wrong(ledger, found, balances=balances, transfers=[("k", 0, 1, 5)] * 2)
        assert "there 2 times" in twice


def test_a_transfer_that_was_not_acknowledged_is_there_wholly_or_not_at_all() -> None:
    ledger, found = one(acknowledged=False)
    assert wrong(ledger, found) == []
    assert wrong(ledger, NOTHING) == []
    half = wrong(ledger, found, balances={**found.balances, 1: BALANCE})
    assert any("account 1" in each for each in half)
    assert any("all accounts have" in each for each in half)


def test_balances_without_an_audit_row_and_an_audit_row_without_balances_are_wrong() -> None:
    ledger, found = one(acknowledged=False)
    assert len(wrong(ledger, found, transfers=[])) == 2
    assert len(wrong(ledger, NOTHING, transfers=found.transfers)) == 2


def test_a_row_that_nobody_asked_for_is_wrong() -> None:
    ledger, found = one()
    assert wrong(Ledger(), found)
    assert wrong(ledger, found, transfers=[("k", 1, 0, -5)])


def test_a_hook_writes_once_for_what_is_committed() -> None:
    ledger, found = one("hook")
    assert wrong(ledger, found, told={})
    assert wrong(ledger, found, told={"k": 2})
    ledger, found = one("hook", acknowledged=False)
    assert wrong(ledger, found, told={}) == []  # the process may have ended between
    assert wrong(ledger, NOTHING, told={"k": 1})


def test_what_detached_code_was_told_is_there() -> None:
    ledger, found = one("detached_audit")
    assert wrong(ledger, found, tried={})
    ledger, _ = one("detached_audit", acknowledged=False)
    assert wrong(ledger, NOTHING, tried={"k": 1}) == []


def told(status: int, body: bytes, *, may_fail: bool, style: str = "block") -> Load:
    load = Load(0, [style], 1, may_fail)
    load._told("k", Asked(style, 0, 1, 5), Answer(status, [], body))
    return load


def test_an_error_is_only_well_where_connections_are_lost() -> None:
    assert told(500, b"OperationalError", may_fail=True).wrong == []
    assert told(500, b"OperationalError", may_fail=False).wrong
    assert told(500, b"ForeignConnection", may_fail=True).wrong
    assert told(404, b"", may_fail=True).wrong


def test_where_only_the_hook_met_a_lost_connection_the_transfer_is_there() -> None:
    load = told(500, b"HookFailed,OperationalError", may_fail=True, style="hook")
    assert load.wrong == []
    assert load.ledger.acknowledged == set()
    load.ledger.asked["k"] = Asked("hook", 0, 1, 5)
    _, found = one("hook")
    assert wrong(load.ledger, found) == []
    assert wrong(load.ledger, found, told={}) == []
    assert wrong(load.ledger, NOTHING)
    assert told(500, b"HookFailed", may_fail=True).wrong


def test_only_a_whole_answer_acknowledges() -> None:
    assert told(201, b"", may_fail=True).ledger.acknowledged == {"k"}
    assert told(409, b"", may_fail=True).ledger.acknowledged == set()
    cut = told(201, b"begun", may_fail=True, style="stream")
    assert cut.wrong
    assert not cut.ledger.acknowledged
