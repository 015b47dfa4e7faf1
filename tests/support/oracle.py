"""What the system must produce, modelled by brute force.

The oracle reads the log of one partition from its first record to its last and says which non-provisional frames each
key must get, which ticks are late, which records are rejected, and why. Tests compare the real thing with it. It is
written apart from the package on purpose: it imports nothing from it, so that the two can only agree by both being
right.

How it stays plain: a window is the list of its ticks, and a frame is computed from that list anew each time one is
due. Nothing is incremental, nothing is batched, no clock is read. Two shortcuts keep long logs bearable, and both only
skip scans that could not find anything: `_Lane._expire` and `_Lane._close_after_clock_moved`.

The rules, in the order in which they are applied to a record:

1. `_reject_or_tick`: is it a tick at all? The first reason that applies is the one given.
2. The clock (the key's, or the partition's) is moved by the tick, in thought: `watermark = max_ts - lag`.
3. Late by watermark: `ts <= watermark - allowed_lateness`. Else expired: further than `key_ttl` behind the greatest
   accepted event time of the partition. A late tick changes nothing at all, not even the clock.
4. The tick joins window `[start, start + size)`, or those that `windows_of` names. If such a window is closed already,
   it comes out again, at once.
5. Windows that the clock has reached come out, in order of start.
6. Keys that the partition has left more than `key_ttl` behind give up their windows and are forgotten.

A record with neither key nor value whose one header `workers.control` is `end-of-input` says that the input has ended:
what has not come out comes out, `final`, by key and start; no window is kept; and each clock moves to where exactly the
times before the end of its last window are late, if it is not there already.
"""

from __future__ import annotations

import calendar
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import orjson

from tests.support.sums_oracle import totals_of, vwap_of

__all__ = [
    "Config",
    "Frame",
    "LateRecord",
    "Outcome",
    "Record",
    "Rejected",
    "frame_bytes",
    "murmur2",
    "partition_of",
    "run",
    "run_topic",
]

HOUR_NS = 3_600 * 10**9
UNIT_NS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
NEVER_NS = 10**30  # a time to live longer than any two times are apart: nothing expires
LARGEST_EVENT_TIME_NS = 2**63 - 1 - 2 * 366 * 24 * HOUR_NS  # room left for window ends, lags and times to live
NO_RECORD_TIMESTAMP = -1

Frame = dict[str, object]
"""One frame; its keys are in wire order. `items`, if there, is a list of the values' bytes as they were received."""


@dataclass(frozen=True)
class Config:
    """What the frames depend on. All durations are nanoseconds.

    `windows_of`, where given, says which windows a time is in, by start; then `size_ns` means nothing. None at all: the
    tick is outside of all sessions. It is observed, as any tick is, and joins nothing.
    """

    size_ns: int
    lag_ns: int
    allowed_lateness_ns: int = 0
    key_ttl_ns: int = 24 * HOUR_NS
    emit: Literal["eager", "final"] = "eager"
    watermark_scope: Literal["key", "partition"] = "key"
    payload: Literal["ohlcv", "items", "both"] = "ohlcv"
    unit: Literal["s", "ms", "us", "ns"] = "ms"
    fields: tuple[str, str, str, str] = ("symbol", "ts", "price", "size")
    max_future_skew_ns: int = 60 * 10**9
    partitions: int | None = None  # how many the ticks topic has; None: do not check where keys arrive
    on_misrouted: Literal["warn", "reject"] = "warn"
    windows_of: Callable[[int], Sequence[tuple[int, int]]] | None = None
    min_time_ns: int = -LARGEST_EVENT_TIME_NS


