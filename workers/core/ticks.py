"""Ticks: what a record of the input topic must be, and why it is not one.

A record becomes either a `Tick` or a `Rejection`; decoding never raises, because no record may end a worker.
The checks run in the order of `workers.core.reasons.Reason`, so that of several faults it is always the same one that
is given:

1. the value is JSON (``malformed_json``; a tombstone has no value at all), not nested deeper than `DEEPEST_TICK`, and
   an object (``wrong_type``);
2. the four fields are there (``missing_field``) and each has its type (``wrong_type``), no NaN or infinity;
3. the size is not negative, the record's key is the symbol, the time is in range and not ahead of the record's own.

``processing_failed`` is none of these: something raised that should not have (`workers.core.failures`).

A record with neither key nor value and the header ``workers.control`` is no tick but a *control record*: an
`EndOfInput`, which says that the input of its partition has ended.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal, Protocol

import orjson

from workers.core.reasons import Reason
from workers.times import (
    MAX_EVENT_TIME_NS,
    NS_PER_MS,
    NS_PER_SECOND,
    UNIT_NS,
    TimestampUnit,
    describe_duration,
    format_duration,
    format_time,
    parse_rfc3339,
)

__all__ = [
    "CONTROL_HEADER",
    "DEEPEST_FRAME",
    "DEEPEST_TICK",
    "DEEPEST_WRITABLE",
    "END_OF_INPUT",
    "EndOfInput",
    "Record",
    "Rejection",
    "Tick",
    "TickFormat",
    "excerpt",
    "finite_number",
    "is_deeper",
    "is_end_of_input",
    "tick_decoder",
    "too_deep",
    "without_value",
]

NO_TIMESTAMP: Final = -1
"""Kafka's value for a record without a timestamp."""

CONTROL_HEADER: Final = "workers.control"
END_OF_INPUT: Final = b"end-of-input"
DEEPEST_TICK: Final = 60
"""Levels of arrays and objects in a tick. Late entries and item frames quote ticks one and two levels down, and must be
readable by whoever reads JSON: the least limit that a common reader has by default is .NET's, 64."""

DEEPEST_FRAME: Final = DEEPEST_TICK + 2
"""Levels in a frame as input: it may show ticks as items."""

DEEPEST_WRITABLE: Final = 254
"""Levels that orjson writes; it reads 1,023."""

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))

_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?", re.ASCII)


class Record(Protocol):
    """What is read of a Kafka record; aiokafka's ``ConsumerRecord`` is one."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...  # ms since the epoch, or -1
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]: ...


@dataclass(frozen=True, slots=True)
class TickFormat:
    """How a tick is written: the JSON names of its fields and the unit of an integer timestamp.

    ``max_future_skew_ns`` is how far a tick's time may be ahead of its record's Kafka timestamp: one bad clock must
    not push a watermark ahead and make every later tick late. A time before ``min_time_ns`` is taken for one that was
    read in a unit too small; by default none is.
    """

    symbol: str = "symbol"
    ts: str = "ts"
    price: str = "price"
    size: str = "size"
    unit: TimestampUnit = "ms"
    max_future_skew_ns: int = 60 * NS_PER_SECOND
    on_misrouted: Literal["warn", "reject"] = "warn"
    min_time_ns: int = -MAX_EVENT_TIME_NS

    @property
    def unit_ns(self) -> int:
        """Nanoseconds in one unit of an integer timestamp."""
        return UNIT_NS[self.unit]


@dataclass(slots=True)
class Tick:
    """One trade. ``value`` is the record's value as received and ``fields`` the same, decoded."""

    symbol: str
    ts_ns: int
    price: float
    size: float
    offset: int
    value: bytes
    fields: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Rejection:
    """A record that is not a tick: the reason, and a sentence saying what was expected and found."""

    reason: Reason
    message: str
    record: Record


@dataclass(frozen=True, slots=True)
class EndOfInput:
    """A control record: the input of its partition has ended, as far as it has come. ``offset`` is the record's."""

    offset: int


def is_end_of_input(record: Record) -> bool:
    """Whether a record is the control record that ends the input: no key, no value, and that header once."""
    if record.value is not None or record.key is not None:
        return False
    return [value for name, value in record.headers if name == CONTROL_HEADER] == [END_OF_INPUT]


