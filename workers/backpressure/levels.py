"""Backpressure decided: levels with hysteresis, the events that carry them, and the strictest of several.

    lag or queue size ──▶ LevelGauge ──▶ Level ──▶ rate scale
    feedback records  ──▶ FeedbackBook ──▶ strictest fresh event

Rules:

1. Tightening happens at once, relaxing only after ``min_dwell_ns`` at a level and below its release threshold: a value
   that wanders around a threshold changes the level once, and the hard level is never missed.
2. An event counts while it is fresh. Its sender repeats it; silence means that the sender is gone, and a sender that is
   gone must not hold everybody else for ever.
3. An event that can't be understood is counted and otherwise ignored, as is one of an unknown level: guessing "hard"
   from garbage would stop the producers.

Nothing here knows a clock: time comes in as an argument.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import msgspec

from workers.times import NS_PER_MS, NS_PER_SECOND

__all__ = [
    "GROUP_SOURCE",
    "STALE_AFTER_NS",
    "STORE_SOURCE",
    "FeedbackBook",
    "FeedbackEvent",
    "Level",
    "LevelGauge",
    "LevelPolicy",
    "rate_scale",
    "strictest",
]

GROUP_SOURCE: Final = "group"
"""Source of events that tell the consumer group's lag. They are for producers: a worker that obeyed them would stop
working because there is too much work."""

STORE_SOURCE: Final = "store"
"""Source of events of a store writer's queue, behind the frames: for workers and producers."""

STALE_AFTER_NS: Final = 30 * NS_PER_SECOND
"""Default age at which an event no longer counts; senders repeat theirs at least three times as often."""

MAX_COORDINATORS: Final = 1_000
_MAX_NAME_CHARS: Final = 256


class Level(IntEnum):
    """How much pressure there is; a greater one is stricter."""

    OK = 0
    SOFT = 1
    HARD = 2

    @property
    def label(self) -> str:
        """The name on the wire and in messages."""
        return self.name.lower()


_BY_LABEL: Final = {level.label: level for level in Level}


@dataclass(frozen=True, slots=True)
class LevelPolicy:
    """Thresholds in the unit of what is measured, and the share of the full rate that each level leaves.

    A level is left when the value is at most ``release`` times the threshold that raised it, after at least
    ``min_dwell_ns`` there. Raises ``ValueError`` where the numbers contradict each other.
    """

    soft: int
    hard: int
    release: float = 0.5
    min_dwell_ns: int = 5 * NS_PER_SECOND
    scale_soft: float = 0.5
    scale_hard: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.soft < self.hard:
            raise ValueError(f"soft is {self.soft} and hard is {self.hard}; expected 0 < soft < hard")
        if not 0 < self.release <= 1:
            raise ValueError(f"release is {self.release}; expected above 0 and at most 1")
        if self.min_dwell_ns < 0:
            raise ValueError(f"min_dwell_ns is {self.min_dwell_ns}; expected 0 or more")
        if not 0 <= self.scale_hard <= self.scale_soft <= 1:
            raise ValueError(
                f"scale_hard is {self.scale_hard} and scale_soft is {self.scale_soft}; "
                "expected 0 <= scale_hard <= scale_soft <= 1"
            )


def rate_scale(level: Level, policy: LevelPolicy) -> float:
    """The share of its full rate that a level leaves to a producer, 0 to 1."""
    return (1.0, policy.scale_soft, policy.scale_hard)[level]


def strictest(levels: Iterable[Level]) -> Level:
    """The strictest of some levels; OK of none."""
    return max(levels, default=Level.OK)


class LevelGauge:
    """A measured value turned into a level, with hysteresis."""

    def __init__(self, policy: LevelPolicy) -> None:
        self._policy = policy
        self._since_ns: int | None = None
        self.level = Level.OK

    def observe(self, value: int, now_ns: int) -> Level:
        """The level after measuring ``value`` at ``now_ns``, on any clock that never goes back.

        Raises ``ValueError`` for a negative value: a measurement that failed is not a small one.
        """
        if value < 0:
            raise ValueError(f"measured {value}; expected 0 or more")
        policy = self._policy
        raised = Level.HARD if value >= policy.hard else Level.SOFT if value >= policy.soft else Level.OK
        if raised > self.level:
            self._change(raised, now_ns)
        elif self.level > Level.OK and self._dwelt(now_ns):
            relaxed = max(self._held(value), raised)  # with a release of 1, what raises a level may also release it
            if relaxed < self.level:
                self._change(relaxed, now_ns)
        return self.level

    def _held(self, value: int) -> Level:
        """The strictest level that ``value`` still keeps up."""
        policy = self._policy
        if self.level is Level.HARD and value > policy.release * policy.hard:
            return Level.HARD
        return Level.SOFT if value > policy.release * policy.soft else Level.OK

    def _dwelt(self, now_ns: int) -> bool:
        return self._since_ns is None or now_ns - self._since_ns >= self._policy.min_dwell_ns

    def _change(self, level: Level, now_ns: int) -> None:
        self.level, self._since_ns = level, now_ns


