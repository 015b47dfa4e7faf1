"""Reading a topic from outside any group: nothing is committed, and nobody loses a partition to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal, Protocol, TypedDict, Unpack

from aiokafka import AIOKafkaConsumer, TopicPartition

from workers.core.records import Record
from workers.kafka.connection import connecting
from workers.kafka.fetch_hook import install
from workers.kafka.internals import client_of, learn_topic
from workers.kafka.options import client_options
from workers.kafka.ports import Fetched
from workers.kafka.repairs import stop_consumer
from workers.kafka.transactions import begin_offsets, end_offsets

if TYPE_CHECKING:
    from workers.settings import Settings

__all__ = ["Fetching", "KafkaRecord", "TopicReader", "reading"]


class KafkaRecord(Record, Protocol):
    """A record as it is read, with the place where it was."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...


class Fetching(TypedDict, total=False):
    """How records are fetched, in the client's words; by default as the client does, but from the first record on
    where the log no longer has the position."""

    auto_offset_reset: Literal["earliest", "none"]
    isolation_level: Literal["read_committed", "read_uncommitted"]
    fetch_max_wait_ms: int
    max_partition_fetch_bytes: int


class TopicReader:
    """A consumer without a group, for partitions of one topic at a time; partitions are plain numbers.

    After `start`, `turn_to` a topic and `assign` its partitions. Methods that ask the cluster raise ``KafkaError``.
    Headers may have any names, unless ``any_headers`` is false, which is a fifth quicker: then one whose name is not
    UTF-8 is an error. With ``batches``, whole record batches are handed out by `poll_batches`, and no records. With
    ``glances``, records deep within a batch that unpacks to very much are passed over.
    """

    def __init__(
        self,
        options: Mapping[str, object],
        *,
        any_headers: bool = True,
        batches: bool = False,
        glances: bool = False,
        **fetching: Unpack[Fetching],
    ) -> None:
        self._topic = ""
        self._any_headers = any_headers
        self._batches = batches
        self._glances = glances
        self._consumer = AIOKafkaConsumer(
            **{
                **options,
                "auto_offset_reset": "earliest",
                **fetching,
                "group_id": None,
                "group_instance_id": None,
                "enable_auto_commit": False,
            }
        )

    @property
    def topic(self) -> str:
        """What it was turned to."""
        return self._topic

    async def start(self) -> None:
        """Connect. Whatever comes of it, `stop` is to be called."""
        await self._consumer.start()
        if self._any_headers or self._batches:
            install(self._consumer, records=not self._batches, glances=self._glances)

    async def stop(self) -> None:
        """Close, within a few seconds. Raises nothing."""
        await stop_consumer(self._consumer)

    async def turn_to(self, topic: str) -> None:
        """Read this topic from now on. It must exist."""
        # An assignment before any metadata was seen can stay idle for good; assigning another topic forgets this one.
        await learn_topic(self._consumer, topic)
        self._topic = topic

    def assign(self, partitions: Iterable[int]) -> None:
        """Read these partitions, from positions that are still to be given."""
        self._consumer.assign(self._tps(partitions))

    def seek(self, partition: int, offset: int) -> None:
        """Read an assigned partition from ``offset`` on."""
        self._consumer.seek(self._tp(partition), offset)

    async def seek_to_begin(self) -> None:
        """Read all that is assigned from its first record on."""
        await self._consumer.seek_to_beginning()

    async def seek_to_end(self) -> None:
        """Read of all that is assigned only what comes from now on."""
        await self._consumer.seek_to_end()

    def pause(self, partitions: Iterable[int]) -> None:
        """Fetch no more of assigned partitions for now."""
        self._consumer.pause(*self._tps(partitions))

    def resume(self, partitions: Iterable[int]) -> None:
        """Fetch again."""
        self._consumer.resume(*self._tps(partitions))

    async def poll(
        self, partitions: Iterable[int] = (), *, timeout_ms: int, max_records: int | None = None
    ) -> dict[int, Sequence[KafkaRecord]]:
        """The next records of the given partitions, or of all that are assigned; waits ``timeout_ms`` for the first.

        Partitions without any are absent. Raises ``OffsetOutOfRangeError`` where the log no longer has the position
        and ``auto_offset_reset`` is none.
        """
        tps = self._tps(partitions)
        found = await self._consumer.getmany(*tps, timeout_ms=timeout_ms, max_records=max_records)
        return {tp.partition: records for tp, records in found.items() if records}

    async def poll_batches(self, partition: int, *, timeout_ms: int, most: int) -> Fetched | None:
        """The next record batches of a partition, ``most`` of them; waits ``timeout_ms`` for the first. None: nothing
        came. Records in formats before v2 come one by one, without a batch."""
        found = await self._consumer.getmany(self._tp(partition), timeout_ms=timeout_ms, max_records=most)
        return next((Fetched(items) for items in found.values() if items), None)

    async def position(self, partition: int) -> int:
        """The offset behind all that was handed out."""
        found: int = await self._consumer.position(self._tp(partition))
        return found

    async def begins(self, partitions: Iterable[int]) -> dict[int, int]:
        """The first offset that there is, of each."""
        found = await begin_offsets(client_of(self._consumer), self._tps(partitions))
        return {tp.partition: offset for tp, offset in found.items()}

    async def ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """The offset behind the last record to be read, of each: reading committed records, of those."""
        found = await self._consumer.end_offsets(self._tps(partitions))
        return {tp.partition: offset for tp, offset in found.items()}

    async def log_ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """The offset behind all that is replicated of each, whether it is committed or not. Raises ``KafkaError``."""
        found = await end_offsets(client_of(self._consumer), self._tps(partitions), committed=False)
        return {tp.partition: offset for tp, offset in found.items()}

    async def offset_at(self, partition: int, timestamp_ms: int) -> int | None:
        """The first offset whose record's timestamp is ``timestamp_ms`` or later; None where there is none."""
        tp = self._tp(partition)
        found = (await self._consumer.offsets_for_times({tp: timestamp_ms})).get(tp)
        return None if found is None else int(found.offset)

    def _tp(self, partition: int) -> TopicPartition:
        return TopicPartition(self._topic, partition)

    def _tps(self, partitions: Iterable[int]) -> list[TopicPartition]:
        return [TopicPartition(self._topic, partition) for partition in partitions]


@asynccontextmanager
async def reading(
    settings: Settings, topic: str | None = None, *, glances: bool = False, **fetching: Unpack[Fetching]
) -> AsyncIterator[TopicReader]:
    """A started reader, turned to ``topic`` if one is given, and stopped at the end; ``glances`` as of `TopicReader`.

    Raises ``BrokerError`` where the cluster can't be reached or refuses the credentials, ``ConfigError`` where a
    certificate can't be read.
    """
    reader = TopicReader(client_options(settings), glances=glances, **fetching)
    try:
        async with connecting(settings):
            await reader.start()
            if topic is not None:
                await reader.turn_to(topic)
        yield reader
    finally:
        await reader.stop()