def without_value(record: Record, expected: str) -> EndOfInput | Rejection:
    """What a record without a value (a tombstone) is; ``expected`` says what it should have been."""
    if is_end_of_input(record):
        return EndOfInput(record.offset)
    found = [excerpt(value) for name, value in record.headers if name == CONTROL_HEADER]
    message = f"the record has no value (a tombstone); expected {expected}"
    if found:
        keyed = "" if record.key is None else f" and key {excerpt(record.key)}"
        message = (
            f"the record has no value and header {CONTROL_HEADER} {', '.join(found)}{keyed}; the only control record "
            f"known has no key and that header once, {END_OF_INPUT!r}"
        )
    return Rejection(Reason.MALFORMED_JSON, message, record)


def tick_decoder(form: TickFormat, deepest: int = DEEPEST_TICK) -> Callable[[Record], Tick | EndOfInput | Rejection]:
    """A function that turns a record into a tick, the end of the input, or the reason why it is neither; ``deepest``:
    levels of nesting."""
    names = (form.symbol, form.ts, form.price, form.size)
    symbol_name, ts_name, price_name, size_name = names
    unit_ns, skew_ns, min_ns = form.unit_ns, form.max_future_skew_ns, form.min_time_ns

    def decode(record: Record) -> Tick | EndOfInput | Rejection:
        value = record.value
        if value is None:
            return without_value(record, "a JSON object")
        try:
            fields = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            return Rejection(Reason.MALFORMED_JSON, f"{error}; the value begins {excerpt(value)}", record)
        if is_deeper(value, deepest):
            return Rejection(Reason.MALFORMED_JSON, too_deep(value, deepest), record)
        try:
            symbol, ts, price, size = fields[symbol_name], fields[ts_name], fields[price_name], fields[size_name]
        except (KeyError, TypeError, IndexError):
            return _shape_rejection(fields, names, record)
        if type(symbol) is not str:
            return _type_rejection(symbol_name, "a string", symbol, record)
        if type(ts) is float and abs(ts) >= 2**63:
            ts = _exact(value, ts_name)
        ts_ns = ts * unit_ns if type(ts) is int else _time_from_text(ts)
        if ts_ns is None:
            return _type_rejection(
                ts_name, f"an integer ({form.unit}) or an RFC 3339 string with an offset", ts, record
            )
        price_value = price if type(price) is float else _number(price)
        if price_value is None or not math.isfinite(price_value):
            return _type_rejection(price_name, "a finite number", price, record)
        size_value = size if type(size) is float else _number(size)
        if size_value is None or not math.isfinite(size_value):
            return _type_rejection(size_name, "a finite number", size, record)
        if size_value < 0:
            return Rejection(Reason.NEGATIVE_SIZE, f"{size_name} is {excerpt(size)}; expected 0 or more", record)
        key = record.key
        if key is None or key != symbol.encode():
            found = "none" if key is None else excerpt(key)
            message = f"the record's key is {found}; expected the symbol's UTF-8 bytes, {excerpt(symbol.encode())}"
            return Rejection(Reason.KEY_MISMATCH, message, record)
        if not min_ns <= ts_ns <= MAX_EVENT_TIME_NS:
            return Rejection(Reason.TIMESTAMP_OUT_OF_RANGE, _out_of_range(ts, ts_ns, form, record), record)
        sent_ms = record.timestamp
        if sent_ms != NO_TIMESTAMP and ts_ns > sent_ms * NS_PER_MS + skew_ns:
            return _future_rejection(ts_name, ts_ns, skew_ns, record)
        return Tick(symbol, ts_ns, price_value, size_value, record.offset, value, fields)

    return decode


def _number(found: object) -> float | None:
    """The float of a JSON number, or of a string that is one (exchanges send decimals as strings)."""
    if type(found) is int:
        try:
            return float(found)
        except OverflowError:
            return None
    if type(found) is str and _JSON_NUMBER.fullmatch(found):
        return float(found)
    return None


def finite_number(found: object) -> float | None:
    """The float of a price or a size as ticks may write it; None for what is none, or not finite."""
    number = found if type(found) is float else _number(found)
    return number if number is not None and math.isfinite(number) else None


def _exact(value: bytes, name: str) -> object:
    """A number too large for orjson's 64-bit integers, which it makes floats: an integer if it was written as one.

    ``json`` recurses; what comes here is not nested deeply.
    """
    found: object = json.loads(value)[name]
    return found


