"""What is done about records that their topics would refuse as too large. No client is here."""

from __future__ import annotations

from workers.core.frames import OutRecord
from workers.core.ledger import oversized_routed, shrink_dead_letter, shrink_frame, shrink_late
from workers.kafka.ports import Commit, OutTopics

__all__ = ["fit", "size_in_batch"]

RECORD_OVERHEAD_BYTES = 1_024  # batch header, record framing and varints, generously


def fit(work: Commit, out: OutTopics) -> int:
    """Replace the records that their topics would refuse as too large; how many frames were replaced.

    A frame becomes a dead letter without its items, a routed tick becomes a dead letter, a late tick loses its tick and
    a dead letter the end of the original value.
    """
    replaced = 0
    kept: list[OutRecord] = []
    # Frames have no headers, so the largest value and the longest key tell whether all fit: the usual case, made cheap.
    largest = max((len(frame.value or b"") for frame in work.frames), default=0)
    longest = max((len(frame.key or b"") for frame in work.frames), default=0)
    all_fit = RECORD_OVERHEAD_BYTES + largest + longest <= out.frames.max_record_bytes
    for frame in () if all_fit else work.frames:
        if size_in_batch(frame) <= out.frames.max_record_bytes:
            kept.append(frame)
            continue
        work.dead_letters.append(shrink_frame(frame, out.frames.max_record_bytes))
        replaced += 1
    if not all_fit:
        work.frames = kept
    for name, records in work.routed.items():
        limit = out.routed[name].max_record_bytes
        work.dead_letters += [
            oversized_routed(record, name, limit) for record in records if size_in_batch(record) > limit
        ]
        work.routed[name] = [record for record in records if size_in_batch(record) <= limit]
    limit = out.late.max_record_bytes
    work.late = [record if size_in_batch(record) <= limit else shrink_late(record, limit) for record in work.late]
    limit = out.dead_letters.max_record_bytes
    work.dead_letters = [
        record if size_in_batch(record) <= limit else shrink_dead_letter(record, size_in_batch(record) - limit)
        for record in work.dead_letters
    ]
    return replaced


def size_in_batch(record: OutRecord) -> int:
    """Bytes that a topic takes the record for, generously."""
    return RECORD_OVERHEAD_BYTES + record.size
