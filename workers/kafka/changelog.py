"""Reading a partition's state back from the changelog topic."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import structlog

from workers.core.records import RawBatch, Record, count_of
from workers.kafka.reading import TopicReader
from workers.native.choose import is_available

__all__ = ["ChangelogReaders", "read_changelog"]

log = structlog.get_logger(__name__)

PROGRESS_EVERY_S = 2.0
CHUNK_RECORDS = 2_000  # bounds how long the event loop is held between two heartbeats
CHUNK_BATCHED_RECORDS = 8_000  # as that, where they are not looked at one by one: some 5 ms
BATCHES_AT_ONCE = 64
STALLED_AFTER_S = 60.0
LINGER_S = 1.0
FETCH_WAIT_MS = 10  # at the end of one partition, before the next one's first fetch


async def read_changelog(
    topic: str,
    partition: int,
    consumer_options: Mapping[str, object],
    *,
    to_the_end: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> dict[bytes, bytes]:
    """The last value of every key in a changelog partition; deleted keys are absent.

    With ``to_the_end``, what is committed of all that the log holds, waiting for transactions that are open in it: the
    marker of one that is committed may reach the group's offsets before it reaches the changelog. Otherwise what is
    before the first of them. ``on_progress`` is told each chunk's number of records.
    Raises ``KafkaError``, ``TimeoutError`` when nothing arrives for a minute, and `BrokerError` where a record batch
    is not what Kafka's format says.
    """
    reader = _reader(consumer_options)
    try:
        await reader.start()
        await reader.turn_to(topic)
        return await _read(reader, partition, _Progress(topic, partition, on_progress), to_the_end=to_the_end)
    finally:
        await reader.stop()


class ChangelogReaders:
    """Readers that go from one partition of a changelog to the next: opening one costs more than most partitions.

    One that was not asked for a second is closed; so are all by `close`, after which each call opens its own.
    """

    def __init__(self, topic: str, consumer_options: Mapping[str, object]) -> None:
        self._topic = topic
        self._options = consumer_options
        self._idle: list[TopicReader] = []
        self._closing: set[asyncio.Future[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    async def read(self, partition: int, on_progress: Callable[[int], None]) -> dict[bytes, bytes]:
        """What is committed of all that the partition's log holds. Raises as `read_changelog`."""
        reader = self._idle.pop() if self._idle else None
        try:
            if reader is None:
                reader = _reader(self._options)
                await reader.start()
                await reader.turn_to(self._topic)
            progress = _Progress(self._topic, partition, on_progress)
            entries = await _read(reader, partition, progress, to_the_end=True)
        except BaseException:
            if reader is not None:
                await reader.stop()
            raise
        if self._is_closed:
            await reader.stop()
        else:
            self._idle.append(reader)
            self._close_later()
        return entries

    def _close_later(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(LINGER_S, self._close_idle)

    def _close_idle(self) -> None:
        for reader in self._idle:
            closing = asyncio.ensure_future(reader.stop())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        self._idle.clear()

    async def close(self) -> None:
        """Close those that nobody uses; the others are when they are done."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._close_idle()
        if self._closing:
            await asyncio.wait(self._closing)


def _reader(consumer_options: Mapping[str, object]) -> TopicReader:
    return TopicReader(
        consumer_options,
        any_headers=False,  # nobody else writes to it, and its records have none
        batches=is_available(),
        isolation_level="read_committed",
        max_partition_fetch_bytes=4 * 1024 * 1024,
        fetch_max_wait_ms=FETCH_WAIT_MS,
    )


async def _read(reader: TopicReader, partition: int, progress: _Progress, *, to_the_end: bool) -> dict[bytes, bytes]:
    entries: dict[bytes, bytes] = {}
    put = _put_batches if is_available() else _put_records
    ends_of = reader.log_ends if to_the_end else reader.ends
    ends, begins = await asyncio.gather(ends_of([partition]), reader.begins([partition]))
    if begins[partition] == ends[partition]:
        return entries
    reader.assign([partition])
    reader.seek(partition, begins[partition])
    while (position := await reader.position(partition)) < ends[partition]:
        read = await put(reader, partition, entries)
        progress.note(read, position, ends[partition], len(entries))
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