@dataclass(frozen=True)
class Record:
    """One record of the ticks topic. `timestamp_ms` is Kafka's, -1 if the record has none."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()

    @property
    def is_end(self) -> bool:
        """Whether it says that the input has ended."""
        controls = [value for name, value in self.headers if name == "workers.control"]
        return self.key is None and self.value is None and controls == [b"end-of-input"]


@dataclass(frozen=True)
class LateRecord:
    """A tick that came too late, with what it was judged by; `key` is the symbol, all times are nanoseconds."""

    offset: int
    key: str
    ts_ns: int
    reason: Literal["watermark", "expired", "outside_session"]
    window_start_ns: int | None
    window_end_ns: int | None
    watermark_ns: int
    late_by_ns: int
    partition: int = 0


@dataclass(frozen=True)
class Rejected:
    """A record that is not an acceptable tick, and the first reason why not."""

    offset: int
    reason: str
    partition: int = 0


@dataclass
class Outcome:
    """Everything one partition (or, merged, a topic) must produce.

    `frames` holds per symbol the sequence of its non-provisional frames. `misrouted` counts the well-formed ticks seen
    on a partition where their key does not belong, whether they were then rejected or not.
    """

    frames: dict[str, list[Frame]] = field(default_factory=dict)
    late: list[LateRecord] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    ticks_in: int = 0
    aggregated: int = 0
    control: int = 0
    misrouted: int = 0

    def wire(self) -> dict[str, list[bytes]]:
        """The frames as the bytes that must be found in the frames topic, per symbol, in order."""
        return {key: [frame_bytes(frame) for frame in frames] for key, frames in self.frames.items()}


def run(config: Config, records: Sequence[Record], *, partition: int = 0, end_of_input: bool = False) -> Outcome:
    """What the records of one partition, in log order, must produce.

    With `end_of_input` the input is over for good: every window of which no frame was emitted yet comes out as well,
    with status `final` and trigger `end`, per key in order of start.
    """
    lane = _Lane(config, partition)
    for record in records:
        lane.take(record)
    if end_of_input:
        lane.end()
    outcome = lane.outcome
    assert outcome.ticks_in == outcome.aggregated + len(outcome.late) + len(outcome.rejected) + outcome.control
    return outcome


def run_topic(config: Config, partitions: Mapping[int, Sequence[Record]], *, end_of_input: bool = False) -> Outcome:
    """The outcomes of a topic's partitions put together, in order of partition number.

    A symbol that was sent to several partitions has its frames of the lower partition first; each partition knows only
    its own records of it.
    """
    merged = Outcome()
    for partition in sorted(partitions):
        outcome = run(config, partitions[partition], partition=partition, end_of_input=end_of_input)
        for key, frames in outcome.frames.items():
            merged.frames.setdefault(key, []).extend(frames)
        merged.late += outcome.late
        merged.rejected += outcome.rejected
        merged.ticks_in += outcome.ticks_in
        merged.aggregated += outcome.aggregated
        merged.control += outcome.control
        merged.misrouted += outcome.misrouted
    return merged


def frame_bytes(frame: Frame) -> bytes:
    """The exact bytes of a frame on the wire: compact JSON, UTF-8, and the items' bytes just as they were received."""
    wire = dict(frame)
    if "items" in wire:
        items = wire["items"]
        assert isinstance(items, list)
        wire["items"] = [orjson.Fragment(item) for item in items]
    return orjson.dumps(wire)


# ---------------------------------------------------------------------------------------------------------------------
# One partition


@dataclass(frozen=True)
class _Tick:
    symbol: str
    ts_ns: int
    price: float
    size: float
    value: bytes


@dataclass
class _Window:
    start_ns: int
    end_ns: int
    ticks: list[_Tick] = field(default_factory=list)
    next_rev: int = 0

    @property
    def was_emitted(self) -> bool:
        return self.next_rev > 0


@dataclass
class _Key:
    max_ts_ns: int
    windows: dict[int, _Window] = field(default_factory=dict)

    def in_order_of_start(self) -> list[_Window]:
        return [self.windows[start] for start in sorted(self.windows)]


