"""The lane over record batches: what `workers.core.lane.Lane` gives, from native code, at a fraction of its cost.

    RawBatch ─▶ _native.Lane.advance ─▶ frames, late records, changes
                    │ unsure
                    ▼
             core's own decoder ─▶ _native.Lane.take

Whatever is not plainly a tick is decoded by the reference's own decoder and handed back before the next record is
looked at, so it takes effect at its place in the log. A lane restored from what the other kind of lane stored goes on
as that one would have.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping, Sequence
from itertools import islice
from typing import Final

from workers import _native
from workers.core.effects import Effects, SequenceGap, add_up
from workers.core.encoding import json_object
from workers.core.formats.corrections import Correction, trade_id_of
from workers.core.formats.frames import ChildBar
from workers.core.lane import REPEATED, Input, Lane
from workers.core.packed import OutRecords, joined, size_of
from workers.core.portions import NO_LIMIT, StepLimit
from workers.core.quarantine import held_in
from workers.core.reasons import Reason
from workers.core.records import LargeRecord, RawBatch, Record
from workers.core.refusals import too_large
from workers.core.snapshot import LaneMeta, StoredRecords, count_in_steps, read_meta
from workers.core.spec import LaneSpec
from workers.core.ticks import EndOfInput, Rejection, Tick
from workers.core.windows.corrections import Changed, NotFound, change_of
from workers.core.windows.window import LONG_AGO
from workers.errors import BrokerError, StateFormatError
from workers.native.facts import FactTeller
from workers.native.reader import record_of
from workers.native.spec import native_spec
from workers.native.zones import Zone

__all__ = ["NativeLane"]

Sequence.register(_native.Records)

SETTLE_AT_LEAST: Final = 6_000  # windows looked at in one step, so that none holds the process for long: some 5 ms
RECORDS_AT_ONCE: Final = 10_000  # in a step of restoring
PLAIN_RECORDS: Final = 10  # as many cost what one does that Python has to decode, or less
_DROPS: Final = {reason.value: reason for reason in (Reason.DUPLICATE, Reason.THROTTLED)}
LONGEST_SILENCE_NS: Final = 366 * 86_400_000_000_000


class NativeLane(Lane):
    """A `Lane` that takes record batches. Made for specs that `workers.native.choose.supports` says yes to.

    ``process`` takes `RawBatch` objects, or plain records (which it decodes one by one: right, but slow).
    """

    def __init__(self, spec: LaneSpec, source: Input) -> None:
        self._core: _native.Lane | None = None
        super().__init__(spec, source)
        told = native_spec(spec, self._rules, source)
        self._native = self._core = _native.Lane(told, spec.pipeline)
        self._tell = FactTeller(spec.pipeline)
        self._zone = Zone.of(self._rules.assigner, self._native, told.margin_ns)
        self._left: RawBatch | None = None  # of the batch that native code is in

    @property
    def position(self) -> int:
        """The next input offset that is not yet in the state."""
        return self._core.position if self._core is not None else 0

    @position.setter
    def position(self, position: int) -> None:
        if self._core is not None:
            self._core.position = position

    # -- records ------------------------------------------------------------------------------------------------------

    def process(self, records: Sequence[Record | RawBatch], limit: StepLimit = NO_LIMIT) -> Effects:
        """Take the next record batches (or plain records) of the partition, in log order, up to a limit; of records
        that native code is sure of `PLAIN_RECORDS` times as many.

        Raises `BrokerError` where a batch is not what Kafka's format says; the lane must then be discarded.
        """
        effects, step = Effects(), _Step(limit)
        for taken, item in enumerate(records):
            if step.is_over:
                effects.rest = records[taken:]
                break
            if not isinstance(item, RawBatch):
                assert item.offset >= self.position, f"offset {item.offset} after position {self.position}"
                self._native.count(item.offset, list(item.headers))
                self._take_record(item, effects)
                step.took(effects)
            elif (rest := self._take_batch(item, effects, step)) is not None:
                effects.rest = (rest, *records[taken + 1 :])
                break
        self._native.settle(0, SETTLE_AT_LEAST)
        return self._collect(effects)

    def _take_batch(self, batch: RawBatch, effects: Effects, step: _Step) -> RawBatch | None:
        """Take the records of a batch; where the step is over before, what is left of it."""
        core = self._native
        try:
            if self._left is None or not batch.is_rest_of(self._left):
                self._begin(batch)
            self._left = None
            while (found := core.advance(step.records_end, step.bytes_left)) is not None:
                self._take_record(record_of(*found), effects)
                step.took(effects)
        except _native.BatchError as error:
            raise self._broken(batch) from error
        if core.is_within:
            step.is_over = True
            self._left = batch.rest(self.position)
            return self._left
        self.position = max(self.position, batch.next_offset)
        return None

    def _begin(self, batch: RawBatch) -> None:
        fixed = batch.max_timestamp if batch.timestamp_type == 1 else None
        self._native.begin(
            bytes(batch.packed),
            batch.codec,
            batch.base_offset,
            batch.next_offset,
            batch.count,
            batch.first_timestamp,
            fixed,
            batch.start_offset,
        )

    def _take_record(self, record: Record, effects: Effects) -> None:
        """Take a record that native code is not sure of."""
        try:
            decoded = too_large(record) if isinstance(record, LargeRecord) else self._decode(record)
            if isinstance(decoded, Tick | Correction) and self._native.is_misplaced(decoded.symbol):
                decoded = self._routes.check(decoded, record, effects)
            if isinstance(decoded, Tick):
                self._take_tick(decoded, record.timestamp)
                return
            if isinstance(decoded, Correction):
                self._collect_late(effects)  # of what came before it
                self.correct(decoded, effects)
                return
        except Exception as error:
            decoded = self._failed(record, error, effects)
        if isinstance(decoded, EndOfInput):
            self.end_input(effects)
        else:
            assert isinstance(decoded, Rejection)
            self._reject(decoded, effects)

    def _take_tick(self, tick: Tick, timestamp: int) -> None:
        if self._zone is not None:
            self._zone.reach(tick.ts_ns)
        if isinstance(tick, ChildBar):
            is_correction = tick.trigger == "correction"
            self._native.take_child(tick.symbol, tick.child, tick.provisional, is_correction, tick.offset, tick.value)
            return
        rules = self._spec.corrections
        trade_id = trade_id_of(tick.fields, rules.id) if rules is not None else None
        parts = (tick.symbol, tick.ts_ns, tick.price, tick.size, tick.offset, timestamp, tick.value)
        self._native.take(*parts, self._tell(tick), trade_id)

    def _change(self, correction: Correction) -> Changed | NotFound:
        symbol = correction.symbol
        found = self._native.find_trade(symbol, correction.trade_id)
        if found is None:
            return NotFound.unknown(correction.trade_id)
        offset, ts_ns, cancelled_by, value = found
        if cancelled_by is not None:
            return NotFound.cancelled(offset, cancelled_by)
        change = change_of(correction, offset, value, self._spec.tick)
        return Changed(tuple(self._native.change_trade(symbol, ts_ns, offset, change)))

    def _watermark_ns(self, symbol: str) -> int | None:
        return self._native.watermark_ns(symbol)

    def end_input(self, effects: Effects) -> None:
        """As `Lane.end_input`."""
        self.counts.control += 1
        effects.control += 1
        self._native.end_input()

    def _broken(self, batch: RawBatch) -> BrokerError:
        source = self._source
        return BrokerError(
            f"{source.topic}[{source.partition}]: the record batch of offsets {batch.base_offset} to "
            f"{batch.next_offset - 1} has a good checksum, but its records are not in Kafka's format v2; the producer "
            "that wrote it is broken. Nothing after it can be read: start over behind it, or delete it from the log"
        )

    # -- what comes out -----------------------------------------------------------------------------------------------

    def idle(self, silence_ns: int) -> Effects:
        """As `Lane.idle`; of very many overdue windows the rest comes with the next call."""
        self._native.settle(min(silence_ns, LONGEST_SILENCE_NS), SETTLE_AT_LEAST)
        return self._collect(Effects())

    def next_timeout_ns(self) -> int | None:
        """As `Lane.next_timeout_ns`."""
        return self._native.next_timeout()

    def flush_partial(self) -> Effects:
        """As `Lane.flush_partial`."""
        self._native.flush_partial()
        return self._collect(Effects())

    def _collect(self, effects: Effects) -> Effects:
        """Take over what native code has put by."""
        records, aggregated = self._native.take_counts()
        effects.records += records
        effects.aggregated += aggregated
        self.counts.records += records
        self.counts.aggregated += aggregated
        repeated = self._native.take_repeated()
        if repeated:
            self.counts.deduplicated += repeated
            add_up(effects.taken_out, {REPEATED: repeated})
        self._collect_late(effects)
        departures = self._native.take_departures()
        if departures is not None:
            self._depart(departures, effects)
        frames = self._native.take_frames()
        if frames is not None:
            effects.frames, emitted = joined(effects.frames, frames[0]), frames[1]
            add_up(effects.emitted, {(status, trigger): number for status, trigger, number in emitted})
        return effects

    def _collect_late(self, effects: Effects) -> None:
        late = self._native.take_late()
        if late is None:
            return
        dropped, reasons = late
        effects.late = joined(effects.late, dropped)
        add_up(effects.late_by_reason, dict(reasons))
        self.counts.late += sum(number for _, number in reasons)

    def _depart(self, departures: _native.Departures, effects: Effects) -> None:
        """Take over what the stages of the pipeline have to report."""
        add_up(
            effects.taken_out, {(_DROPS[reason], stage): number for reason, stage, number in departures["taken_out"]}
        )
        add_up(effects.noticed, {(what, stage): times for what, stage, times in departures["noticed"]})
        effects.gaps += [SequenceGap(*gap) for gap in departures["gaps"]]
        for topic, records in departures["routed"]:
            effects.routed[topic] = joined(effects.routed.get(topic, []), records)
        self._count_operators(effects)
        self.counts.held = departures["held"]

    @property
    def key_count(self) -> int:
        """Keys with state."""
        return self._native.key_count

    @property
    def row_counts(self) -> tuple[int, int]:
        """How many rows there are for keys and windows, used or not."""
        return self._native.row_counts

    @property
    def partition_max_ns(self) -> int | None:
        """The greatest accepted event time; None before any."""
        found = self._native.partition_max_ns
        return None if found == LONG_AGO else found

    # -- state --------------------------------------------------------------------------------------------------------

    @property
    def changes_waiting(self) -> int:
        """How many windows `take_changes` would write: a commit in time keeps it from taking long."""
        return self._native.changes_waiting

    def take_changes(self) -> OutRecords:
        """As `Lane.take_changes`, the same bytes in the same order."""
        records = self._native.take_changes()
        records.append(self._meta(self._native.partition_max_ns, StoredRecords(*self._native.stored)))
        return records

    def restore_in_steps(self, entries: Mapping[bytes, bytes], *, where: str) -> Generator[None, None, LaneMeta | None]:
        """As `Lane.restore_in_steps`."""
        meta = read_meta(entries, where=where)
        if meta is not None:
            self.check(meta, where=where)
        else:
            self.peek(entries, where=where)  # there may be no windows either
            return None
        items, good = iter(entries.items()), True
        while good and (some := list(islice(items, RECORDS_AT_ONCE))):
            good = self._native.restore(some)
            yield
        if good:
            found = StoredRecords(*self._native.restored)
            self.check_whole(meta, found, where=where)
            self._refuse_held(held_in(entries, found.held), where=where)
        good = good and self._native.end_restore(meta.partition_max_ns)
        more = good
        while more:
            more, good = self._native.restore_stages()
            if more:
                yield
        if not good or not self._settle_doubts():
            self.check_whole(meta, (yield from count_in_steps(entries)), where=where)
            self.peek(entries, where=where)  # says what can't be read
            if self._pipeline is not None:
                yield from self._pipeline.restore_in_steps(entries, where=where)  # so does this
            raise StateFormatError(f"the changelog {where} holds state of another form than its settings say")
        self.position = meta.offset
        self.counts = meta.counts
        return meta

    def _settle_doubts(self) -> bool:
        """Say of held ticks that were restored what native code is not sure of; false where one is no JSON object."""
        while (found := self._native.doubtful()) is not None:
            value, first = found
            fields = json_object(value)
            if not fields or not self._native.settle_doubt(self._tell(Tick("", 0, 0.0, 0.0, 0, value, fields), first)):
                return False
        if self._zone is not None:
            for ts_ns in self._native.held_times():
                self._zone.reach(ts_ns)
        return True


class _Step:
    """How much of a step is left."""

    def __init__(self, limit: StepLimit) -> None:
        self.is_over = False
        self._records_left = limit.records
        self._records_end = min(PLAIN_RECORDS * limit.records, sys.maxsize)
        self._bytes_left = limit.size_bytes
        self._letters = self._late = 0  # of the effects, and in the bytes

    @property
    def records_end(self) -> int:
        """How many records there may be in all."""
        return 0 if self.is_over else self._records_end

    @property
    def bytes_left(self) -> int:
        """Of what native code puts by."""
        return max(0, self._bytes_left)

    def took(self, effects: Effects) -> None:
        """Python has taken a record."""
        self._records_left -= 1
        self._bytes_left -= sum(letter.size for letter in effects.dead_letters[self._letters :])
        self._letters = len(effects.dead_letters)
        if len(effects.late) > self._late:
            self._bytes_left -= size_of(effects.late[self._late :])
            self._late = len(effects.late)
        if self._records_left <= 0 or self._bytes_left <= 0:
            self.is_over = True
