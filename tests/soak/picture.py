"""The memory curve as an SVG: two curves, two axes, readable on light and on dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tests.soak.verdict import Growth

WIDTH, HEIGHT = 820, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 76, 56, 52

STYLE = """
    text { font: 13px system-ui, sans-serif; fill: #24292f; }
    .title { font-size: 15px; font-weight: 600; }
    .grid { stroke: #d0d7de; stroke-width: 1; }
    .axis { stroke: #6e7781; stroke-width: 1; fill: none; }
    .memory { stroke: #0969da; stroke-width: 1.8; fill: none; }
    .fit { stroke: #cf222e; stroke-width: 1.8; stroke-dasharray: 7 4; fill: none; }
    .requests { stroke: #8c6d1f; stroke-width: 1.5; fill: none; }
    .half { fill: #0969da; opacity: 0.06; }
    text.memory { fill: #0969da; stroke: none; }
    text.fit { fill: #cf222e; stroke: none; }
    text.requests { fill: #8c6d1f; stroke: none; }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3; }
      .grid { stroke: #30363d; }
      .axis { stroke: #8b949e; }
      .memory { stroke: #58a6ff; }
      .fit { stroke: #ff7b72; }
      .requests { stroke: #e3b341; }
      .half { fill: #58a6ff; opacity: 0.08; }
      text.memory { fill: #58a6ff; }
      text.fit { fill: #ff7b72; }
      text.requests { fill: #e3b341; }
    }
"""


def step(span: float, most: int = 6) -> float:
    """A round distance between marks: 1, 2 or 5 times a power of ten, at most `most` of them."""
    power = 10.0 ** math.floor(math.log10(span / most))
    return next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= most)


class Axis:
    """Maps values to places, with round marks."""

    def __init__(self, most: float, begin: float, end: float) -> None:
        self.step = step(most)
        self.most = math.ceil(most / self.step) * self.step
        self._begin, self._end = begin, end

    def at(self, value: float) -> float:
        return self._begin + (self._end - self._begin) * value / self.most

    def marks(self) -> list[float]:
        return [number * self.step for number in range(round(self.most / self.step) + 1)]


def draw(samples: Sequence[Mapping[str, Any]], fitted: Growth) -> str:
    """Return the picture of the resident size and of the requests, over minutes."""
    zero = samples[0]["time"]
    minutes = [(sample["time"] - zero) / 60 for sample in samples]
    sizes = [sample["rss"] / 1e6 for sample in samples]
    requests = [sample["requests"] / 1000 for sample in samples]
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    across = Axis(minutes[-1], LEFT, right)
    across.most = minutes[-1]
    memory = Axis(max(sizes) * 1.15, bottom, TOP)
    count = Axis(max(requests) * 1.05, bottom, TOP)

    def line(kind: str, xs: Sequence[float], ys: Sequence[float], axis: Axis) -> str:
        points = " ".join(
            f"{across.at(x):.1f},{axis.at(y):.1f}" for x, y in zip(xs, ys, strict=True)
        )
        return f'<polyline class="{kind}" points="{points}"/>'

    half = [(moment - zero) / 60 for moment in (fitted.begin, fitted.end)]
    middle = fitted.size / 1e6
    change = fitted.slope * (fitted.end - fitted.begin) / 1e6
    fit = [middle - change / 2, middle + change / 2]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="Resident size and requests over time">',
        f"<style>{STYLE}</style>",
        f'<text class="title" x="{LEFT}" y="22">Resident size of one worker under mixed load'
        "</text>",
    ]
    for mark in memory.marks():
        y = memory.at(mark)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{mark:g}", "end"))
    for mark in count.marks():
        parts.append(_text(right + 8, count.at(mark) + 4, f"{mark:g}", "start", "requests"))
    for mark in across.marks():
        if mark <= across.most:
            parts.append(_text(across.at(mark), bottom + 20, f"{mark:g}", "middle"))
    first, last = across.at(half[0]), across.at(half[1])
    parts += [
        f'<rect class="half" x="{first:.1f}" y="{TOP}" width="{last - first:.1f}" '
        f'height="{bottom - TOP}"/>',
        f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}V{TOP}"/>',
        line("requests", minutes, requests, count),
        line("memory", minutes, sizes, memory),
        line("fit", half, fit, memory),
        _text(LEFT, 44, "MB resident", "start", "memory"),
        _text((first + last) / 2, 44, f"second half: {fitted.part:+.2%}", "middle", "fit"),
        _text(WIDTH - 8, 44, "thousand requests", "end", "requests"),
        _text((LEFT + right) / 2, HEIGHT - 10, "minutes", "middle"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _text(x: float, y: float, text: str, anchor: str, kind: str = "label") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
