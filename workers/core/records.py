"""What is read: records, and record batches as they were fetched, whose records are left packed until somebody needs
them.

What the batch path reads is the payload: Kafka's record format v2, each record as length, attributes, timestamp delta,
offset delta, key, value and headers, integers as zigzag varints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from workers.errors import BrokerError

__all__ = [
    "EXCERPT",
    "LARGEST_RECORD",
    "LargeRecord",
    "RawBatch",
    "RawRecord",
    "Record",
    "count_of",
    "end_of",
    "header_name",
    "read_record",
    "records_of",
]

Payload = bytes | bytearray | memoryview

LARGEST_RECORD: Final = 1 << 24
"""Bytes of the longest record that is read whole: no tick is as long, and 100 KB can be packed gigabytes."""
EXCERPT: Final = 1 << 18
"""Bytes that are looked at of a longer one."""


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
class RawRecord:
    """A record taken out of a batch: what a `Record` must have. ``timestamp`` is in ms, -1 for
    none."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()


@dataclass(frozen=True, slots=True)
class LargeRecord(RawRecord):
    """The begin of a record that is too long to be read: key and value as far as they go, no headers. ``length`` is in
    bytes, and all of the record's."""

    length: int = 0


@dataclass(slots=True)
class RawBatch:
    """A record batch of format v2 whose payload is still packed, and compressed until `payload` is called.

    Records below ``start_offset`` are no longer wanted (a seek into the batch). ``first_timestamp`` and
    ``max_timestamp`` are ms since the epoch; with ``timestamp_type`` 1 (log append time) every record has the latter.
    ``codec`` is the number that the format has for how it is packed, 0 for not at all. ``unpack`` unpacks all of it,
    ``reader`` reads the records of a batch, with the unwanted or without, and never has all of them in memory.
    ``len()`` is the number of wanted records, or a few more.
    """

    base_offset: int
    next_offset: int
    count: int
    first_timestamp: int
    max_timestamp: int
    timestamp_type: int
    start_offset: int
    packed: Payload = field(repr=False)
    unpack: Callable[[Payload], Payload] | None = field(default=None, repr=False)
    codec: int = 0
    reader: Callable[[RawBatch], Iterator[RawRecord]] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return min(self.count, self.next_offset - self.start_offset)

    @property
    def size_bytes(self) -> int:
        """What it takes in memory."""
        return len(self.packed)

    def payload(self) -> Payload:
        """The decompressed records, end to end. Decompressed anew by every call: a backlog stays small.

        Raises `BrokerError` where they can't be decompressed.
        """
        if self.unpack is None:
            return self.packed
        try:
            return self.unpack(self.packed)
        except MemoryError:
            raise
        except Exception as error:  # each codec has its own
            raise BrokerError(
                f"the batch at offset {self.base_offset} can't be decompressed: {type(error).__name__}: {error}"
            ) from error

    def records(self) -> Iterator[RawRecord]:
        """The wanted records one by one. Raises `BrokerError` where the payload is not what the format says."""
        lowest = self.base_offset
        for record in (self.reader or _read_at_once)(self):
            if not lowest <= record.offset < self.next_offset:
                raise BrokerError(f"the offsets of the batch at offset {self.base_offset} do not rise, or leave it")
            lowest = record.offset + 1
            if record.offset >= self.start_offset:
                yield record

    def rest(self, position: int) -> RawBatch:
        """The same batch, wanted from an offset on."""
        return replace(self, start_offset=position)

    def is_rest_of(self, batch: RawBatch) -> bool:
        """Whether it is the same batch, wanted from the same offset on."""
        return self.packed is batch.packed and self.start_offset == batch.start_offset


def _read_at_once(batch: RawBatch) -> Iterator[RawRecord]:
    """The records of a batch, unpacked as a whole."""
    payload, position = memoryview(batch.payload()), 0
    for _ in range(batch.count):
        record, position = read_record(payload, position, batch)
        yield record
    if position != len(payload):
        excess = len(payload) - position
        raise BrokerError(f"{excess} bytes follow the last record of the batch at offset {batch.base_offset}")


