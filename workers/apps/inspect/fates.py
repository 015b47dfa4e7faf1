"""What can become of a tick, and the story of one window: what a `workers.apps.inspect.witness` writes down."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from workers.times import NS_PER_MS

__all__ = ["Clock", "Fate", "MadeFrame", "TickFate", "WindowStory", "seconds_text"]

Fate = Literal["joined", "corrected", "late", "rejected", "duplicate", "throttled", "filtered", "routed", "held"]


def seconds_text(duration_ns: int) -> str:
    """A duration as people say it, exact: ``1.3 s``, ``0.000001 s``."""
    sign, (whole, fraction) = "-" if duration_ns < 0 else "", divmod(abs(duration_ns), 10**9)
    return f"{sign}{whole}.{fraction:09d}".rstrip("0").rstrip(".") + " s"


@dataclass(frozen=True, slots=True)
class Clock:
    """A clock and the tick that set it: that tick's offset and time, and the watermark that follows from it.

    With ``is_end`` it was a control record, the end of the input, and ``ts_ns`` the time that it set the clock to.
    """

    watermark_ns: int
    offset: int
    ts_ns: int
    is_end: bool = False

    def is_past(self, end_ns: int, lateness_ns: int) -> bool:
        """Whether a window that ends at ``end_ns`` takes no more ticks. The end of the input leaves the watermark 1 ns
        short of that, so that the next window's first tick is not late."""
        return self.watermark_ns + self.is_end >= end_ns + lateness_ns

    @property
    def because(self) -> str:
        """What set it, inside a sentence."""
        return f"the {'end of the input' if self.is_end else 'tick'} at offset {self.offset}"


@dataclass(slots=True)
class TickFate:
    """One record of the symbol and what became of it.

    ``ts_ns``, ``price`` and ``size`` are None where the record does not say (``rejected``). ``clock`` is the one that
    judged the tick: where it set that clock itself, its own. ``late_by_ns`` is how far it was below the threshold,
    0 being on it, or, with reason ``expired``, how much more than ``key_ttl`` its window was behind.
    """

    partition: int
    offset: int
    sent_ms: int
    fate: Fate
    ts_ns: int | None = None
    price: float | None = None
    size: float | None = None
    reason: str | None = None
    detail: str = ""
    late_by_ns: int | None = None
    clock: Clock | None = None
    misrouted: bool = False


@dataclass(frozen=True, slots=True)
class MadeFrame:
    """A non-provisional frame that the lane made: its wire bytes, the record that brought it out, the clock then."""

    rev: int
    status: str
    trigger: str
    value: bytes
    offset: int
    clock: Clock | None


@dataclass(slots=True)
class WindowStory:
    """One window of the symbol in one partition. Of each fate ticks beyond the limit are counted, not kept.

    A session window's story is that of all sessions that became this one, the frames of their names included.
    """

    partition: int
    start_ns: int
    end_ns: int
    ticks: list[TickFate] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)  # by fate; of all, kept or not
    frames: list[MadeFrame] = field(default_factory=list)

    def is_named(self, start_ns: int) -> bool:
        """Whether a frame with this start, in whole milliseconds, is of this window, or of a session it took in."""
        return self.start_ns // NS_PER_MS * NS_PER_MS <= start_ns < self.end_ns
