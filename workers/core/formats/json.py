"""Ticks as JSON: which record is one, and the reason why another is none. `workers.core.ticks` has the rules."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Final

import orjson

from workers.core.reasons import Reason
from workers.core.records import Record
from workers.core.ticks import (
    DEEPEST_TICK,
    NO_TIMESTAMP,
    EndOfInput,
    Rejection,
    Tick,
    TickFormat,
    excerpt,
    is_deeper,
    too_deep,
    without_value,
)
from workers.times import (
    MAX_EVENT_TIME_NS,
    NS_PER_MS,
    UNIT_NS,
    describe_duration,
    format_duration,
    format_time,
    parse_rfc3339,
)

__all__ = ["finite_number", "tick_decoder"]

_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?", re.ASCII)


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
