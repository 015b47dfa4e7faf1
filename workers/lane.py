"""A lane: one input partition's records in, effects out. Pure: no I/O, no clock; time enters as an argument.

    records ─▶ decode ─▶ pipeline ─▶ lateness ─▶ windows ─▶ aggregate ─▶ frames
                 │           │           │
                 ▼           ▼           ▼
            dead letters  late, routed  late

The lane is the reference: one record at a time, readable, any aggregation. What is faster is proved equal to it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from workers.aggregates import Aggregation, load_aggregation
from workers.errors import CallbackError
from workers.frames import FrameEncoder, OutRecord, kept_bytes
from workers.ledger import dead_letter, late_record
from workers.partitioning import partition_for
from workers.pipeline import OperatorSpec, Pipeline, describe
from workers.snapshot import Counts, LaneMeta, check_fingerprint, read_state, write_meta, write_windows
from workers.stages import SequenceGap
from workers.ticks import Reason, Record, Rejection, Tick, TickFormat, tick_decoder
from workers.windows import LONG_AGO, Tumbling, Window, WindowEngine, WindowRules

__all__ = ["Effects", "Input", "Lane", "LaneSpec"]

_Name = TypeVar("_Name", str, tuple[str, str])

MISROUTED_KEYS_REMEMBERED = 10_000
_TAKEN_OUT = {"duplicate": "deduplicated", "throttled": "throttled", "filtered": "filtered"}  # reason -> count


@dataclass(frozen=True, slots=True)
class LaneSpec:
    """What a lane does with its partition; durations in nanoseconds. ``pipeline``: what ticks pass before windows."""

    tick: TickFormat = field(default_factory=TickFormat)
    size_ns: int = 5_000_000_000
    lag_ns: int = 2_000_000_000
    lateness_ns: int = 0
    idle_after_ns: int = 1_000_000_000
    key_ttl_ns: int = 86_400_000_000_000
    emit: Literal["eager", "final"] = "eager"
    emit_partial: bool = False
    payload: Literal["ohlcv", "items", "both"] = "ohlcv"
    scope: Literal["key", "partition"] = "key"
    aggregation: str = "ohlcv"
    pipeline: tuple[OperatorSpec, ...] = ()

    def rules(self) -> WindowRules:
        """The rules of the windows. Raises ``ValueError`` for durations that can't be."""
        return WindowRules(
            Tumbling(self.size_ns),
            self.lag_ns,
            self.lateness_ns,
            self.idle_after_ns,
            self.key_ttl_ns,
            self.emit,
            self.scope,
        )

    def fingerprint(self, partitions: int, aggregation: Aggregation[object] | None) -> dict[str, object]:
        """The settings that give stored windows their meaning; state made under others can't be continued."""
        return {
            "tick.timestamp_unit": self.tick.unit,  # first_ts and last_ts are written in it
            "window.size_ns": self.size_ns,
            "window.lag_ns": self.lag_ns,
            "window.allowed_lateness_ns": self.lateness_ns,
            "window.key_ttl_ns": self.key_ttl_ns,
            "window.emit": self.emit,
            "window.payload": self.payload,
            "window.watermark_scope": self.scope,
            "window.aggregation": f"{self.aggregation} v{aggregation.version}" if aggregation else "none",
            "input partitions": partitions,
            **({"pipeline": describe(self.pipeline)} if self.pipeline else {}),
        }


@dataclass(frozen=True, slots=True)
class Input:
    """Which partition a lane reads, and of how many: keys are checked against the partitioner."""

    topic: str
    partition: int
    partitions: int


@dataclass(slots=True)
class Effects:
    """What a step of a lane wants written, in order, and what it has to report."""

    frames: list[OutRecord] = field(default_factory=list)
    late: list[OutRecord] = field(default_factory=list)
    dead_letters: list[OutRecord] = field(default_factory=list)
    routed: dict[str, list[OutRecord]] = field(default_factory=dict)  # topic -> records, as they came
    emitted: dict[tuple[str, str], int] = field(default_factory=dict)  # (status, trigger) -> frames
    rejected: dict[str, int] = field(default_factory=dict)  # reason -> records
    late_by_reason: dict[str, int] = field(default_factory=dict)
    misrouted_keys: list[str] = field(default_factory=list)  # seen for the first time
    taken_out: dict[tuple[str, str], int] = field(default_factory=dict)  # (reason, pipeline stage) -> ticks
    noticed: dict[tuple[str, str], int] = field(default_factory=dict)  # (what, pipeline stage) -> times
    gaps: list[SequenceGap] = field(default_factory=list)
    records: int = 0
    aggregated: int = 0

    def extend(self, other: Effects) -> None:
        """Append what came later."""
        self.frames += other.frames
        self.late += other.late
        self.dead_letters += other.dead_letters
        _add_up(self.emitted, other.emitted)
        _add_up(self.rejected, other.rejected)
        _add_up(self.late_by_reason, other.late_by_reason)
        self.misrouted_keys += other.misrouted_keys
        for topic, records in other.routed.items():
            self.routed.setdefault(topic, []).extend(records)
        _add_up(self.taken_out, other.taken_out)
        _add_up(self.noticed, other.noticed)
        self.gaps += other.gaps
        self.records += other.records
        self.aggregated += other.aggregated


