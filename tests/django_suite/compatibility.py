"""The page of the docs that tells what Django's suite makes of Nuages: ``docs/compatibility.md``.

Owns the page's form. What a person wrote stands above the first section; a section is one run of
the whole suite, between two comments that name its Django and its database, and is replaced as a
whole by a later run.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.django_suite.report import ModuleReport, figures

_NAMES = {"postgresql": "PostgreSQL", "sqlite": "SQLite", "mysql": "MariaDB"}
_SECTION = re.compile(r"<!-- run (?P<key>.+?) -->\n.*?<!-- end -->\n", re.DOTALL)


def write(
    path: Path, database: str, reports: Iterable[ModuleReport], fingerprint: Mapping[str, Any]
) -> None:
    """Put the section of one run into the page at ``path``, in place of an earlier one."""
    text = path.read_text(encoding="utf-8")
    path.write_text(with_section(text, database, list(reports), fingerprint), encoding="utf-8")


def with_section(
    text: str, database: str, reports: list[ModuleReport], fingerprint: Mapping[str, Any]
) -> str:
    """Return the page with the section of one run."""
    sections = {match["key"]: match[0] for match in _SECTION.finditer(text)}
    head = _SECTION.sub("", text).rstrip()
    django = ".".join(fingerprint["django"].split(".")[:2])
    key = f"{django} {database}"
    body = section(database, reports, fingerprint)
    sections[key] = f"<!-- run {key} -->\n{body}\n<!-- end -->\n"
    return "\n".join([head, "", *(sections[name] for name in sorted(sections))])


def section(database: str, reports: list[ModuleReport], fingerprint: Mapping[str, Any]) -> str:
    """Return a run's heading, its sums, its differences and the table of its modules."""
    version = fingerprint.get("server") or fingerprint["sqlite"]
    lines = [
        f"## Django {fingerprint['django']}, Python {fingerprint['python']}, "
        f"{_NAMES[database]} {version}",
        "",
        "| | passed | failed | skipped |",
        "|---|---:|---:|---:|",
        _row("stock", _sums(report.stock.outcomes for report in reports)),
        _row("on the loop", _sums(report.loop.outcomes for report in reports)),
        "",
        _statements(reports),
        "",
        _sources(reports),
        "",
    ]
    both = [
        test
        for report in reports
        for test, outcome in sorted(report.stock.outcomes.items())
        if figures({test: outcome})["failed"] and test in report.loop.outcomes
    ]
    if both:
        lines += ["Not passed on stock either, here:", ""]
        lines += [*(f"- `{test}`" for test in both), ""]
    accepted = [each.test for report in reports for each in report.verdict.accepted]
    if accepted:
        lines += ["Not passed on the loop, since they assert what is replaced:", ""]
        lines += [*(f"- `{test}`" for test in accepted), ""]
    others = [each.test for report in reports for each in report.verdict.differences]
    if others:
        lines += ["Not passed on the loop, which are bugs:", ""]
        lines += [*(f"- `{test}`" for test in others), ""]
    lines += [
        "<details><summary>By module</summary>",
        "",
        "| module | stock: passed | failed | skipped | loop: passed | failed | skipped |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for report in reports:
        stock, loop = figures(report.stock.outcomes), figures(report.loop.outcomes)
        lines.append(_row(report.module, [*stock.values(), *loop.values()]))
    return "\n".join([*lines, "", "</details>"])


def _sums(runs: Iterable[Mapping[str, Any]]) -> list[int]:
    total: Counter[str] = Counter({"passed": 0, "failed": 0, "skipped": 0})
    for outcomes in runs:
        total.update(figures(outcomes))
    return list(total.values())


def _row(name: str, numbers: Iterable[int]) -> str:
    return " | ".join([f"| {name}", *(f"{number:,}" for number in numbers)]) + " |"


def _sources(reports: Iterable[ModuleReport]) -> str:
    """Return which sources were run; a run that took old results as they were has several."""
    counted = Counter(report.loop.sources for report in reports)
    if len(counted) == 1:
        return f"Sources: {next(iter(counted))}."
    each = (f"{name} ({number} modules)" for name, number in counted.most_common())
    return f"Sources: {', '.join(each)}."


def _statements(reports: Iterable[ModuleReport]) -> str:
    counters = [report.loop.counters for report in reports]
    bridged = sum(each.bridged for each in counters)
    workers = sum(each.worker for each in counters)
    blocked = sum(each.blocked for each in counters)
    return (
        f"{bridged + workers:,} statements were awaited on the loop "
        f"({bridged:,} at the socket, {workers:,} in a connection's thread); "
        f"{blocked:,} calls blocked it."
    )