def _time_from_text(found: object) -> int | None:
    if type(found) is not str:
        return None
    try:
        return parse_rfc3339(found)
    except ValueError:
        return None


def is_deeper(value: bytes, levels: int) -> bool:
    """Whether JSON, which must be valid, nests arrays and objects more than ``levels`` deep, unused members included.

    Costs two counts where there are few brackets, as in all ticks; else some 40 ns a bracket, whatever they nest.
    """
    if value.count(b"[") + value.count(b"{") <= levels:
        return False
    steps = memoryview(_STRING.sub(b"", value).translate(_STEPS, _NO_BRACKETS)).cast("b")  # 1 down, -1 up
    return max(accumulate(steps), default=0) > levels


def too_deep(value: bytes, levels: int) -> str:
    """What is wrong with a value that `is_deeper`."""
    return (
        f"the value is nested deeper than {levels} levels, which few readers of JSON take; it begins {excerpt(value)}"
    )


_shallow = reprlib.Repr()
_shallow.maxlevel = 3
_shallow.maxlist = _shallow.maxdict = 20
_shallow.maxstring = _shallow.maxlong = 80


def excerpt(found: object) -> str:
    """At most 80 characters of a value as JSON gives it: a hostile record must not fill the log or a header. What is
    nested is not followed."""
    text = repr(found[:80]) if isinstance(found, bytes | str) else _shallow.repr(found)
    return text if len(text) <= 80 else text[:80] + "…"


def _shape_rejection(fields: object, names: Sequence[str], record: Record) -> Rejection:
    if not isinstance(fields, dict):
        message = f"the value is {excerpt(fields)}; expected a JSON object"
        return Rejection(Reason.WRONG_TYPE, message, record)
    missing = [name for name in names if name not in fields]
    found = ", ".join(sorted(map(excerpt, fields))[:20]) or "no fields"
    return Rejection(Reason.MISSING_FIELD, f"{', '.join(missing)} missing; found {found}", record)


def _type_rejection(name: str, expected: str, found: object, record: Record) -> Rejection:
    message = f"{name} is {excerpt(found)} ({type(found).__name__}); expected {expected}"
    return Rejection(Reason.WRONG_TYPE, message, record)


def _out_of_range(ts: object, ts_ns: int, form: TickFormat, record: Record) -> str:
    """Why a time is none that can be meant; for an integer with the unit assumed, and the one that may have been."""
    found = f"{form.ts} is {excerpt(ts)}"
    too_early = f"earlier than tick.min_time {format_time(form.min_time_ns)}"
    fits = abs(ts_ns) <= MAX_EVENT_TIME_NS
    if not isinstance(ts, int):
        return f"{found}; {too_early if fits else _TOO_LARGE}"
    which = f"that is {format_time(ts_ns)[:10]}, {too_early}" if fits else _TOO_LARGE
    return f"{found}; as {form.unit} (tick.timestamp_unit) {which}{_unit_hint(ts, form, record)}"


_TOO_LARGE: Final = "it does not fit 64-bit nanoseconds since 1970"


def _unit_hint(ts: int, form: TickFormat, record: Record) -> str:
    """In which other unit the number would be a time that can be meant, one before the record was sent."""
    sent_ns = record.timestamp * NS_PER_MS if record.timestamp != NO_TIMESTAMP else MAX_EVENT_TIME_NS
    latest_ns = min(sent_ns + form.max_future_skew_ns, MAX_EVENT_TIME_NS)
    for unit, unit_ns in UNIT_NS.items():
        if unit != form.unit and form.min_time_ns < ts * unit_ns <= latest_ns:
            return f"; the unit may be wrong: read as {unit} it would be {format_time(ts * unit_ns)[:10]}"
    return ""


def _future_rejection(name: str, ts_ns: int, skew_ns: int, record: Record) -> Rejection:
    ahead_ns = ts_ns - record.timestamp * NS_PER_MS
    message = (
        f"{name} is {describe_duration(ahead_ns)} ahead of the record's own timestamp; at most "
        f"{format_duration(skew_ns)} is allowed (tick.max_future_skew)"
    )
    return Rejection(Reason.FUTURE_TIMESTAMP, message, record)