class _Lane:
    def __init__(self, config: Config, partition: int) -> None:
        assert config.size_ns > 0
        assert config.lag_ns >= 0
        assert config.allowed_lateness_ns >= 0
        self.config = config
        self.partition = partition
        self.outcome = Outcome()
        self.keys: dict[str, _Key] = {}
        self.max_ts_ns: int | None = None  # greatest accepted event time of the partition
        self.no_key_is_older_than_ns: int | None = None

    def take(self, record: Record) -> None:
        self.outcome.ticks_in += 1
        if record.is_end:
            self.outcome.control += 1
            self.end_of_input()
            return
        verdict = _reject_or_tick(self.config, record)
        if isinstance(verdict, _Tick) and self._is_misrouted(verdict):
            self.outcome.misrouted += 1
            if self.config.on_misrouted == "reject":
                verdict = "misrouted"
        if isinstance(verdict, str):
            self.outcome.rejected.append(Rejected(record.offset, verdict, self.partition))
            return
        late = self._judge(record.offset, verdict)
        if late is not None:
            self.outcome.late.append(late)
            return
        self.outcome.aggregated += 1
        self._accept(verdict)

    def end(self) -> None:
        for symbol, key in self.keys.items():
            for window in key.in_order_of_start():
                if not window.was_emitted:
                    self._emit(symbol, window, "final", "end")
        self.keys.clear()

    def end_of_input(self) -> None:
        """Everything so far is over; ticks of later windows may still come."""
        config = self.config
        ends: list[int] = []
        for symbol in sorted(self.keys):
            key = self.keys[symbol]
            for window in key.in_order_of_start():
                if not window.was_emitted:
                    self._emit(symbol, window, "final", "end")
            mine = [window.end_ns for window in key.windows.values()]
            if mine and config.watermark_scope == "key":
                key.max_ts_ns = max(key.max_ts_ns, _all_before_are_late(config, max(mine)))
            ends += mine
            key.windows.clear()
        if ends and config.watermark_scope == "partition":
            assert self.max_ts_ns is not None
            self.max_ts_ns = max(self.max_ts_ns, _all_before_are_late(config, max(ends)))
            self._expire()

    def _is_misrouted(self, tick: _Tick) -> bool:
        partitions = self.config.partitions
        return partitions is not None and partition_of(tick.symbol.encode(), partitions) != self.partition

    def _judge(self, offset: int, tick: _Tick) -> LateRecord | None:
        """The reasons to call a tick late, or None. Changes nothing, unless the tick is outside of all sessions."""
        config = self.config
        max_ts_ns = self._clock(tick.symbol)
        watermark_ns = (tick.ts_ns if max_ts_ns is None else max(max_ts_ns, tick.ts_ns)) - config.lag_ns
        threshold_ns = watermark_ns - config.allowed_lateness_ns
        windows = self._windows(tick)
        if not windows:
            self._pass_by(tick)
            return LateRecord(
                offset, tick.symbol, tick.ts_ns, "outside_session", None, None, watermark_ns, 0, self.partition
            )
        start_ns, end_ns = windows[0]
        reason: Literal["watermark", "expired"]
        if tick.ts_ns <= threshold_ns:
            reason, late_by_ns = "watermark", threshold_ns - tick.ts_ns
        elif self.max_ts_ns is not None and self.max_ts_ns - start_ns > config.key_ttl_ns:
            # Its window may have been forgotten with its key; it must not come back with the same rev.
            reason, late_by_ns = "expired", self.max_ts_ns - config.key_ttl_ns - start_ns
        else:
            return None
        return LateRecord(
            offset, tick.symbol, tick.ts_ns, reason, start_ns, end_ns, watermark_ns, late_by_ns, self.partition
        )

    def _accept(self, tick: _Tick) -> None:
        key = self.keys.setdefault(tick.symbol, _Key(tick.ts_ns))
        clock_before_ns = self._clock(tick.symbol)
        partition_before_ns = self.max_ts_ns
        key.max_ts_ns = max(key.max_ts_ns, tick.ts_ns)
        self.max_ts_ns = tick.ts_ns if self.max_ts_ns is None else max(self.max_ts_ns, tick.ts_ns)
        clock_ns = self._clock(tick.symbol)
        assert clock_ns is not None
        watermark_ns = clock_ns - self.config.lag_ns

        for start_ns, end_ns in self._windows(tick):
            window = key.windows.setdefault(start_ns, _Window(start_ns, end_ns))
            window.ticks.append(tick)
            if end_ns <= watermark_ns and self.config.emit == "eager":
                assert clock_ns == clock_before_ns, "a tick that moves the clock is ahead of every closed window"
                self._emit(tick.symbol, window, "closed", "late")

        self._close_after_clock_moved(tick.symbol, clock_before_ns, watermark_ns)
        if partition_before_ns is None or self.max_ts_ns > partition_before_ns:
            self._expire()
        if self.no_key_is_older_than_ns is None or key.max_ts_ns < self.no_key_is_older_than_ns:
            self.no_key_is_older_than_ns = key.max_ts_ns

    def _pass_by(self, tick: _Tick) -> None:
        """Observe a tick that joins nothing: it moves the partition's clock, and its key's where there is one."""
        clock_before_ns, partition_before_ns = self._clock(tick.symbol), self.max_ts_ns
        key = self.keys.get(tick.symbol)
        if key is not None:
            key.max_ts_ns = max(key.max_ts_ns, tick.ts_ns)
        self.max_ts_ns = tick.ts_ns if self.max_ts_ns is None else max(self.max_ts_ns, tick.ts_ns)
        clock_ns = self._clock(tick.symbol)
        if clock_ns is not None:
            self._close_after_clock_moved(tick.symbol, clock_before_ns, clock_ns - self.config.lag_ns)
        if self.keys and (partition_before_ns is None or self.max_ts_ns > partition_before_ns):
            self._expire()

    def _close_after_clock_moved(self, symbol: str, clock_before_ns: int | None, watermark_ns: int) -> None:
        """Close every window of the clock's keys that the watermark has reached.

        All windows end on multiples of the size. So unless the watermark, or the watermark less the allowed lateness,
        has come to another multiple, no window's state can have changed, and the keys need no scan.
        """
        if self.config.watermark_scope == "key":
            self._close(symbol, watermark_ns)
            return
        size_ns, lateness_ns = self.config.size_ns, self.config.allowed_lateness_ns
        if clock_before_ns is not None and self.config.windows_of is None:
            before_ns = clock_before_ns - self.config.lag_ns
            same_closed = before_ns // size_ns == watermark_ns // size_ns
            same_final = (before_ns - lateness_ns) // size_ns == (watermark_ns - lateness_ns) // size_ns
            if same_closed and same_final:
                return
        for each in list(self.keys):
            self._close(each, watermark_ns)

    def _close(self, symbol: str, watermark_ns: int) -> None:
        key = self.keys[symbol]
        for window in key.in_order_of_start():
            end_ns = window.end_ns
            is_closed = watermark_ns >= end_ns
            is_final = watermark_ns >= end_ns + self.config.allowed_lateness_ns
            is_due = is_closed if self.config.emit == "eager" else is_final
            if is_due and not window.was_emitted:
                self._emit(symbol, window, "final" if is_final else "closed", "watermark")
            if is_final:
                del key.windows[window.start_ns]

    def _expire(self) -> None:
        """Forget every key that the partition has left more than `key_ttl` behind.

        `no_key_is_older_than_ns` is a lower bound of all keys' greatest event times: while even that is near enough,
        no key can have expired.
        """
        assert self.max_ts_ns is not None
        horizon_ns = self.max_ts_ns - self.config.key_ttl_ns
        if self.no_key_is_older_than_ns is None or self.no_key_is_older_than_ns >= horizon_ns:
            return
        for symbol in [symbol for symbol, key in self.keys.items() if key.max_ts_ns < horizon_ns]:
            for window in self.keys[symbol].in_order_of_start():
                if not window.was_emitted:
                    self._emit(symbol, window, "final", "expiry")
            del self.keys[symbol]
        self.no_key_is_older_than_ns = min((key.max_ts_ns for key in self.keys.values()), default=None)

    def _clock(self, symbol: str) -> int | None:
        """The greatest event time of the clock that rules a symbol."""
        if self.config.watermark_scope == "partition":
            return self.max_ts_ns
        return self.keys[symbol].max_ts_ns if symbol in self.keys else None

    def _windows(self, tick: _Tick) -> Sequence[tuple[int, int]]:
        if self.config.windows_of is not None:
            return self.config.windows_of(tick.ts_ns)
        start_ns = tick.ts_ns // self.config.size_ns * self.config.size_ns  # floors below zero, too
        return [(start_ns, start_ns + self.config.size_ns)]

    def _emit(self, symbol: str, window: _Window, status: str, trigger: str) -> None:
        frame = _frame(self.config, symbol, window, status, trigger)
        self.outcome.frames.setdefault(symbol, []).append(frame)
        window.next_rev += 1


