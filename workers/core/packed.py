"""Records to be written that are no objects: native code holds them as one text.

A lane gives back a list of `OutRecord`, or `PackedRecords`, which look like one: an object is made only of a record
that somebody asks for. What is written at high rates is never asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, Self, overload

from workers.core.frames import OutRecord

__all__ = ["OutRecords", "PackedBatch", "PackedRecords", "joined", "oldest_ms", "size_of"]


class PackedBatch(Protocol):
    """A closed record batch of Kafka's format v2, which only lacks what its producer knows when it sends it."""

    @property
    def count(self) -> int:
        """Records."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all of it."""

    def build(self, producer_id: int, producer_epoch: int, base_sequence: int, is_transactional: bool, /) -> bytes:
        """The bytes as they are sent; -1, -1 and 0 where the producer is not idempotent."""


class PackedRecords(Protocol):
    """What a list of records can do, as far as it is needed, and what is done with all of them at once."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[OutRecord]: ...
    @overload
    def __getitem__(self, index: int, /) -> OutRecord: ...
    @overload
    def __getitem__(self, index: slice, /) -> Self: ...
    def __iadd__(self, more: Iterable[OutRecord], /) -> Self: ...
    def append(self, record: OutRecord, /) -> None: ...

    @property
    def size_bytes(self) -> int:
        """The sum of all ``OutRecord.size``."""

    @property
    def largest_bytes(self) -> int:
        """The largest ``OutRecord.size``; 0 where there is no record."""

    @property
    def oldest_ms(self) -> int | None:
        """The lowest timestamp, of those that have one."""

    def portions(self, size_bytes: int, /) -> list[Self]:
        """All of them in order, cut where a piece comes to so many bytes. They share the text."""

    def batches(
        self, *, partitions: int, partition: int | None, keyless: int, limit_bytes: int, now_ms: int, codec: int
    ) -> Sequence[tuple[int, PackedBatch]]:
        """Closed batches of at most ``limit_bytes`` before compression, and the partition each is for, in order.

        A record goes to ``partition``, or where murmur2 puts its key among ``partitions``, without a key to
        ``keyless``; ``now_ms`` is the time of those that have none, ``codec`` Kafka's number of the compression. The
        interpreter is free meanwhile.
        """


OutRecords = list[OutRecord] | PackedRecords


def joined(mine: OutRecords, more: OutRecords) -> OutRecords:
    """All records of both, in order, in ``mine`` or in what is packed: that stays packed."""
    if not len(more):
        return mine
    if not isinstance(mine, list):
        mine += more
        return mine
    if isinstance(more, list):
        mine += more
        return mine
    packed = more[:0]
    packed += mine
    packed += more
    return packed


def size_of(records: OutRecords) -> int:
    """Bytes of the records: of keys, values and headers."""
    return sum(record.size for record in records) if isinstance(records, list) else records.size_bytes


def oldest_ms(records: OutRecords) -> int | None:
    """The lowest timestamp, of those that have one."""
    if not isinstance(records, list):
        return records.oldest_ms
    return min((record.timestamp_ms for record in records if record.timestamp_ms is not None), default=None)
