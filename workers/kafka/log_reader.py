"""Reading stretches of partitions from outside the group: from one offset to another, committing nothing."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal

from workers.errors import BrokerError, DataLossError
from workers.kafka.connection import explain_connection_error
from workers.kafka.errors import KafkaError, OffsetOutOfRangeError
from workers.kafka.reading import KafkaRecord, TopicReader, reading

if TYPE_CHECKING:
    from workers.settings import Settings

__all__ = ["LogReader"]

_POLL_MS: Final = 200
_CHUNK_RECORDS: Final = 2_000
_FETCH_BYTES: Final = 4 * 1024 * 1024
_STALLED_AFTER_S: Final = 60.0


class LogReader:
    """One reader, for one stretch of one partition after another.

    Use as ``async with LogReader(settings) as reader``. ``isolation_level`` None: what the workers read with.
    Topics must exist.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        isolation_level: Literal["read_committed", "read_uncommitted"] | None = None,
    ) -> None:
        self._settings = settings
        self._opened = reading(
            settings,
            auto_offset_reset="none",
            isolation_level=isolation_level or settings.kafka.isolation_level,
            fetch_max_wait_ms=settings.kafka.fetch_max_wait_ms,
            max_partition_fetch_bytes=_FETCH_BYTES,
        )
        self._reader: TopicReader

    async def __aenter__(self) -> LogReader:
        self._reader = await self._opened.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._opened.__aexit__(kind, error, traceback)

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """The first offset there is and the one after the last. Raises `BrokerError`."""
        try:
            await self._reader.turn_to(topic)
            begin = (await self._reader.begins([partition]))[partition]
            return begin, (await self._reader.ends([partition]))[partition]
        except (KafkaError, TimeoutError) as error:
            raise explain_connection_error(error, self._settings) from error

    async def offset_at(self, topic: str, partition: int, timestamp_ms: int) -> int:
        """The first offset whose record's timestamp is ``timestamp_ms`` or later; the end where there is none.

        Whatever order the timestamps are in, every record before that offset has an earlier one.
        Raises `BrokerError`.
        """
        begin, end = await self.bounds(topic, partition)
        if timestamp_ms <= 0:
            return begin
        try:
            found = await self._reader.offset_at(partition, timestamp_ms)
        except (KafkaError, TimeoutError) as error:
            raise explain_connection_error(error, self._settings) from error
        return end if found is None else max(min(found, end), begin)

    async def read(
        self, topic: str, partition: int, begin: int, end: int
    ) -> AsyncGenerator[Sequence[KafkaRecord], None]:
        """The records from ``begin`` to before ``end``, in chunks.

        Raises `DataLossError` where they are deleted meanwhile, `BrokerError` where they stop coming for a minute.
        """
        if begin >= end:
            return
        where = f"{topic}[{partition}]"
        advanced_s = time.monotonic()
        try:
            await self._reader.turn_to(topic)
            self._reader.assign([partition])
            self._reader.seek(partition, begin)
            while await self._reader.position(partition) < end:
                found = await self._reader.poll([partition], timeout_ms=_POLL_MS, max_records=_CHUNK_RECORDS)
                chunk = found.get(partition, ())
                if chunk:
                    advanced_s = time.monotonic()
                    yield chunk if chunk[-1].offset < end else [each for each in chunk if each.offset < end]
                elif time.monotonic() - advanced_s > _STALLED_AFTER_S:
                    position = await self._reader.position(partition)
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
                return found.value
            end, stretch = start, stretch * 8
        return None
