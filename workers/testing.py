"""Testing what workers would make of your ticks: no broker, no threads, no waiting.

    from workers.testing import LaneSpec, TestDriver, TumblingWindows

    spec = LaneSpec(window=TumblingWindows(size_ns=5_000_000_000), lag_ns=2_000_000_000)
    driver = TestDriver(spec, partitions=2)
    driver.send("AAPL", 1_700_000_000_000, price=189.10, size=100)
    driver.send("AAPL", 1_700_000_007_000, price=189.20, size=50)  # the watermark reaches the first window's end
    driver.commit()
    (bar,) = driver.frames()
    assert (bar["close"], bar["count"], bar["status"]) == (189.10, 1, "final")

It is the worker's own code, from the life of a partition over lane and pipeline to what a commit consists of; only what
is around it is simulated, the topics and the clock (`workers.kafka.memory`):

    send ──▶ partition logs ──▶ partitions, lanes ──▶ committer ──▶ frames(), late(), dead_letters()
             (murmur2)               ▲                   │
                                     └──── restore ◀── changelog

A record is processed when it is sent, and what came of it can be read when it is committed: by `commit`, by
`rebalance`, or by `advance` over the commit interval, as it is in a worker. The wall clock moves in `advance` alone, so
the same calls give the same results, always.

What only a broker can show is not simulated: the largest record a topic takes, network failures, fencing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import fields
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NamedTuple

import orjson

from workers.core.effects import Counts
from workers.core.formats.corrections import CorrectionRules
from workers.core.frames import OutRecord
from workers.core.lane import Input, Lane
from workers.core.ledger import MESSAGE_HEADER, OFFSET_HEADER, PARTITION_HEADER, REASON_HEADER
from workers.core.partitioning import partition_for
from workers.core.pipeline.pipeline import Router
from workers.core.spec import LaneSpec
from workers.core.ticks import CONTROL_HEADER, END_OF_INPUT, NO_TIMESTAMP
from workers.core.windows.kinds import CalendarWindows, HoppingWindows, SessionWindows, TumblingWindows
from workers.kafka.memory import LogRecord, MemoryKafka
from workers.kafka.ports import Commit, Fetched
from workers.times import (
    NS_PER_MS,
    datetime_to_ns,
    format_instant,
    parse_duration,
    parse_rfc3339,
    timedelta_to_ns,
)
from workers.worker.committer import CommitRules
from workers.worker.life import Action, Actions, LifeEvent
from workers.worker.opening import Origin, agreed_offset
from workers.worker.partition import Fullness, Partition, PartitionRules

if TYPE_CHECKING:
    from workers.settings import Settings

__all__ = [
    "CalendarWindows",
    "CorrectionRules",
    "HoppingWindows",
    "LaneSpec",
    "LogRecord",
    "Sent",
    "SessionWindows",
    "TestDriver",
    "TumblingWindows",
    "parse_duration",
]

Guarantee = Literal["exactly_once", "at_least_once"]

_MOST_PARTITIONS: Final = 10_000
_AT_ONCE: Final = 5_000  # records of a step, as a worker has it by default


class Sent(NamedTuple):
    """Where a record is in the simulated input topic."""

    partition: int
    offset: int


class _Owner:
    """What a worker is for one partition: carries out what its state asks for, at once and without an event loop."""

    def __init__(self, kafka: MemoryKafka, spec: LaneSpec, source: Input, rules: PartitionRules) -> None:
        self._kafka = kafka
        self._spec = spec
        self._source = source
        self._rules = rules
        self._number = source.partition
        self._now_ns = 0
        self.restart()

    @property
    def lane(self) -> Lane:
        """The lane that owns the partition at the moment."""
        assert self._state.lane is not None
        return self._state.lane

    def restart(self) -> None:
        """Lose the lane and everything pending; begin again from what was committed."""
        kafka, number, topic = self._kafka, self._number, self._source.topic
        self._epoch = kafka.take_over(number)
        lane = Lane(self._spec, self._source)
        meta = lane.restore(kafka.changelogs[number], where=f"the simulated changelog[{number}]")
        origin = Origin("the simulated application", topic, "the simulated changelog", from_latest=False)
        stored = meta.offset if meta is not None else None
        lane.position = agreed_offset(origin, number, stored, kafka.offsets[number], kafka.bounds(number))
        self._state = Partition(number, self._rules, is_full=lambda: False)
        self._position: int | None = None  # of what is read; None while nothing is
        self._carry_out(self._state.opened(lane, self._now_ns, owned=True))
        self.process()

    def _carry_out(self, actions: Actions) -> None:
        for action in actions:
            if action is Action.START_READING:
                self._position = self._state.next_offset
            elif action is Action.CLOSE:
                self._position = None
                self._state.discard()
            # Commits are the driver's to begin, and the backlog is empty before anything more is read.

    def process(self) -> None:
        """Read the log to its end."""
        assert self._position is not None
        records, self._position = self._kafka.read(self._number, self._position)
        if records:
            self._carry_out(self._state.accept(Fetched(records), self._now_ns))
        while (portion := self._state.next_portion()) is not None:
            effects = self._state.process(portion)
            self._carry_out(self._state.processed(effects.records, took_s=0.0))

    def pass_time(self, duration_ns: int) -> None:
        """Let the silence grow; windows come out at the very moments they are due, not when somebody looks."""
        until_ns = self._now_ns + duration_ns
        while (due_ns := self._state.next_due_ns()) is not None and due_ns <= until_ns:
            self._now_ns = max(due_ns, self._now_ns)
            if self._state.show_overdue(self._now_ns) is None:
                break
        self._now_ns = until_ns

    def flush(self) -> None:
        """Show the open windows that changed."""
        self._state.flush_partial()

    def commit(self) -> None:
        """Make results visible and store the state that they come from, together."""
        under_way = self._state.begin_commit(self._kafka.topics.out, self._now_ns)
        if under_way is not None:
            self._kafka.commit(self._number, self._epoch, under_way.work)
            self._state.committer.ended()
            self._state.committed(under_way)

    def crash(self, guarantee: Guarantee) -> None:
        """Die at the worst moment: at least once, that is between results and state."""
        if guarantee == "at_least_once":
            results = self._state.committer.pending
            work = Commit(self.lane.position, results.frames, results.late, results.dead_letters, results.routed)
            self._kafka.publish(work)
        self.restart()

    def move(self) -> None:
        """Go to another worker in a rebalance: the old owner commits, the new one restores."""
        self._carry_out(self._state.on(LifeEvent.REVOKED, self._now_ns))
        self.commit()
        self._carry_out(self._state.on(LifeEvent.LOST, self._now_ns))
        self.restart()


class TestDriver:
    """A simulated application on a simulated topic of ``partitions`` partitions; see the module for an example.

    ``what`` is `Settings`, a `LaneSpec`, or None for the defaults. From settings also come the guarantee, the commit
    and flush intervals and, where ``partitions`` is None, ``topics.partitions``; with a spec they are given here.

    Raises ``ValueError`` for numbers that can't be, `ConfigError` where an aggregation or a function of the pipeline
    can't be imported.
    """

    __test__: ClassVar[bool] = False  # pytest would take the name for a test's

    def __init__(
        self,
        what: Settings | LaneSpec | None = None,
        *,
        partitions: int | None = None,
        guarantee: Guarantee | None = None,
        commit_interval: timedelta | str | None = None,
        flush_interval: timedelta | str | None = None,
        topic: str = "ticks",
    ) -> None:
        spec = what if isinstance(what, LaneSpec) else LaneSpec()
        found: tuple[int, Guarantee, int, int] = (1, "exactly_once", 100 * NS_PER_MS, 250 * NS_PER_MS)
        if what is not None and not isinstance(what, LaneSpec):
            from workers.settings.lane import lane_spec  # brings the Kafka client along

            spec, topic = lane_spec(what), what.topics.ticks
            found = (
                what.topics.partitions,
                what.processing_guarantee,
                what.commit_interval,
                what.window.flush_interval,
            )
        count = found[0] if partitions is None else partitions
        if not 1 <= count <= _MOST_PARTITIONS:
            raise ValueError(f"partitions is {count}; expected 1 to {_MOST_PARTITIONS}")
        self.spec: Final = spec
        self.guarantee: Final[Guarantee] = guarantee or found[1]
        self._commit_interval_ns = found[2] if commit_interval is None else _duration_ns(commit_interval)
        self._flush_interval_ns = found[3] if flush_interval is None else _duration_ns(flush_interval)
        self._since_commit_ns = self._since_flush_ns = 0
        self._kafka = MemoryKafka(topic, count, routed=_routed(spec))
        rules = PartitionRules(
            Fullness(sys.maxsize, sys.maxsize),
            Fullness(0, 0),
            _AT_ONCE,
            CommitRules(self._commit_interval_ns, sys.maxsize, sys.maxsize),
        )
        self._partitions = [_Owner(self._kafka, spec, Input(topic, number, count), rules) for number in range(count)]

    # -- what goes in -------------------------------------------------------------------------------------------------

    def send(
        self,
        symbol: str,
        ts: datetime | int | str,
        price: float | str,
        size: float | str,
        *,
        timestamp_ms: int | None = None,
        partition: int | None = None,
        **more: object,
    ) -> Sent:
        """Send a tick, written with the field names that the settings give, and have it processed.

        ``ts`` is a datetime (naive: UTC), an integer in the tick's unit, or text, which is sent as it is. ``more`` are
        further JSON fields. ``timestamp_ms`` is the record's own time; by default the tick is sent when it happened.
        ``partition`` puts it elsewhere than murmur2 does.

        Raises ``ValueError`` where there is no such partition, `CallbackError` where a function of yours raised; the
        lane is then of no use any more, until `crash` restores it, as a restart would.
        """
        form = self.spec.tick
        written, ts_ns = _written(ts, form.unit_ns)
        tick = {form.symbol: symbol, form.ts: written, form.price: price, form.size: size, **more}
        if timestamp_ms is None:
            timestamp_ms = NO_TIMESTAMP if ts_ns is None else max(-(-ts_ns // NS_PER_MS), 0)
        return self.send_raw(symbol.encode(), orjson.dumps(tick), timestamp_ms, partition=partition)

    def send_raw(
        self,
        key: bytes | None,
        value: bytes | None,
        timestamp_ms: int = NO_TIMESTAMP,
        *,
        partition: int | None = None,
    ) -> Sent:
        """Send any record and have it processed; without a key it goes to partition 0, unless told otherwise.

        Raises as `send` does.
        """
        if partition is None:
            partition = 0 if key is None else partition_for(key, len(self._partitions))
        if not 0 <= partition < len(self._partitions):
            raise ValueError(f"partition is {partition}; the topic has {len(self._partitions)}, numbered from 0")
        offset = self._kafka.append(partition, key, value, timestamp_ms)
        self._partitions[partition].process()
        return Sent(partition, offset)

    def end_of_input(self, partitions: Iterable[int] | None = None) -> None:
        """Say that the input has ended, as ``workers produce --finish`` does: a control record in each partition, or in
        those given. What waits comes out, with trigger ``end``; later windows may still be sent.

        Raises ``IndexError`` where there is no such partition, otherwise as `send` does.
        """
        numbers = range(len(self._partitions))
        for number in numbers if partitions is None else [numbers[each] for each in partitions]:
            self._kafka.append(number, None, None, NO_TIMESTAMP, ((CONTROL_HEADER, END_OF_INPUT),))
            self._partitions[number].process()

    # -- what happens -------------------------------------------------------------------------------------------------

    def advance(self, duration: timedelta | str) -> None:
        """Let the wall clock go on while nothing arrives: ``"3s"`` or a timedelta.

        Windows that are overdue come out, provisionally; with ``emit_partial`` open windows are shown when the flush
        interval has passed; what is pending is committed when the commit interval has passed.
        Raises ``ValueError`` for a negative duration.
        """
        duration_ns = _duration_ns(duration)
        for partition in self._partitions:
            partition.pass_time(duration_ns)
        self._since_flush_ns += duration_ns
        if self.spec.emit_partial and self._since_flush_ns >= self._flush_interval_ns:
            self.flush()
        self._since_commit_ns += duration_ns
        if self._since_commit_ns >= self._commit_interval_ns:
            self.commit()

    def flush(self) -> None:
        """Show the open windows that changed, as a worker does every flush interval with ``emit_partial``."""
        self._since_flush_ns = 0
        for partition in self._partitions:
            partition.flush()

    def commit(self) -> None:
        """Make what is pending visible and store the state that it comes from."""
        self._since_commit_ns = 0
        for partition in self._partitions:
            partition.commit()

    def crash(self) -> None:
        """Kill the worker and start another: lanes are restored from the last commit and go through the log from there.

        With exactly_once nobody ever sees what was pending. With at_least_once the crash comes at the worst moment,
        after the results were written and before the state was: what was pending is seen, and then seen again.
        """
        for partition in self._partitions:
            partition.crash(self.guarantee)

    def rebalance(self, partitions: Iterable[int] | None = None) -> None:
        """Give partitions (all of them by default) to another worker: the old owner commits, the new one restores.

        Raises ``IndexError`` where there is no such partition.
        """
        moving = self._partitions if partitions is None else [self._partitions[number] for number in partitions]
        for partition in moving:
            partition.move()

    # -- what comes out -----------------------------------------------------------------------------------------------

    def frames(self, symbol: str | None = None, *, provisional: bool = True) -> list[dict[str, Any]]:
        """The frames that can be read by now, as their consumers would decode them; of one symbol, if given."""
        return [
            frame
            for frame in map(_object, self._kafka.frames)
            if (symbol is None or frame["key"] == symbol) and (provisional or frame["status"] != "provisional")
        ]

    def latest(self, symbol: str) -> dict[int, dict[str, Any]]:
        """The last frame of each window of a symbol by its start in ms: what a consumer that keeps the last one has."""
        return {frame["start"]: frame for frame in self.frames(symbol)}

    def late(self) -> list[dict[str, Any]]:
        """The records of the late topic that can be read by now, those of ticks that operators dropped included."""
        return list(map(_object, self._kafka.late))

    def dead_letters(self) -> list[dict[str, Any]]:
        """The rejected records that can be read by now: reason, message, partition, offset, key and value (bytes)."""
        return list(map(_rejected, self._kafka.dead_letters))

    def routed(self, topic: str) -> list[OutRecord]:
        """What a router sent to a topic, and can be read by now."""
        return list(self._kafka.routed.get(topic, ()))

    def records(self, output: Literal["frames", "late", "dead_letters"]) -> list[OutRecord]:
        """The records of an output topic that can be read by now, byte for byte."""
        found: list[OutRecord] = getattr(self._kafka, output)
        return list(found)

    def log(self, partition: int) -> list[LogRecord]:
        """The records of an input partition. Raises ``IndexError`` where there is none."""
        return self._kafka.log(partition)

    def counts(self) -> Counts:
        """What became of every record so far, all partitions together; its ``balance()`` is always 0."""
        total = Counts()
        for partition in self._partitions:
            for name in (each.name for each in fields(Counts)):
                setattr(total, name, getattr(total, name) + getattr(partition.lane.counts, name))
        return total


def _routed(spec: LaneSpec) -> set[str]:
    """The topics that operators send ticks to."""
    return {name for stage in spec.pipeline if isinstance(stage, Router) for name in stage.topics()}


def _duration_ns(duration: timedelta | str) -> int:
    duration_ns = parse_duration(duration) if isinstance(duration, str) else timedelta_to_ns(duration)
    if duration_ns < 0:
        raise ValueError(f"the duration is {duration}; time does not go back")
    return duration_ns


def _written(ts: datetime | int | str, unit_ns: int) -> tuple[int | str, int | None]:
    """How a time is written into a tick, and which time it is; None: no time at all."""
    if isinstance(ts, datetime):
        ts_ns = datetime_to_ns(ts)
        return (ts_ns // unit_ns if ts_ns % unit_ns == 0 else format_instant(ts_ns)), ts_ns
    if isinstance(ts, int):
        return ts, ts * unit_ns
    try:
        return ts, parse_rfc3339(ts)
    except ValueError:
        return ts, None


def _object(record: OutRecord) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(record.value or b"null")
    return found


def _rejected(record: OutRecord) -> dict[str, Any]:
    headers = {name: (value or b"").decode("utf-8", "backslashreplace") for name, value in record.headers}
    return {
        "reason": headers[REASON_HEADER],
        "message": headers[MESSAGE_HEADER],
        "partition": int(headers[PARTITION_HEADER]),
        "offset": int(headers[OFFSET_HEADER]),
        "key": record.key,
        "value": record.value,
    }
