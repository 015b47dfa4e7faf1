"""What the dashboard knows: the newest bars of every symbol, the ledger, the group, and how all of that moved.

Pure: records and times come in as arguments, and `workers.apps.dashboard.views` takes out what one browser lacks.
Rules:

1. A later frame of a window replaces the earlier one, as for any consumer of frames. Where it revises one that was not
   provisional, the predecessor's prices stay beside it, so that a person can see what changed.
2. Everything is bounded (`Limits`). What is forgotten is the oldest: bars by when they were first seen, symbols by when
   anything was last heard of them, rows of the ledger and events by age.
3. Whatever changes gets a greater sequence number; a browser is owed what is beyond the last number that it has.
4. Records come from topics that others can write to: one that can't be read is counted, text is cut to a length, and a
   symbol too long to keep is known by its beginning and a digest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Final, Literal

import orjson

from workers.apps.dashboard.bars import SymbolBars
from workers.apps.dashboard.group import GroupStory, MeanRate
from workers.apps.dashboard.ledger import LedgerRows
from workers.apps.dashboard.readings import (
    Changes,
    Event,
    LagReading,
    LedgerRow,
    Limits,
    Member,
    Point,
    Ranked,
    ShownBar,
    SourceState,
    cut,
)
from workers.backpressure.levels import Level, LevelPolicy
from workers.core.effects import Counts
from workers.core.frames import Frame, decode_frame
from workers.times import NS_PER_MS, NS_PER_SECOND

__all__ = ["DashboardModel"]

_MAX_PARTITIONS: Final = 10_000
_IDLE_PARTITION_NS: Final = 30 * NS_PER_SECOND


@dataclass(slots=True)
class _Progress:
    """What the changelog says of one partition, and when (monotonic) its clock last moved."""

    offset: int
    event_ns: int
    counts: Counts
    moved_ns: int


class DashboardModel:
    """All that is known now. ``unit_ns`` is the tick's unit, ``lag_ns`` the watermark's lag, as the workers have them.

    Times that come in: ``now_ns`` is any clock that never goes back, ``wall_ns`` nanoseconds since the epoch.
    """

    def __init__(
        self, *, unit_ns: int, lag_ns: int, policy: LevelPolicy | None = None, limits: Limits | None = None
    ) -> None:
        self.limits = limits = limits or Limits()
        self._lag_ns = lag_ns
        self._changes = Changes()
        self._bars = SymbolBars(unit_ns, limits, self._changes)
        self._ledger = LedgerRows(self._bars, limits, self._changes)
        self._group = GroupStory(policy, limits, self._changes)
        self.points: deque[Point] = deque(maxlen=limits.points)
        self.sources: dict[str, SourceState] = {}
        self._progress: dict[int, _Progress] = {}
        self.frames = self._live_frames = 0
        self.unreadable = 0
        self._frames_rate = MeanRate()
        self.heard_ms = 0
        """When frames last came, by the wall clock; as exact as the samples are frequent."""
        self._frames_heard = 0

    # -- frames and the ledger ----------------------------------------------------------------------------------------

    def take_frame(self, value: bytes | None, partition: int, now_ns: int, *, live: bool = True) -> None:
        """A record of the frames topic; one that is not ``live`` was there before anybody looked.

        Old records come all at once, so they count for no rate.
        """
        frame = decode_frame(value)
        if isinstance(frame, Frame) and self._bars.take(frame, partition, now_ns, live=live):
            self.frames += 1
            self._live_frames += live
        else:
            self.unreadable += 1

    def take_late(self, value: bytes | None, wall_ns: int) -> None:
        """A record of the late topic: a late tick, one that an operator dropped, or a correction without its trade."""
        self.unreadable += not self._ledger.take_late(value, wall_ns)

    def take_dead_letter(
        self, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]], wall_ns: int
    ) -> None:
        """A record of the dead-letters topic; its key and value can be anything."""
        self._ledger.take_dead_letter(key, value, headers, wall_ns)

    # -- state and the sum --------------------------------------------------------------------------------------------

    def take_meta(self, partition: int, value: bytes | None, now_ns: int) -> None:
        """The changelog's record of a commit; None where the state of a partition was dropped."""
        if value is None:
            if self._progress.pop(partition, None) is not None:
                self._changes.next()
            return
        try:
            found = orjson.loads(value)
            counts = Counts(**{bound.name: int(found["counts"].get(bound.name, 0)) for bound in fields(Counts)})
            offset, event_ns = int(found["offset"]), int(found["partition_max_ns"])
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
            self.unreadable += 1
            return
        before = self._progress.get(partition)
        if before is None and len(self._progress) >= _MAX_PARTITIONS:
            return
        moved_ns = before.moved_ns if before is not None and before.event_ns == event_ns else now_ns
        if before is not None and before.counts == counts and before.offset == offset:
            return
        self._progress[partition] = _Progress(offset, event_ns, counts, moved_ns)
        self._changes.next()

    @property
    def counts(self) -> Counts:
        """What became of every record, over all partitions, as of each one's last commit."""
        total = Counts()
        for progress in self._progress.values():
            for name, number in asdict(progress.counts).items():
                setattr(total, name, getattr(total, name) + number)
        return total

    @property
    def unbalanced(self) -> tuple[int, ...]:
        """Partitions whose own sum does not add up; two errors that cancel out must not hide each other."""
        return tuple(sorted(number for number, found in self._progress.items() if found.counts.balance()))

    def watermarks(self) -> Mapping[int, int]:
        """The watermark of each partition's newest tick, in ns since the epoch."""
        return {number: found.event_ns - self._lag_ns for number, found in self._progress.items() if found.event_ns > 0}

    def watermark_delay_ns(self, wall_ns: int, now_ns: int) -> int | None:
        """How far the slowest partition's watermark is behind the wall clock; partitions without ticks don't count."""
        moving = [
            found.event_ns
            for found in self._progress.values()
            if found.event_ns > 0 and now_ns - found.moved_ns <= _IDLE_PARTITION_NS
        ]
        return wall_ns - (min(moving) - self._lag_ns) if moving else None

    # -- the group ----------------------------------------------------------------------------------------------------

    def take_lag(self, reading: LagReading) -> None:
        """A measurement of the group's lag."""
        self._group.take_lag(reading)

    def take_pressure(self, pressure: tuple[str, str, float] | None) -> None:
        """The strictest level that the feedback topic tells now: level, source, and the scale that it means."""
        self._group.take_pressure(pressure)

    def take_group(self, state: str, members: Iterable[Member], wall_ns: int) -> None:
        """The group as its coordinator describes it. What changed becomes events."""
        self._group.take_group(state, members, wall_ns)

    # -- time ---------------------------------------------------------------------------------------------------------

    def set_source(self, name: str, state: Literal["ok", "waiting", "failed"], text: str = "") -> None:
        """Say how reading from somewhere goes."""
        before = self.sources.get(name)
        found = SourceState(state, cut(text, self.limits.text_chars))
        if before != found:
            self.sources[name] = found
            self._changes.next()

    def sample(self, wall_ns: int, now_ns: int) -> None:
        """Add a point to the curves; call it once a second."""
        self._frames_rate.take_total(self._live_frames, now_ns)
        if self.frames != self._frames_heard:
            self._frames_heard, self.heard_ms = self.frames, wall_ns // NS_PER_MS
        delay_ns = self.watermark_delay_ns(wall_ns, now_ns)
        reading = self.lag
        fresh = reading is not None and wall_ns - reading.measured_ns < 10 * NS_PER_SECOND
        self.points.append(
            Point(
                self._changes.next(),
                wall_ns // NS_PER_MS,
                reading.total if reading is not None and fresh else None,
                _seconds(reading.waiting_ns) if reading is not None and fresh else None,
                _seconds(reading.event_lag_ns) if reading is not None and fresh else None,
                int(self.level),
                self.scale,
                _seconds(delay_ns),
                round(self._group.ticks_rate.per_s, 1),
                round(reading.committed_per_s, 1) if reading is not None and fresh else 0.0,
                round(self._frames_rate.per_s, 1),
            )
        )

    # -- what views ask for -------------------------------------------------------------------------------------------

    @property
    def seq(self) -> int:
        """The number of the last change."""
        return self._changes.last

    @property
    def events(self) -> deque[Event]:
        """What became of the group, the oldest first."""
        return self._group.events

    @property
    def group_state(self) -> str:
        """The group's state as its coordinator names it; empty before it was asked."""
        return self._group.state

    @property
    def members(self) -> tuple[Member, ...]:
        """The group's members."""
        return self._group.members

    @property
    def lag(self) -> LagReading | None:
        """The last measurement of the group's lag."""
        return self._group.lag

    @property
    def level(self) -> Level:
        """The level of the group's lag, by the application's own thresholds."""
        return self._group.level

    @property
    def scale(self) -> float:
        """The share of their rate that producers keep: the stricter of the group's own level and what was told."""
        return self._group.scale

    @property
    def pressure(self) -> tuple[str, str, float] | None:
        """What the feedback topic tells producers: level, by whom, and the share of the rate it leaves."""
        return self._group.pressure

    @property
    def reasons(self) -> dict[str, dict[str, int]]:
        """How many late ticks and dead letters there were of each reason."""
        return self._ledger.reasons

    def ledger(self, *, kind: str = "all", reason: str = "", text: str = "", limit: int = 100) -> list[LedgerRow]:
        """See `LedgerRows.newest`."""
        return self._ledger.newest(kind=kind, reason=reason, text=text, limit=limit)

    def symbol_seq(self, symbol: str) -> int:
        """The number of a symbol's last change; 0 where it is unknown."""
        return self._bars.symbol_seq(symbol)

    def bars(self, symbol: str, since: int = 0) -> Iterator[ShownBar]:
        """A symbol's bars that changed after ``since``, in the order in which they were first seen."""
        return self._bars.bars(symbol, since)

    @property
    def symbols(self) -> int:
        """How many symbols are known."""
        return self._bars.symbols

    @property
    def bars_kept(self) -> int:
        """How many bars are kept, of all symbols."""
        return self._bars.bars_kept

    def ranking(self, search: str, by: str, limit: int, now_ns: int) -> tuple[list[Ranked], int]:
        """See `SymbolBars.ranking`."""
        return self._bars.ranking(search, by, limit, now_ns)


def _seconds(duration_ns: int | None) -> float | None:
    return None if duration_ns is None else round(duration_ns / NS_PER_SECOND, 3)
