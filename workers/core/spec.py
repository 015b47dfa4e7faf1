"""What a lane reads, and what it does with it: its settings, and which of them give stored state its meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from workers.core.aggregates import Aggregation, load_aggregation
from workers.core.formats.corrections import CorrectionRules
from workers.core.pipeline.pipeline import OperatorSpec, describe
from workers.core.snapshot import TopicIdentity
from workers.core.ticks import TickFormat
from workers.core.windows.kinds import DEFAULT_SIZE_NS, TumblingWindows, Windows, check_merges
from workers.core.windows.resample import BarRules
from workers.core.windows.window import WindowRules
from workers.times import TimestampUnit

__all__ = ["Input", "LaneSpec"]


@dataclass(frozen=True, slots=True)
class Input:
    """Which partition a lane reads, and of how many: keys are checked against the partitioner.

    ``identities`` are the ticks topic's and the changelog's, as `LaneMeta` has them, where the cluster tells them.
    """

    topic: str
    partition: int
    partitions: int
    identities: Mapping[str, TopicIdentity] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LaneSpec:
    """What a lane does with its partition; durations in nanoseconds. ``pipeline``: what ticks pass before windows.

    ``format`` frames: the input is a frames topic (`workers.core.windows.resample`); then ``lag_ns``, ``scope``,
    ``payload``, ``aggregation`` and what ``tick`` says of fields mean nothing. ``corrections``: how messages about
    trades are told from trades (`workers.core.windows.corrections`); None: there are none.

    ``max_jump_ns``: how far ahead of its partition a tick is believed without a second (`workers.core.jumps`); 0: any
    is.

    ``key_ttl_ns`` None: a key is never forgotten, and other keys' progress takes nothing from it.

    ``window``: which windows there are, by kind (`workers.core.windows.kinds`).
    """

    tick: TickFormat = field(default_factory=TickFormat)
    window: Windows = field(default_factory=TumblingWindows)
    lag_ns: int = 2_000_000_000
    lateness_ns: int = 0
    idle_after_ns: int = 1_000_000_000
    key_ttl_ns: int | None = None
    emit: Literal["eager", "final"] = "eager"
    emit_partial: bool = False
    payload: Literal["ohlcv", "items", "both"] = "ohlcv"
    scope: Literal["key", "partition"] = "key"
    aggregation: str = "ohlcv"
    pipeline: tuple[OperatorSpec, ...] = ()
    format: Literal["json", "frames"] = "json"
    corrections: CorrectionRules | None = None
    max_jump_ns: int = 0

    @property
    def symbol_field(self) -> str:
        """The JSON field of an input record's symbol."""
        return self.tick.symbol if self.format == "json" else "key"

    @property
    def time_field(self) -> tuple[str, TimestampUnit]:
        """The JSON field of an input record's time, and its unit where it is an integer."""
        return (self.tick.ts, self.tick.unit) if self.format == "json" else ("start", "ms")

    @property
    def end_reach_ns(self) -> int:
        """How long before a window the windows begin whose end of the input may set the clock that it begins with: that
        is ahead of the last window's end by lag and allowed lateness."""
        return self.lag_ns + self.lateness_ns + self.window.assigner().longest_ns

    def rules(self) -> WindowRules:
        """The rules of the windows. Raises ``ValueError`` for durations that can't be, `ConfigError` for a calendar
        that can't be had, or whose sessions are longer than ``key_ttl_ns`` allows, and for session windows with an
        aggregation that does not merge."""
        assigner = self.window.assigner()
        if self.key_ttl_ns is not None:
            self.window.check_ttl(self.key_ttl_ns, assigner.longest_ns + self.lag_ns + self.lateness_ns)
        if self.window.merges and self.payload != "items" and self.corrections is None:
            check_merges(load_aggregation(self.aggregation))
        is_of_ticks = self.format == "json"
        return (WindowRules if is_of_ticks else BarRules)(
            assigner,
            self.lag_ns if is_of_ticks else 0,
            self.lateness_ns,
            self.idle_after_ns,
            self.key_ttl_ns,
            self.emit,
            self.scope,
        )

    def fingerprint(self, partitions: int, aggregation: Aggregation[object] | None) -> dict[str, object]:
        """The settings that give stored windows their meaning; state made under others can't be continued."""
        return {
            "tick.timestamp_unit": self.tick.unit,  # first_ts and last_ts are written in it
            "window.size_ns": DEFAULT_SIZE_NS,  # or another, or one that means nothing: the kind says it below
            "window.lag_ns": self.lag_ns,
            "window.allowed_lateness_ns": self.lateness_ns,
            "window.key_ttl_ns": "never" if self.key_ttl_ns is None else self.key_ttl_ns,
            "window.emit": self.emit,
            "window.payload": self.payload,
            "window.watermark_scope": self.scope,
            "window.aggregation": f"{self.aggregation} v{aggregation.version}" if aggregation else "none",
            "input partitions": partitions,
            **({"pipeline": describe(self.pipeline)} if self.pipeline else {}),
            **self.window.fingerprint(),
            **({"tick.format": self.format} if self.format != "json" else {}),
            **({"corrections": self.corrections.describe()} if self.corrections is not None else {}),
        }
