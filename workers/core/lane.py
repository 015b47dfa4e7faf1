"""A lane: one input partition's records in, effects out. Pure: no I/O, no clock; time enters as an argument.

    records ─▶ decode ─▶ pipeline ─▶ lateness ─▶ windows ─▶ aggregate ─▶ frames
                 │           │           │
                 ▼           ▼           ▼
            dead letters  late, routed  late

The lane is the reference: one record at a time, readable, any aggregation. What is faster is proved equal to it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2s

import orjson

from workers.core.aggregates import Aggregation, Ohlcv, load_aggregation
from workers.core.callbacks import AggregationRaised, UsersAggregation
from workers.core.effects import FAILURES_SHOWN, Counts, Effects
from workers.core.failures import Failure, raise_unless_of_record, rejection_of
from workers.core.formats.corrections import Correction, correction_decoder
from workers.core.formats.frames import bar_decoder
from workers.core.formats.json import tick_decoder
from workers.core.frames import RESERVED_FIELDS, FrameEncoder, OutRecord, kept_bytes
from workers.core.ledger import dead_letter, late_record, uncorrectable_record
from workers.core.packed import OutRecords
from workers.core.pipeline.pipeline import Pipeline
from workers.core.pipeline.stage import Passage
from workers.core.portions import NO_LIMIT, Gauge, OpenBatch, StepLimit
from workers.core.quarantine import Quarantine, held_in
from workers.core.reasons import Reason
from workers.core.records import LargeRecord, RawBatch, Record
from workers.core.refusals import RouteCheck, too_large
from workers.core.snapshot import (
    LaneMeta,
    StoredRecords,
    check_fingerprint,
    check_topics,
    check_whole,
    count_in_steps,
    differing_settings,
    entries_of,
    read_meta,
    read_state,
    read_state_in_steps,
    write_meta,
    write_windows,
)
from workers.core.spec import Input, LaneSpec
from workers.core.steps import run_through
from workers.core.ticks import EndOfInput, Rejection, Tick
from workers.core.windows.corrections import Changed, CorrectingEngine, NotFound, make_correcting_engine
from workers.core.windows.engine import WindowEngine
from workers.core.windows.resample import BarEngine, Bars
from workers.core.windows.window import LONG_AGO, Emission, Window
from workers.errors import CallbackError, StateMismatchError
from workers.times import NS_PER_MS

__all__ = ["REPEATED", "Input", "Lane", "entries_of"]

REPEATED = (Reason.DUPLICATE, "frames")  # children that came before: the stage is the input itself


def _digest(fingerprint: Mapping[str, object]) -> str:
    return blake2s(orjson.dumps(fingerprint, option=orjson.OPT_SORT_KEYS), digest_size=6).hexdigest()


class Lane:
    """The state of one partition. ``position`` is the next input offset that is not yet in it; ``settings_digest``
    names the settings that give its windows their meaning, which all workers of an application must have."""

    def __init__(self, spec: LaneSpec, source: Input) -> None:
        self._spec = spec
        self._source = source
        self._rules = spec.rules()
        self._decode = self._new_decoder()
        self._aggregation = self._new_aggregation()
        self._is_built_in = self._aggregation is None or type(self._aggregation) in (Ohlcv, Bars)
        self._folding = self._aggregation
        if not self._is_built_in and self._aggregation is not None:
            self._folding = UsersAggregation(self._aggregation)
        self._encoder = FrameEncoder(spec.tick.unit_ns)
        self._engine = self._new_engine()
        self._fingerprint = spec.fingerprint(source.partitions, self._aggregation)
        self.settings_digest = _digest(self._fingerprint)
        self._routes = RouteCheck(source.partition, source.partitions, spec.tick.on_misrouted)
        self._pipeline = self._new_pipeline()
        self._quarantine = self._new_quarantine()
        self._stored = StoredRecords()
        self._open = OpenBatch()
        self.position = 0
        self.counts = Counts()

    def _new_decoder(self) -> Callable[[Record], Tick | Correction | EndOfInput | Rejection]:
        spec = self._spec
        if spec.format == "frames":
            return bar_decoder(spec.tick.unit, self._rules.assigner, spec.tick.min_time_ns)
        if spec.corrections is not None:
            return correction_decoder(spec.tick, spec.corrections)
        return tick_decoder(spec.tick)

    def _new_aggregation(self) -> Aggregation[object] | None:
        spec = self._spec
        if spec.format == "frames":
            return Bars()  # type: ignore[return-value]  # invariant S: the engine alone looks into the state
        return load_aggregation(spec.aggregation) if spec.payload != "items" else None

    def _new_engine(self) -> WindowEngine[str, Tick]:
        if self._spec.format == "frames":
            return BarEngine(self._rules, emit_partial=self._spec.emit_partial, track_changes=True)
        if self._spec.corrections is not None:
            return make_correcting_engine(
                self._spec.window.correcting_engine(),
                self._rules,
                self._spec.corrections,
                self._spec.tick,
                self._folding,
                show_items=self._spec.payload != "ohlcv",
                emit_partial=self._spec.emit_partial,
            )
        return self._spec.window.engine(
            self._rules,
            folding=self._folding,
            keep=kept_bytes if self._spec.payload != "ohlcv" else None,
            emit_partial=self._spec.emit_partial,
            track_changes=True,
            name_unit_ns=NS_PER_MS,
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

    def _new_quarantine(self) -> Quarantine | None:
        spec = self._spec
        if not spec.max_jump_ns or spec.format == "frames":
            return None
        trade_id = spec.corrections.id if spec.corrections is not None else None
        return Quarantine(spec.max_jump_ns, spec.lag_ns + spec.lateness_ns, spec.tick, trade_id)

    def process(self, records: Sequence[Record | RawBatch], limit: StepLimit = NO_LIMIT) -> Effects:
        """Take the next records or record batches of the partition, in log order, up to a limit.

        Raises `CallbackError` where the user's aggregation or a function of the pipeline raised, `BrokerError` where a
        batch is not what Kafka's format says; the lane must then be discarded.
        """
        effects, gauge = Effects(), Gauge(limit)
        for taken, item in enumerate(records):
            if gauge.is_full(effects):
                effects.rest = records[taken:]
                break
            if not isinstance(item, RawBatch):
                self._take_next(item, effects)
            elif (rest := self._take_some(item, effects, gauge)) is not None:
                effects.rest = (rest, *records[taken + 1 :])
                break
        self._count_held(effects)
        effects.extend(self._show(self._engine.settle))
        return effects

    def _take_some(self, batch: RawBatch, effects: Effects, gauge: Gauge) -> RawBatch | None:
        """Take the records of a batch; where the step is over before, what is left of it."""
        for record in self._open.records(batch):
            self._take_next(record, effects)
            if gauge.is_full(effects) and self.position < batch.next_offset:
                return self._open.leave(batch, self.position)
        self.position = max(self.position, batch.next_offset)
        return None

    def _take_next(self, record: Record, effects: Effects) -> None:
        assert record.offset >= self.position, f"offset {record.offset} after position {self.position}"
        self.position = record.offset + 1
        self.counts.records += 1
        effects.records += 1
        try:
            self._take(record, effects)
        except Exception as error:
            self._reject(self._failed(record, error, effects), effects)
        if self._engine.shows_something:
            self._emit(effects)

    def _take(self, record: Record, effects: Effects) -> None:
        """The way of one record; `process` answers for whatever it raises."""
        decoded = too_large(record) if isinstance(record, LargeRecord) else self._decode(record)
        if isinstance(decoded, EndOfInput):
            self.end_input(effects)
            return
        if not isinstance(decoded, Rejection) and not self._engine.has_key(decoded.symbol):
            decoded = self._routes.check(decoded, record, effects)
        if isinstance(decoded, Rejection):
            self._reject(decoded, effects)
        elif isinstance(decoded, Correction):
            self.correct(decoded, effects)
        elif self._quarantine is None:
            self._accept(decoded, record, effects)
        else:
            for judged in self._quarantine.judge(decoded, record):
                if isinstance(judged, Rejection):
                    self._reject(judged, effects)
                else:
                    self._let_go(judged, effects)

    def _accept(self, tick: Tick, record: Record, effects: Effects) -> None:
        """Let a tick go on, through the pipeline to the windows."""
        if self._pipeline is None:
            self.place(tick, effects)
        else:
            self._place_all(*self._pipeline.push(tick, record, effects), effects)

    def _place_all(self, passages: Sequence[Passage], failed: list[tuple[Record, Exception]], effects: Effects) -> None:
        """Hand to the windows what came out of the pipeline; ``failed`` is what raised in there."""
        for passage in passages:  # not all of them are the record at hand: each answers for itself
            try:
                self.place(passage.tick, effects)
            except Exception as error:
                failed.append((passage.record, error))
        for other, cause in failed:
            self._reject(self._failed(other, cause, effects), effects)

    def _let_go(self, held: Passage, effects: Effects) -> None:
        """Let a tick go on that was held; its own record answers for what it raises, not the one that released it."""
        try:
            self._accept(held.tick, held.record, effects)
        except Exception as error:
            self._reject(self._failed(held.record, error, effects), effects)

    def end_input(self, effects: Effects) -> None:
        """Obey a control record: let go of all that waits, ticks ahead of their time or held back by operators, and
        windows."""
        self.counts.control += 1
        effects.control += 1
        if self._quarantine is not None:
            for held in self._quarantine.release_all():
                self._let_go(held, effects)
        if self._pipeline is not None:
            self._place_all(*self._pipeline.end_of_input(effects), effects)
        effects.extend(self._show(self._engine.end_of_input))

    def _failed(self, record: Record, error: Exception, effects: Effects) -> Rejection:
        """What raised on a record's way, as its rejection; what is not its fault is raised again."""
        raise_unless_of_record(error)
        if len(effects.failures) < FAILURES_SHOWN:
            effects.failures.append(Failure.of(record, error))
        return rejection_of(record, error)

    def _reject(self, rejection: Rejection, effects: Effects) -> None:
        letter = dead_letter(rejection, self._source.topic, self._source.partition)
        self.counts.rejected += 1
        effects.rejected[rejection.reason] = effects.rejected.get(rejection.reason, 0) + 1
        effects.dead_letters.append(letter)

    def idle(self, silence_ns: int) -> Effects:
        """The partition was read to its end ``silence_ns`` ago and nothing came since: show overdue windows."""
        return self._show(lambda: self._engine.settle(silence_ns))

    def next_timeout_ns(self) -> int | None:
        """The silence at which `idle` will next have something to show; None: never."""
        return self._engine.next_timeout_ns()

    def flush_partial(self) -> Effects:
        """Show every open window that changed, with ``emit_partial``."""
        return self._show(self._engine.flush_partial)

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
        """How many windows, held ticks and things of operators `take_changes` would write: a commit in time keeps it
        from taking long."""
        of_pipeline = self._pipeline.changes_waiting if self._pipeline is not None else 0
        held = self._quarantine.changes_waiting if self._quarantine is not None else 0
        return self._engine.changes_waiting + of_pipeline + held

    def take_changes(self) -> OutRecords:
        """The changelog records that bring the stored state to ``position``; what they hold counts as stored."""
        dump = self._aggregation.dump if self._aggregation is not None else None
        stored = self._stored
        records = write_windows(self._engine.take_changes(), dump, stored)
        if self._pipeline is not None:
            records += self._pipeline.take_changes()
            stored.operators = self._pipeline.stored_records
        if self._quarantine is not None:
            records += self._quarantine.take_changes()
            stored.held = self._quarantine.stored_records
        records.append(self._meta(self._engine.partition_max_ns, stored))
        return records

    def _meta(self, partition_max_ns: int, stored: StoredRecords) -> OutRecord:
        """The changelog's record of a commit now."""
        return write_meta(self.own(LaneMeta(self.position, partition_max_ns, {}, self.counts, stored)))

    def own(self, meta: LaneMeta) -> LaneMeta:
        """What a commit says, as of this lane's settings and topics."""
        return replace(meta, fingerprint=self._fingerprint, topics=self._source.identities)

    def restore(self, entries: Mapping[bytes, bytes], *, where: str) -> LaneMeta | None:
        """Take over stored state, the last record of each changelog key; None where there is none. New lanes only.

        Raises `StateFormatError` and `StateMismatchError`; the lane must then be discarded.
        """
        return run_through(self.restore_in_steps(entries, where=where))

    def restore_in_steps(self, entries: Mapping[bytes, bytes], *, where: str) -> Generator[None, None, LaneMeta | None]:
        """`restore`, in steps of some 20 ms, so that an event loop can do other things in between.

        Where it raises the lane must be discarded.
        """
        load = self._aggregation.load if self._aggregation is not None else None
        meta = read_meta(entries, where=where)
        if meta is not None:
            self.check(meta, where=where)
            self._stored = yield from count_in_steps(entries)
            self.check_whole(meta, self._stored, where=where)
        _, windows = yield from read_state_in_steps(entries, load, where=where)
        if meta is None:
            return None
        self._refuse_held(held_in(entries, self._stored.held), where=where)
        yield from self._engine.load_in_steps(windows, meta.partition_max_ns)
        if self._pipeline is not None:
            yield from self._pipeline.restore_in_steps(entries, where=where)
        if self._quarantine is not None:
            self._quarantine.restore(entries, where=where)
        self.position = meta.offset
        self.counts = meta.counts
        return meta

    def peek(self, entries: Mapping[bytes, bytes], *, where: str) -> tuple[LaneMeta | None, list[Window[str]]]:
        """What stored state holds, whatever settings it was made under. Raises `StateFormatError`."""
        return read_state(entries, self._aggregation.load if self._aggregation is not None else None, where=where)

    def check(self, meta: LaneMeta, *, where: str) -> None:
        """Raises `StateMismatchError` where state was made under settings that this lane's contradict, or of another
        topic."""
        check_fingerprint(meta, self._fingerprint, where=where)
        check_topics(meta, self._source.identities, where=where)

    def check_whole(self, meta: LaneMeta, found: StoredRecords, *, where: str) -> None:
        """Raises `StateMismatchError` where the records found are not as many as state consists of."""
        check_whole(meta, found, self._source.identities.get("changelog"), where=where)

    def _refuse_held(self, held: int, *, where: str) -> None:
        """Raises `StateMismatchError` where state holds ticks that nothing here would ever let go."""
        if held and self._quarantine is None:
            raise StateMismatchError(
                f"the stored state {where} holds {held} ticks that tick.max_jump held back, and it is off now. Set it "
                "until the next ticks of their keys have come or the input has ended, or drop the state with `workers "
                "state reset`"
            )

    def differing_settings(self, meta: LaneMeta) -> list[str]:
        """What differs between this lane's settings and those that state was made under; nothing where it is taken."""
        return differing_settings(meta, self._fingerprint)

    def place(self, tick: Tick, effects: Effects) -> None:
        """Hand a tick that passed the pipeline to the windows; `process` calls it for each.

        A subclass may look on: what ``effects`` gained says whether the tick joined or was late.
        """
        try:
            lateness = self._engine.add(tick.symbol, tick.ts_ns, tick)
        except AggregationRaised as raised:
            raise self._callback_error(raised, tick.symbol, tick.offset) from raised.__cause__
        if lateness is None:
            self.counts.aggregated += 1
            effects.aggregated += 1
            return
        if lateness.reason == "repeated":
            self.counts.deduplicated += 1
            effects.taken_out[REPEATED] = effects.taken_out.get(REPEATED, 0) + 1
            return
        window = next(iter(self._rules.assigner.assign(tick.ts_ns)), None)
        source = self._source
        entry = late_record(tick, lateness, window, self._spec.tick.unit_ns, source.topic, source.partition)
        self.counts.late += 1
        effects.late_by_reason[lateness.reason] = effects.late_by_reason.get(lateness.reason, 0) + 1
        effects.late.append(entry)

    def correct(self, correction: Correction, effects: Effects) -> Changed | NotFound:
        """Have the trade that a correction is about changed; `process` calls it for each. Where it is not found, the
        correction goes to the late topic."""
        source = self._source
        outcome: Changed | NotFound
        try:
            outcome = Changed(()) if self._correct_held(correction, effects) else self._change(correction)
        except AggregationRaised as raised:
            raise self._callback_error(raised, correction.symbol, correction.offset) from raised.__cause__
        if isinstance(outcome, Changed):
            self.counts.corrected += 1
            effects.corrected[correction.kind] = effects.corrected.get(correction.kind, 0) + 1
            return outcome
        watermark_ns = self._watermark_ns(correction.symbol)
        entry = uncorrectable_record(correction, outcome.explanation, watermark_ns, source.topic, source.partition)
        self.counts.late += 1
        effects.late_by_reason[Reason.UNCORRECTABLE] = effects.late_by_reason.get(Reason.UNCORRECTABLE, 0) + 1
        effects.late.append(entry)
        return outcome

    def _change(self, correction: Correction) -> Changed | NotFound:
        assert isinstance(self._engine, CorrectingEngine)
        return self._engine.correct(correction)

    def _watermark_ns(self, symbol: str) -> int | None:
        return self._engine.watermark_ns(symbol)

    def _correct_held(self, correction: Correction, effects: Effects) -> bool:
        """Change the trade meant where it is held for being ahead of its time, and in no window yet; whether it is."""
        if self._quarantine is None:
            return False
        if correction.kind == "correct":
            return self._quarantine.correct(correction)
        cancelled = self._quarantine.cancel(correction)
        if cancelled is not None:
            self._reject(cancelled, effects)
        return cancelled is not None

    def _callback_error(self, raised: AggregationRaised, symbol: str, offset: int) -> CallbackError:
        source = self._source
        return CallbackError(
            f"the aggregation {self._spec.aggregation!r} raised {raised}, at {source.topic}"
            f"[{source.partition}] offset {offset}, key {symbol[:80]!r}"
        )

    def _encode_own(self, emission: Emission[str]) -> OutRecord:
        """The frame of a user's aggregation, which may give what no frame can hold."""
        what, cause = "", None
        if not isinstance(emission.result, Mapping):
            what = f"result() gave a {type(emission.result).__name__}; expected a dict of fields"
        elif taken := [name for name in RESERVED_FIELDS if name in emission.result]:
            what = f"result() gave {', '.join(taken)}; reserved for the frame itself are {', '.join(RESERVED_FIELDS)}"
        else:
            try:
                return self._encoder.encode(emission)
            except TypeError as error:
                what, cause = f"result() gave what JSON can't hold: {error}", error
        source = self._source
        raise CallbackError(
            f"the aggregation {self._spec.aggregation!r}: {what}; at {source.topic}[{source.partition}] offset "
            f"{self.position - 1}, key {emission.key[:80]!r}"
        ) from cause

    def _show(self, call: Callable[[], None]) -> Effects:
        """Let windows come out by a call of the engine, which asks a user's aggregation for results."""
        try:
            call()
        except AggregationRaised as raised:
            source = self._source
            raise CallbackError(
                f"the aggregation {self._spec.aggregation!r} raised {raised}, when windows of "
                f"{source.topic}[{source.partition}] were to be shown, at offset {self.position - 1}"
            ) from raised.__cause__
        return self._emit(Effects())

    def _count_held(self, effects: Effects) -> None:
        held = self._quarantine.held if self._quarantine is not None else 0
        if self._pipeline is not None:
            self._count_operators(effects)
            held += self._pipeline.held
        self.counts.held = held

    def _count_operators(self, effects: Effects) -> None:
        counts = self.counts
        for (reason, _), number in effects.taken_out.items():
            assert reason.account is not None, "what operators drop are ticks"
            setattr(counts, reason.account, getattr(counts, reason.account) + number)
        counts.routed_away += sum(map(len, effects.routed.values()))

    def _emit(self, effects: Effects) -> Effects:
        encode = self._encoder.encode if self._is_built_in else self._encode_own
        for emission in self._engine.take_emissions():
            effects.frames.append(encode(emission))
            kind = (emission.status, emission.trigger)
            effects.emitted[kind] = effects.emitted.get(kind, 0) + 1
        return effects
