"""Reading a partition's state back from the changelog topic."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import structlog

from workers.kafka.reading import TopicReader

__all__ = ["read_changelog"]

log = structlog.get_logger(__name__)

PROGRESS_EVERY_S = 2.0
CHUNK_RECORDS = 2_000  # bounds how long the event loop is held between two heartbeats
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
    Raises ``KafkaError``, and ``TimeoutError`` when nothing arrives for a minute.
    """
    reader = TopicReader(
        consumer_options,
        any_headers=False,  # nobody else writes to it, and its records have none
        isolation_level="read_committed",
        max_partition_fetch_bytes=4 * 1024 * 1024,
        fetch_max_wait_ms=100,
    )
    entries: dict[bytes, bytes] = {}
    reported_s = advanced_s = time.monotonic()
    read = 0
    try:
        await reader.start()
        await reader.turn_to(topic)
        reader.assign([partition])
        end = (await reader.ends([partition]))[partition]
        begin = (await reader.begins([partition]))[partition]
        reader.seek(partition, begin)
        while await reader.position(partition) < end:
            found = await reader.poll([partition], timeout_ms=500, max_records=CHUNK_RECORDS)
            chunk = found.get(partition, ())
            for record in chunk:
                key, value = record.key, record.value
                if key is None:
                    continue  # a compacted topic takes no such record
                if value is None:
                    entries.pop(key, None)
                else:
                    entries[key] = value
            read += len(chunk)
            now_s = time.monotonic()
            if chunk:
                advanced_s = now_s
                if on_progress is not None:
                    on_progress(len(chunk))
            elif now_s - advanced_s > STALLED_AFTER_S:
                position = await reader.position(partition)
                raise TimeoutError(f"no record of {topic}[{partition}] for a minute, at {position} of {end}")
            if now_s - reported_s > PROGRESS_EVERY_S:
                reported_s = now_s
                position = await reader.position(partition)
                log.info(
                    "restoring", changelog=topic, partition=partition, position=position, end=end, keys=len(entries)
                )
            await asyncio.sleep(0)
    finally:
        await reader.stop()
    return entries
