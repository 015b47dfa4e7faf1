"""Rejections that a lane gives of its own accord, for what no decoder looks at."""

from __future__ import annotations

from typing import Final, Literal

from workers.core.effects import Effects
from workers.core.formats.corrections import Correction
from workers.core.partitioning import partition_for
from workers.core.reasons import Reason
from workers.core.records import LARGEST_RECORD, LargeRecord, Record
from workers.core.ticks import Rejection, Tick

__all__ = ["RouteCheck", "too_large"]

MISROUTED_KEYS_REMEMBERED: Final = 10_000


class RouteCheck:
    """Whether keys are on the partition where Kafka's partitioner puts them; the first ten thousand that are not, by
    name."""

    def __init__(self, partition: int, partitions: int, on_misrouted: Literal["warn", "reject"]) -> None:
        self._partition = partition
        self._partitions = partitions
        self._rejects = on_misrouted == "reject"
        self._misrouted: set[str] = set()

    def check(self, tick: Tick | Correction, record: Record, effects: Effects) -> Tick | Correction | Rejection:
        """The tick; or its rejection where it is on another partition and that is not allowed."""
        expected = partition_for(tick.symbol.encode(), self._partitions)
        if expected == self._partition:
            return tick
        if tick.symbol not in self._misrouted and len(self._misrouted) < MISROUTED_KEYS_REMEMBERED:
            self._misrouted.add(tick.symbol)
            effects.misrouted_keys.append(tick.symbol)
        if not self._rejects:
            return tick
        message = (
            f"the key is on partition {self._partition}; Kafka's murmur2 puts it on {expected} of {self._partitions}. "
            "The producer uses another partitioner (librdkafka: set partitioner=murmur2_random)"
        )
        return Rejection(Reason.MISROUTED, message, record)


def too_large(record: LargeRecord) -> Rejection:
    """Of a record that is longer than what is read."""
    message = f"the record is {record.length} bytes, unpacked; at most {LARGEST_RECORD} are read"
    return Rejection(Reason.RECORD_TOO_LARGE, message, record)
