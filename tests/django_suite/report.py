"""What is printed and stored at the end: the table, the differences, the reasons to fail.

Owns the wording, and the list of everything that makes a run fail.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.django_suite.compare import Difference, Verdict
from tests.django_suite.outcomes import GOOD, Counters, Ending, Kind, ModuleRun, Outcome

SHORT_TRACEBACK = 14
MOST_SHORT_STACKS = 3

_COLUMNS = ("passed", "failed", "skipped")
_HEAD = ("module", "passed", "failed", "skipped", "passed", "failed", "skipped")
_COUNTERS = ("bridged", "worker", "blocked", "differ")


@dataclass
class ModuleReport:
    """One module: both runs and the verdict."""

    module: str
    stock: ModuleRun
    loop: ModuleRun
    verdict: Verdict
    plain: bool = False
    """Whether the loop's side ran outside a loop."""

    def problems(self) -> list[str]:
        """Return every reason for which this module fails the run."""
        found: list[str] = []
        if self.stock.ending is not Ending.FINISHED:
            found.append(f"stock {self.stock.ending}: nothing to compare with")
        if self.loop.ending is not Ending.FINISHED:
            found.append(f"the loop's run {self.loop.ending}")
        if not self.loop.outcomes and self.stock.outcomes:
            found.append("no test ran on the loop")
        if self.loop.counters.blocked:
            found.append(f"{self.loop.counters.blocked} calls blocked the loop")
        counted = self.loop.counters.bridged + self.loop.counters.worker
        if self.loop.databases and not counted and not self.plain:
            found.append("the tests use a database, yet no statement was counted on the loop")
        if self.verdict.differences:
            found.append(f"{len(self.verdict.differences)} differences")
        if self.verdict.stale:
            found.append(f"{len(self.verdict.stale)} stale entries in differences.toml")
        return found


def figures(outcomes: Mapping[str, Outcome]) -> dict[str, int]:
    """Return how many tests passed, failed (in any way) and were skipped."""
    counted = Counter(_column(outcome.kind) for outcome in outcomes.values())
    return {column: counted[column] for column in _COLUMNS}


def table(reports: Iterable[ModuleReport]) -> str:
    """Return the table of all modules with its sums."""
    rows = []
    sums: Counter[int] = Counter()
    counters = Counters()
    for report in reports:
        numbers = [*figures(report.stock.outcomes).values()]
        numbers += figures(report.loop.outcomes).values()
        mine = report.loop.counters
        numbers += [mine.bridged, mine.worker, mine.blocked, len(report.verdict.differences)]
        rows.append((report.module, *numbers))
        sums.update(dict(enumerate(numbers)))
        counters += mine
    rows.append(("total", *(sums[index] for index in range(10))))
    lines = [
        f"{'':23}{'stock':>27}  {'loop':>27}",
        _line((*_HEAD, *_COUNTERS)),
        *(_line(row) for row in rows),
    ]
    return "\n".join(lines)


def stock_table(runs: Mapping[str, ModuleRun]) -> str:
    """Return the table of stock's side alone."""
    lines = [f"{'stock':24}{'passed':>9}{'failed':>9}{'skipped':>9}"]
    for module, run in runs.items():
        ending = "" if run.ending is Ending.FINISHED else f"  {run.ending}"
        numbers = "".join(f"{number:>9}" for number in figures(run.outcomes).values())
        lines.append(f"{module:24}{numbers}{ending}")
    return "\n".join(lines)


def findings(report: ModuleReport, *, verbose: bool) -> str:
    """Return what there is to say of one module beyond its row; empty when there is nothing."""
    lines: list[str] = []
    if report.loop.outcomes:
        for difference in report.verdict.differences:
            lines += _describe(difference, verbose=verbose)
    lines += [f"  accepted: {one.test} ({one.loop})" for one in report.verdict.accepted]
    lines += [f"  stale entry, remove it: {text}" for text in report.verdict.stale]
    stacks = report.loop.blocked_stacks
    for stack in stacks if verbose else stacks[:MOST_SHORT_STACKS]:
        what, _, frames = stack.partition("\n")
        lines += [f"  blocked the loop: {what}"]
        lines += [_indented(frames if verbose else _short(frames, 2 * SHORT_TRACEBACK))]
    for side, run in (("stock", report.stock), ("loop", report.loop)):
        if run.ending is not Ending.FINISHED or (not run.outcomes and report.stock.outcomes):
            tail = run.log_tail if verbose else _short(run.log_tail, 2 * SHORT_TRACEBACK)
            lines += [f"  the end of {side}'s log ({run.ending}):", _indented(tail)]
    if not lines:
        return ""
    return "\n".join([f"\n{report.module}: {'; '.join(report.problems())}", *lines])


def store(path: Path, database: str, reports: Iterable[ModuleReport], extra: Any) -> None:
    """Write everything that is known to ``path``."""
    modules = {
        report.module: {
            "problems": report.problems(),
            "stock": figures(report.stock.outcomes),
            "loop": figures(report.loop.outcomes),
            "counters": asdict(report.loop.counters),
            "verdict": asdict(report.verdict),
            "blocked_stacks": report.loop.blocked_stacks,
            "ending": report.loop.ending,
            "tests": {
                test: [outcome.kind, outcome.detail]
                for test, outcome in sorted(report.loop.outcomes.items())
            },
        }
        for report in reports
    }
    document = {"database": database, **extra, "modules": modules}
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")


def _column(kind: Kind) -> str:
    if kind in GOOD:
        return "passed"
    return "skipped" if kind is Kind.SKIPPED else "failed"


def _line(cells: Iterable[Any]) -> str:
    first, *others = (str(cell) for cell in cells)
    text = "".join(f"{cell:>9}" for cell in others)
    return f"{first:23}{text[:27]}  {text[27:]}"


def _describe(difference: Difference, *, verbose: bool) -> list[str]:
    head = f"  {difference.test}: {difference.stock} on stock, {difference.loop} on the loop"
    if difference.loop is Kind.MISSING:
        return [head]
    detail = difference.detail if verbose else _short(difference.detail, SHORT_TRACEBACK)
    return [head, _indented(detail)] if detail else [head]


def _short(text: str, lines: int) -> str:
    return "\n".join(text.rstrip().splitlines()[-lines:])


def _indented(text: str) -> str:
    return "\n".join(f"      {line}" for line in text.rstrip().splitlines())
