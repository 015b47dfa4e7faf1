"""A record of the frames topic as a row, or why it is none.

The usual frame is decoded in one go. One with fields of a custom aggregation goes a longer way: each field that has no
column is kept, as it was written, in ``extra``; so is a bar's field that is no number.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
import orjson

from workers.apps.store.base import FrameRow, RejectedFrame
from workers.core.reasons import Status
from workers.core.ticks import Record
from workers.times import MAX_EVENT_TIME_NS, NS_PER_MS

__all__ = ["MALFORMED_JSON", "NOT_A_FRAME", "NO_VALUE", "REFUSED_BY_DATABASE", "parse_frame", "reject"]

MALFORMED_JSON: Final = "malformed_json"
NOT_A_FRAME: Final = "not_a_frame"
NO_VALUE: Final = "no_value"
REFUSED_BY_DATABASE: Final = "refused_by_database"

_MAX_MS: Final = MAX_EVENT_TIME_NS // NS_PER_MS
_Ms = Annotated[int, msgspec.Meta(ge=-_MAX_MS, le=_MAX_MS)]
_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 2)]


class _Window(msgspec.Struct):
    """What every frame has."""

    key: str
    start: _Ms
    end: _Ms
    rev: _Count
    status: Status
    trigger: str
    count: _Count
    first_ts: _Int64 | None
    last_ts: _Int64 | None
    filled: bool = False
    items: msgspec.Raw = msgspec.Raw()


class _Bar(_Window, forbid_unknown_fields=True):
    """The usual frame."""

    open: float | None = None
    high: float | None = None
    low: float | None = None
    close: float | None = None
    volume: float | None = None
    vwap: float | None = None


_BAR_FIELDS: Final = ("open", "high", "low", "close", "volume", "vwap")
_WINDOW_FIELDS: Final = frozenset(_Window.__struct_fields__)
_decode_bar = msgspec.json.Decoder(_Bar).decode
_decode_window = msgspec.json.Decoder(_Window).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_number = msgspec.json.Decoder(float | None).decode


def reject(record: Record, reason: str, message: str, topic: str, partition: int) -> RejectedFrame:
    """A record with the reason why it is no row; what the message quotes of the record is made fit for any database."""
    fit = message.encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")
    return RejectedFrame(topic, partition, record.offset, reason, fit, record.key, record.value)


def parse_frame(record: Record, topic: str, partition: int) -> FrameRow | RejectedFrame:
    """The row of a record, or the record with the reason why it has none. Never raises for what is in the record."""
    try:
        return _row(record.value, topic, partition, record.offset)
    except _NoFrameError as error:
        return reject(record, error.reason, str(error), topic, partition)


class _NoFrameError(Exception):
    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def _row(value: bytes | None, topic: str, partition: int, offset: int) -> FrameRow:
    if value is None:
        raise _NoFrameError(NO_VALUE, "the record has no value; expected a frame's JSON object")
    try:
        try:
            frame: _Window = _decode_bar(value)
        except msgspec.ValidationError:
            frame, bar, extra = _decode_custom(value)
        else:
            assert isinstance(frame, _Bar)
            bar = (frame.open, frame.high, frame.low, frame.close, frame.volume, frame.vwap)
            extra = None
        items = bytes(frame.items).decode() or None
    except msgspec.ValidationError as error:
        raise _NoFrameError(NOT_A_FRAME, str(error)) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise _NoFrameError(MALFORMED_JSON, str(error)) from None
    if frame.end <= frame.start:
        raise _NoFrameError(NOT_A_FRAME, f"the window ends at {frame.end}, but starts at {frame.start}")
    if frame.count and (frame.first_ts is None or frame.last_ts is None):
        raise _NoFrameError(NOT_A_FRAME, f"it counts {frame.count} ticks, but first_ts or last_ts is null")
    if "\x00" in frame.key or "\x00" in frame.trigger:
        raise _NoFrameError(NOT_A_FRAME, "key or trigger contains a NUL character, which databases can't hold in text")
    return FrameRow(
        frame.key,
        frame.start,
        frame.end,
        frame.rev,
        frame.status,
        frame.trigger,
        *bar,
        frame.count,
        frame.first_ts,
        frame.last_ts,
        frame.filled,
        items if items != "null" else None,
        extra,
        topic,
        partition,
        offset,
    )


_Bars = tuple[float | None, float | None, float | None, float | None, float | None, float | None]


def _decode_custom(value: bytes) -> tuple[_Window, _Bars, str | None]:
    """Window, bar and the JSON object of all other fields. Raises what msgspec raises."""
    frame = _decode_window(value)
    numbers: dict[str, float | None] = {}
    others: list[bytes] = []
    for name, raw in _decode_fields(value).items():
        if name in _WINDOW_FIELDS:
            continue
        if name in _BAR_FIELDS:
            try:
                numbers[name] = _decode_number(raw)
                continue
            except msgspec.ValidationError:
                pass  # a custom aggregation's own idea of the name
        others.append(orjson.dumps(name) + b":" + bytes(raw))
    bar = tuple(numbers.get(name) for name in _BAR_FIELDS)
    assert len(bar) == 6
    return frame, bar, (b"{" + b",".join(others) + b"}").decode() if others else None
