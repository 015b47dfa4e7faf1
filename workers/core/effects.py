"""What a lane gives back: what is to be written and reported of a step, and what became of every record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from workers.core.failures import Failure
from workers.core.frames import OutRecord
from workers.core.packed import OutRecords, joined
from workers.core.reasons import Reason
from workers.core.records import RawBatch, Record

__all__ = ["Counts", "Effects", "SequenceGap", "add_up"]

_Name = TypeVar("_Name", str, tuple[str, str], tuple[Reason, str])

FAILURES_SHOWN: Final = 5  # of one step; all are counted


@dataclass(frozen=True, slots=True)
class SequenceGap:
    """Ids that were skipped: after the greatest id of a symbol so far came one that is not the next."""

    stage: str
    symbol: str
    first: int
    last: int
    offset: int

    @property
    def missing(self) -> int:
        """How many ids were skipped."""
        return self.last - self.first + 1


@dataclass(slots=True)
class Effects:
    """What a step of a lane wants written, in order, and what it has to report."""

    frames: OutRecords = field(default_factory=list)
    late: OutRecords = field(default_factory=list)
    dead_letters: list[OutRecord] = field(default_factory=list)
    routed: dict[str, OutRecords] = field(default_factory=dict)  # topic -> records, as they came
    emitted: dict[tuple[str, str], int] = field(default_factory=dict)  # (status, trigger) -> frames
    rejected: dict[str, int] = field(default_factory=dict)  # reason -> records
    late_by_reason: dict[str, int] = field(default_factory=dict)
    misrouted_keys: list[str] = field(default_factory=list)  # seen for the first time
    failures: list[Failure] = field(default_factory=list)  # the first of those rejected as ``processing_failed``
    taken_out: dict[tuple[Reason, str], int] = field(default_factory=dict)  # (reason, pipeline stage) -> ticks
    noticed: dict[tuple[str, str], int] = field(default_factory=dict)  # (what, pipeline stage) -> times
    gaps: list[SequenceGap] = field(default_factory=list)
    corrected: dict[str, int] = field(default_factory=dict)  # cancel or correct -> messages
    control: int = 0  # records that ended the input
    records: int = 0
    aggregated: int = 0
    rest: Sequence[Record | RawBatch] = ()  # what was not taken: the step was over before

    def extend(self, other: Effects) -> None:
        """Append what came later."""
        self.frames = joined(self.frames, other.frames)
        self.late = joined(self.late, other.late)
        self.dead_letters += other.dead_letters
        add_up(self.emitted, other.emitted)
        add_up(self.rejected, other.rejected)
        add_up(self.late_by_reason, other.late_by_reason)
        self.misrouted_keys += other.misrouted_keys
        self.failures = (self.failures + other.failures)[:FAILURES_SHOWN]
        for topic, records in other.routed.items():
            self.routed[topic] = joined(self.routed.get(topic, []), records)
        add_up(self.taken_out, other.taken_out)
        add_up(self.noticed, other.noticed)
        self.gaps += other.gaps
        add_up(self.corrected, other.corrected)
        self.control += other.control
        self.records += other.records
        self.aggregated += other.aggregated


def add_up(mine: dict[_Name, int], more: Mapping[_Name, int]) -> None:
    """Add counts, by their names, to those so far."""
    for name, number in more.items():
        mine[name] = mine.get(name, 0) + number


@dataclass(slots=True)
class Counts:
    """What became of every record since the state began; ``records`` is the sum of the others.

    ``held`` are the ticks that a conflating operator or ``max_jump`` holds back at the moment: they will be counted
    elsewhere.
    """

    records: int = 0
    aggregated: int = 0
    late: int = 0
    rejected: int = 0
    deduplicated: int = 0
    throttled: int = 0
    filtered: int = 0
    routed_away: int = 0
    held: int = 0
    corrected: int = 0  # messages that changed a trade
    control: int = 0  # records that say that the input has ended

    def balance(self) -> int:
        """Records unaccounted for; anything but 0 is a bug."""
        return self.records - (
            self.aggregated
            + self.late
            + self.rejected
            + self.deduplicated
            + self.throttled
            + self.filtered
            + self.routed_away
            + self.held
            + self.corrected
            + self.control
        )
