"""Frames of another application as ticks: what one must be to be the child of a window here, and why it is none.

`workers.core.frames.decode_frame` asks less: there a frame is whatever a worker may write, with any aggregation. Here
it becomes part of other bars, so each number is looked at, and a dead letter says in full what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec
import orjson

from workers.core.frames import BAR_FIELDS
from workers.core.reasons import STATUSES, Reason
from workers.core.records import Record
from workers.core.ticks import (
    DEEPEST_FRAME,
    EndOfInput,
    Rejection,
    Tick,
    excerpt,
    is_deeper,
    too_deep,
    without_value,
)
from workers.core.windows.assign import Assigner, Hopping, Tumbling
from workers.times import MAX_EVENT_TIME_NS, NS_PER_MS, UNIT_NS, TimestampUnit, format_duration, format_time

__all__ = ["Child", "ChildBar", "bar_decoder"]

_FIELDS: Final = ("key", "start", "end", "rev", "status", "trigger", "count", "first_ts", "last_ts")


class Child(msgspec.Struct, array_like=True, frozen=True):
    """A child as it is kept; times in nanoseconds. Without ticks, and not ``filled``, it is empty: numbers are 0."""

    start_ns: int
    end_ns: int
    rev: int
    count: int
    filled: bool
    open: float
    high: float
    low: float
    close: float
    volume: float
    vwap: float
    first_ns: int
    last_ns: int


@dataclass(slots=True)
class ChildBar(Tick):
    """A frame of another application on its way into a window.

    As a tick it has the child's start for a time, its close for a price and its volume for a size.
    """

    child: Child
    provisional: bool
    trigger: str


class _Malformed(Exception):
    """Why a record is no child; becomes a `Rejection`."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def bar_decoder(
    unit: TimestampUnit, assigner: Assigner, min_time_ns: int = -MAX_EVENT_TIME_NS
) -> Callable[[Record], ChildBar | EndOfInput | Rejection]:
    """A function that turns a record of a frames topic into a child, the end of the input, or the reason why it is
    neither.

    ``unit`` is that of the frames' ``first_ts`` and ``last_ts``; ``assigner`` gives the parents. A child that begins
    before ``min_time_ns`` is none.
    """

    def decode(record: Record) -> ChildBar | EndOfInput | Rejection:
        if record.value is None:
            return without_value(record, "a frame")
        try:
            fields = _object_of(record.value)
            child = _child_of(fields, UNIT_NS[unit])
            if record.key is None or record.key != str(fields["key"]).encode():
                found = "none" if record.key is None else excerpt(record.key)
                message = f"the record's key is {found}; expected the frame's, {excerpt(fields['key'])}"
                raise _Malformed(Reason.KEY_MISMATCH, message)
            if child.start_ns < min_time_ns:
                message = (
                    f"start is {fields['start']}; as ms that is {format_time(child.start_ns)[:10]}, earlier than "
                    f"tick.min_time {format_time(min_time_ns)}: the application that the frames come from may read its "
                    "ticks in a wrong unit"
                )
                raise _Malformed(Reason.TIMESTAMP_OUT_OF_RANGE, message)
            _check_place(child, assigner)
        except _Malformed as error:
            return Rejection(error.reason, error.message, record)
        return ChildBar(
            str(fields["key"]),
            child.start_ns,
            child.close,
            child.volume,
            record.offset,
            record.value,
            fields,
            child,
            fields["status"] == "provisional",
            str(fields["trigger"]),
        )

    return decode


def _object_of(value: bytes) -> Mapping[str, object]:
    try:
        fields = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise _Malformed(Reason.MALFORMED_JSON, f"{error}; the value begins {excerpt(value)}") from None
    if is_deeper(value, DEEPEST_FRAME):
        raise _Malformed(Reason.MALFORMED_JSON, too_deep(value, DEEPEST_FRAME))
    if not isinstance(fields, dict):
        raise _Malformed(Reason.WRONG_TYPE, f"the value is {excerpt(fields)}; expected a frame, a JSON object")
    missing = [name for name in (*_FIELDS, *BAR_FIELDS) if name not in fields]
    if missing:
        message = f"{', '.join(missing)} missing; expected a frame with payload ohlcv or both"
        raise _Malformed(Reason.MISSING_FIELD, message)
    return fields


