"""What windows made of another application's frames must show, modelled by brute force.

Like `tests.support.oracle` it imports nothing from the package. It forgets no child and adds up nothing in advance: a
parent is the dictionary of its children, and a frame is computed from all of them anew each time that one is due.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from tests.support.sums_oracle import totals_of, vwap_of

__all__ = ["Bar", "Config", "Model", "summary"]

MS = 1_000_000
Bar = dict[str, Any]
"""A child as JSON has it; times in ms."""


@dataclass(frozen=True)
class Config:
    """Durations in ms, as the frames' own times."""

    size: int
    lateness: int = 0
    ttl: int = 86_400_000
    emit: Literal["eager", "final"] = "eager"


@dataclass
class _Parent:
    start: int
    children: dict[int, Bar] = field(default_factory=dict)
    previews: dict[int, Bar] = field(default_factory=dict)
    next_rev: int = 0


@dataclass
class _Symbol:
    clock: int | None = None
    parents: dict[int, _Parent] = field(default_factory=dict)


def summary(children: Iterable[Bar]) -> Bar:
    """Results, count and times of a window of these children, and whether it is filled; in wire order."""
    ordered = sorted(children, key=lambda each: each["start"])
    real = [each for each in ordered if each["count"]]
    filled = [each for each in ordered if each.get("filled")]
    used = real or filled
    if not used:
        nothing = dict.fromkeys(("open", "high", "low", "close", "volume", "vwap"))
        return {**nothing, "count": 0, "first_ts": None, "last_ts": None}
    volume, notional = totals_of(
        (each["vwap"] if each["vwap"] is not None else 0.0 if each["volume"] == 0 else math.nan, _volume(each))
        for each in used
    )
    high, low = max(each["high"] for each in used), min(each["low"] for each in used)
    shown: Bar = {
        "open": used[0]["open"],
        "high": high,
        "low": low,
        "close": used[-1]["close"],
        "volume": volume.value if math.isfinite(volume.value) else None,
        "vwap": vwap_of(volume, notional, low, high),
        "count": sum(each["count"] for each in real),
        "first_ts": real[0]["first_ts"] if real else None,
        "last_ts": real[-1]["last_ts"] if real else None,
    }
    return shown if real else {**shown, "filled": True}


def _volume(bar: Bar) -> float:
    return math.inf if bar["volume"] is None else bar["volume"]


