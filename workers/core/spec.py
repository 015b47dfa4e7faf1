"""What a lane does with its partition: the settings that it knows, and which of them give stored state its meaning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from workers.core.aggregates import Aggregation, load_aggregation
from workers.core.pipeline.pipeline import OperatorSpec, describe
from workers.core.ticks import TickFormat
from workers.core.windows.assign import (
    Assigner,
    CalendarSession,
    ExchangeSessions,
    Hopping,
    Sessions,
    WindowKind,
    make_tumbling,
)
from workers.core.windows.choose import check_merges
from workers.core.windows.corrections import CorrectionRules
from workers.core.windows.engine import WindowRules
from workers.errors import ConfigError
from workers.times import TimestampUnit, format_duration

__all__ = ["LaneSpec"]


@dataclass(frozen=True, slots=True)
class LaneSpec:
    """What a lane does with its partition; durations in nanoseconds. ``pipeline``: what ticks pass before windows.

    ``format`` frames: the input is a frames topic (`workers.core.windows.resample`); then ``lag_ns``, ``scope``,
    ``payload``, ``aggregation`` and what ``tick`` says of fields mean nothing. ``corrections``: how messages about
    trades are told from trades (`workers.core.windows.corrections`); None: there are none.

    ``max_jump_ns``: how far ahead of its partition a tick is believed without a second (`workers.core.jumps`); 0: any
    is.

    ``key_ttl_ns`` None: a key is never forgotten, and other keys' progress takes nothing from it.

    ``kind`` says which of the fields below ``pipeline`` mean something: tumbling: ``offset_ns``, ``time_zone``,
    ``fill_gaps_ns``; hopping: ``hop_ns``, ``offset_ns``; session: ``gap_ns``; calendar: ``calendar``, ``session``,
    ``close_grace_ns``. ``size_ns`` is the length of tumbling and hopping windows.
    """

    tick: TickFormat = field(default_factory=TickFormat)
    size_ns: int = 5_000_000_000
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
    kind: WindowKind = "tumbling"
    hop_ns: int = 0
    offset_ns: int = 0
    time_zone: str | None = None
    gap_ns: int = 0
    fill_gaps_ns: int = 0
    calendar: str | None = None
    session: CalendarSession = "regular"
    close_grace_ns: int = 0
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
        return self.lag_ns + self.lateness_ns + self.assigner().longest_ns

    def assigner(self) -> Assigner:
        """Which windows a time belongs to. Raises ``ValueError`` for what can't be, `ConfigError` for a calendar that
        can't be had."""
        if self.kind == "hopping":
            return Hopping(self.size_ns, self.hop_ns, self.offset_ns)
        if self.kind == "session":
            return Sessions(self.gap_ns)
        if self.kind == "calendar":
            return ExchangeSessions(self.calendar or "", self.session, self.close_grace_ns)
        return make_tumbling(self.size_ns, self.offset_ns, self.time_zone)

    def rules(self) -> WindowRules:
        """The rules of the windows. Raises ``ValueError`` for durations that can't be, `ConfigError` for a calendar
        that can't be had, or whose sessions are longer than ``key_ttl_ns`` allows, and for session windows with an
        aggregation that does not merge."""
        assigner = self.assigner()
        if isinstance(assigner, ExchangeSessions):
            self._check_ttl(assigner)
        if self.kind == "session" and self.payload != "items" and self.corrections is None:
            check_merges(load_aggregation(self.aggregation))
        return WindowRules(
            assigner,
            self.lag_ns if self.format == "json" else 0,
            self.lateness_ns,
            self.idle_after_ns,
            self.key_ttl_ns,
            self.emit,
            self.scope,
            fill_gaps_ns=self.fill_gaps_ns,
            late_by="tick" if self.format == "json" else "window",
        )

    def fingerprint(self, partitions: int, aggregation: Aggregation[object] | None) -> dict[str, object]:
        """The settings that give stored windows their meaning; state made under others can't be continued."""
        return {
            "tick.timestamp_unit": self.tick.unit,  # first_ts and last_ts are written in it
            "window.size_ns": self.size_ns,
            "window.lag_ns": self.lag_ns,
            "window.allowed_lateness_ns": self.lateness_ns,
            "window.key_ttl_ns": "never" if self.key_ttl_ns is None else self.key_ttl_ns,
            "window.emit": self.emit,
            "window.payload": self.payload,
            "window.watermark_scope": self.scope,
            "window.aggregation": f"{self.aggregation} v{aggregation.version}" if aggregation else "none",
            "input partitions": partitions,
            **({"pipeline": describe(self.pipeline)} if self.pipeline else {}),
            **self._kind_fingerprint(),
        }

    def _check_ttl(self, sessions: ExchangeSessions) -> None:
        needed_ns = sessions.longest_ns + self.lag_ns + self.lateness_ns
        if self.key_ttl_ns is not None and self.key_ttl_ns < needed_ns:
            raise ConfigError(
                f"window.key_ttl is {format_duration(self.key_ttl_ns)}; the longest window of the calendar "
                f"{self.calendar!r} (session {self.session}) with lag and allowed lateness is "
                f"{format_duration(needed_ns)}, and a tick of a window that began longer ago than key_ttl is late"
            )

    def _kind_fingerprint(self) -> dict[str, object]:
        """What of the window's kind is not the default: state of plain tumbling windows reads as it always did."""
        given = {
            "window.kind": (self.kind, "tumbling"),
            "window.hop_ns": (self.hop_ns, 0),
            "window.offset_ns": (self.offset_ns, 0),
            "window.time_zone": (self.time_zone, None),
            "window.gap_ns": (self.gap_ns, 0),
            "window.fill_gaps_ns": (self.fill_gaps_ns, 0),
            "window.calendar": (self.calendar, None),
            "window.session": (self.session, "regular"),
            "window.close_grace_ns": (self.close_grace_ns, 0),
            "tick.format": (self.format, "json"),
            "corrections": (self.corrections.describe() if self.corrections is not None else None, None),
        }
        return {name: value for name, (value, default) in given.items() if value != default}
