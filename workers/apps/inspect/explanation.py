"""What an explanation says, as objects and as JSON: windows, ticks and frames, with what was found of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import orjson

from workers.apps.inspect.fates import Clock, MadeFrame, TickFate, WindowStory
from workers.times import format_instant

__all__ = ["Difference", "Explanation", "FrameAccount", "Stretch", "Verdict", "WindowAccount", "differences"]

Verdict = Literal["matches", "differs", "missing", "not yet", "unexpected", "repeated", "provisional"]


@dataclass(frozen=True, slots=True)
class Difference:
    """A field of a frame: what it would be by the recomputation, and what was published; None: not there."""

    field: str
    expected: object
    found: object


@dataclass(frozen=True, slots=True)
class FrameAccount:
    """A frame of the window: ``made`` as recomputed, ``published`` as the frames topic has it, at ``offset``.

    ``verdict``: ``matches``, byte for byte; ``differs``, in the fields given; ``missing``; ``not yet``, since the group
    has not committed its cause; ``unexpected``, not made by the recomputation; ``repeated``, the same once more;
    ``provisional``, which is not compared, because it depends on the clock on the wall.
    """

    verdict: Verdict
    rev: int
    status: str
    trigger: str
    made: MadeFrame | None = None
    partition: int | None = None
    offset: int | None = None
    published: Mapping[str, object] | None = None
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True, slots=True)
class WindowAccount:
    """A window of the symbol on one input partition, with all that was found of it.

    ``state``: ``empty``, no tick joined; ``open``; ``closed``, may be revised; ``over``, takes no more ticks.
    """

    story: WindowStory
    state: Literal["empty", "open", "closed", "over"]
    frames: tuple[FrameAccount, ...]


@dataclass(frozen=True, slots=True)
class Stretch:
    """What was read of an input partition: offsets ``[begin, end)`` of a log that holds ``[log_begin, log_end)``."""

    partition: int
    begin: int
    end: int
    log_begin: int
    log_end: int
    committed: int | None
    records: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """What happened to ``symbol`` around ``time_ns``.

    ``windows`` are by start, the home partition's first; ``strays`` are rejected records that don't say their time,
    met while the windows were open, and ticks that no window is for; ``held`` ticks that an operator, or
    ``tick.max_jump``, has not let go; ``clocks`` are where the clocks that judge the symbol's ticks stand at the end of
    what was read, by partition;
    ``asked`` are the ticks of the very time asked for, which no limit leaves out, and ``asked_count`` how many there
    are: more than these only where they are more than a thousand. ``problem`` says why the answer is not to be trusted:
    the workers have other settings (``other_settings``), or there never were any. ``notes`` are what else is worth
    knowing.
    """

    symbol: str
    time_ns: int
    topic: str
    frames_topic: str
    partition: int
    partitions: int
    windows: tuple[WindowAccount, ...]
    strays: tuple[TickFate, ...]
    stray_count: int
    held: tuple[TickFate, ...]
    clocks: Mapping[int, Clock | None]
    stretches: tuple[Stretch, ...]
    notes: tuple[str, ...]
    asked: tuple[TickFate, ...] = ()
    asked_count: int = 0
    problem: str | None = None
    other_settings: bool = False

    def at_the_time(self) -> list[TickFate]:
        """The records whose event time is exactly the time asked for."""
        return [*self.asked, *(tick for tick in self.held if tick.ts_ns == self.time_ns)]

    @property
    def matches(self) -> bool:
        """Whether every frame of the windows is as the recomputation makes it, or not due yet."""
        wrong = ("differs", "missing", "unexpected")
        return not any(frame.verdict in wrong for window in self.windows for frame in window.frames)

    def to_dict(self) -> dict[str, object]:
        """As JSON can hold it: instants are RFC 3339 text, which is exact; durations integers ending in ``_ns``."""
        return {
            "symbol": self.symbol,
            "time": format_instant(self.time_ns),
            "topic": self.topic,
            "frames_topic": self.frames_topic,
            "partition": self.partition,
            "partitions": self.partitions,
            "matches": self.matches,
            "problem": self.problem,
            "other_settings": self.other_settings,
            "at_the_time": [_tick_dict(tick) for tick in self.at_the_time()],
            "at_the_time_count": self.asked_count,
            "windows": [_window_dict(window) for window in self.windows],
            "strays": [_tick_dict(tick) for tick in self.strays],
            "stray_count": self.stray_count,
            "held": [_tick_dict(tick) for tick in self.held],
            "clocks": {str(partition): _clock_dict(clock) for partition, clock in self.clocks.items()},
            "read": [{name: getattr(stretch, name) for name in Stretch.__slots__} for stretch in self.stretches],
            "notes": list(self.notes),
        }


def differences(expected: bytes, found: bytes) -> list[Difference]:
    """The fields in which two frames differ, those of the expected one first; equal fields, other bytes: the bytes."""
    try:
        one, other = orjson.loads(expected), orjson.loads(found)
    except orjson.JSONDecodeError:
        one = other = None
    if not isinstance(one, dict) or not isinstance(other, dict):
        return [Difference("value", _text(expected), _text(found))]
    names = [*one, *(name for name in other if name not in one)]
    differing = [Difference(name, one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)]
    return differing or [Difference("value", _text(expected), _text(found))]


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


def _clock_dict(clock: Clock | None) -> dict[str, object] | None:
    if clock is None:
        return None
    return {
        "watermark": format_instant(clock.watermark_ns),
        "set_by": clock.offset,
        "ts": format_instant(clock.ts_ns),
        **({"end_of_input": True} if clock.is_end else {}),
    }


def _tick_dict(tick: TickFate) -> dict[str, object]:
    return {
        "partition": tick.partition,
        "offset": tick.offset,
        "sent_ms": tick.sent_ms,
        "fate": tick.fate,
        "ts": None if tick.ts_ns is None else format_instant(tick.ts_ns),
        "price": tick.price,
        "size": tick.size,
        "reason": tick.reason,
        "detail": tick.detail,
        "late_by_ns": tick.late_by_ns,
        "clock": _clock_dict(tick.clock),
        "misrouted": tick.misrouted,
    }


def _window_dict(window: WindowAccount) -> dict[str, object]:
    story = window.story
    return {
        "partition": story.partition,
        "start": format_instant(story.start_ns),
        "end": format_instant(story.end_ns),
        "state": window.state,
        "counts": dict(story.counts),
        "ticks": [_tick_dict(tick) for tick in story.ticks],
        "frames": [_frame_dict(frame) for frame in window.frames],
    }


def _frame_dict(frame: FrameAccount) -> dict[str, object]:
    made = frame.made
    return {
        "verdict": frame.verdict,
        "rev": frame.rev,
        "status": frame.status,
        "trigger": frame.trigger,
        "partition": frame.partition,
        "offset": frame.offset,
        "published": frame.published,
        "made_by": None if made is None else made.offset,
        "clock": None if made is None else _clock_dict(made.clock),
        "recomputed": None if made is None else orjson.loads(made.value),
        "differences": [{"field": d.field, "expected": d.expected, "found": d.found} for d in frame.differences],
    }