def count_of(items: Sequence[Record | RawBatch]) -> int:
    """How many records were fetched, those in batches included."""
    return sum(len(item) if isinstance(item, RawBatch) else 1 for item in items)


def end_of(items: Sequence[Record | RawBatch]) -> int:
    """The offset behind the last of the items, of which there must be one."""
    last = items[-1]
    return last.next_offset if isinstance(last, RawBatch) else last.offset + 1


def records_of(items: Sequence[Record | RawBatch]) -> Iterator[Record]:
    """The records of batches, for a lane that takes records; records are passed on."""
    for item in items:
        if isinstance(item, RawBatch):
            yield from item.records()
        else:
            yield item


def read_record(payload: memoryview, position: int, batch: RawBatch) -> tuple[RawRecord, int]:
    """The record at a position of a payload, and the position after it.

    A header's name that is not UTF-8 has ``\\xff`` for each byte that is none: it must be writable again, as a name.
    Raises `BrokerError` where there is no whole record.
    """
    try:
        length, position = _varint(payload, position)
        end = position + length
        if length > LARGEST_RECORD and end <= len(payload):
            return _large_record(payload[position : position + EXCERPT], batch, length), end
        delta_ms, position = _varint(payload, position + 1)  # behind the attributes
        offset_delta, position = _varint(payload, position)
        key, position = _bytes(payload, position)
        value, position = _bytes(payload, position)
        number, position = _varint(payload, position)
        if number < 0:
            raise IndexError
        headers: list[tuple[str, bytes | None]] = []
        for _ in range(number):
            name, position = _bytes(payload, position)
            content, position = _bytes(payload, position)
            headers.append((header_name(name or b""), content))
    except IndexError:
        raise BrokerError(f"the batch at offset {batch.base_offset} ends within a record") from None
    if position != end or end > len(payload):
        raise BrokerError(f"a record of the batch at offset {batch.base_offset} says {length} bytes, but has others")
    return RawRecord(*_place(batch, offset_delta, delta_ms), key, value, tuple(headers)), end


def header_name(name: bytes) -> str:
    """A header's name as text that can be written again, ``\\xff`` for each byte that is none."""
    return name.decode("utf-8", "backslashreplace")


def _large_record(body: memoryview, batch: RawBatch, length: int) -> LargeRecord:
    """What is read of a record whose body begins like that. Raises ``IndexError`` where there is no offset."""
    delta_ms, position = _varint(body, 1)
    offset_delta, position = _varint(body, position)
    key = value = None
    try:
        key_bytes, begin = _varint(body, position)
        if begin + max(0, key_bytes) <= len(body):
            key, position = _bytes(body, position)
            value_bytes, position = _varint(body, position)
            value = bytes(body[position : position + value_bytes]) if value_bytes >= 0 else None
    except IndexError:
        pass  # the key alone goes further
    return LargeRecord(*_place(batch, offset_delta, delta_ms), key, value, length=length)


def _place(batch: RawBatch, offset_delta: int, delta_ms: int) -> tuple[int, int]:
    """A record's offset and timestamp."""
    timestamp = batch.max_timestamp if batch.timestamp_type else _int64(batch.first_timestamp + delta_ms)
    return _int64(batch.base_offset + offset_delta), timestamp


def _int64(number: int) -> int:
    """As 64-bit arithmetic has it, which the format is made for."""
    return number if -(2**63) <= number < 2**63 else (number + 2**63) % 2**64 - 2**63


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = data[position]
        position += 1
        result |= (byte & 127) << shift
        if byte < 128:
            result &= 2**64 - 1
            return result >> 1 ^ -(result & 1), position
        shift += 7
        if shift > 63:
            raise IndexError


def _bytes(data: memoryview, position: int) -> tuple[bytes | None, int]:
    length, position = _varint(data, position)
    if length < 0:
        return None, position
    return bytes(data[position : position + length]), position + length
