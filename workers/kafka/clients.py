"""Opening and closing what talks to the cluster: the admin client, and producers outside transactions.

Readers are opened in `workers.kafka.reading`, the group's consumer in `workers.kafka.consumer`, transactional producers
in `workers.kafka.commit`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from workers.kafka.connection import connecting
from workers.kafka.options import client_options
from workers.kafka.repairs import abandon, stop_producer

if TYPE_CHECKING:
    from workers.settings import Settings

__all__ = ["Producer", "RecordBatch", "admin_client", "start_producer", "stop_producer"]


class RecordBatch(Protocol):
    """A batch that is being filled."""

    def append(
        self,
        *,
        timestamp: int,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes | None]] = (),
    ) -> object:
        """Add a record, its timestamp in ms; None where the batch is full, and the record not in it."""
        ...

    def record_count(self) -> int:
        """How many records are in it."""
        ...


class Producer(Protocol):
    """What is used of the client's producer. Its methods raise ``KafkaError``; futures end with the acknowledgement."""

    def create_batch(self) -> RecordBatch: ...

    async def send_batch(self, batch: RecordBatch, topic: str, *, partition: int) -> asyncio.Future[object]: ...

    async def send(
        self, topic: str, value: bytes | None, *, key: bytes | None, partition: int, timestamp_ms: int | None
    ) -> asyncio.Future[object]: ...

    async def send_and_wait(self, topic: str, value: bytes | None, key: bytes | None) -> object: ...

    async def flush(self) -> None: ...


@asynccontextmanager
async def admin_client(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    """A connected admin client, closed at the end.

    Raises ``BrokerError`` where the cluster can't be reached or refuses the credentials, ``ConfigError`` where a
    certificate can't be read.
    """
    admin = AIOKafkaAdminClient(**client_options(settings))
    try:
        async with connecting(settings):
            await admin.start()
        yield admin
    finally:
        await admin.close()


async def start_producer(settings: Settings, options: Mapping[str, object]) -> Producer:
    """A connected producer, to be ended by `stop_producer`.

    Raises as `admin_client` does; what had been opened is closed then.
    """
    producer = AIOKafkaProducer(**options)
    try:
        async with connecting(settings):
            await producer.start()
    except BaseException:
        await abandon(producer)
        raise
    started: Producer = producer
    return started