def _all_before_are_late(config: Config, end_ns: int) -> int:
    """The clock by which a tick 1 ns before `end_ns` is on the threshold."""
    return end_ns - 1 + config.allowed_lateness_ns + config.lag_ns


def _frame(config: Config, symbol: str, window: _Window, status: str, trigger: str) -> Frame:
    ticks = window.ticks
    unit_ns = UNIT_NS[config.unit]
    frame: Frame = {
        "key": symbol,
        "start": window.start_ns // 1_000_000,
        "end": window.end_ns // 1_000_000,
        "rev": window.next_rev,
        "status": status,
        "trigger": trigger,
    }
    if config.payload != "items":
        volume, notional = totals_of((tick.price, tick.size) for tick in ticks)  # in log order
        frame["open"] = min(ticks, key=lambda tick: tick.ts_ns).price  # min and max take the first of equals
        frame["high"] = max(tick.price for tick in ticks)
        frame["low"] = min(tick.price for tick in ticks)
        frame["close"] = max(reversed(ticks), key=lambda tick: tick.ts_ns).price
        frame["volume"] = _finite_or_none(volume.value)
        low, high = min(tick.price for tick in ticks), max(tick.price for tick in ticks)
        frame["vwap"] = vwap_of(volume, notional, low, high)
    frame["count"] = len(ticks)
    frame["first_ts"] = min(tick.ts_ns for tick in ticks) // unit_ns
    frame["last_ts"] = max(tick.ts_ns for tick in ticks) // unit_ns
    if config.payload != "ohlcv":
        frame["items"] = [tick.value for tick in ticks]
    return frame


