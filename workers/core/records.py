"""What is read: records, and record batches as they were fetched, whose records are left packed until somebody needs
them.

What the batch path reads is the payload: Kafka's record format v2, each record as length, attributes, timestamp delta,
offset delta, key, value and headers, integers as zigzag varints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from workers.errors import BrokerError

__all__ = ["RawBatch", "RawRecord", "Record", "count_of", "end_of", "read_record", "records_of"]

Payload = bytes | bytearray | memoryview


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


@dataclass(slots=True)
class RawBatch:
    """A record batch of format v2 whose payload is still packed, and compressed until `payload` is called.

    Records below ``start_offset`` are no longer wanted (a seek into the batch). ``first_timestamp`` and
    ``max_timestamp`` are ms since the epoch; with ``timestamp_type`` 1 (log append time) every record has the latter.
    ``codec`` is the number that the format has for how it is packed, 0 for not at all. ``len()`` is the number of
    records, the unwanted included.
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

    def __len__(self) -> int:
        return self.count

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
        payload = memoryview(self.payload())
        position, lowest = 0, self.base_offset
        for _ in range(self.count):
            record, position = read_record(payload, position, self)
            if not lowest <= record.offset < self.next_offset:
                raise BrokerError(f"the offsets of the batch at offset {self.base_offset} do not rise, or leave it")
            lowest = record.offset + 1
            if record.offset >= self.start_offset:
                yield record
        if position != len(payload):
            excess = len(payload) - position
            raise BrokerError(f"{excess} bytes follow the last record of the batch at offset {self.base_offset}")


def count_of(items: Sequence[Record] | Sequence[RawBatch]) -> int:
    """How many records were fetched, those in batches included."""
    return sum(len(item) if isinstance(item, RawBatch) else 1 for item in items)


def end_of(items: Sequence[Record] | Sequence[RawBatch]) -> int:
    """The offset behind the last of the items, of which there must be one."""
    last = items[-1]
    return last.next_offset if isinstance(last, RawBatch) else last.offset + 1


def records_of(items: Sequence[Record] | Sequence[RawBatch]) -> Iterator[Record]:
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
            headers.append(((name or b"").decode("utf-8", "backslashreplace"), content))
    except IndexError:
        raise BrokerError(f"the batch at offset {batch.base_offset} ends within a record") from None
    if position != end or end > len(payload):
        raise BrokerError(f"a record of the batch at offset {batch.base_offset} says {length} bytes, but has others")
    timestamp = batch.max_timestamp if batch.timestamp_type else _int64(batch.first_timestamp + delta_ms)
    return RawRecord(_int64(batch.base_offset + offset_delta), timestamp, key, value, tuple(headers)), end


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
