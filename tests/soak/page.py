"""What a run is told by: lines for the terminal, figures and a picture for the docs."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.soak.faults import Faults
from tests.soak.load import CLIENTS, Load
from tests.soak.picture import draw
from tests.soak.verdict import LEFT, Growth

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- soak: begin -->", "<!-- soak: end -->"


@dataclass(frozen=True)
class Report:
    load: Load
    faults: Faults
    growth: Growth
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    log: Counter[str]

    @property
    def minutes(self) -> float:
        samples = self.load.samples
        return float(samples[-1]["time"] - samples[0]["time"]) / 60

    @property
    def processor(self) -> float:
        samples = self.load.samples
        return float(samples[-1]["processor"] - samples[0]["processor"])

    def rows(self) -> list[tuple[str, str]]:
        """The figures, each with its name."""
        load, faults = self.load, self.faults
        first, last = load.samples[0]["rss"] / 1e6, load.samples[-1]["rss"] / 1e6
        return [
            ("requests", f"{load.requests:,} by {CLIENTS} clients in {self.minutes:.1f} minutes"),
            ("left by their client", f"{load.left:,}"),
            ("writes acknowledged", f"{len(load.ledger.acknowledged):,}, all there, once"),
            ("writes whose hook failed", f"{len(load.ledger.committed):,}, all there"),
            (
                "writes not acknowledged",
                f"{len(load.ledger.unknown):,}, each wholly there or not at all",
            ),
            ("database sessions ended", f"{faults.ended}"),
            ("connections cut", f"{faults.cut}, in {faults.cuts} cuts"),
            ("requests that these failed", f"{sum(load.faulty.values())}"),
            ("resident size", f"{first:.1f} MB at the beginning, {last:.1f} MB at the end"),
            (
                "processor time of the server",
                f"{self.processor * 1000 / max(load.requests, 1):.1f} ms for each request",
            ),
            ("growth over the second half", f"{self.growth.part:+.2%}"),
            *(
                (f"{name} before, after", f"{self.before[name]}, {self.after[name]}")
                for name in LEFT
            ),
            (
                "connections before, after",
                f"{_connections(self.before)}, {_connections(self.after)}",
            ),
        ]

    def text(self) -> str:
        width = max(len(name) for name, _ in self.rows())
        lines = [f"  {name:<{width}}  {value}" for name, value in self.rows()]
        lines += [
            f"  of these {', '.join(f'{n} {kind}' for kind, n in self.load.counts.most_common())}"
        ]
        lines += [f"  an error is kept: {text}" for text in self.after["errors kept"]]
        lines += [f"  failed by faults: {dict(self.load.faulty)}", f"  log: {dict(self.log)}"]
        return "\n".join(lines)


def _connections(gauges: Mapping[str, Any]) -> int:
    return sum(stats["size"] for stats in gauges["pools"].values())


def write(report: Report) -> None:
    """Write docs/soak.svg, and the figures between the markers of docs/soak.md."""
    (DOCS / "soak.svg").write_text(draw(report.load.samples, report.growth))
    path = DOCS / "soak.md"
    before, rest = path.read_text().split(BEGIN)
    _, after = rest.split(END)
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}"
    table = "\n".join(f"| {name} | {value} |" for name, value in report.rows())
    text = f"\nA run on {machine}:\n\n| | |\n|---|---|\n{table}\n"
    path.write_text(f"{before}{BEGIN}{text}{END}{after}")