def _add_up(mine: dict[_Name, int], more: Mapping[_Name, int]) -> None:
    for name, number in more.items():
        mine[name] = mine.get(name, 0) + number


class Lane:
    """The state of one partition. ``position`` is the next input offset that is not yet in it."""

    def __init__(self, spec: LaneSpec, source: Input) -> None:
        self._spec = spec
        self._source = source
        self._decode = tick_decoder(spec.tick)
        self._aggregation = load_aggregation(spec.aggregation) if spec.payload != "items" else None
        self._rules = spec.rules()
        self._encoder = FrameEncoder(spec.tick.unit_ns)
        self._engine = self._new_engine()
        self._fingerprint = spec.fingerprint(source.partitions, self._aggregation)
        self._misrouted: set[str] = set()
        self._pipeline = self._new_pipeline()
        self.position = 0
        self.counts = Counts()

    def _new_engine(self) -> WindowEngine[str, Tick]:
        return WindowEngine(
            self._rules,
            folding=self._aggregation,
            keep=kept_bytes if self._spec.payload != "ohlcv" else None,
            emit_partial=self._spec.emit_partial,
            track_changes=True,
        )

    def _new_pipeline(self) -> Pipeline | None:
        spec, source = self._spec, self._source
        if not spec.pipeline:
            return None
        return Pipeline(
            spec.pipeline,
            form=spec.tick,
            key_ttl_ns=spec.key_ttl_ns,
            topic=source.topic,
            partition=source.partition,
        )

    def process(self, records: Sequence[Record]) -> Effects:
        """Take the next records of the partition, in log order.

        Raises `CallbackError` where the user's aggregation or a function of the pipeline raised; the lane must then be
        discarded.
        """
        effects = Effects()
        for record in records:
            assert record.offset >= self.position, f"offset {record.offset} after position {self.position}"
            self.position = record.offset + 1
            self.counts.records += 1
            decoded = self._decode(record)
            if isinstance(decoded, Tick) and not self._engine.has_key(decoded.symbol):
                decoded = self._check_route(decoded, record, effects)
            if isinstance(decoded, Rejection):
                self.counts.rejected += 1
                effects.rejected[decoded.reason] = effects.rejected.get(decoded.reason, 0) + 1
                effects.dead_letters.append(dead_letter(decoded, self._source.topic, self._source.partition))
            elif self._pipeline is None:
                self.place(decoded, effects)
            else:
                for tick in self._pipeline.push(decoded, record, effects):
                    self.place(tick, effects)
        effects.records = len(records)
        if self._pipeline is not None:
            self._count_operators(self._pipeline, effects)
        self._engine.settle()
        return self._emit(effects)

    def idle(self, silence_ns: int) -> Effects:
        """The partition was read to its end ``silence_ns`` ago and nothing came since: show overdue windows."""
        self._engine.settle(silence_ns)
        return self._emit(Effects())

    def next_timeout_ns(self) -> int | None:
        """The silence at which `idle` will next have something to show; None: never."""
        return self._engine.next_timeout_ns()

    def flush_partial(self) -> Effects:
        """Show every open window that changed, with ``emit_partial``."""
        self._engine.flush_partial()
        return self._emit(Effects())

    @property
    def key_count(self) -> int:
        """Keys with state."""
        return self._engine.key_count

    @property
    def partition_max_ns(self) -> int | None:
        """The greatest accepted event time; None before any."""
        found = self._engine.partition_max_ns
        return None if found == LONG_AGO else found

    @property
    def changes_waiting(self) -> int:
        """How many windows `take_changes` would write: a commit in time keeps it from taking long."""
        return self._engine.changes_waiting

    def take_changes(self) -> list[OutRecord]:
        """The changelog records that bring the stored state to ``position``; what they hold counts as stored."""
        dump = self._aggregation.dump if self._aggregation is not None else None
        records = write_windows(self._engine.take_changes(), dump)
        if self._pipeline is not None:
            records += self._pipeline.take_changes()
        meta = LaneMeta(self.position, self._engine.partition_max_ns, self._fingerprint, self.counts)
        records.append(write_meta(meta))
        return records

    def restore(self, entries: Mapping[bytes, bytes], *, where: str) -> LaneMeta | None:
        """Take over stored state, the last record of each changelog key; None where there is none. New lanes only.

        Raises `StateFormatError` and `StateMismatchError`; the lane must then be discarded.
        """
        steps = self.restore_in_steps(entries, where=where)
        while True:
            try:
                next(steps)
            except StopIteration as done:
                meta: LaneMeta | None = done.value
                return meta

    def restore_in_steps(self, entries: Mapping[bytes, bytes], *, where: str) -> Generator[None, None, LaneMeta | None]:
        """`restore`, with pauses in which an event loop can do other things; this lane needs one, before its start."""
        yield
        meta, windows = self.peek(entries, where=where)
        if meta is None:
            return None
        self.check(meta, where=where)
        self._engine.load(windows, meta.partition_max_ns)
        if self._pipeline is not None:
            self._pipeline.restore(entries, where=where)
        self.position = meta.offset
        self.counts = meta.counts
        return meta

    def peek(self, entries: Mapping[bytes, bytes], *, where: str) -> tuple[LaneMeta | None, list[Window[str]]]:
        """What stored state holds, whatever settings it was made under. Raises `StateFormatError`."""
        return read_state(entries, self._aggregation.load if self._aggregation is not None else None, where=where)

    def check(self, meta: LaneMeta, *, where: str) -> None:
        """Raises `StateMismatchError` where state was made under settings that this lane's contradict."""
        check_fingerprint(meta, self._fingerprint, where=where)

    def place(self, tick: Tick, effects: Effects) -> None:
        """Hand a tick that passed the pipeline to the windows; `process` calls it for each.

        A subclass may look on: what ``effects`` gained says whether the tick joined or was late.
        """
        try:
            lateness = self._engine.add(tick.symbol, tick.ts_ns, tick)
        except Exception as error:
            source = self._source
            raise CallbackError(
                f"the aggregation {self._spec.aggregation!r} raised {type(error).__name__}: {error}, at {source.topic}"
                f"[{source.partition}] offset {tick.offset}, key {tick.symbol[:80]!r}"
            ) from error
        if lateness is None:
            self.counts.aggregated += 1
            effects.aggregated += 1
            return
        self.counts.late += 1
        effects.late_by_reason[lateness.reason] = effects.late_by_reason.get(lateness.reason, 0) + 1
        window = next(iter(self._rules.assigner.assign(tick.ts_ns)))
        source = self._source
        effects.late.append(
            late_record(tick, lateness, window, self._spec.tick.unit_ns, source.topic, source.partition)
        )

    def _count_operators(self, pipeline: Pipeline, effects: Effects) -> None:
        counts = self.counts
        for (reason, _), number in effects.taken_out.items():
            name = _TAKEN_OUT[reason]
            setattr(counts, name, getattr(counts, name) + number)
        counts.routed_away += sum(map(len, effects.routed.values()))
        counts.held = pipeline.held

    def _check_route(self, tick: Tick, record: Record, effects: Effects) -> Tick | Rejection:
        expected = partition_for(tick.symbol.encode(), self._source.partitions)
        if expected == self._source.partition:
            return tick
        if tick.symbol not in self._misrouted and len(self._misrouted) < MISROUTED_KEYS_REMEMBERED:
            self._misrouted.add(tick.symbol)
            effects.misrouted_keys.append(tick.symbol)
        if self._spec.tick.on_misrouted == "warn":
            return tick
        message = (
            f"the key is on partition {self._source.partition}; Kafka's murmur2 puts it on {expected} of "
            f"{self._source.partitions}. The producer uses another partitioner (librdkafka: set "
            "partitioner=murmur2_random)"
        )
        return Rejection(Reason.MISROUTED, message, record)

    def _emit(self, effects: Effects) -> Effects:
        for emission in self._engine.take_emissions():
            effects.frames.append(self._encoder.encode(emission))
            kind = (emission.status, emission.trigger)
            effects.emitted[kind] = effects.emitted.get(kind, 0) + 1
        return effects


def entries_of(records: Iterable[OutRecord]) -> dict[bytes, bytes]:
    """What a compacted topic holds after these records: the last value of each key, tombstones gone."""
    entries: dict[bytes, bytes] = {}
    for record in records:
        assert record.key is not None
        if record.value is None:
            entries.pop(record.key, None)
        else:
            entries[record.key] = record.value
    return entries
