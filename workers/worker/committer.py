"""When a partition commits, and what: results that wait, the state they come from, and the offset they reflect.

No I/O and no clock: the time is an argument, in monotonic nanoseconds. A commit is due when the interval since the
last one began is over, or at once when so much has changed that writing it would take long. Between `begin` and
`ended` one commit is under way, and its results still count as waiting.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from workers.core.effects import Effects
from workers.core.lane import Lane
from workers.core.packed import size_of
from workers.kafka.fit import fit
from workers.kafka.ports import Commit, OutTopics

__all__ = ["CommitRules", "CommitUnderWay", "Committer", "WaitingLimits", "wait_too_many"]

CHANGES_BEFORE_COMMIT: Final = 8_000  # windows; writing them to the changelog holds the event loop for some 20 ms
CHANGES_LIMIT: Final = 2 * CHANGES_BEFORE_COMMIT  # while the commit before is on its way; then the lane waits
PENDING_LIMIT_RECORDS: Final = 60_000  # results of all partitions that wait for a commit or are in one
PENDING_LIMIT_BYTES: Final = 64 * 1024 * 1024  # the same in bytes: a dead letter may have a mebibyte


@dataclass(frozen=True, slots=True)
class CommitRules:
    """How often one partition commits, and how many changes of its state may wait for it."""

    interval_ns: int
    changes_before_commit: int = CHANGES_BEFORE_COMMIT
    changes_limit: int = CHANGES_LIMIT
    is_aligned: bool = False  # whether partitions fall due at the same moments, since they share a transaction


@dataclass(frozen=True, slots=True)
class WaitingLimits:
    """How many results of all partitions may wait, and how large they may be; then lanes wait."""

    records: int = PENDING_LIMIT_RECORDS
    size_bytes: int = PENDING_LIMIT_BYTES


@dataclass(frozen=True, slots=True)
class CommitUnderWay:
    """A commit that was begun: what is written, the effects it is of, and how many frames were too large for it."""

    work: Commit
    effects: Effects
    oversized: int
    began_ns: int


class Committer:
    """The results of one partition on their way out."""

    def __init__(self, rules: CommitRules) -> None:
        self._rules = rules
        self.pending = Effects()
        self.has_work = False  # something was processed since the last commit began
        self.is_urgent = False
        self._began_ns: int | None = None  # the last commit
        self._pending_bytes = 0
        self._results_under_way = 0  # results and state records of the commit under way
        self._bytes_under_way = 0

    # -- what waits ---------------------------------------------------------------------------------------------------

    def take(self, effects: Effects) -> None:
        """Results to be committed."""
        self.pending.extend(effects)
        self._pending_bytes += _size_of(effects)
        if effects.frames:
            self.has_work = True

    def note_progress(self) -> None:
        """The lane's position has moved, whether or not anything came of it."""
        self.has_work = True

    def note_changes(self, changes: int) -> None:
        """So many changes of the state wait to be stored."""
        if changes >= self._rules.changes_before_commit:
            self.is_urgent = True

    def hurry(self) -> None:
        """The lane waits for a commit."""
        self.is_urgent = True

    def is_held_up(self, changes: int) -> bool:
        """Whether the lane has to wait, since so many changes of its state wait to be stored."""
        return changes >= self._rules.changes_limit

    def results_waiting(self) -> int:
        """Results that are not yet acknowledged by the cluster: what they take in memory must not grow."""
        pending = self.pending
        routed = sum(map(len, pending.routed.values()))
        return self._results_under_way + len(pending.frames) + len(pending.late) + len(pending.dead_letters) + routed

    def bytes_waiting(self) -> int:
        """Keys, values and headers of these results."""
        return self._bytes_under_way + self._pending_bytes

    # -- commits ------------------------------------------------------------------------------------------------------

    def wait_ns(self, now_ns: int) -> int | None:
        """How long until the next commit is due; None while there is nothing to commit."""
        if not self.has_work:
            return None
        if self.is_urgent or self._began_ns is None:
            return 0
        due_ns = self._began_ns + self._rules.interval_ns
        if self._rules.is_aligned:
            due_ns -= due_ns % self._rules.interval_ns  # sooner, never later
        return max(0, due_ns - now_ns)

    def begin(self, lane: Lane, out: OutTopics, now_ns: int) -> CommitUnderWay | None:
        """Take all that waits, with the lane's changes and position, fitted to the topics; None where nothing waits."""
        if not self.has_work:
            return None
        self.has_work = self.is_urgent = False
        self._began_ns = now_ns
        effects, self.pending = self.pending, Effects()
        self._bytes_under_way, self._pending_bytes = self._pending_bytes, 0
        work = Commit(
            lane.position,
            effects.frames,
            effects.late,
            effects.dead_letters,
            dict(effects.routed),
            lane.take_changes(),
            lane.settings_digest,
        )
        oversized = fit(work, out)
        self._results_under_way = len(work.frames) + len(work.late) + len(work.dead_letters) + len(work.changes)
        return CommitUnderWay(work, effects, oversized, now_ns)

    def ended(self) -> None:
        """The commit under way was acknowledged, or failed."""
        self._results_under_way = self._bytes_under_way = 0

    def discard(self) -> None:
        """Forget what waits; a commit under way is told by `ended`."""
        self.pending = Effects()
        self._pending_bytes = 0
        self.has_work = self.is_urgent = False


def wait_too_many(committers: Iterable[Committer], limits: WaitingLimits) -> bool:
    """Whether results that are not yet acknowledged are so many, or so large, that lanes have to wait."""
    records = size_bytes = 0
    for committer in committers:
        records += committer.results_waiting()
        size_bytes += committer.bytes_waiting()
    return records >= limits.records or size_bytes >= limits.size_bytes


def _size_of(effects: Effects) -> int:
    """Bytes of the results: of keys, values and headers."""
    lists = (effects.frames, effects.late, effects.dead_letters, *effects.routed.values())
    return sum(map(size_of, lists))