def _child_of(fields: Mapping[str, object], unit_ns: int) -> Child:
    """The child that a frame's fields describe."""
    if type(fields["key"]) is not str:
        raise _wrong("key", "a string", fields["key"])
    if fields["status"] not in tuple(STATUSES):  # which may be of any type, and not hashable
        raise _wrong("status", " or ".join(STATUSES), fields["status"])
    if type(fields["trigger"]) is not str:
        raise _wrong("trigger", "a string", fields["trigger"])
    start_ns, end_ns = (_time(fields, name, NS_PER_MS) for name in ("start", "end"))
    if end_ns <= start_ns:
        raise _wrong("end", f"more than start, {fields['start']}", fields["end"])
    # Not even one tick a nanosecond is too little: with that the counts of all children of a parent fit 64 bits.
    rev, count = _whole(fields, "rev", 2**63 - 1), _whole(fields, "count", end_ns - start_ns)
    filled = fields.get("filled", False)
    if type(filled) is not bool or (filled and count):
        raise _wrong("filled", "true or false, and true only with count 0", filled)
    if not count and not filled:
        return Child(start_ns, end_ns, rev, 0, False, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0)
    opened, high, low, close = (_finite(fields, name) for name in BAR_FIELDS[:4])
    if filled:
        return Child(start_ns, end_ns, rev, 0, True, opened, high, low, close, 0.0, 0.0, 0, 0)
    first_ns, last_ns = (_time(fields, name, unit_ns) for name in ("first_ts", "last_ts"))
    # Both were floored to the unit when they were written.
    if not start_ns // unit_ns * unit_ns <= first_ns <= last_ns < end_ns:
        message = (
            f"first_ts is {fields['first_ts']} and last_ts {fields['last_ts']}, which are not times in the window; "
            "tick.timestamp_unit must be that of the application that the frames come from"
        )
        raise _Malformed(Reason.WRONG_TYPE, message)
    volume, vwap = _averaged(fields)
    return Child(start_ns, end_ns, rev, count, False, opened, high, low, close, volume, vwap, first_ns, last_ns)


def _wrong(name: str, expected: str, found: object) -> _Malformed:
    return _Malformed(Reason.WRONG_TYPE, f"{name} is {excerpt(found)} ({type(found).__name__}); expected {expected}")


def _time(fields: Mapping[str, object], name: str, unit_ns: int) -> int:
    found = fields[name]
    if type(found) is not int:
        raise _wrong(name, "an integer", found)
    if abs(found * unit_ns) > MAX_EVENT_TIME_NS:
        raise _Malformed(
            Reason.TIMESTAMP_OUT_OF_RANGE, f"{name} is {found}; it does not fit 64-bit nanoseconds since 1970"
        )
    return found * unit_ns


def _whole(fields: Mapping[str, object], name: str, most: int) -> int:
    found = fields[name]
    if type(found) is not int or not 0 <= found <= most:
        raise _wrong(name, f"an integer from 0 to {most}", found)
    return found


def _finite(fields: Mapping[str, object], name: str) -> float:
    found = fields[name]
    if type(found) is not float and type(found) is not int:
        raise _wrong(name, "a number", found)
    return float(found)  # JSON has no number that is not finite


def _averaged(fields: Mapping[str, object]) -> tuple[float, float]:
    """Volume and vwap. Null stands for what JSON can't hold, beyond the greatest float; both are then unknown."""
    if fields["volume"] is None:
        return float("inf"), float("nan")
    volume = _finite(fields, "volume")
    if volume < 0:
        raise _Malformed(Reason.NEGATIVE_SIZE, f"volume is {fields['volume']!r}; expected 0 or more")
    if fields["vwap"] is None:
        return volume, float("nan") if volume else 0.0
    return volume, _finite(fields, "vwap")


def _check_place(child: Child, assigner: Assigner) -> None:
    """See that the child lies in each of its parents whole, and that all children like it would."""
    length_ns = child.end_ns - child.start_ns
    units: tuple[int, ...] = ()
    if isinstance(assigner, Hopping):
        units = (assigner.hop_ns, assigner.size_ns)
    elif isinstance(assigner, Tumbling):
        units = (assigner.size_ns,)
    parents = assigner.assign(child.start_ns)
    if any(unit % length_ns for unit in units) or any(child.end_ns > end_ns for _, end_ns in parents):
        size = format_duration(assigner.longest_ns)
        message = (
            f"the frame is {format_duration(length_ns)} long, from {child.start_ns // NS_PER_MS} ms; it is not part of "
            f"one window of {size} here, whose size must be a multiple of that of the windows it is made of"
        )
        raise _Malformed(Reason.WRONG_WINDOW, message)
