"""The ledger of what did not join a window: late ticks, those that operators dropped, and rejected records, each with
why and where from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import orjson

from workers.core.encoding import to_json
from workers.core.formats.corrections import Correction
from workers.core.frames import OutRecord
from workers.core.reasons import Reason
from workers.core.records import LargeRecord
from workers.core.ticks import Rejection, Tick
from workers.core.windows.window import Lateness
from workers.times import NS_PER_MS

__all__ = [
    "EXCEPTION_HEADER",
    "MESSAGE_HEADER",
    "OFFSET_HEADER",
    "PARTITION_HEADER",
    "REASON_HEADER",
    "TOPIC_HEADER",
    "TRUNCATED_HEADER",
    "dead_letter",
    "dropped_record",
    "late_record",
    "oversized_routed",
    "shrink_frame",
    "shrunk_dead_letter",
    "shrunk_late",
    "uncorrectable_record",
]

REASON_HEADER = "workers.reason"
TRUNCATED_HEADER = "workers.truncated"
_ERRORS = "__streams.errors."  # Kafka Streams' names for the headers of a dead letter (KIP-1034)
EXCEPTION_HEADER = _ERRORS + "exception"
MESSAGE_HEADER = _ERRORS + "message"
TOPIC_HEADER = _ERRORS + "topic"
PARTITION_HEADER = _ERRORS + "partition"
OFFSET_HEADER = _ERRORS + "offset"
_LATE_ENTRY_BYTES = 2_048  # of one without key and tick, generously


def late_record(
    tick: Tick, lateness: Lateness, window: tuple[int, int] | None, unit_ns: int, topic: str, partition: int
) -> OutRecord:
    """The record of the late topic: which tick, why and by how much, the window it missed, and where it came from.

    ``late_by_ns`` is how far the tick's time is below the threshold, 0 being on it; ``ts`` is in the tick's unit,
    ``start`` and ``end`` (of the window missed, the first of several) in ms, null where no window is for its time.
    """
    entry = {
        "key": tick.symbol,
        "ts": tick.ts_ns // unit_ns,
        "reason": lateness.reason,
        "late_by_ns": lateness.late_by_ns,
        "watermark_ns": lateness.watermark_ns,
        "start": window[0] // NS_PER_MS if window is not None else None,
        "end": window[1] // NS_PER_MS if window is not None else None,
        "topic": topic,
        "partition": partition,
        "offset": tick.offset,
        "tick": orjson.Fragment(tick.value),
    }
    headers = ((REASON_HEADER, lateness.reason.encode()),)
    return OutRecord(tick.symbol.encode(), to_json(entry), None, headers)


def uncorrectable_record(
    correction: Correction, explanation: str, watermark_ns: int | None, topic: str, partition: int
) -> OutRecord:
    """The late topic's record of a correction whose trade was not found: why not, and where the message came from.

    Its fields are those of a late tick; ``ts`` is the message's own time where that is an integer, else null, and
    ``start``, ``end`` and ``late_by_ns`` are null: it belongs to no window.
    """
    entry = {
        "key": correction.symbol,
        "ts": correction.ts if type(correction.ts) is int else None,
        "reason": Reason.UNCORRECTABLE,
        "late_by_ns": None,
        "watermark_ns": watermark_ns,
        "start": None,
        "end": None,
        "detail": explanation,
        "topic": topic,
        "partition": partition,
        "offset": correction.offset,
        "tick": orjson.Fragment(correction.value),
    }
    headers = ((REASON_HEADER, Reason.UNCORRECTABLE.encode()),)
    return OutRecord(correction.symbol.encode(), to_json(entry), None, headers)


def dropped_record(
    tick: Tick, reason: Reason, stage: str, detail: Mapping[str, object], unit_ns: int, topic: str, partition: int
) -> OutRecord:
    """The late topic's record of a tick that an operator dropped: which stage, why, and where it came from.

    A reader tells them from late ticks by ``reason``, or by ``stage``, which those don't have. ``ts`` and what
    ``detail`` says of times are in the tick's unit.
    """
    entry = {
        "key": tick.symbol,
        "ts": tick.ts_ns // unit_ns,
        "reason": reason,
        "stage": stage,
        "detail": detail,
        "topic": topic,
        "partition": partition,
        "offset": tick.offset,
        "tick": orjson.Fragment(tick.value),
    }
    return OutRecord(tick.symbol.encode(), to_json(entry), None, ((REASON_HEADER, reason.encode()),))


def dead_letter(rejection: Rejection, topic: str, partition: int) -> OutRecord:
    """The record of the dead-letters topic: the original, with headers that say what was wrong and where it was."""
    record = rejection.record
    headers = (
        *record.headers,
        (REASON_HEADER, rejection.reason.encode()),
        (EXCEPTION_HEADER, b"workers.ticks.Rejection"),
        (MESSAGE_HEADER, rejection.message.encode("utf-8", "backslashreplace")),
        (TOPIC_HEADER, topic.encode()),
        (PARTITION_HEADER, str(partition).encode()),
        (OFFSET_HEADER, str(record.offset).encode()),
    )
    if isinstance(record, LargeRecord):
        headers = (*headers, (TRUNCATED_HEADER, str(record.length).encode()))
    return OutRecord(record.key, record.value, None, headers)


def shrink_frame(frame: OutRecord, limit_bytes: int) -> OutRecord:
    """The dead letter for a frame too large for its topic: the frame without its items, and how large it was."""
    assert frame.value is not None
    fields = orjson.loads(frame.value)
    fields.pop("items", None)
    message = (
        f"the frame is {len(frame.value)} bytes; its topic takes {limit_bytes}. Its items are left out here; raise the "
        'topic\'s max.message.bytes, shorten the window, or use payload = "ohlcv"'
    )
    headers = (
        (REASON_HEADER, Reason.FRAME_TOO_LARGE.encode()),
        (EXCEPTION_HEADER, b"workers.sink.OversizedError"),
        (MESSAGE_HEADER, message.encode()),
    )
    return OutRecord(frame.key, to_json(fields), frame.timestamp_ms, headers)


def oversized_routed(record: OutRecord, topic: str, limit_bytes: int) -> OutRecord:
    """The dead letter for a tick that is too large for the topic it was routed to."""
    message = f"routed to {topic}, which takes records of {limit_bytes} bytes; raise its max.message.bytes"
    headers = (
        *record.headers,
        (REASON_HEADER, Reason.ROUTED_TOO_LARGE.encode()),
        (EXCEPTION_HEADER, b"workers.sink.OversizedError"),
        (MESSAGE_HEADER, message.encode()),
    )
    return OutRecord(record.key, record.value, record.timestamp_ms, headers)


def shrunk_late(record: OutRecord, limit_bytes: int) -> Iterator[OutRecord]:
    """What to write of a late record that its topic refuses, each less than the one before: without the original tick,
    which the input topic still has at the position given; without most of its key, where that alone fills the half of
    what its topic takes, as it is written twice; key, reason and offset; the same without the record's key."""
    assert record.value is not None
    entry = orjson.loads(record.value)
    entry["tick"] = None
    key = record.key
    if len(orjson.dumps(entry["key"])) > limit_bytes // 2 - _LATE_ENTRY_BYTES:
        entry["key"], key = entry["key"][:80], None
    headers = (*record.headers, (TRUNCATED_HEADER, b""))
    yield OutRecord(key, to_json(entry), record.timestamp_ms, headers)
    least = {name: entry[name] for name in ("key", "reason", "offset")}
    yield OutRecord(record.key, to_json(least), record.timestamp_ms, record.headers)
    yield OutRecord(None, to_json(least | {"key": least["key"][:8]}), record.timestamp_ms, record.headers)


def shrunk_dead_letter(record: OutRecord, excess_bytes: int) -> Iterator[OutRecord]:
    """What to write of a dead letter that its topic refuses, each less than the one before: with a value that is
    shorter by ``excess_bytes``; without value, key and the headers that it had, which leaves what this program wrote;
    key, reason and offset; reason and offset. A header says how long the value was."""
    value = record.value or b""
    names = [name for name, _ in record.headers]
    own = record.headers[len(names) - 1 - names[::-1].index(REASON_HEADER) :]  # behind those that it had
    length = ((TRUNCATED_HEADER, str(len(value)).encode()),) if TRUNCATED_HEADER not in dict(own) else ()
    excess_bytes += len(TRUNCATED_HEADER) + 32
    if excess_bytes <= len(value):
        cut = value[: len(value) - excess_bytes]
        yield OutRecord(record.key, cut, record.timestamp_ms, (*record.headers, *length))
    yield OutRecord(None, b"", record.timestamp_ms, (*own, *length))
    least = tuple((name, content) for name, content in own if name in (REASON_HEADER, OFFSET_HEADER))
    yield OutRecord(record.key, None, record.timestamp_ms, least)
    yield OutRecord(None, None, record.timestamp_ms, least)
