"""A step of a lane: how much it takes, and how much may come of it, before others and a commit get their turn.

    items ─▶ process(items, limit) ─▶ Effects ── rest ─▶ the next step

Kafka takes a batch of 160 KiB that unpacks to gigabytes, and one of a million records. So a step may end within a
batch, behind any record: where steps end changes nothing that comes out, as where batches end doesn't.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from workers.core.effects import Effects
from workers.core.packed import OutRecords
from workers.core.records import RawBatch, RawRecord

__all__ = ["NO_LIMIT", "Gauge", "OpenBatch", "StepLimit"]


@dataclass(frozen=True, slots=True)
class StepLimit:
    """What a step takes and gives: its last record is the one with which one of them is reached."""

    records: int = sys.maxsize
    size_bytes: int = sys.maxsize  # of keys, values and headers of what is to be written


NO_LIMIT: Final = StepLimit()


class Gauge:
    """How much a step has taken and given so far."""

    def __init__(self, limit: StepLimit) -> None:
        self._limit = limit
        self._sized: dict[int, int] = {}  # a list -> how many of its records are in the size
        self.size_bytes = 0

    def is_full(self, effects: Effects) -> bool:
        """Whether the step is over. ``effects`` are always the same, and hold no packed records."""
        if self._limit is NO_LIMIT:
            return False
        for records in _lists(effects):
            sized = self._sized.get(id(records), 0)
            if len(records) > sized:
                self.size_bytes += sum(record.size for record in islice(records, sized, None))
                self._sized[id(records)] = len(records)
        return effects.records >= self._limit.records or self.size_bytes >= self._limit.size_bytes


class OpenBatch:
    """The batch that the last step ended in: it is gone on with, and not unpacked anew."""

    def __init__(self) -> None:
        self._batch: RawBatch | None = None
        self._records: Iterator[RawRecord] = iter(())

    def records(self, batch: RawBatch) -> Iterator[RawRecord]:
        """The wanted records of a batch; where it is the rest of the one that was left, those that are left."""
        if self._batch is None or not batch.is_rest_of(self._batch):
            self._records = batch.records()
        self._batch = None
        return self._records

    def leave(self, batch: RawBatch, position: int) -> RawBatch:
        """End a step within a batch, before an offset; the rest of the batch."""
        self._batch = batch.rest(position)
        return self._batch


def _lists(effects: Effects) -> Iterable[OutRecords]:
    return (effects.frames, effects.late, effects.dead_letters, *effects.routed.values())
