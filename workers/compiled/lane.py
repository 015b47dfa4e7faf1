"""The lane over record batches: what `workers.core.lane.Lane` gives, from compiled code, at a fraction of its cost.

    RawBatch ─▶ columns.decode ─▶ kernel.run ─▶ kernel.format_frames
                     │ flagged        │ late, misrouted
                     ▼                ▼
              tick_decoder ─▶ back into its row

Whatever is not a plain tick is decoded by the reference's own decoder and put back into its row before the kernel runs,
so it takes effect at its place in the log. Late ticks and rejections are rare; their records are read again and go
through the reference's code. A lane restored from what the other kind of lane stored goes on as that one would have.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import islice
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson

from workers.compiled import decode as co
from workers.compiled import tables as tb
from workers.compiled import windows as ke
from workers.compiled.numbers import FLOAT_BYTES, write_floats
from workers.core.decimals import IS_FLOAT, LIMIT, MOST_DECIMALS
from workers.core.effects import Effects
from workers.core.frames import OutRecord
from workers.core.lane import Input, Lane
from workers.core.ledger import late_record
from workers.core.records import RawBatch, Record, read_record
from workers.core.snapshot import META_KEY, LaneMeta, read_state, write_meta
from workers.core.spec import LaneSpec
from workers.core.ticks import EndOfInput, Rejection, Tick
from workers.core.windows.kinds import TumblingWindows
from workers.core.windows.window import Lateness
from workers.errors import BrokerError, StateFormatError
from workers.times import MAX_EVENT_TIME_NS

__all__ = ["BatchLane", "writes_as_orjson"]

Array = npt.NDArray[Any]

ROUND: Final = 4096
"""Records decoded and windowed at a time: their columns stay in the processor's cache."""

JOIN_BYTES: Final = 1 << 18  # small batches are decoded together
FRAMES_AT_ONCE: Final = 1024
CHANGES_AT_ONCE: Final = 2048
WINDOWS_AT_ONCE: Final = 10_000  # in a step of restoring
GROW_AT_MOST: Final = 1 << 16  # rows: arrays grow by remapping, so small steps cost little and large ones stall
SETTLE_AT_LEAST: Final = 8_000  # windows looked at in one step, so that none holds the process for long: some 50 ms
LONGEST_SILENCE_NS: Final = 366 * 86_400_000_000_000

_KIND_NAMES: Final = ke.KINDS
_KINDS_OF_KEYS: Final = (b"w", META_KEY, b"i", b"o", b"h")  # of these, all but the first two are other lanes' business


class _Scratch(threading.local):
    """Arrays that are used within a call only, one set for all lanes of a thread."""

    def __init__(self) -> None:
        self.columns = np.empty((ROUND, tb.C_SIZE), np.int64)
        self.values = np.empty((ROUND, tb.V_COLUMNS))
        self.flagged = np.empty(ROUND, np.int64)
        self.cores = np.zeros(4 * co.FIELDS, np.int64)
        self.late = np.empty((ROUND, tb.L_SIZE), np.int64)
        self.misrouted = np.empty(ROUND, np.int64)
        self.emissions = np.empty((2 * FRAMES_AT_ONCE, tb.E_SIZE), np.int64)
        self.emitted = np.empty((2 * FRAMES_AT_ONCE, tb.F_SIZE))
        self.text = np.empty(1 << 19, np.uint8)
        self.bounds = np.empty(2 * max(FRAMES_AT_ONCE, CHANGES_AT_ONCE) + 1, np.int64)
        self.timestamps = np.empty(FRAMES_AT_ONCE, np.int64)


_scratch = _Scratch()