class Model:
    """One partition. ``frames`` are the non-provisional ones by symbol; ``late`` is (position in the log, reason)."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.symbols: dict[str, _Symbol] = {}
        self.partition: int | None = None
        self.frames: dict[str, list[bytes]] = {}
        self.late: list[tuple[int, str]] = []
        self.misplaced: list[int] = []  # positions of children that are not part of one parent
        self.aggregated = self.deduplicated = self.taken = 0

    def run(self, bars: Sequence[Bar]) -> Model:
        for bar in bars:
            if bar:
                self.take(bar)
            else:
                self.end()
        return self

    def take(self, bar: Bar) -> None:
        """One well-formed child."""
        position, self.taken = self.taken, self.taken + 1
        size, length = self.config.size, bar["end"] - bar["start"]
        if size % length or bar["start"] // size != (bar["end"] - 1) // size:
            self.misplaced.append(position)
            return
        verdict = self._verdict(bar)
        if verdict is None:
            self.aggregated += 1
            (self._preview if bar["status"] == "provisional" else self._accept)(bar)
        elif verdict == "repeated":
            self.deduplicated += 1
        else:
            self.late.append((position, verdict))

    def end(self) -> None:
        """The input has ended: what children made comes out, and no child before the end of the last parent joins."""
        self.taken += 1
        for key in sorted(self.symbols):
            symbol = self.symbols[key]
            parents = [symbol.parents[start] for start in sorted(symbol.parents) if symbol.parents[start].children]
            for parent in parents:
                if not parent.next_rev:
                    self._emit(key, parent, "final", "end")
            if parents:
                assert symbol.clock is not None
                symbol.clock = max(symbol.clock, parents[-1].start + self.config.size + self.config.lateness)
            symbol.parents.clear()

    def open_parents(self, key: str) -> dict[int, Bar]:
        """What a provisional frame of each open parent would show, by start."""
        symbol = self.symbols[key]
        clock = -math.inf if symbol.clock is None else symbol.clock
        return {
            parent.start: summary([*parent.children.values(), *parent.previews.values()])
            for parent in symbol.parents.values()
            if parent.start + self.config.size > clock
        }

    def _verdict(self, bar: Bar) -> str | None:
        config, provisional = self.config, bar["status"] == "provisional"
        symbol = self.symbols.get(bar["key"], _Symbol())
        clock = -math.inf if symbol.clock is None else symbol.clock
        start = bar["start"] // config.size * config.size
        parent = symbol.parents.get(start, _Parent(start))
        verdict = None
        if bar["end"] + config.lateness <= clock:
            verdict = "watermark" if start + config.size + config.lateness <= clock else "settled"
        elif self.partition is not None and self.partition - start > config.ttl:
            verdict = "expired"
        else:
            for there in parent.children.values():
                if (there["start"], there["end"]) == (bar["start"], bar["end"]):
                    if provisional or bar["rev"] <= there["rev"]:
                        return "repeated"
                elif there["start"] < bar["end"] and bar["start"] < there["end"]:
                    verdict = "overlaps"
        if provisional and (verdict is not None or start + config.size <= clock):
            return "repeated"
        return verdict

    def _preview(self, bar: Bar) -> None:
        start = bar["start"] // self.config.size * self.config.size
        symbol = self.symbols.setdefault(bar["key"], _Symbol())
        parent = symbol.parents.setdefault(start, _Parent(start))
        parent.previews = {at: each for at, each in parent.previews.items() if not _overlap(each, bar)}
        parent.previews[bar["start"]] = bar

    def _accept(self, bar: Bar) -> None:
        size, lateness = self.config.size, self.config.lateness
        start = bar["start"] // size * size
        symbol = self.symbols.setdefault(bar["key"], _Symbol())
        before = symbol.clock
        symbol.clock = bar["end"] if before is None else max(before, bar["end"])
        parent = symbol.parents.setdefault(start, _Parent(start))
        parent.children[bar["start"]] = bar
        parent.previews = {
            at: each
            for at, each in parent.previews.items()
            if not _overlap(each, bar) and each["end"] + lateness > symbol.clock
        }
        if before is not None and start + size <= before and self.config.emit == "eager":
            trigger = "correction" if bar["trigger"] == "correction" else "late"
            self._emit(bar["key"], parent, "closed", trigger)
        self._close(bar["key"], symbol)
        if self.partition is None or symbol.clock > self.partition:
            self.partition = symbol.clock
            self._expire()

    def _close(self, key: str, symbol: _Symbol) -> None:
        assert symbol.clock is not None
        for parent in [symbol.parents[start] for start in sorted(symbol.parents)]:
            end = parent.start + self.config.size
            is_final = end + self.config.lateness <= symbol.clock
            is_due = end <= symbol.clock if self.config.emit == "eager" else is_final
            if is_due and not parent.next_rev and parent.children:
                self._emit(key, parent, "final" if is_final else "closed", "watermark")
            if is_final:
                del symbol.parents[parent.start]

    def _expire(self) -> None:
        assert self.partition is not None
        for key, symbol in list(self.symbols.items()):
            if symbol.clock is not None and self.partition - symbol.clock > self.config.ttl:
                for parent in [symbol.parents[start] for start in sorted(symbol.parents)]:
                    if not parent.next_rev and parent.children:
                        self._emit(key, parent, "final", "expiry")
                del self.symbols[key]

    def _emit(self, key: str, parent: _Parent, status: str, trigger: str) -> None:
        frame = {
            "key": key,
            "start": parent.start,
            "end": parent.start + self.config.size,
            "rev": parent.next_rev,
            "status": status,
            "trigger": trigger,
            **summary(parent.children.values()),
        }
        self.frames.setdefault(key, []).append(orjson.dumps(frame))
        parent.next_rev += 1


def _overlap(one: Bar, other: Bar) -> bool:
    return bool(one["start"] < other["end"] and other["start"] < one["end"])
