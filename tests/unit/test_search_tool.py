"""The search's own judgement: what it must not let pass, and what it makes of a program."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.search.generate import RULES, program
from tests.search.journal import Block, Journal
from tests.search.program import Node, Program
from tests.search.shrink import candidates, is_valid, shrink
from tests.search.workers import signature

VENDORS = ["postgresql", "sqlite", "mysql"]


def committed(journal: Journal, parent: Block | None = None) -> Block:
    """A block that was told to be committed, with one write that was answered."""
    block = journal.open("default", parent)
    journal.write(
        "default", block, (f"row {len(journal.roots)} {parent is not None}",)
    ).state = "done"
    block.outcome = "committed"
    return block


def test_a_row_that_was_acknowledged_and_is_not_there_is_lost() -> None:
    journal = Journal()
    journal.write("default", None, ("a",)).state = "done"
    assert journal.judge({"default": ["a"]}) == []
    (wrong,) = journal.judge({"default": []})
    assert "acknowledged" in wrong


def test_a_committed_block_without_its_row_is_lost() -> None:
    journal = Journal()
    committed(journal)
    assert journal.judge({"default": ["row 1 False"]}) == []
    assert len(journal.judge({})) == 1


def test_a_row_of_a_block_that_was_rolled_back_must_not_be_there() -> None:
    journal = Journal()
    committed(journal).outcome = "rolled back"
    assert journal.judge({}) == []
    (wrong,) = journal.judge({"default": ["row 1 False"]})
    assert "rolled back" in wrong


def test_a_block_that_never_ended_is_not_committed() -> None:
    journal = Journal()
    committed(journal).outcome = "open"
    assert len(journal.judge({"default": ["row 1 False"]})) == 1


@pytest.mark.parametrize("troubled", [False, True])
def test_an_unknown_outcome_is_all_or_nothing(troubled: bool) -> None:
    journal = Journal()
    block = committed(journal)
    journal.write("default", block, ("b",)).state = "done"
    if troubled:
        block.troubled = True
    else:
        block.outcome = "unknown"
    assert journal.judge({}) == []
    assert journal.judge({"default": ["row 1 False", "b"]}) == []
    assert journal.judge({"default": ["b"]})


def test_a_savepoint_has_the_fate_of_what_is_around_it() -> None:
    journal = Journal()
    outer = committed(journal)
    inner = committed(journal, outer)
    both = ["row 1 False", "row 1 True"]
    assert journal.judge({"default": both}) == []
    inner.outcome = "rolled back"
    assert journal.judge({"default": both[:1]}) == []
    assert journal.judge({"default": both})
    inner.outcome, outer.outcome = "committed", "rolled back"
    assert journal.judge({}) == []
    assert journal.judge({"default": both[1:]})


def test_half_of_a_write_of_two_rows_is_a_fault_even_if_it_was_cancelled() -> None:
    journal = Journal()
    journal.write("default", None, ("a", "b")).state = "unknown"
    assert journal.judge({}) == []
    assert journal.judge({"default": ["a", "b"]}) == []
    (wrong,) = journal.judge({"default": ["a"]})
    assert "only a part" in wrong


def test_a_row_that_nobody_wrote_and_one_in_the_wrong_database_are_faults() -> None:
    journal = Journal()
    journal.write("default", None, ("a",)).state = "done"
    assert len(journal.judge({"default": ["a", "x"]})) == 1
    assert len(journal.judge({"default": ["a"], "other": ["x"]})) == 1


def test_a_hook_runs_once_if_and_only_if_its_block_was_committed() -> None:
    journal = Journal()
    block = committed(journal)
    hook = journal.hook(block, "h")
    hook.state = "done"
    there = {"default": ["row 1 False"]}
    for ran, well in ((0, False), (1, True), (2, False)):
        hook.ran = ran
        assert (journal.judge(there) == []) is well
    block.outcome = "rolled back"
    hook.ran = 1
    assert journal.judge({})
    hook.ran = 0
    assert journal.judge({}) == []


def test_hooks_after_one_that_raised_need_not_run() -> None:
    journal = Journal()
    block = committed(journal)
    first, second = journal.hook(block, "first"), journal.hook(block, "second")
    first.state = second.state = "done"
    first.ran, first.failed = 1, True
    assert journal.judge({"default": ["row 1 False"]}) == []


def test_the_outcome_of_a_block_whose_rows_are_there_decides_about_its_hooks() -> None:
    journal = Journal()
    block = committed(journal)
    block.outcome = "unknown"
    journal.hook(block, "h").state = "done"
    assert journal.judge({}) == []
    assert journal.judge({"default": ["row 1 False"]})


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_seed_makes_one_program_and_it_is_valid(vendor: str) -> None:
    for seed in range(300):
        made = program(seed, vendor)
        assert made == program(seed, vendor)
        assert is_valid(made.body, "coroutine"), made.text()
        assert Program.load(made.dump()) == made


def test_every_kind_of_statement_is_made() -> None:
    kinds = set().union(*(program(seed, "postgresql").kinds() for seed in range(3000)))
    assert kinds == {*RULES, "branch"}


def test_a_program_is_made_as_small_as_what_fails() -> None:
    """It fails where a cursor's iteration is left before a write, whatever else is in it."""
    write = Node("write", {"alias": "other", "how": "bulk"})
    left = Node(
        "iterate",
        {"source": "acursor_rows", "alias": "default", "leave": "raise", "after": 3}
        | {"closing": False},
        (Node("pause", {"times": 4}), write),
    )
    begin = Program(
        7,
        (Node("try", {}, (Node("hold", {"alias": "other"}, (write, left)),)), write, write),
        *("sqlite", "uvloop", 2, 40),
    )

    async def fails(candidate: Program) -> bool:
        kinds = [node.kind for node in candidate.walk()]
        return "iterate" in kinds and "write" in kinds[kinds.index("iterate") :]

    small = asyncio.run(shrink(begin, fails))
    assert [node.kind for node in small.walk()] == ["iterate", "write"]
    assert (small.pool, small.threshold) == (10, 0)
    assert "then break after 1" in small.text()
    assert "write(alias='default', how='create')" in small.text()


def test_what_is_tried_is_valid_and_smaller() -> None:
    chance = random.Random(1)
    for seed in chance.sample(range(5000), 60):
        made = program(seed, "postgresql")
        size = len(list(made.walk()))
        for candidate in candidates(made):
            assert candidate != made
            assert is_valid(candidate.body, "coroutine")
            assert len(list(candidate.walk())) <= size


def test_faults_of_one_kind_have_one_signature() -> None:
    one = "for row in aiterator(), then break after 2 raised E: of 'Task-7' in f, p:3"
    two = "write(alias='other', how='save') raised E: of 'Task-12' in f, p:99 <- F: x"
    assert signature(one) == signature(two)
    assert signature("hook 1:2 ran 0 times") != signature("hook 1:2 was cancelled")
    lost = (
        "('{}:1',) was acknowledged (an atomic block that was committed), and of it is there: {}"
    )
    assert signature(lost.format(5, [False])) == signature(lost.format(99, [False]))
