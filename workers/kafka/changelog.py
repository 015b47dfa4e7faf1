"""Reading a partition's state back from the changelog topic."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import structlog

from workers.core.records import RawBatch, Record, count_of
from workers.kafka.reading import TopicReader
from workers.native.choose import is_available

__all__ = ["read_changelog"]

log = structlog.get_logger(__name__)

PROGRESS_EVERY_S = 2.0
CHUNK_RECORDS = 2_000  # bounds how long the event loop is held between two heartbeats
CHUNK_BATCHED_RECORDS = 8_000  # as that, where they are not looked at one by one: some 5 ms
BATCHES_AT_ONCE = 64
STALLED_AFTER_S = 60.0


async def read_changelog(
    topic: str,
    partition: int,
    consumer_options: Mapping[str, object],
    *,
    on_progress: Callable[[int], None] | None = None,
) -> dict[bytes, bytes]:
    """The last value of every key in a changelog partition; deleted keys are absent.

    Call it after the partition's transactional id was initialised: by then no transaction of an earlier owner is open,
    so the end of the committed log is the end of the state. ``on_progress`` is told each chunk's number of records.
    Raises ``KafkaError``, ``TimeoutError`` when nothing arrives for a minute, and `BrokerError` where a record batch
    is not what Kafka's format says.
    """
    is_native = is_available()
    reader = TopicReader(
        consumer_options,
        any_headers=False,  # nobody else writes to it, and its records have none
        batches=is_native,
        isolation_level="read_committed",
        max_partition_fetch_bytes=4 * 1024 * 1024,
        fetch_max_wait_ms=100,
    )
    entries: dict[bytes, bytes] = {}
    put = _put_batches if is_native else _put_records
    progress = _Progress(topic, partition, on_progress)
    try:
        await reader.start()
        await reader.turn_to(topic)
        reader.assign([partition])
        ends, begins = await asyncio.gather(reader.ends([partition]), reader.begins([partition]))
        reader.seek(partition, begins[partition])
        while (position := await reader.position(partition)) < ends[partition]:
            read = await put(reader, partition, entries)
            progress.note(read, position, ends[partition], len(entries))
    finally:
        await reader.stop()
    return entries


async def _put_batches(reader: TopicReader, partition: int, entries: dict[bytes, bytes]) -> int:
    """Take what has come into the entries; the number of records."""
    from workers.native.entries import put_entries  # here, as it may not have been built

    found = await reader.poll_batches(partition, timeout_ms=500, most=BATCHES_AT_ONCE)
    held = 0
    for item in found.items if found is not None else ():
        if isinstance(item, RawBatch):
            put_entries(entries, item, where=f"{reader.topic}[{partition}]")
        else:
            _put(entries, item)
        held += count_of([item])
        if held >= CHUNK_BATCHED_RECORDS:
            held = 0
            await asyncio.sleep(0)
    await asyncio.sleep(0)
    return found.records if found is not None else 0


async def _put_records(reader: TopicReader, partition: int, entries: dict[bytes, bytes]) -> int:
    found = await reader.poll([partition], timeout_ms=500, max_records=CHUNK_RECORDS)
    chunk = found.get(partition, ())
    for record in chunk:
        _put(entries, record)
    await asyncio.sleep(0)
    return len(chunk)


def _put(entries: dict[bytes, bytes], record: Record) -> None:
    key, value = record.key, record.value
    if key is None:
        return  # a compacted topic takes no such record
    if value is None:
        entries.pop(key, None)
    else:
        entries[key] = value


class _Progress:
    """Tells how far it is, and sees that it goes on."""

    def __init__(self, topic: str, partition: int, on_progress: Callable[[int], None] | None) -> None:
        self._topic = topic
        self._partition = partition
        self._on_progress = on_progress
        self._reported_s = self._advanced_s = time.monotonic()

    def note(self, read: int, position: int, end: int, keys: int) -> None:
        """So many records were read from ``position`` on. Raises ``TimeoutError`` where none came for a minute."""
        now_s = time.monotonic()
        if read:
            self._advanced_s = now_s
            if self._on_progress is not None:
                self._on_progress(read)
        elif now_s - self._advanced_s > STALLED_AFTER_S:
            raise TimeoutError(f"no record of {self._topic}[{self._partition}] for a minute, at {position} of {end}")
        if now_s - self._reported_s > PROGRESS_EVERY_S:
            self._reported_s = now_s
            log.info(
                "restoring", changelog=self._topic, partition=self._partition, position=position, end=end, keys=keys
            )
