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

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal

from workers.core.reasons import Reason
from workers.core.records import Record
from workers.times import (
    MAX_EVENT_TIME_NS,
    NS_PER_SECOND,
    UNIT_NS,
    TimestampUnit,
)

__all__ = [
    "CONTROL_HEADER",
    "DEEPEST_FRAME",
    "DEEPEST_TICK",
    "DEEPEST_WRITABLE",
    "END_OF_INPUT",
    "EndOfInput",
    "Rejection",
    "Tick",
    "TickFormat",
    "excerpt",
    "is_deeper",
    "is_end_of_input",
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
