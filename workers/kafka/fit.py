"""What is done about records that their topics would refuse as too large. No client is here."""

from __future__ import annotations

from collections.abc import Iterable

from workers.core.frames import OutRecord
from workers.core.ledger import oversized_routed, shrink_frame, shrunk_dead_letter, shrunk_late
from workers.core.packed import OutRecords
from workers.kafka.ports import Commit, OutTopics

__all__ = ["fit", "size_in_batch"]

RECORD_OVERHEAD_BYTES = 100  # batch header, record framing and varints: 61 and, of any record, at most 36


def fit(work: Commit, out: OutTopics) -> int:
    """Replace the records that their topics would refuse as too large; how many frames were replaced.

    A frame becomes a dead letter without its items, a routed tick becomes a dead letter, a late tick loses its tick and
    a dead letter the end of the original value; where their topics take even less, what is left is key and reason, and
    at the least the reason. A topic that doesn't take that refuses it.
    """
    replaced = 0
    limit = out.frames.max_record_bytes
    if not _fit_all(work.frames, limit):
        kept: list[OutRecord] = []
        for frame in work.frames:
            if size_in_batch(frame) <= limit:
                kept.append(frame)
                continue
            work.dead_letters.append(shrink_frame(frame, limit))
            replaced += 1
        work.frames = kept
    for name, records in work.routed.items():
        limit = out.routed[name].max_record_bytes
        work.dead_letters += [
            oversized_routed(record, name, limit) for record in records if size_in_batch(record) > limit
        ]
        work.routed[name] = [record for record in records if size_in_batch(record) <= limit]
    limit = out.late.max_record_bytes
    if not _fit_all(work.late, limit):
        work.late = [_first_that_fits(record, shrunk_late(record, limit), limit) for record in work.late]
    limit = out.dead_letters.max_record_bytes
    work.dead_letters = [
        _first_that_fits(record, shrunk_dead_letter(record, size_in_batch(record) - limit), limit)
        for record in work.dead_letters
    ]
    return replaced


def _first_that_fits(record: OutRecord, shrunk: Iterable[OutRecord], limit_bytes: int) -> OutRecord:
    """The record, or the first of what it can be shrunk to; the last of that where nothing fits."""
    if size_in_batch(record) <= limit_bytes:
        return record
    for record in shrunk:
        if size_in_batch(record) <= limit_bytes:
            break
    return record


def _fit_all(records: OutRecords, limit_bytes: int) -> bool:
    """Whether the topic takes all of them, which is the usual case, and made cheap: packed records stay so."""
    if not isinstance(records, list):
        return RECORD_OVERHEAD_BYTES + records.largest_bytes <= limit_bytes
    return all(size_in_batch(record) <= limit_bytes for record in records)


def size_in_batch(record: OutRecord) -> int:
    """Bytes that a topic takes the record for, generously."""
    return RECORD_OVERHEAD_BYTES + record.size
