"""The bounded queue between Kafka and the database. Pure: no clock, no I/O.

What is being written still counts: it is in memory until its transaction has succeeded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from workers.core.records import Record

__all__ = ["Chunk", "FrameQueue"]

P = TypeVar("P")

RECORD_OVERHEAD_BYTES: Final = 300  # of the Python objects that hold a record


@dataclass(slots=True)
class Chunk(Generic[P]):
    """Consecutive records of a partition. ``next_offset`` is where to read on behind them, at the least the offset
    after the last; more where only transaction markers follow."""

    owner: P
    records: Sequence[Record]
    next_offset: int


class FrameQueue(Generic[P]):
    """Chunks in the order of their arrival, counted in records and bytes."""

    def __init__(self, capacity: int, capacity_bytes: int) -> None:
        self.capacity = capacity
        self.capacity_bytes = capacity_bytes
        self.depth = 0
        self.depth_bytes = 0
        self.waiting = 0  # records not yet taken
        self._chunks: deque[Chunk[P]] = deque()

    @property
    def load(self) -> int:
        """How full it is, in records; where records are large, as many as fill the same part of the capacity."""
        return max(self.depth, self.depth_bytes * self.capacity // self.capacity_bytes)

    @property
    def room(self) -> int:
        """How many more records may come; 0 also where the bytes are used up."""
        return max(self.capacity - self.depth, 0) if self.depth_bytes < self.capacity_bytes else 0

    def add(self, chunk: Chunk[P]) -> None:
        """Take in fetched records; the caller fetched no more than there was room for."""
        assert chunk.records
        assert len(chunk.records) <= self.room
        self._chunks.append(chunk)
        self.waiting += len(chunk.records)
        self.depth += len(chunk.records)
        self.depth_bytes += size_bytes(chunk.records)

    def take(self, limit: int) -> list[Chunk[P]]:
        """The next chunks, of at most ``limit`` records in all; they count until `release`."""
        taken: list[Chunk[P]] = []
        while self._chunks and limit > 0:
            chunk = self._chunks.popleft()
            if len(chunk.records) > limit:
                rest = chunk.records[limit:]
                self._chunks.appendleft(Chunk(chunk.owner, rest, chunk.next_offset))
                chunk = Chunk(chunk.owner, chunk.records[:limit], rest[0].offset)
            taken.append(chunk)
            limit -= len(chunk.records)
            self.waiting -= len(chunk.records)
        return taken

    def release(self, chunks: Sequence[Chunk[P]]) -> None:
        """What was taken is stored, or given up."""
        for chunk in chunks:
            self.depth -= len(chunk.records)
            self.depth_bytes -= size_bytes(chunk.records)
        assert self.depth >= self.waiting >= 0

    def drop(self, gone: Callable[[P], bool]) -> None:
        """Forget the waiting chunks of owners that are gone; whoever owns the partition next reads them again."""
        dropped = [chunk for chunk in self._chunks if gone(chunk.owner)]
        self._chunks = deque(chunk for chunk in self._chunks if not gone(chunk.owner))
        self.waiting -= sum(len(chunk.records) for chunk in dropped)
        self.release(dropped)


def size_bytes(records: Sequence[Record]) -> int:
    """Memory that records take, roughly."""
    return sum(RECORD_OVERHEAD_BYTES + len(record.key or b"") + len(record.value or b"") for record in records)
