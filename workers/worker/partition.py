"""One partition while this process owns it: events in, actions out. No asyncio, no client, no clock.

    accept ──▶ backlog ──▶ lane.process ──▶ committer ──▶ begin_commit
              (bounded)      (pure)         (effects)

Times are monotonic nanoseconds, given by the caller. What a method returns as `Actions` is to be carried out in order;
`workers.worker.runner` does it with asyncio and Kafka, `workers.testing` with neither.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from workers.core.effects import Effects
from workers.core.lane import Lane
from workers.core.portions import StepLimit
from workers.kafka.ports import Fetched, OutTopics
from workers.worker.committer import CommitRules, Committer, CommitUnderWay
from workers.worker.life import Action, Actions, Life, LifeEvent, Phase

__all__ = ["Fullness", "Partition", "PartitionRules"]

STEP_TARGET_S: Final = 0.025  # of a lane; it is given as many records as took about that, and ``batch_size`` at most
FIRST_RECORDS: Final = 500  # until it is known what they cost
LEAST_RECORDS: Final = 50  # at once, whatever they cost


STEP_BYTES: Final = 8 * 1024 * 1024  # of results: what all partitions may have waiting is eight times that


@dataclass(frozen=True, slots=True)
class Fullness:
    """How full a backlog is, or may be: whichever is reached first."""

    records: int
    size_bytes: int

    def reaches(self, other: Fullness) -> bool:
        """Whether it is as full in records or in bytes."""
        return self.records >= other.records or self.size_bytes >= other.size_bytes

    def is_within(self, other: Fullness) -> bool:
        """Whether it is no fuller, neither in records nor in bytes."""
        return self.records <= other.records and self.size_bytes <= other.size_bytes


@dataclass(frozen=True, slots=True)
class PartitionRules:
    """What bounds a partition: how full its backlog is where fetching pauses and goes on, and records of a step."""

    high: Fullness
    low: Fullness
    batch_size: int
    commit: CommitRules


EMPTY: Final = Fullness(0, 0)


class Partition:
    """The state of an owned partition. ``is_full`` tells whether results of all partitions wait in such numbers that
    lanes have to."""

    def __init__(self, number: int, rules: PartitionRules, is_full: Callable[[], bool]) -> None:
        self.number = number
        self.lane: Lane | None = None
        self.committer = Committer(rules.commit)
        self.committed_offset = 0
        self.backlog: deque[Fetched] = deque()
        self.waiting = EMPTY
        self.paused = False
        self._rules = rules
        self._is_full = is_full
        self._life = Life()
        self._heard_ns = 0  # when a record last came
        self._look_ns: int | None = 0  # when silence may next bring something out; None: not until something comes
        self._at_once = min(FIRST_RECORDS, rules.batch_size)  # records that the lane takes in a step

    # -- life ---------------------------------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """Where it is in its life."""
        return self._life.phase

    @property
    def is_running(self) -> bool:
        """Whether its records are being processed."""
        return self._life.phase is Phase.RUNNING

    @property
    def next_offset(self) -> int:
        """Where to read on: behind what is already here."""
        assert self.lane is not None
        return self.backlog[-1].next_offset if self.backlog else self.lane.position

    def on(self, event: LifeEvent, now_ns: int) -> Actions:
        """Take an event of its life; what is to be done. Raises `LifeError` for what can't be."""
        actions = self._life.on(event)
        if Action.START_READING not in actions:
            return actions
        self.hear(now_ns)
        self._look_ns = 0
        return (*actions, Action.PAUSE) if self.paused else actions

    def opened(self, lane: Lane, now_ns: int, *, owned: bool) -> Actions:
        """Take the lane that was restored, at the offset where it reads on."""
        if self.phase is Phase.OPENING:
            self.lane, self.committed_offset = lane, lane.position
        return self.on(LifeEvent.OPENED if owned else LifeEvent.OPENED_UNOWNED, now_ns)

    def discard(self) -> None:
        """Forget lane, backlog and results."""
        self.lane = None
        self.backlog.clear()
        self.waiting = EMPTY
        self.paused = False
        self.committer.discard()

    # -- records ------------------------------------------------------------------------------------------------------

    def hear(self, now_ns: int) -> None:
        """Something came, or nothing was asked for: that is no silence."""
        self._heard_ns = now_ns

    def accept(self, fetched: Fetched, now_ns: int) -> Actions:
        """Take fetched records into the backlog; pause at the high watermark."""
        self.backlog.append(fetched)
        self._count(fetched)
        self.hear(now_ns)
        if self.paused or not self.waiting.reaches(self._rules.high):
            return ()
        self.paused = True
        return (Action.PAUSE,)

    def next_portion(self) -> Fetched | None:
        """The next records for the lane; None where there are none, or the lane has to wait for a commit."""
        if not self.is_running or not self.backlog:
            return None
        assert self.lane is not None
        if self._is_full() or self.committer.is_held_up(self.lane.changes_waiting):
            self.committer.hurry()
            return None
        portion, rest = self.backlog.popleft().split(self._at_once)
        if rest is not None:
            self.backlog.appendleft(rest)
        self._count(portion, -1)
        return portion

    def process(self, portion: Fetched) -> Effects:
        """Have the lane process a portion. Raises `CallbackError` where a user's function raised."""
        return self.take(self.compute(portion))

    def compute(self, portion: Fetched) -> Effects:
        """What the lane makes of a portion, for `take`: the one part of a step that another thread may do, while nobody
        else touches the lane. Raises as `process` does."""
        assert self.lane is not None
        return self.lane.process(portion.items, StepLimit(self._at_once, STEP_BYTES))

    def take(self, effects: Effects) -> Effects:
        """Have the committer take what the lane made of a portion; what it left goes back into the backlog."""
        if effects.rest:
            rest = Fetched(effects.rest)
            self.backlog.appendleft(rest)
            self._count(rest)
        self.committer.note_progress()
        return self._take(effects)

    def processed(self, records: int, took_s: float) -> Actions:
        """After a portion: fit the next one to what it cost; resume at the low watermark."""
        assert self.lane is not None
        if records:
            affordable = int(records * STEP_TARGET_S / max(took_s, 1e-6))
            self._at_once = min(max(affordable, LEAST_RECORDS), 2 * self._at_once, self._rules.batch_size)
        self.committer.note_changes(self.lane.changes_waiting)
        if not self.paused or not self.waiting.is_within(self._rules.low):
            return ()
        self.paused = False
        return (Action.RESUME,)

    def _count(self, fetched: Fetched, sign: int = 1) -> None:
        waiting = self.waiting
        self.waiting = Fullness(
            waiting.records + sign * fetched.records, waiting.size_bytes + sign * fetched.size_bytes
        )

    # -- time ---------------------------------------------------------------------------------------------------------

    def next_due_ns(self) -> int | None:
        """When a silence that lasts until then brings something out; None: no silence does."""
        due_ns = self.lane.next_timeout_ns() if self.lane is not None else None
        return None if due_ns is None else self._heard_ns + due_ns

    def is_overdue(self, now_ns: int) -> bool:
        """Whether the silence brings something out, if the partition was read to its end."""
        if self._look_ns is None or now_ns < self._look_ns or not self._is_at_rest():
            return False
        due_ns = self.next_due_ns()
        if due_ns is None or now_ns < due_ns:
            # Nothing to see until then, or until something is processed: a thousand idle partitions cost nothing.
            self._look_ns = due_ns
            return False
        return True

    def show_overdue(self, now_ns: int) -> Effects | None:
        """Let the silence bring windows out; None where it was broken meanwhile."""
        if not self.is_overdue(now_ns):
            return None
        assert self.lane is not None
        return self._take(self.lane.idle(now_ns - self._heard_ns))

    def lane_at_rest(self) -> Lane | None:
        """The lane, where it has processed all that came."""
        return self.lane if self._is_at_rest() else None

    def pass_markers(self, lane: Lane, position: int) -> None:
        """Where the log goes on with what is no record (a transaction's end, or what was aborted), count it as done.

        Otherwise a topic that is written in transactions, as frames topics are, would have a lag for ever. ``lane`` is
        the one that was at rest when ``position`` was asked for.
        """
        if self.lane_at_rest() is lane and position > lane.position:
            lane.position = position
            self.committer.note_progress()

    def flush_partial(self) -> Effects | None:
        """Show open windows that changed; None where nothing is processed now."""
        if not self.is_running or self.lane is None:
            return None
        return self._take(self.lane.flush_partial())

    def _is_at_rest(self) -> bool:
        return self.is_running and not self.backlog and self.lane is not None

    def _take(self, effects: Effects) -> Effects:
        self._look_ns = 0
        self.committer.take(effects)
        return effects

    # -- commits ------------------------------------------------------------------------------------------------------

    def begin_commit(self, out: OutTopics, now_ns: int) -> CommitUnderWay | None:
        """Take what is to be committed; None where there is nothing."""
        return None if self.lane is None else self.committer.begin(self.lane, out, now_ns)

    def committed(self, under_way: CommitUnderWay) -> None:
        """The commit was acknowledged."""
        assert under_way.work.offset >= self.committed_offset, "a commit goes back"
        self.committed_offset = under_way.work.offset
