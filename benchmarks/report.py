"""What the rates of a run say: medians, ratios with their spread, targets, the table, the JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from benchmarks.subjects import Subject, Target
from benchmarks.usage import DISTURBED, Usage
from benchmarks.works import Work

Rates = Mapping[str, Mapping[str, Sequence[float]]]
"""Requests in a second of each round, by work and subject."""

Usages = Mapping[str, Mapping[str, Sequence[Usage]]]
"""The processor's use in the same visits; without entries where it is not known."""

BASE = "stock"
"""What all others are compared with in the table."""


@dataclass(frozen=True)
class Ratio:
    """One subject's median by another's, with the least and greatest ratio of a round."""

    value: float
    least: float
    greatest: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.least:.2f}..{self.greatest:.2f})"


@dataclass(frozen=True)
class Verdict:
    target: Target
    ratio: Ratio | None
    """None: this run did not measure it."""

    @property
    def met(self) -> bool:
        return self.ratio is not None and self.ratio.value >= self.target.at_least

    @property
    def missed(self) -> bool:
        return self.ratio is not None and not self.met


def ratio(rates: Sequence[float], others: Sequence[float]) -> Ratio:
    """Compare two subjects' rates in one work, round by round."""
    by_round = [rate / other for rate, other in zip(rates, others, strict=True)]
    return Ratio(median(rates) / median(others), min(by_round), max(by_round))


def judge(rates: Rates, targets: Sequence[Target]) -> list[Verdict]:
    """Say of each target which ratio this run found."""
    verdicts = []
    for target in targets:
        work = rates.get(target.work, {})
        measured = target.subject in work and target.other in work
        found = ratio(work[target.subject], work[target.other]) if measured else None
        verdicts.append(Verdict(target, found))
    return verdicts


def table(rates: Rates, subjects: Sequence[Subject], works: Sequence[Work]) -> str:
    """Return the terminal's table: a block for each work, a line for each subject."""
    base = BASE if any(subject.name == BASE for subject in subjects) else subjects[0].name
    width = max(len(subject.title) for subject in subjects)
    lines = []
    for work in works:
        lines += [f"{work.title:<{width + 2}}{'req/s':>9}   ratio to {base} (least..greatest)"]
        for subject in subjects:
            found = rates[work.name][subject.name]
            compared = ratio(found, rates[work.name][base])
            lines.append(f"  {subject.title:<{width}}{median(found):>9.0f}   {compared}")
        lines.append("")
    return "\n".join(lines)


def target_lines(verdicts: Sequence[Verdict]) -> str:
    """Return a line for each target: met or missed, and by what."""
    lines = ["Targets"]
    for verdict in verdicts:
        target = verdict.target
        word = "met" if verdict.met else "missed" if verdict.missed else "-"
        what = f"{target.work}: {target.subject} / {target.other}"
        found = verdict.ratio or "not measured in this run"
        lines.append(f"  {word:<7} {what:<32} at least {target.at_least:g}: {found}")
    return "\n".join(lines)


def disturbance(usages: Usages) -> str:
    """Return a warning if something else ran on the server's core during visits, else ""."""
    visits = [usage for by in usages.values() for each in by.values() for usage in each]
    disturbed = [usage.others for usage in visits if usage.disturbed]
    if not disturbed:
        return ""
    return (
        f"NOT QUIET: in {len(disturbed)} of {len(visits)} visits other processes took more than "
        f"{DISTURBED:.0%} of the server's core (up to {max(disturbed):.0%}). Trust no ratio "
        f"above; run it again on a quiet machine."
    )


def as_json(
    rates: Rates, verdicts: Sequence[Verdict], about: Mapping[str, Any], usages: Usages
) -> dict[str, Any]:
    """Return the run as plain data: what it was run on, every rate, medians, targets."""
    return {
        "about": dict(about),
        "rates": {
            work: {name: list(all_) for name, all_ in by.items()} for work, by in rates.items()
        },
        "usages": {
            work: {name: [asdict(usage) for usage in all_] for name, all_ in by.items()}
            for work, by in usages.items()
        },
        "medians": {
            work: {name: median(all_) for name, all_ in by.items()} for work, by in rates.items()
        },
        "targets": [
            {
                "work": verdict.target.work,
                "subject": verdict.target.subject,
                "other": verdict.target.other,
                "at_least": verdict.target.at_least,
                "ratio": verdict.ratio.value,
                "least": verdict.ratio.least,
                "greatest": verdict.ratio.greatest,
                "met": verdict.met,
            }
            for verdict in verdicts
            if verdict.ratio is not None
        ],
    }