class BatchLane(Lane):
    """A `Lane` that takes record batches. Made for specs that `workers.compiled.choose.supports` says yes to.

    ``process`` takes `RawBatch` objects, or plain records (which it decodes one by one: right, but slow).
    """

    def __init__(self, spec: LaneSpec, source: Input) -> None:
        super().__init__(spec, source)
        form, window = spec.tick, spec.window
        assert isinstance(window, TumblingWindows), f"windows of the kind {window.kind} are not compiled"
        params = np.zeros(tb.P_SIZE, np.int64)
        params[tb.P_SIZE_NS], params[tb.P_LAG], params[tb.P_LATENESS] = window.size_ns, spec.lag_ns, spec.lateness_ns
        params[tb.P_OFFSET_NS] = window.offset_ns
        params[tb.P_IDLE_AFTER] = spec.idle_after_ns
        params[tb.P_TTL] = tb.NEVER if spec.key_ttl_ns is None else spec.key_ttl_ns
        params[tb.P_FINAL] = spec.emit == "final"
        params[tb.P_PARTIAL] = spec.emit_partial and spec.emit == "eager"
        params[tb.P_REJECT_MISROUTED] = form.on_misrouted == "reject"
        params[tb.P_UNIT], params[tb.P_SKEW] = form.unit_ns, form.max_future_skew_ns
        params[tb.P_SMALLEST_TS] = -(-form.min_time_ns // form.unit_ns)
        params[tb.P_LARGEST_TS] = MAX_EVENT_TIME_NS // form.unit_ns
        params[tb.P_PARTITION], params[tb.P_PARTITIONS] = source.partition, source.partitions
        params[tb.P_SEED] = int.from_bytes(os.urandom(7), "little")
        self._params = params
        names = [name.encode() for name in (form.symbol, form.ts, form.price, form.size)]
        self._field_names = np.frombuffer(b"".join(names), np.uint8).copy()
        self._field_bounds = np.cumsum([0, *map(len, names)]).astype(np.int64)
        self._shape = np.zeros(co.S_SIZE, np.int64)
        self._shape_words = np.zeros((co.FIELDS + 1) * co.SHAPE_WORDS, np.int64)
        self._shape_masks = np.zeros((co.FIELDS + 1) * co.SHAPE_WORDS, np.int64)
        self._make_tables()

    def _make_tables(self) -> None:
        self._head = np.zeros(tb.H_SIZE, np.int64)
        self._head[tb.H_PARTITION_MAX] = tb.LONG_AGO
        for first in (tb.H_KEY_FREE, tb.H_WINDOW_FREE, tb.H_CHANGED, tb.H_CHANGED_LAST):
            self._head[first] = tb.NONE
        self._keys = np.empty((256, tb.K_SIZE), np.int64)
        self._unused = np.empty(256, np.int64)
        self._names = np.empty(4096, np.uint8)
        self._key_table = np.full(1024, tb.NONE, np.int64)
        self._windows = np.empty((512, tb.W_SIZE), np.int64)
        self._sums = np.empty((512, tb.F_SIZE))
        self._window_table = np.full(1024, tb.NONE, np.int64)
        self._idle = np.empty((512, 3), np.int64)
        self._expiry = np.empty((256, 3), np.int64)
        self._overdue = np.empty((512, 2), np.int64)
        self._unflushed = np.empty((512 if self._params[tb.P_PARTIAL] else 1, 2), np.int64)

    # -- the lane's interface -----------------------------------------------------------------------------------------

    def process(self, records: Sequence[Record] | Sequence[RawBatch]) -> Effects:
        """Take the next record batches (or plain records) of the partition, in log order.

        Raises `BrokerError` where a batch is not what Kafka's format says; the lane must then be discarded.
        """
        effects = Effects()
        waiting: list[RawBatch] = []
        payloads: list[bytes | bytearray | memoryview] = []
        size = 0
        plain: list[Record] = []
        for item in records:
            if not isinstance(item, RawBatch):
                plain.append(item)
                continue
            if plain:
                self._take_plain(plain, effects)
                plain = []
            if _is_odd(item):
                self._take_batches(waiting, payloads, effects)
                waiting, payloads, size = [], [], 0
                self._take_plain(self._unpacked(item), effects)
                self.position = max(self.position, item.next_offset)
                continue
            payload = self._payload(item)
            waiting.append(item)
            payloads.append(payload)
            size += len(payload)
            if size >= JOIN_BYTES:
                self._take_batches(waiting, payloads, effects)
                waiting, payloads, size = [], [], 0
        self._take_batches(waiting, payloads, effects)
        if plain:
            self._take_plain(plain, effects)
        self.counts.records += effects.records
        self._settle(0, effects)
        return effects

    def idle(self, silence_ns: int) -> Effects:
        """As `Lane.idle`; of very many overdue windows the rest comes with the next call."""
        effects = Effects()
        self._settle(min(silence_ns, LONGEST_SILENCE_NS), effects)
        return effects

    def next_timeout_ns(self) -> int | None:
        """As `Lane.next_timeout_ns`."""
        found = int(ke.timeout(SETTLE_AT_LEAST, self._params, self._head, self._windows, self._idle))
        return None if found == tb.NEVER else found

    def flush_partial(self) -> Effects:
        """As `Lane.flush_partial`; of very many changed windows the rest comes with the next call."""
        effects = Effects()
        scratch, budget = _scratch, SETTLE_AT_LEAST
        while True:
            budget = ke.flush(
                budget, self._head, self._windows, self._sums, self._unflushed, scratch.emissions, scratch.emitted
            )
            need = self._head[tb.H_NEED]
            self._take_emissions(effects)
            if need == tb.NEED_NOTHING:
                return effects

    @property
    def key_count(self) -> int:
        """Keys with state."""
        return int(self._head[tb.H_KEYS])

    @property
    def partition_max_ns(self) -> int | None:
        """The greatest accepted event time; None before any."""
        found = int(self._head[tb.H_PARTITION_MAX])
        return None if found == tb.LONG_AGO else found

    def take_changes(self) -> list[OutRecord]:
        """As `Lane.take_changes`, the same bytes in the same order."""
        records: list[OutRecord] = []
        scratch = _scratch
        while self._head[tb.H_CHANGES]:
            written = ke.write_changes(
                self._params,
                self._head,
                self._keys,
                self._names,
                self._windows,
                self._sums,
                self._unused,
                scratch.text,
                scratch.bounds[: 2 * CHANGES_AT_ONCE + 1],
            )
            if not written:
                scratch.text = np.empty(2 * scratch.text.shape[0], np.uint8)
                continue
            cuts = scratch.bounds[: 2 * written + 1].tolist()
            text = scratch.text[: cuts[-1]].tobytes()
            records += [
                OutRecord(text[begin:middle], text[middle:end] if end > middle else None)
                for begin, middle, end in zip(cuts[:-1:2], cuts[1::2], cuts[2::2], strict=True)
            ]
        self._free_unused()
        partition_max_ns = int(self._head[tb.H_PARTITION_MAX])
        records.append(write_meta(LaneMeta(self.position, partition_max_ns, self._fingerprint, self.counts)))
        return records

    @property
    def changes_waiting(self) -> int:
        """How many windows `take_changes` would write: a commit in time keeps it from taking long."""
        return int(self._head[tb.H_CHANGES])

    def restore_in_steps(self, entries: Mapping[bytes, bytes], *, where: str) -> Generator[None, None, LaneMeta | None]:
        """As `Lane.restore_in_steps`."""
        meta, _ = read_state({META_KEY: entries[META_KEY]} if META_KEY in entries else {}, None, where=where)
        if meta is not None:
            self.check(meta, where=where)
            self._check_held(entries, where=where)
        items = iter(entries.items())
        while some := list(islice(items, WINDOWS_AT_ONCE)):
            found = _stored_windows(some)
            if found is None or (meta is None and found[1].shape[0] > 1):
                self.peek(entries, where=where)  # says what can't be read
                raise StateFormatError(f"the changelog {where} holds windows of another form than its settings say")
            self._load(*found)
            yield
        if meta is None:
            return None
        if self._spec.key_ttl_ns is not None:
            while ke.load_expiry(self._head, self._keys, self._expiry) or self._head[tb.H_NEED] == tb.NEED_EXPIRY:
                _grow(self._expiry)
        self._head[tb.H_PARTITION_MAX] = meta.partition_max_ns
        self.position = meta.offset
        self.counts = meta.counts
        return meta

    # -- records ------------------------------------------------------------------------------------------------------

    def _take_batches(
        self, batches: list[RawBatch], payloads: list[bytes | bytearray | memoryview], effects: Effects
    ) -> None:
        if not batches:
            return
        payload = payloads[0] if len(payloads) == 1 else b"".join(payloads)
        data = np.frombuffer(payload, np.uint8)
        data.flags.writeable = False
        state = np.zeros(co.D_SIZE, np.int64)
        state[co.D_BATCH], state[co.D_NEXT_OFFSET] = -1, self.position
        table = _batch_table(batches, payloads)
        view = memoryview(payload)
        scratch = _scratch

        def record(row: int) -> Record:
            batch = batches[int(scratch.columns[row, tb.C_BATCH])]
            try:
                return read_record(view, int(scratch.columns[row, tb.C_POSITION]), batch)[0]
            except BrokerError as error:
                raise self._broken(batch) from error

        status = co.D_FULL
        while status != co.D_DONE:
            filled = co.decode(
                data,
                table,
                state,
                self._params,
                self._field_names,
                self._field_bounds,
                self._shape,
                self._shape_words,
                self._shape_masks,
                self._head,
                self._keys,
                self._names,
                self._key_table,
                self._unused,
                scratch.columns,
                scratch.values,
                scratch.flagged,
                scratch.cores,
            )
            status, need = int(state[co.D_STATUS]), int(self._head[tb.H_NEED])
            if filled:
                flagged = scratch.flagged[: self._head[tb.H_FLAGGED]].tolist()
                self._take_rows(filled, flagged, record, effects)
            if status == co.D_NO_ROOM:
                self._make_room(need, effects)
            elif status in (co.D_CORRUPT, co.D_BACKWARDS):
                self._refuse(batches[int(state[co.D_BATCH])], status)
        self.position = max(self.position, batches[-1].next_offset)

    def _take_plain(self, records: list[Record], effects: Effects) -> None:
        columns = _scratch.columns
        for begin in range(0, len(records), ROUND):
            some = records[begin : begin + ROUND]
            for row, record in enumerate(some):
                assert record.offset >= self.position, f"offset {record.offset} after position {self.position}"
                self.position = record.offset + 1
                columns[row, tb.C_KEY] = tb.NONE
            self._take_rows(len(some), list(range(len(some))), some.__getitem__, effects)

    def _take_rows(self, filled: int, flagged: list[int], record: Callable[[int], Record], effects: Effects) -> None:
        """Place the ticks of rows that were decoded; ``record`` reads the record of a row again."""
        rejections: list[tuple[int, Rejection]] = []
        ends = self._decode_flagged(flagged, record, rejections, effects) if flagged else []
        head = self._head
        head[tb.H_LATE] = head[tb.H_MISROUTED] = head[tb.H_AGGREGATED] = 0
        done = 0
        for end in ends:
            self._run(done, end, effects)
            self.end_input(effects)
            done = end
        self._run(done, filled, effects)
        self._take_emissions(effects)
        if head[tb.H_MISROUTED]:
            self._report_misrouted(record, rejections, effects)
        if head[tb.H_LATE]:
            self._report_late(record, rejections, effects)
        for _, rejection in sorted(rejections, key=lambda each: each[0]):
            self._reject(rejection, effects)
        aggregated = int(head[tb.H_AGGREGATED])
        effects.records += filled
        effects.aggregated += aggregated
        self.counts.aggregated += aggregated
        self._free_unused()

    def end_input(self, effects: Effects) -> None:
        """As `Lane.end_input`."""
        self.counts.control += 1
        effects.control += 1
        scratch = _scratch
        order, done = self._keys_by_symbol(), 0
        while True:
            done = ke.end_of_input(
                order,
                done,
                self._params,
                self._head,
                self._keys,
                self._windows,
                self._sums,
                self._window_table,
                self._unused,
                scratch.emissions,
                scratch.emitted,
            )
            if self._head[tb.H_NEED] == tb.NEED_NOTHING:
                return
            self._make_room(int(self._head[tb.H_NEED]), effects)

    def _keys_by_symbol(self) -> Array:
        """The rows of the keys that have windows, in the order of their symbols."""
        rows = np.flatnonzero(self._keys[: self._head[tb.H_KEY_ROWS], tb.K_WINDOWS] > 0)
        names, keys = self._names.tobytes(), self._keys[rows]
        begins = keys[:, tb.K_NAME].tolist()
        ends = (keys[:, tb.K_NAME] + keys[:, tb.K_LENGTH]).tolist()
        symbols = [names[begin:end] for begin, end in zip(begins, ends, strict=True)]
        return rows[sorted(range(len(rows)), key=symbols.__getitem__)].astype(np.int64)

    def _run(self, begin: int, end: int, effects: Effects) -> None:
        """Place the ticks of rows from ``begin`` to ``end``."""
        head, scratch, done = self._head, _scratch, begin
        while True:
            done = ke.run(
                scratch.columns,
                scratch.values,
                done,
                end,
                self._params,
                head,
                self._keys,
                self._windows,
                self._sums,
                self._window_table,
                self._unused,
                self._idle,
                self._expiry,
                self._overdue,
                self._unflushed,
                scratch.emissions,
                scratch.emitted,
                scratch.late,
                scratch.misrouted,
            )
            if head[tb.H_NEED] == tb.NEED_NOTHING:
                return
            self._make_room(int(head[tb.H_NEED]), effects)

    def _decode_flagged(
        self,
        flagged: list[int],
        record: Callable[[int], Record],
        rejections: list[tuple[int, Rejection]],
        effects: Effects,
    ) -> list[int]:
        """Decode rows the plain way, and put what is a tick into its row; the rows where the input ends."""
        rows, symbols, times, prices, sizes = [], [], [], [], []
        ends: list[int] = []
        for row in flagged:
            found = record(row)
            try:
                decoded = self._decode(found)
            except Exception as error:
                decoded = self._failed(found, error, effects)
            if isinstance(decoded, Tick):
                rows.append(row)
                symbols.append(decoded.symbol.encode())
                times.append(decoded.ts_ns)
                prices.append(decoded.price)
                sizes.append(decoded.size)
            elif isinstance(decoded, EndOfInput):
                ends.append(row)
            else:
                assert isinstance(decoded, Rejection), "compiled lanes know no corrections"
                rejections.append((row, decoded))
        if not rows:
            return ends
        data = np.frombuffer(b"".join(symbols) or b"\0", np.uint8)
        bounds = np.zeros(len(symbols) + 1, np.int64)
        np.cumsum([len(symbol) for symbol in symbols], out=bounds[1:])
        keys = np.empty(len(symbols), np.int64)
        done = 0
        while True:
            done = tb.enter_keys(
                data,
                bounds,
                done,
                self._params,
                self._head,
                self._keys,
                self._names,
                self._key_table,
                self._unused,
                keys,
            )
            if self._head[tb.H_NEED] == tb.NEED_NOTHING:
                break
            self._make_room(int(self._head[tb.H_NEED]), None)
        scratch = _scratch
        scratch.columns[rows, tb.C_KEY] = keys
        scratch.columns[rows, tb.C_TS] = times
        scratch.columns[rows, tb.C_PRICE] = scratch.columns[rows, tb.C_AMOUNT] = tb.NONE
        scratch.values[rows, tb.V_PRICE] = prices
        scratch.values[rows, tb.V_SIZE] = sizes
        return ends

    def _report_misrouted(
        self, record: Callable[[int], Record], rejections: list[tuple[int, Rejection]], effects: Effects
    ) -> None:
        for row in _scratch.misrouted[: self._head[tb.H_MISROUTED]].tolist():
            found = record(row)
            tick = self._decode(found)
            assert isinstance(tick, Tick)
            checked = self._check_route(tick, found, effects)
            if isinstance(checked, Rejection):
                rejections.append((row, checked))

    def _report_late(
        self, record: Callable[[int], Record], rejections: list[tuple[int, Rejection]], effects: Effects
    ) -> None:
        spec, source = self._spec, self._source
        for row, expired, watermark_ns, partition_max_ns in _scratch.late[: self._head[tb.H_LATE]].tolist():
            found = record(row)
            tick = self._decode(found)
            assert isinstance(tick, Tick)
            window = next(iter(self._rules.assigner.assign(tick.ts_ns)))
            if expired:
                assert spec.key_ttl_ns is not None
                late_by_ns = partition_max_ns - spec.key_ttl_ns - window[0]
                lateness = Lateness("expired", watermark_ns, late_by_ns)
            else:
                lateness = Lateness("watermark", watermark_ns, watermark_ns - spec.lateness_ns - tick.ts_ns)
            try:
                entry = late_record(tick, lateness, window, spec.tick.unit_ns, source.topic, source.partition)
            except Exception as error:
                rejections.append((row, self._failed(found, error, effects)))
                continue
            self.counts.late += 1
            effects.late_by_reason[lateness.reason] = effects.late_by_reason.get(lateness.reason, 0) + 1
            effects.late.append(entry)

    def _payload(self, batch: RawBatch) -> bytes | bytearray | memoryview:
        try:
            return batch.payload()
        except BrokerError as error:
            raise self._broken(batch) from error

    def _unpacked(self, batch: RawBatch) -> list[Record]:
        try:
            return list(batch.records())
        except BrokerError as error:
            raise self._broken(batch) from error

    def _refuse(self, batch: RawBatch, status: int) -> None:
        is_new = max(batch.base_offset, batch.start_offset) >= self.position
        assert status != co.D_BACKWARDS or is_new, f"the batch at {batch.base_offset} is before {self.position}"
        raise self._broken(batch)

    def _broken(self, batch: RawBatch) -> BrokerError:
        source = self._source
        return BrokerError(
            f"{source.topic}[{source.partition}]: the record batch of offsets {batch.base_offset} to "
            f"{batch.next_offset - 1} has a good checksum, but its records are not in Kafka's format v2; the producer "
            "that wrote it is broken. Nothing after it can be read: start over behind it, or delete it from the log"
        )

    # -- emissions ----------------------------------------------------------------------------------------------------

    def _settle(self, silence_ns: int, effects: Effects) -> None:
        scratch = _scratch
        budget = max(SETTLE_AT_LEAST, 2 * effects.records)
        while True:
            budget = ke.settle(
                silence_ns,
                budget,
                self._params,
                self._head,
                self._windows,
                self._sums,
                self._idle,
                self._overdue,
                scratch.emissions,
                scratch.emitted,
            )
            need = int(self._head[tb.H_NEED])
            if need == tb.NEED_NOTHING:
                break
            self._make_room(need, effects)
        self._take_emissions(effects)

    def _take_emissions(self, effects: Effects) -> None:
        """Turn what was emitted into frames."""
        head, scratch = self._head, _scratch
        emitted = int(head[tb.H_EMITTED])
        if not emitted:
            return
        head[tb.H_EMITTED] = 0
        for kind, number in enumerate(np.bincount(scratch.emissions[:emitted, tb.E_KIND]).tolist()):
            if number:
                effects.emitted[_KIND_NAMES[kind]] = effects.emitted.get(_KIND_NAMES[kind], 0) + number
        done = 0
        while done < emitted:
            bounds = scratch.bounds[: 2 * FRAMES_AT_ONCE + 1]
            stop = ke.format_frames(
                scratch.emissions,
                scratch.emitted,
                done,
                emitted,
                self._params,
                self._keys,
                self._names,
                scratch.text,
                bounds,
                scratch.timestamps,
            )
            if stop == done:
                scratch.text = np.empty(2 * scratch.text.shape[0], np.uint8)
                continue
            cuts = bounds[: 2 * (stop - done) + 1].tolist()
            text = scratch.text[: cuts[-1]].tobytes()
            timestamps = scratch.timestamps[: stop - done].tolist()
            effects.frames += [
                OutRecord(text[begin:middle], text[middle:end], timestamp_ms)
                for begin, middle, end, timestamp_ms in zip(
                    cuts[:-1:2], cuts[1::2], cuts[2::2], timestamps, strict=True
                )
            ]
            done = stop

    # -- room ---------------------------------------------------------------------------------------------------------

    def _make_room(self, need: int, effects: Effects | None) -> None:
        """Make room for what a compiled function stopped for."""
        head, scratch = self._head, _scratch
        match need:
            case tb.NEED_EMISSIONS:
                assert effects is not None
                if head[tb.H_EMITTED] == 0:  # one key has more windows than there are rows
                    rows = 2 * scratch.emissions.shape[0]
                    scratch.emissions = np.empty((rows, tb.E_SIZE), np.int64)
                    scratch.emitted = np.empty((rows, tb.F_SIZE))
                self._take_emissions(effects)
            case tb.NEED_KEYS:
                if head[tb.H_KEY_ROWS] >= self._keys.shape[0]:
                    _grow(self._keys)
                    _grow(self._unused)
                if 2 * head[tb.H_KEY_NAMED] >= self._key_table.shape[0]:
                    self._key_table = _larger_table(self._key_table)
            case tb.NEED_NAMES:
                self._make_room_for_names()
            case tb.NEED_WINDOWS:
                if head[tb.H_WINDOW_ROWS] >= self._windows.shape[0]:
                    _grow(self._windows)
                    _grow(self._sums)
                if 3 * head[tb.H_WINDOWS] >= 2 * self._window_table.shape[0]:
                    self._window_table = _larger_table(self._window_table)
            case tb.NEED_IDLE:
                _grow(self._idle)
            case tb.NEED_EXPIRY:
                _grow(self._expiry)
            case tb.NEED_OVERDUE:
                _grow(self._overdue)
            case tb.NEED_UNFLUSHED:
                _grow(self._unflushed)
            case _:
                raise AssertionError(f"no room for {need}")

    def _make_room_for_names(self) -> None:
        head, size = self._head, self._names.shape[0]
        if 2 * head[tb.H_NAMES_DEAD] < size:
            size *= 2
        names = np.empty(size, np.uint8)
        tb.copy_names(head, self._keys, self._names, names)
        self._names = names

    def _free_unused(self) -> None:
        if self._head[tb.H_UNUSED_KEYS]:
            tb.free_unused(self._head, self._keys, self._key_table, self._unused)

    def _load(self, stored_keys: Array, bounds: Array, stored: Array, places: Array) -> None:
        done, windows = 0, len(bounds) - 1
        while True:
            done = ke.load_windows(
                stored_keys,
                bounds,
                stored,
                places,
                done,
                windows,
                self._params,
                self._head,
                self._keys,
                self._names,
                self._key_table,
                self._windows,
                self._sums,
                self._window_table,
                self._unused,
                self._idle,
                self._unflushed,
            )
            if self._head[tb.H_NEED] == tb.NEED_NOTHING:
                break
            self._make_room(int(self._head[tb.H_NEED]), None)
        self._free_unused()


def _is_odd(batch: RawBatch) -> bool:
    """Batches whose timestamps the columns can't hold: log append time that is none."""
    return batch.timestamp_type == 1 and batch.max_timestamp < 0


def _batch_table(batches: list[RawBatch], payloads: Sequence[bytes | bytearray | memoryview]) -> Array:
    table = np.empty((len(batches), co.B_SIZE), np.int64)
    begin = 0
    for row, (batch, payload) in enumerate(zip(batches, payloads, strict=True)):
        end = begin + len(payload)
        fixed = batch.max_timestamp if batch.timestamp_type == 1 else -1
        table[row] = (begin, end, batch.base_offset, batch.first_timestamp, fixed, batch.count, batch.start_offset)
        begin = end
    return table


def _grow(array: Array) -> None:
    """More rows, in place: a large array is remapped by the allocator, not copied; only its new rows are cleared."""
    rows = array.shape[0]
    array.resize((rows + min(rows, GROW_AT_MOST), *array.shape[1:]), refcheck=False)


def _larger_table(table: Array) -> Array:
    larger = np.full(2 * table.shape[0], tb.NONE, np.int64)
    tb.copy_table(table, larger)
    return larger


def _stored_windows(entries: Sequence[tuple[bytes, bytes]]) -> tuple[Array, Array, Array, Array] | None:
    """Keys end to end, where each begins, values end to end, where each begins; None where anything is unlike what is
    written here."""
    windows = [entry for entry in entries if entry[0][:1] == b"w"]
    if len(windows) != len(entries) and any(key[:1] not in _KINDS_OF_KEYS for key, _ in entries):
        return None
    keys = [key for key, _ in windows]
    bounds = np.zeros(len(keys) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, keys), np.int64, len(keys)), out=bounds[1:])
    sizes = np.fromiter((len(value) for _, value in windows), np.int64, len(windows))
    if windows and int(sizes.min()) < ke.WINDOW_VALUE_BYTES:
        return None
    places = np.cumsum(sizes) - sizes
    stored_keys = np.frombuffer(b"".join(keys) or b"\0", np.uint8)
    stored = np.frombuffer(b"".join([value for _, value in windows]) or b"\0", np.uint8)
    if windows:
        wanted = np.where(stored[places + 1] & ke.STORED_OWN_CLOCK, ke.WINDOW_VALUE_BYTES + 8, ke.WINDOW_VALUE_BYTES)
        as_written = (
            int(np.diff(bounds).min()) >= ke.WINDOW_KEY_BYTES
            and bool((sizes == wanted).all())
            and bool((stored[places] == ke.FORMAT).all())
            and not any(stored[places + index].any() for index in range(38, 42))
            and all(_are_sums(stored, places + wanted - ke.WINDOW_VALUE_BYTES + at) for at in ke.SUMS_AT)
        )
        if not as_written or not _is_utf8(keys):
            return None
    return stored_keys, bounds, stored, places


def _are_sums(stored: Array, begins: Array) -> bool:
    """Whether the bytes from each place on are a sum as `workers.core.decimals.DecimalSum.load` takes it."""
    decimals = stored[begins + 16]
    high = stored[begins[:, None] + np.arange(8, 16)].view(np.int64)[:, 0]
    exact = (decimals <= MOST_DECIMALS) & (high >= -LIMIT >> 64) & (high < LIMIT >> 64)
    return bool((exact | (decimals == IS_FLOAT)).all())


def _is_utf8(keys: Sequence[bytes]) -> bool:
    try:
        for key in keys:
            key[ke.WINDOW_KEY_BYTES :].decode()
    except UnicodeDecodeError:
        return False
    return True


def writes_as_orjson() -> bool:
    """Whether compiled code writes floats as the installed orjson does; its format has changed between versions."""
    values = (1e22, 1e-7, 123456789.125, 0.1 + 0.2, 1e16, 1e15, 0.00001, 5e-324, -0.0, 100.25, 1.5e300, float("inf"))
    out = np.empty(len(values) * (FLOAT_BYTES + 1) + 2, np.uint8)
    return out[: write_floats(np.array(values), out)].tobytes() == orjson.dumps(values)
