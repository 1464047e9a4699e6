"""What became of each test: the events that a process wrote, folded into one outcome per test.

Owns the words (`Kind`) and the folding rules; does no I/O, so every rule has a unit test:

- the worst event of a test counts, so a failing or skipped subtest marks its test, and an error in
  ``_post_teardown`` (reported after the test ended) marks a test that had passed;
- an error or skip in ``setUpClass`` or ``setUpModule`` counts for each planned test below it that
  has no outcome of its own;
- an error in a tear-down of a class or module is an entry of its own, under unittest's name for
  it;
- a test that started and did not end hung or crashed, as its process did; one that never started
  although it was planned is missing.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Event = Mapping[str, Any]


class Kind(StrEnum):
    """What became of a test; the order of the members is the order of severity."""

    PASSED = "passed"
    EXPECTED_FAILURE = "expectedFailure"
    SKIPPED = "skipped"
    UNEXPECTED_SUCCESS = "unexpectedSuccess"
    FAILED = "failed"
    ERROR = "error"
    MISSING = "missing"
    CRASHED = "crashed"
    HUNG = "hung"


SEVERITY = {kind: rank for rank, kind in enumerate(Kind)}
GOOD = frozenset({Kind.PASSED, Kind.EXPECTED_FAILURE})

_FIXTURE = re.compile(r"^(setUp|tearDown)(Class|Module) \((?P<owner>.+)\)$")


class Ending(StrEnum):
    """How a process ended; `FINISHED` says that the runner came to its own end."""

    FINISHED = "finished"
    HUNG = "hung"
    CRASHED = "crashed"


@dataclass(frozen=True)
class Outcome:
    """One test's kind, with the reason of a skip or the traceback of a failure."""

    kind: Kind
    detail: str = ""


@dataclass(frozen=True)
class Counters:
    """What the loop's side did with its statements; all zero on the stock side."""

    bridged: int = 0
    worker: int = 0
    blocked: int = 0

    def __add__(self, other: "Counters") -> "Counters":
        """Return the sums."""
        return Counters(
            self.bridged + other.bridged,
            self.worker + other.worker,
            self.blocked + other.blocked,
        )


@dataclass
class ModuleRun:
    """Everything known of one run of one module."""

    ending: Ending = Ending.FINISHED
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    blocked_stacks: list[str] = field(default_factory=list)
    databases: list[str] = field(default_factory=list)
    log_tail: str = ""
    seconds: float = 0.0
    """How long the process took."""
    sources: str = ""
    """A name for the sources that were run, as `parts.sources_of` gives it."""


def fold(events: Iterable[Event], ending: Ending, log_tail: str = "") -> ModuleRun:
    """Return the run that ``events`` describe, for a process that ended as ``ending``."""
    run = ModuleRun(ending=ending, log_tail=log_tail)
    planned: list[str] = []
    fixtures: list[tuple[str, Outcome]] = []
    unfinished: dict[str, None] = {}
    for event in events:
        match event["event"]:
            case "planned":
                planned += event["tests"]
            case "start":
                unfinished[event["test"]] = None
            case "stop":
                unfinished.pop(event["test"], None)
            case "outcome":
                outcome = Outcome(Kind(event["kind"]), event.get("detail", ""))
                if _FIXTURE.match(event["test"]):
                    fixtures.append((event["test"], outcome))
                else:
                    _worsen(run.outcomes, event["test"], outcome)
            case "blocked":
                run.blocked_stacks.append(event["stack"])
            case "counters":
                run.counters = Counters(event["bridged"], event["worker"], event["blocked"])
            case "databases":
                run.databases = list(event["aliases"])
    for test in unfinished:
        _worsen(run.outcomes, test, _interrupted(ending, log_tail))
    for name, outcome in fixtures:
        _apply_fixture(run.outcomes, planned, name, outcome)
    for test in planned:
        run.outcomes.setdefault(test, Outcome(Kind.MISSING, f"not run: the process {ending}"))
    return run


def _worsen(outcomes: dict[str, Outcome], test: str, outcome: Outcome) -> None:
    known = outcomes.get(test)
    if known is None or SEVERITY[outcome.kind] > SEVERITY[known.kind]:
        outcomes[test] = outcome


def _interrupted(ending: Ending, log_tail: str) -> Outcome:
    if ending is Ending.HUNG:
        return Outcome(Kind.HUNG, log_tail)
    return Outcome(Kind.CRASHED, log_tail)


def _apply_fixture(
    outcomes: dict[str, Outcome], planned: Iterable[str], name: str, outcome: Outcome
) -> None:
    match = _FIXTURE.match(name)
    if match is None or match[1] == "tearDown":
        _worsen(outcomes, name, outcome)
        return
    below = f"{match['owner']}."
    reached = [test for test in planned if test.startswith(below) and test not in outcomes]
    for test in reached:
        outcomes[test] = Outcome(outcome.kind, f"{name}: {outcome.detail}")
    if not reached:
        _worsen(outcomes, name, outcome)