class _Wire(msgspec.Struct):
    coordinator_id: str
    queue_size: int
    capacity: int
    level: str
    source: str
    ts: int


_DECODER: Final = msgspec.json.Decoder(_Wire)
_MAX_TS_MS: Final = (2**63 - 1) // NS_PER_MS


@dataclass(frozen=True, slots=True)
class FeedbackEvent:
    """What a coordinator (a store writer, the group's measuring worker) says of its pressure.

    ``queue_size`` and ``capacity`` are in records, ``ts_ns`` is when it was said. On the wire: a JSON object with
    ``level`` in small letters and ``ts`` in milliseconds since the epoch; the record's key is ``coordinator_id``.
    """

    coordinator_id: str
    queue_size: int
    capacity: int
    level: Level
    source: str
    ts_ns: int

    def encode(self) -> bytes:
        """The event as it is written to the feedback topic."""
        wire = _Wire(
            self.coordinator_id,
            self.queue_size,
            self.capacity,
            self.level.label,
            self.source,
            self.ts_ns // NS_PER_MS,
        )
        return msgspec.json.encode(wire)

    @staticmethod
    def decode(value: bytes) -> FeedbackEvent:
        """Read an event. Raises ``ValueError`` that says what is wrong with it; unknown fields are ignored."""
        try:
            wire = _DECODER.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"no feedback event: {error}") from None
        level = _BY_LABEL.get(wire.level.lower())
        if level is None:
            raise ValueError(f"level is {wire.level[:32]!r}; expected one of {', '.join(_BY_LABEL)}")
        for name, text in (("coordinator_id", wire.coordinator_id), ("source", wire.source)):
            if not 0 < len(text) <= _MAX_NAME_CHARS:
                raise ValueError(f"{name} has {len(text)} characters; expected 1 to {_MAX_NAME_CHARS}")
        if wire.queue_size < 0 or wire.capacity < 1:
            raise ValueError(f"queue_size {wire.queue_size} of capacity {wire.capacity}; expected >= 0 of >= 1")
        if not 0 <= wire.ts <= _MAX_TS_MS:
            raise ValueError(f"ts is {wire.ts}; expected milliseconds since the epoch")
        return FeedbackEvent(
            wire.coordinator_id, wire.queue_size, wire.capacity, level, wire.source, wire.ts * NS_PER_MS
        )


class FeedbackBook:
    """The last event of each coordinator. Bounded: beyond a thousand coordinators the oldest is forgotten."""

    def __init__(self, *, stale_after_ns: int = STALE_AFTER_NS, ignore_sources: Iterable[str] = ()) -> None:
        """Raises ``ValueError`` where ``stale_after_ns`` is not above 0."""
        if stale_after_ns <= 0:
            raise ValueError(f"stale_after_ns is {stale_after_ns}; expected more than 0")
        self._stale_after_ns = stale_after_ns
        self._ignored = frozenset(ignore_sources)
        self._last: dict[str, tuple[FeedbackEvent, int]] = {}
        self.bad = 0
        """Records that were no event."""

    def take(self, key: bytes | None, value: bytes | None, now_ns: int) -> FeedbackEvent | None:
        """Note a record of the feedback topic, read at ``now_ns`` (wall clock).

        A record without value says that its coordinator is gone. Returns the event, or None where there was none.
        """
        if value is None:
            self._last.pop((key or b"").decode("utf-8", "replace"), None)
            return None
        try:
            event = FeedbackEvent.decode(value)
        except ValueError:
            self.bad += 1
            return None
        if event.source in self._ignored:
            return None
        self._last.pop(event.coordinator_id, None)
        # A sender's clock that is ahead must not keep its event fresh for longer.
        self._last[event.coordinator_id] = event, min(event.ts_ns, now_ns)
        if len(self._last) > MAX_COORDINATORS:
            del self._last[next(iter(self._last))]
        return event

    def fresh(self, now_ns: int) -> list[FeedbackEvent]:
        """The events that still count."""
        return [event for event, said_ns in self._last.values() if now_ns - said_ns <= self._stale_after_ns]

    def stale(self, now_ns: int) -> int:
        """How many coordinators have been silent for too long to count."""
        return len(self._last) - len(self.fresh(now_ns))

    def strictest(self, now_ns: int) -> FeedbackEvent | None:
        """The fresh event of the strictest level, of equals the fullest queue; None where none is fresh."""
        events = self.fresh(now_ns)
        return max(events, key=lambda event: (event.level, event.queue_size / event.capacity), default=None)
