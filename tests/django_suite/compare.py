"""The verdict: stock's outcomes against the loop's, less the accepted differences.

Owns what counts as a difference. A test that stock passes and the loop does not is one, whatever
the loop made of it. So is a test that stock skips, or does not have, and that fails on the loop.
What fails on both sides, and what the loop passes beyond stock, is none.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tests.django_suite.accepted import Accepted
from tests.django_suite.outcomes import GOOD, Kind, Outcome

MISSING = Outcome(Kind.MISSING, "the test is not in the loop's run")


@dataclass(frozen=True)
class Difference:
    """One test on which the loop falls short of stock."""

    test: str
    stock: Kind
    loop: Kind
    detail: str


@dataclass
class Verdict:
    """A module's differences: those to mend, those accepted, and the entries that are stale."""

    differences: list[Difference] = field(default_factory=list)
    accepted: list[Difference] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)


def is_difference(stock: Kind, loop: Kind) -> bool:
    """Tell whether the loop falls short of stock."""
    if stock in GOOD:
        return loop not in GOOD
    if stock in {Kind.SKIPPED, Kind.MISSING}:
        return loop not in GOOD | {Kind.SKIPPED, Kind.MISSING}
    return False


def compare(
    stock: Mapping[str, Outcome],
    loop: Mapping[str, Outcome],
    accepted: Iterable[Accepted],
    *,
    module: str,
    database: str,
    label: str | None = None,
) -> Verdict:
    """Return the verdict on ``module``, or on the tests below ``label`` alone."""
    entries = {
        entry.test: entry
        for entry in accepted
        if database in entry.databases and is_within(entry.test, label or module)
    }
    verdict = Verdict()
    for test in sorted({*stock, *loop}):
        if label is not None and not is_within(test, label):
            continue
        before = stock.get(test, Outcome(Kind.MISSING))
        after = loop.get(test, MISSING)
        if not is_difference(before.kind, after.kind):
            continue
        difference = Difference(test, before.kind, after.kind, after.detail)
        if entries.pop(test, None) is None:
            verdict.differences.append(difference)
        else:
            verdict.accepted.append(difference)
    verdict.stale = [_stale(test, stock, loop) for test in sorted(entries)]
    return verdict


def is_within(test: str, label: str) -> bool:
    """Tell whether ``test`` (or a fixture of its class) is ``label`` or below it."""
    owner = test.rpartition("(")[2].rstrip(")")
    return f"{owner}.".startswith(f"{label}.")


def _stale(test: str, stock: Mapping[str, Outcome], loop: Mapping[str, Outcome]) -> str:
    if test not in stock:
        return f"{test}: this Django has no such test"
    if stock[test].kind not in GOOD:
        return f"{test}: {stock[test].kind} on stock too"
    return f"{test}: {loop[test].kind} on the loop"
