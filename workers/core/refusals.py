"""Rejections that a lane gives of its own accord, for what no decoder looks at."""

from __future__ import annotations

from workers.core.reasons import Reason
from workers.core.records import LARGEST_RECORD, LargeRecord, Record
from workers.core.ticks import Rejection

__all__ = ["misrouted", "too_large"]


def misrouted(record: Record, partition: int, expected: int, partitions: int) -> Rejection:
    """Of a record whose key belongs on another partition."""
    message = (
        f"the key is on partition {partition}; Kafka's murmur2 puts it on {expected} of {partitions}. The producer "
        "uses another partitioner (librdkafka: set partitioner=murmur2_random)"
    )
    return Rejection(Reason.MISROUTED, message, record)


def too_large(record: LargeRecord) -> Rejection:
    """Of a record that is longer than what is read."""
    message = f"the record is {record.length} bytes, unpacked; at most {LARGEST_RECORD} are read"
    return Rejection(Reason.RECORD_TOO_LARGE, message, record)