def _finite_or_none(number: float) -> float | None:
    return number if math.isfinite(number) else None


# ---------------------------------------------------------------------------------------------------------------------
# One record


def _reject_or_tick(config: Config, record: Record) -> _Tick | str:
    """The tick that a record holds, or the first reason to reject it. Routing is not looked at here."""
    if record.value is None:
        return "malformed_json"
    try:
        payload = orjson.loads(record.value)
    except orjson.JSONDecodeError:
        return "malformed_json"
    if not isinstance(payload, dict):
        return "wrong_type"
    if any(name not in payload for name in config.fields):
        return "missing_field"

    symbol, ts, price, size = (payload[name] for name in config.fields)
    if isinstance(ts, float) and abs(ts) >= 2.0**63:
        ts = json.loads(record.value.decode())[config.fields[1]]  # orjson reads integers beyond 64 bits as floats
    if not isinstance(symbol, str):
        return "wrong_type"
    ts_ns = _event_time_ns(ts, UNIT_NS[config.unit])
    price_number, size_number = _number(price), _number(size)
    if ts_ns is None or price_number is None or size_number is None:
        return "wrong_type"
    if size_number < 0:
        return "negative_size"
    if record.key != symbol.encode():
        return "key_mismatch"
    if abs(ts_ns) > LARGEST_EVENT_TIME_NS or ts_ns < config.min_time_ns:
        return "timestamp_out_of_range"
    if record.timestamp_ms != NO_RECORD_TIMESTAMP:
        latest_ns = record.timestamp_ms * 1_000_000 + config.max_future_skew_ns
        if ts_ns > latest_ns:
            return "future_timestamp"
    return _Tick(symbol, ts_ns, price_number, size_number, record.value)


_JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")


def _number(value: object) -> float | None:
    """A finite float64 from a JSON number or a string that is spelled like one; None if it is neither."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        if not _JSON_NUMBER.fullmatch(value):
            return None
    elif not isinstance(value, int | float):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _event_time_ns(value: object, unit_ns: int) -> int | None:
    """Nanoseconds since the epoch, of any size, from an integer in the unit or an RFC 3339 string; else None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value * unit_ns
    return _rfc3339_ns(value) if isinstance(value, str) else None


_RFC3339 = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})"
    r"[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)
_DAYS_BEFORE_1970 = 719_468  # from 0000-03-01, the day from which `_days` counts


def _rfc3339_ns(text: str) -> int | None:
    """Second 60 counts as sixty seconds, so it is the next minute; digits after the ninth are cut off."""
    match = _RFC3339.fullmatch(text)
    if not match:
        return None
    year, month, day, hour, minute, second = map(int, match.groups()[:6])
    fraction, sign, offset_hours, offset_minutes = match.groups()[6:]
    offset = (int(offset_hours or 0), int(offset_minutes or 0))
    if not (1 <= month <= 12 and 1 <= day <= _days_in_month(year, month)):
        return None
    if hour > 23 or minute > 59 or second > 60 or offset[0] > 23 or offset[1] > 59:
        return None
    east_s = (offset[0] * 3_600 + offset[1] * 60) * (-1 if sign == "-" else 1)
    seconds = _days(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second - east_s
    return seconds * 10**9 + int((fraction or "0")[:9].ljust(9, "0"))


def _days_in_month(year: int, month: int) -> int:
    return 29 if month == 2 and calendar.isleap(year) else (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)[month - 1]


def _days(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01 in the proleptic Gregorian calendar; years begin in March, so that leap days come last."""
    march_year = year - (month <= 2)
    day_of_march_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    leap_days = march_year // 4 - march_year // 100 + march_year // 400
    return march_year * 365 + leap_days + day_of_march_year - _DAYS_BEFORE_1970


# ---------------------------------------------------------------------------------------------------------------------
# Where a key belongs


def partition_of(key: bytes, partitions: int) -> int:
    """The partition to which Kafka's default partitioner sends a key."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def murmur2(data: bytes) -> int:
    """The 32-bit hash, unsigned, that Kafka's clients compute of record keys."""
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    h = 0x9747B28C ^ len(data)
    whole = len(data) // 4 * 4
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = h * m & mask ^ k
    if whole < len(data):
        h = (h ^ int.from_bytes(data[whole:], "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15
