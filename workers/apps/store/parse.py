"""A record of the frames topic as a row, or why it is none.

Each field of a custom aggregation that has no column is kept, as it was written, in ``extra``; so is a bar's field that
is no number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
import orjson

from workers.apps.store.base import FrameRow, RejectedFrame
from workers.core.frames import Frame, NoFrame, decode_frame
from workers.core.records import Record

__all__ = ["MALFORMED_JSON", "NOT_A_FRAME", "NO_VALUE", "REFUSED_BY_DATABASE", "parse_frame", "reject"]

MALFORMED_JSON: Final = "malformed_json"
NOT_A_FRAME: Final = "not_a_frame"
NO_VALUE: Final = "no_value"
REFUSED_BY_DATABASE: Final = "refused_by_database"


def reject(record: Record, reason: str, message: str, topic: str, partition: int) -> RejectedFrame:
    """A record with the reason why it is no row; what the message quotes of the record is made fit for any database."""
    fit = message.encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")
    return RejectedFrame(topic, partition, record.offset, reason, fit, record.key, record.value)


def parse_frame(record: Record, topic: str, partition: int) -> FrameRow | RejectedFrame:
    """The row of a record, or the record with the reason why it has none. Never raises for what is in the record."""
    frame = decode_frame(record.value)
    found = _row(frame, topic, partition, record.offset) if isinstance(frame, Frame) else frame
    return found if isinstance(found, FrameRow) else reject(record, found.reason, found.message, topic, partition)


def _row(frame: Frame, topic: str, partition: int, offset: int) -> FrameRow | NoFrame:
    if frame.end_ms <= frame.start_ms:
        return NoFrame(NOT_A_FRAME, f"the window ends at {frame.end_ms}, but starts at {frame.start_ms}")
    if frame.count and (frame.first_ts is None or frame.last_ts is None):
        return NoFrame(NOT_A_FRAME, f"it counts {frame.count} ticks, but first_ts or last_ts is null")
    if "\x00" in frame.key or "\x00" in frame.trigger:
        return NoFrame(NOT_A_FRAME, "key or trigger contains a NUL character, which databases can't hold in text")
    try:
        items = bytes(frame.items).decode() or None
        extra = _as_object(frame.others) if frame.others else None
    except UnicodeError as error:
        return NoFrame(MALFORMED_JSON, str(error))
    return FrameRow(
        frame.key,
        frame.start_ms,
        frame.end_ms,
        frame.rev,
        frame.status,
        frame.trigger,
        frame.open,
        frame.high,
        frame.low,
        frame.close,
        frame.volume,
        frame.vwap,
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


def _as_object(fields: Mapping[str, msgspec.Raw]) -> str:
    """The JSON object of fields that stay as they were written. Raises ``UnicodeError`` where they are no text."""
    return (b"{" + b",".join(orjson.dumps(name) + b":" + bytes(raw) for name, raw in fields.items()) + b"}").decode()
