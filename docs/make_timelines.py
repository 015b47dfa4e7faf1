"""Draw the timelines of docs/explanation/watermarks.md into docs/img/timelines: python docs/make_timelines.py

What is drawn is what the engine does: the ticks go through `workers.testing.TestDriver`, and frames and late ticks are
those that come out. The same engine draws the same bytes; a test compares.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from html import escape
from pathlib import Path
from typing import Any, Final

from workers import EventTimeClock, WatermarkPolicy
from workers.settings import load_settings
from workers.testing import TestDriver

__all__ = ["SCENARIOS", "draw"]

FOLDER: Final = Path(__file__).parent / "img" / "timelines"
SIZE_S: Final = 5
LEFT, RIGHT, TOP, BOTTOM = 60, 330, 46, 34  # px around the plot; the labels of frames stand on the right
SECOND_PX, ROW_PX = 34, 30
STYLE: Final = """
text { font: 13px ui-sans-serif, system-ui, sans-serif; fill: var(--ink) }
.panel { fill: var(--paper) } .odd { fill: var(--band) } .grid { stroke: var(--line); stroke-width: 1 }
.faint { fill: var(--faint); font-size: 12px } .late { fill: var(--late) } .frame { fill: var(--frame) }
.dot0 { fill: var(--tick0) } .dot1 { fill: var(--tick1) }
.mark0 { stroke: var(--tick0) } .mark1 { stroke: var(--tick1) } .mark0, .mark1 { stroke-width: 3 }
.wait0 { stroke: var(--tick0) } .wait1 { stroke: var(--tick1) }
.wait0, .wait1 { stroke-width: 1; stroke-dasharray: 2 3 }
.cross { stroke: var(--late); stroke-width: 2.5 }
svg { --paper: #fff; --band: #eef2f7; --line: #d5dbe3; --ink: #1f2933; --faint: #5b6774; --late: #c02626;
      --frame: #1a6b3c; --tick0: #1f5fbf; --tick1: #a35a00 }
@media (prefers-color-scheme: dark) { svg { --paper: #1c2128; --band: #262d37; --line: #3d4652; --ink: #e3e8ee;
      --faint: #a4afbb; --late: #ff8a80; --frame: #7ddba0; --tick0: #82b4ff; --tick1: #ffb65c } }
"""


@dataclass(frozen=True)
class Scenario:
    """Ticks in log order as (symbol, second); a symbol of "" is that many seconds of silence."""

    name: str
    title: str
    steps: tuple[tuple[str, float], ...]
    seconds: int
    settings: dict[str, str] = field(default_factory=dict)


SCENARIOS: Final = (
    Scenario(
        "lag",
        "lag 2 s, no allowed lateness",
        (("A", 0), ("A", 2), ("A", 1), ("A", 6), ("A", 7)),
        10,
    ),
    Scenario(
        "lateness",
        "lag 2 s, allowed lateness 3 s",
        (("A", 1), ("A", 3), ("A", 7), ("A", 4.5), ("A", 10), ("A", 4.2)),
        12,
        {"window.allowed_lateness": "3s"},
    ),
    Scenario(
        "two-clocks",
        "lag 2 s; B is ahead of A",
        (("A", 0), ("B", 4), ("A", 1), ("B", 7), ("A", 2), ("A", 7)),
        10,
    ),
    Scenario(
        "quiet",
        "lag 2 s, idle_after 1 s",
        (("A", 1), ("A", 3), ("", 5.0), ("A", 9)),
        12,
    ),
)


@dataclass
class _Row:
    """What one step did: the tick, the watermark after it, what came out."""

    symbol: str
    second: float
    watermark_s: float | None
    is_late: bool
    frames: list[dict[str, Any]]


def _run(scenario: Scenario) -> list[_Row]:
    """Send the steps through the engine, looking after each."""
    settings = load_settings(
        None,
        environ={"WORKERS_CONFIG": os.devnull},
        overrides={"tick.min_time": "1970-01-01", "window.size": f"{SIZE_S}s", **scenario.settings},
    )
    driver = TestDriver(settings, partitions=1)
    policy = WatermarkPolicy(lag=timedelta(seconds=2))
    clock = EventTimeClock[tuple[str, float]](
        lambda step: datetime.fromtimestamp(step[1], UTC), policy, get_key=lambda step: step[0]
    )
    rows: list[_Row] = []
    frames = late = 0
    for step in scenario.steps:
        symbol, second = step
        if symbol:
            driver.send(symbol, round(second * 1000), price=1, size=1)
            clock.observe(step)
        else:
            driver.advance(timedelta(seconds=second))
        driver.commit()
        watermark = clock.watermark(symbol)
        rows.append(
            _Row(
                symbol,
                second,
                None if watermark is None else watermark.timestamp(),
                len(driver.late()) > late,
                driver.frames()[frames:],
            )
        )
        frames, late = len(driver.frames()), len(driver.late())
    return rows


def _frame_text(frame: dict[str, Any]) -> str:
    count = "1 tick" if frame["count"] == 1 else f"{frame['count']} ticks"
    begin, end = frame["start"] // 1000, frame["end"] // 1000
    return f"{frame['key']} {begin}–{end} s: {count}, {frame['status']}, rev {frame['rev']}"


def _x(second: float) -> float:
    return round(LEFT + second * SECOND_PX, 1)


def draw(scenario: Scenario) -> str:
    """The scenario as an SVG document; dark where the reader's system is."""
    rows = _run(scenario)
    symbols = sorted({row.symbol for row in rows} - {""})
    lines = sum(max(1, len(row.frames)) for row in rows)
    plot_right, bottom = _x(scenario.seconds), TOP + lines * ROW_PX
    width, height = plot_right + RIGHT, bottom + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height}" width="{width:g}" height="{height}"'
        f' role="img" aria-label="{escape(scenario.title)}">',
        f"<style>{STYLE}</style>",
        f'<rect class="panel" width="{width:g}" height="{height}" rx="8"/>',
        f'<text x="{LEFT}" y="20">{escape(scenario.title)}</text>',
        f'<text class="faint" x="{plot_right + 16:g}" y="{TOP - 8}">what comes out</text>',
    ]
    parts += _grid(scenario.seconds, bottom)
    y = TOP
    for row in rows:
        parts += _step(row, symbols, y + ROW_PX // 2, plot_right)
        y += ROW_PX * max(1, len(row.frames))
    return "\n".join((*parts, "</svg>", ""))


def _grid(seconds: int, bottom: int) -> list[str]:
    parts = []
    for number in range(-(-seconds // SIZE_S)):
        begin, end = number * SIZE_S, min((number + 1) * SIZE_S, seconds)
        if number % 2:
            width = (end - begin) * SECOND_PX
            parts.append(f'<rect class="odd" x="{_x(begin):g}" y="{TOP}" width="{width}" height="{bottom - TOP}"/>')
    for second in range(seconds + 1):
        if second % SIZE_S == 0:
            parts.append(f'<line class="grid" x1="{_x(second):g}" y1="{TOP}" x2="{_x(second):g}" y2="{bottom}"/>')
        parts.append(f'<text class="faint" x="{_x(second):g}" y="{bottom + 18}" text-anchor="middle">{second}</text>')
    parts.append(f'<text class="faint" x="{LEFT - 46}" y="{bottom + 18}">s</text>')
    return parts


def _step(row: _Row, symbols: list[str], y: int, plot_right: float) -> list[str]:
    if not row.symbol:
        text = f"{row.second:g} s of silence"
        parts = [f'<text class="faint" x="{LEFT}" y="{y + 4}">{text}</text>']
    else:
        parts = _tick(row, symbols.index(row.symbol), y)
    label_x = f"{plot_right + 16:g}"
    if row.is_late:
        parts.append(f'<text class="late" x="{label_x}" y="{y + 4}">late: to the late topic</text>')
    for number, frame in enumerate(row.frames):
        text = escape(_frame_text(frame))
        parts.append(f'<text class="frame" x="{label_x}" y="{y + 4 + number * ROW_PX}">{text}</text>')
    return parts


def _tick(row: _Row, color: int, y: int) -> list[str]:
    x = _x(row.second)
    parts = [f'<text class="faint" x="{LEFT - 46}" y="{y + 4}">{escape(row.symbol)}</text>']
    if row.watermark_s is not None and row.watermark_s >= 0:
        mark = _x(row.watermark_s)
        parts += [
            f'<line class="wait{color}" x1="{mark:g}" y1="{y}" x2="{x:g}" y2="{y}"/>',
            f'<line class="mark{color}" x1="{mark:g}" y1="{y - 9}" x2="{mark:g}" y2="{y + 9}"/>',
        ]
    if row.is_late:
        parts += [
            f'<line class="cross" x1="{x - 5:g}" y1="{y - 5}" x2="{x + 5:g}" y2="{y + 5}"/>',
            f'<line class="cross" x1="{x - 5:g}" y1="{y + 5}" x2="{x + 5:g}" y2="{y - 5}"/>',
        ]
    else:
        parts.append(f'<circle class="dot{color}" cx="{x:g}" cy="{y}" r="6"/>')
    return parts


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for scenario in SCENARIOS:
        (FOLDER / f"{scenario.name}.svg").write_text(draw(scenario))
