"""The bounded queue between Kafka and the database, and its level. Pure: no clock, no I/O.

What is being written still counts: it is in memory until its transaction has succeeded.

    fill   0 ─────── low ─────── half way ─────── high ─────── 1
            OK again  ◀── SOFT begins ──┘           └── HARD begins: reading pauses until low
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Literal, Protocol, TypeVar

from workers.ticks import Record

__all__ = ["Chunk", "FillLevels", "FrameQueue", "Level", "QueueLevels"]

Level = Literal["OK", "SOFT", "HARD"]
P = TypeVar("P")

RECORD_OVERHEAD_BYTES: Final = 300  # of the Python objects that hold a record


class QueueLevels(Protocol):
    """Says at which level a queue is; with hysteresis, so that it can't flutter."""

    @property
    def level(self) -> Level: ...

    def observe(self, fill: float) -> bool:
        """Take the queue's fill (0 to 1) into account; whether the level changed."""
        ...


class FillLevels:
    """Levels by the fraction of the queue that is taken; see the module's picture."""

    def __init__(self, high: float, low: float) -> None:
        if not 0 < low < high <= 1:
            raise ValueError(f"high is {high} and low {low}; expected 0 < low < high <= 1")
        self._high = high
        self._low = low
        self._soft = (high + low) / 2
        self._level: Level = "OK"

    @property
    def level(self) -> Level:
        return self._level

    def observe(self, fill: float) -> bool:
        before = self._level
        if fill >= self._high:
            self._level = "HARD"
        elif fill <= self._low:
            self._level = "OK"
        elif fill >= self._soft and before == "OK":
            self._level = "SOFT"
        return self._level != before


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
    def fill(self) -> float:
        """The fraction taken, by records or bytes, whichever is more."""
        return max(self.depth / self.capacity, self.depth_bytes / self.capacity_bytes)

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
