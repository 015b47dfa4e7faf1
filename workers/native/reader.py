"""The records of a batch, unpacked piece by piece by native code, for lanes that take records."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from workers import _native
from workers.core.records import LargeRecord, RawBatch, RawRecord, header_name
from workers.errors import BrokerError

__all__ = ["read_batch", "record_of"]

_Parts = tuple[int, int, bytes | None, bytes | None, Sequence[tuple[bytes, bytes | None]]]


def record_of(parts: _Parts, length: int | None) -> RawRecord:
    """A record as native code gives it; ``length`` where only its begin was read."""
    offset, timestamp, key, value, headers = parts
    if length is not None:
        return LargeRecord(offset, timestamp, key, value, length=length)
    names = tuple((header_name(name), content) for name, content in headers) if headers else ()
    return RawRecord(offset, timestamp, key, value, names)


def read_batch(batch: RawBatch, most_passed: int = sys.maxsize) -> Iterator[RawRecord]:
    """The wanted records of a batch. Raises `BrokerError` where it is not what Kafka's format says, and where more than
    ``most_passed`` bytes of unwanted ones are before them."""
    fixed = batch.max_timestamp if batch.timestamp_type == 1 else None
    try:
        reader = _native.BatchReader(
            bytes(batch.packed),
            batch.codec,
            batch.base_offset,
            batch.count,
            batch.first_timestamp,
            fixed,
            batch.start_offset,
            most_passed,
        )
        while (found := reader.read()) is not None:
            yield record_of(*found)
    except _native.BatchError as error:
        raise BrokerError(f"the batch at offset {batch.base_offset} can't be read: {error}") from error
