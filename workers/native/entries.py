"""What a compacted topic holds, from its record batches: no Python object is made for a record."""

from __future__ import annotations

from workers import _native
from workers.core.records import RawBatch
from workers.errors import BrokerError

__all__ = ["put_entries"]


def put_entries(entries: dict[bytes, bytes], batch: RawBatch, *, where: str) -> None:
    """Take the next batch into ``entries``, the last value of each key; a key whose record has no value is dropped.

    Raises `BrokerError`, which names ``where``, if the batch is not what Kafka's format says.
    """
    try:
        _native.put_entries(
            entries, bytes(batch.packed), batch.codec, batch.base_offset, batch.count, batch.start_offset
        )
    except _native.BatchError as error:
        offsets = f"{batch.base_offset} to {batch.next_offset - 1}"
        raise BrokerError(f"{where}: the record batch of offsets {offsets} can't be read: {error}") from error
