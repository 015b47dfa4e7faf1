"""When a partition commits, and what: with a sink in memory, and a clock that is a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import orjson
import pytest

from tests.unit.core.test_lane import TOPIC, KafkaRecord
from workers.core.effects import Effects
from workers.core.frames import OutRecord
from workers.core.lane import Input, Lane
from workers.core.spec import LaneSpec
from workers.kafka.ports import Commit, OutTopic
from workers.worker.committer import CommitRules, Committer, WaitingLimits, wait_too_many

MS = 1_000_000
RULES = CommitRules(interval_ns=100 * MS, changes_before_commit=8, changes_limit=16)


@dataclass
class Topics:
    """Where results go; all take records of 10,000 bytes."""

    frames: OutTopic = field(default_factory=lambda: OutTopic("frames", 1, 10_000))
    late: OutTopic = field(default_factory=lambda: OutTopic("late", 1, 10_000))
    dead_letters: OutTopic = field(default_factory=lambda: OutTopic("dead", 1, 10_000))
    routed: dict[str, OutTopic] = field(default_factory=lambda: {"elsewhere": OutTopic("elsewhere", 1, 10_000)})


class Sink:
    """What was committed."""

    def __init__(self) -> None:
        self.commits: list[Commit] = []

    @property
    def offsets(self) -> list[int]:
        return [commit.offset for commit in self.commits]


def records(*times_ms: int, begin: int = 0) -> Sequence[KafkaRecord]:
    return [
        KafkaRecord(begin + number, -1, b"A", orjson.dumps({"symbol": "A", "ts": ts, "price": 1.5, "size": 2}))
        for number, ts in enumerate(times_ms)
    ]


class Application:
    """A lane, its committer and a sink, on a timeline in milliseconds."""

    def __init__(self, lane: Lane | None = None) -> None:
        self.lane = lane if lane is not None else Lane(LaneSpec(), Input(TOPIC, 0, 1))
        self.committer = Committer(RULES)
        self.sink = Sink()
        self.topics = Topics()

    def process(self, *times_ms: int) -> None:
        self.committer.take(self.lane.process(records(*times_ms, begin=self.lane.position)))
        self.committer.note_progress()
        self.committer.note_changes(self.lane.changes_waiting)

    def commit_if_due(self, now_ms: int) -> bool:
        if self.committer.wait_ns(now_ms * MS) != 0:
            return False
        under_way = self.committer.begin(self.lane, self.topics, now_ms * MS)
        assert under_way is not None
        self.sink.commits.append(under_way.work)
        self.committer.ended()
        return True


def test_nothing_is_committed_while_nothing_was_processed() -> None:
    app = Application()
    assert app.committer.wait_ns(10**12) is None
    assert app.committer.begin(app.lane, app.topics, 0) is None


def test_the_first_commit_is_due_at_once_and_the_next_an_interval_after_it_began() -> None:
    #  0 ms ──tick──commit── 10 ──tick── 99 (not yet) ── 100 commit
    app = Application()
    app.process(1_000)
    assert app.commit_if_due(0)
    app.process(1_100)
    assert app.committer.wait_ns(10 * MS) == 90 * MS
    assert not app.commit_if_due(99)
    assert app.commit_if_due(100)
    assert app.sink.offsets == [1, 2]
    assert app.committer.wait_ns(10**12) is None


def test_partitions_that_share_a_transaction_fall_due_at_the_same_moments_and_never_later() -> None:
    #  30 ms commit ── 100 commit, 70 ms later ── 200 commit ── 201 tick ── 300 commit ── 450 tick: late, at once
    app = Application()
    app.committer = Committer(replace(RULES, is_aligned=True))
    found = []
    for tick_ms, due_ms in ((30, 30), (30, 100), (101, 200), (201, 300), (450, 450), (451, 500)):
        app.process(1_000 + tick_ms)
        wait_ns = app.committer.wait_ns(tick_ms * MS)
        assert wait_ns is not None
        found.append(tick_ms + wait_ns // MS)
        assert app.commit_if_due(due_ms)
    assert found == [30, 100, 200, 300, 450, 500]


def test_a_commit_has_all_that_waits_and_the_offset_it_reflects() -> None:
    app = Application()
    app.process(0)
    app.process(8_000)  # the window [0, 5 s) is over
    app.process(0)  # late
    app.commit_if_due(0)
    (commit,) = app.sink.commits
    assert (commit.offset, len(commit.frames), len(commit.late)) == (3, 1, 1)
    assert commit.settings == app.lane.settings_digest
    assert commit.changes
    assert app.committer.results_waiting() == 0


def test_many_changes_make_it_urgent_and_too_many_hold_the_lane_up() -> None:
    app = Application()
    app.process(0)
    app.commit_if_due(0)
    app.process(*(5_000 * number for number in range(7)))
    assert not app.committer.is_urgent
    app.process(*(5_000 * number for number in range(7, 10)))
    assert app.lane.changes_waiting >= RULES.changes_before_commit
    assert app.committer.wait_ns(1) == 0, "the interval is not waited for"
    assert not app.committer.is_held_up(15)
    assert app.committer.is_held_up(16)
    assert app.commit_if_due(1)
    assert not app.committer.is_urgent


def test_what_a_silence_brings_out_is_committed_and_a_silence_without_results_is_not() -> None:
    committer = Committer(RULES)
    committer.take(Effects())
    assert not committer.has_work
    committer.take(Effects(frames=[OutRecord(b"A", b"{}")]))
    assert committer.has_work


def test_results_wait_until_they_are_acknowledged_and_not_only_until_they_are_sent() -> None:
    app = Application()
    app.process(0, 8_000)
    waiting, size = app.committer.results_waiting(), app.committer.bytes_waiting()
    assert (waiting, size > 0) == (1, True)
    under_way = app.committer.begin(app.lane, app.topics, 0)
    assert under_way is not None
    assert app.committer.results_waiting() == 1 + len(under_way.work.changes)
    assert app.committer.bytes_waiting() == size
    app.process(16_000)
    assert app.committer.bytes_waiting() > size
    app.committer.ended()
    assert app.committer.results_waiting() == 1


@pytest.mark.parametrize(("records_", "size_bytes", "full"), [(3, 10**6, True), (4, 10**6, False), (99, 9, True)])
def test_lanes_wait_when_the_results_of_all_partitions_are_too_many_or_too_large(
    records_: int, size_bytes: int, full: bool
) -> None:
    committers = [Committer(RULES) for _ in range(3)]
    for committer in committers:
        committer.take(Effects(late=[OutRecord(b"A", b"xx")]))  # three bytes
    assert wait_too_many(committers, WaitingLimits(records_, size_bytes)) is full


def test_what_a_topic_would_refuse_is_replaced_before_it_is_sent() -> None:
    frame = {"key": "A", "start": 0, "end": 5_000, "rev": 0, "status": "final", "items": ["x" * 20_000]}
    app = Application()
    app.committer.take(
        Effects(
            frames=[OutRecord(b"A", b'{"key":"B"}'), OutRecord(b"A", orjson.dumps(frame))],
            routed={"elsewhere": [OutRecord(b"A", b"y" * 20_000, 0, (("workers.offset", b"7"),))]},
        )
    )
    under_way = app.committer.begin(app.lane, app.topics, 0)
    assert under_way is not None
    assert under_way.oversized == 1
    assert [each.value for each in under_way.work.frames] == [b'{"key":"B"}']
    assert under_way.work.routed == {"elsewhere": []}
    assert len(under_way.work.dead_letters) == 2
    assert all(letter.size < 10_000 for letter in under_way.work.dead_letters)


def test_what_is_discarded_is_never_committed() -> None:
    app = Application()
    app.process(0, 8_000)
    app.committer.discard()
    assert app.committer.wait_ns(10**12) is None
    assert app.committer.bytes_waiting() == app.committer.results_waiting() == 0
