"""Draws a scenario's looks as one SVG: a panel for each measure, one time axis, lines where something was done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from benchmarks.observe import Sample, Series

__all__ = ["Line", "Panel", "svg"]

WIDTH, LEFT, RIGHT, TOP, PANEL, GAP = 900, 70, 150, 66, 96, 30
COLOURS = ("#1668b8", "#c2571a", "#2c8a4b", "#8a3fa0")
Value = Callable[[Sample], float | None]


@dataclass(frozen=True)
class Line:
    """One measure over time; a look without a value breaks the line."""

    name: str
    value: Value


@dataclass(frozen=True)
class Panel:
    """Lines over a common axis from 0; ``limits`` are drawn across."""

    title: str
    lines: Sequence[Line]
    limits: Sequence[tuple[str, float]] = ()


def svg(title: str, series: Series, panels: Sequence[Panel]) -> str:
    """The drawing as text."""
    end_s = max((sample.at_s for sample in series.samples), default=1.0)
    height = TOP + len(panels) * (PANEL + GAP) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/>',
        _text(LEFT, 16, title, size=14),
    ]
    for number, panel in enumerate(panels):
        parts += _panel(panel, series, end_s, TOP + number * (PANEL + GAP))
    bottom = TOP + len(panels) * (PANEL + GAP) - GAP
    for number, (at_s, text) in enumerate(series.marks):
        x, top = _x(at_s, end_s), TOP - 18 - 12 * (number % 2)  # neighbours' texts on two lines
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" stroke="#999" stroke-dasharray="3"/>')
        parts.append(_text(x + 2, top - 2, text, colour="#555"))
    return "\n".join([*parts, "</svg>\n"])


def _panel(panel: Panel, series: Series, end_s: float, top: int) -> list[str]:
    values = [value for sample in series.samples for line in panel.lines if (value := line.value(sample)) is not None]
    highest = max([*values, *(limit for _, limit in panel.limits), 1e-9]) * 1.05

    def y(value: float) -> float:
        return top + PANEL * (1 - value / highest)

    parts = [
        f'<rect x="{LEFT}" y="{top}" width="{WIDTH - LEFT - RIGHT}" height="{PANEL}" fill="none" stroke="#ccc"/>',
        _text(LEFT - 6, top + 10, f"{highest:,.0f}" if highest >= 10 else f"{highest:.1f}", anchor="end"),
        _text(LEFT - 6, top + PANEL, "0", anchor="end"),
        _text(LEFT, top - 5, panel.title, colour="#333"),
        _text(WIDTH - RIGHT, top + PANEL + 12, f"{end_s:.0f} s", anchor="end"),
    ]
    for name, limit in panel.limits:
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(limit):.1f}" y2="{y(limit):.1f}" stroke="#b00" '
            f'stroke-dasharray="5 3"/>{_text(WIDTH - RIGHT - 4, y(limit) - 3, name, anchor="end", colour="#b00")}'
        )
    for number, line in enumerate(panel.lines):
        colour = COLOURS[number % len(COLOURS)]
        parts.append(_text(WIDTH - RIGHT + 8, top + 14 + 14 * number, line.name, colour=colour))
        for run in _runs(line, series):
            points = " ".join(f"{_x(at_s, end_s):.1f},{y(value):.1f}" for at_s, value in run)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
    return parts


def _runs(line: Line, series: Series) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for sample in series.samples:
        value = line.value(sample)
        if value is not None:
            runs[-1].append((sample.at_s, value))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _x(at_s: float, end_s: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * at_s / end_s


def _text(x: float, y: float, text: str, *, anchor: str = "start", colour: str = "#000", size: int = 11) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">{escape(text)}</text>'
    )
