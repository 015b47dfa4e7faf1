"""What is stored in one transaction, and what of it the database is offered again after it refused."""

from __future__ import annotations

from workers.apps.store.base import (
    FrameRow,
    RefusedError,
    RejectedFrame,
)
from workers.apps.store.parse import REFUSED_BY_DATABASE, reject
from workers.core.records import Record

__all__ = ["Item", "StoredPartition", "smaller"]


class StoredPartition:
    """A partition from one assignment (or one look into the database) to the next."""

    __slots__ = ("number", "reading", "stored", "told")

    def __init__(self, number: int) -> None:
        self.number = number
        self.reading = False
        self.stored: int | None = None  # the database's offset, as last seen
        self.told: int | None = None  # what Kafka was told


Item = tuple[Record, FrameRow | RejectedFrame]


def smaller(
    items: dict[StoredPartition, list[Item]], ends: dict[StoredPartition, int], why: str
) -> list[tuple[dict[StoredPartition, list[Item]], dict[StoredPartition, int]]]:
    """What the database refused, in two parts, to be stored one after the other; a single record as a rejected one.

    Raises ``RefusedError`` where the database refuses to hold even that.
    """
    flat = [(owner, item) for owner, found in items.items() for item in found]
    if len(flat) == 1:
        ((owner, (record, row)),) = flat
        if isinstance(row, RejectedFrame):
            raise RefusedError(why)
        rejected = reject(record, REFUSED_BY_DATABASE, why, row.origin_topic, row.origin_partition)
        return [({owner: [(record, rejected)]}, ends)]
    parts = []
    for part in (flat[: len(flat) // 2], flat[len(flat) // 2 :]):
        grouped: dict[StoredPartition, list[Item]] = {}
        for owner, item in part:
            grouped.setdefault(owner, []).append(item)
        parts.append((grouped, {owner: found[-1][0].offset + 1 for owner, found in grouped.items()}))
    parts[1][1].update({owner: ends[owner] for owner in parts[1][0]})
    return parts
