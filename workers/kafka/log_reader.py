"""Reading stretches of partitions from outside the group: from one offset to another, committing nothing."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Final, Literal

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from workers.errors import BrokerError, DataLossError
from workers.kafka.connection import connecting, explain_connection_error, stop_consumer
from workers.kafka.fetch_hook import install
from workers.settings.all import client_options

if TYPE_CHECKING:
    from aiokafka.structs import ConsumerRecord

    from workers.settings.all import Settings

__all__ = ["LogReader"]

_POLL_MS: Final = 200
_CHUNK_RECORDS: Final = 2_000
_FETCH_BYTES: Final = 4 * 1024 * 1024
_STALLED_AFTER_S: Final = 60.0


class LogReader:
    """One consumer without a group, for one stretch of one partition after another.

    Use as ``async with LogReader(settings) as reader``. ``isolation_level`` None: what the workers read with.
    Topics must exist: asking for a missing one could create it.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        isolation_level: Literal["read_committed", "read_uncommitted"] | None = None,
    ) -> None:
        self._settings = settings
        self._consumer = AIOKafkaConsumer(
            **client_options(settings),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level=isolation_level or settings.kafka.isolation_level,
            fetch_max_wait_ms=settings.kafka.fetch_max_wait_ms,
            max_partition_fetch_bytes=_FETCH_BYTES,
        )

    async def __aenter__(self) -> LogReader:
        try:
            async with connecting(self._settings):
                await self._consumer.start()
            install(self._consumer, records=True)
        except BaseException:
            await stop_consumer(self._consumer)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await stop_consumer(self._consumer)

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """The first offset there is and the one after the last. Raises `BrokerError`."""
        tp = TopicPartition(topic, partition)
        try:
            await self._learn(topic)
            begin = (await self._consumer.beginning_offsets([tp]))[tp]
            return begin, (await self._consumer.end_offsets([tp]))[tp]
        except (KafkaError, TimeoutError) as error:
            raise explain_connection_error(error, self._settings) from error

    async def offset_at(self, topic: str, partition: int, timestamp_ms: int) -> int:
        """The first offset whose record's timestamp is ``timestamp_ms`` or later; the end where there is none.

        Whatever order the timestamps are in, every record before that offset has an earlier one.
        Raises `BrokerError`.
        """
        tp = TopicPartition(topic, partition)
        begin, end = await self.bounds(topic, partition)
        if timestamp_ms <= 0:
            return begin
        try:
            found = (await self._consumer.offsets_for_times({tp: timestamp_ms})).get(tp)
        except (KafkaError, TimeoutError) as error:
            raise explain_connection_error(error, self._settings) from error
        return end if found is None else max(min(found.offset, end), begin)

    async def read(
        self, topic: str, partition: int, begin: int, end: int
    ) -> AsyncGenerator[Sequence[ConsumerRecord], None]:
        """The records from ``begin`` to before ``end``, in chunks.

        Raises `DataLossError` where they are deleted meanwhile, `BrokerError` where they stop coming for a minute.
        """
        if begin >= end:
            return
        tp = TopicPartition(topic, partition)
        where = f"{topic}[{partition}]"
        advanced_s = time.monotonic()
        try:
            await self._learn(topic)
            self._consumer.assign([tp])
            self._consumer.seek(tp, begin)
            while await self._consumer.position(tp) < end:
                found = await self._consumer.getmany(tp, timeout_ms=_POLL_MS, max_records=_CHUNK_RECORDS)
                chunk = found.get(tp, [])
                if chunk:
                    advanced_s = time.monotonic()
                    yield chunk if chunk[-1].offset < end else [each for each in chunk if each.offset < end]
                elif time.monotonic() - advanced_s > _STALLED_AFTER_S:
                    position = await self._consumer.position(tp)
                    raise BrokerError(f"nothing received from {where} for a minute, at offset {position} of {end}")
        except OffsetOutOfRangeError as error:
            raise DataLossError(f"{where}: records were deleted while they were read; run this again") from error
        except (KafkaError, TimeoutError) as error:
            raise explain_connection_error(error, self._settings) from error

    async def last_value(self, topic: str, partition: int, key: bytes) -> bytes | None:
        """The value of the last record with this key; None where there is none. Reads backwards, in growing stretches.

        Raises as `read` does.
        """
        begin, end = await self.bounds(topic, partition)
        stretch = _CHUNK_RECORDS
        while end > begin:
            start = max(end - stretch, begin)
            found = None
            async for chunk in self.read(topic, partition, start, end):
                for record in chunk:
                    if record.key == key:
                        found = record
            if found is not None:
                value: bytes | None = found.value
                return value
            end, stretch = start, stretch * 8
        return None

    async def _learn(self, topic: str) -> None:
        # An assignment before any metadata was seen can stay idle for good; assigning another topic forgets this one.
        await self._consumer._client.add_topic(topic)
