"""The insides of aiokafka 0.14 that are used, and not changed: its private names stand here, and in few other places.

The others are what changes the client: `workers.kafka.repairs`, which also ends it, `workers.kafka.fetch_hook` and
`workers.kafka.lz4`. ``tests/contract`` fails where another version of the client is built differently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import LeaderNotAvailableError, NoError, for_code
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.protocol.commit import OffsetFetchRequest

from workers.core.packed import PackedBatch

__all__ = [
    "ClosedBatch",
    "add_to_transaction",
    "close_batch",
    "codec_of",
    "committed_offset",
    "confirm_heartbeat",
    "failed_tasks",
    "leader_of",
    "learn_topic",
    "new_batch",
    "raise_coordinator_errors",
    "start_sending",
]

_NO_OFFSET: Final = -1


# -- consumers --------------------------------------------------------------------------------------------------------


async def learn_topic(consumer: AIOKafkaConsumer, topic: str) -> None:
    """Wait for the topic's metadata, which could create a topic that is missing."""
    await consumer._client.add_topic(topic)


def failed_tasks(consumer: AIOKafkaConsumer) -> Iterator[tuple[str, BaseException]]:
    """The tasks of a group's consumer that have ended, without which it stands still, and their errors."""
    coordinator = consumer._coordinator
    for what, task in (
        ("membership", coordinator._coordination_task),
        ("heartbeats", coordinator._heartbeat_task),
        ("offsets", coordinator._commit_refresh_task),
        ("fetching", consumer._fetcher._fetch_task),
        ("metadata", consumer._client._sync_task),
    ):
        if task is not None and task.done() and not task.cancelled() and (error := task.exception()) is not None:
            yield what, error


def raise_coordinator_errors(consumer: AIOKafkaConsumer) -> None:
    """Raise the ``KafkaError`` that the coordinator's tasks have met, if they have."""
    consumer._coordinator.check_errors()


async def confirm_heartbeat(consumer: AIOKafkaConsumer) -> bool:
    """Send a heartbeat now; whether the group answers that this consumer is a member."""
    return bool(await consumer._coordinator._do_heartbeat())


async def committed_offset(consumer: AIOKafkaConsumer, topic: str, partition: int) -> int | None:
    """The group's committed offset; None where it has none.

    Asked for here and not by the client's ``committed``, which overlooks the error of an answer as a whole: it says
    None while the coordinator loads, too. Raises ``KafkaError``, then as well.
    """
    coordinator = consumer._coordinator
    request = OffsetFetchRequest(coordinator.group_id, [(topic, [partition])])
    response = await coordinator._send_req(request)
    ((_, ((_, offset, _, code),)),) = response.topics or ((None, ((None, _NO_OFFSET, None, 0),)),)
    for found in (getattr(response, "error_code", 0), code):
        error = for_code(found)
        if error is not NoError:
            raise error(f"the committed offset of {topic}[{partition}]")
    return None if offset == _NO_OFFSET else int(offset)


# -- producers --------------------------------------------------------------------------------------------------------


async def start_sending(producer: AIOKafkaProducer) -> None:
    """The rest of the producer's ``start``, where its client is connected already: its ids are initialised.

    Raises ``KafkaError``.
    """
    await producer._sender.start()


def transaction_failure(producer: AIOKafkaProducer) -> BaseException | None:
    """Why the producer's transaction can't go on; None where nothing is known to be wrong with it."""
    waiter = producer._txn_manager.wait_for_transaction_end()
    return waiter.exception() if waiter.done() and not waiter.cancelled() else None


def new_batch(producer: AIOKafkaProducer, limit_bytes: int) -> tuple[BatchBuilder, Callable[..., Any]]:
    """A batch as the producer's ``create_batch`` makes it, of a size of its own, and the C function that fills it.

    That takes the number of records in the batch, a timestamp in ms, key, value and headers, and returns None where
    the batch is full; an empty one takes any record.
    """
    builder = BatchBuilder(limit_bytes, codec_of(producer), is_transactional=_is_transactional(producer))
    return builder, builder._builder.append


def close_batch(builder: BatchBuilder, records: int) -> BatchBuilder:
    """Close a batch that was filled by its C function with so many records."""
    builder._relative_offset = records
    builder.close()
    return builder


class ClosedBatch:
    """A packed batch where the producer's ``send_batch`` takes a closed `BatchBuilder`: it calls what is here."""

    def __init__(self, batch: PackedBatch, producer: AIOKafkaProducer) -> None:
        self._batch = batch
        self._is_transactional = _is_transactional(producer)
        self._producer_state = (-1, -1, 0)  # as of a producer that is not idempotent
        self._buffer: bytes | None = None

    def record_count(self) -> int:
        """Records in the batch."""
        return self._batch.count

    def size(self) -> int:
        """Bytes of the batch."""
        return self._batch.size_bytes

    def closed(self) -> bool:
        """It takes no more records."""
        return True

    def close(self) -> None:
        """It is closed."""

    def _set_producer_state(self, producer_id: int, producer_epoch: int, base_sequence: int) -> None:
        self._producer_state = (producer_id, producer_epoch, base_sequence)

    def _build(self) -> bytes:
        """The bytes to be sent, again and again the same: a batch that is sent again must be known by its sequence."""
        if self._buffer is None:
            self._buffer = self._batch.build(*self._producer_state, self._is_transactional)
        return self._buffer


def codec_of(producer: AIOKafkaProducer) -> int:
    """Kafka's number of the compression that the producer's batches have."""
    return int(producer._message_accumulator._compression_type)


def _is_transactional(producer: AIOKafkaProducer) -> bool:
    return producer._txn_manager is not None and producer._txn_manager.transactional_id is not None


async def add_to_transaction(producer: AIOKafkaProducer, partitions: Iterable[TopicPartition], group_id: str) -> None:
    """Make partitions, and the group's offsets, parts of the transaction that has begun, without writing to them."""
    for tp in partitions:
        producer._txn_manager.maybe_add_partition_to_txn(tp)
    while not await producer._sender._do_add_offsets_to_txn(group_id):
        pass  # it has waited before it said so


# -- the cluster ------------------------------------------------------------------------------------------------------


async def leader_of(client: AIOKafkaClient, tp: TopicPartition) -> int:
    """The broker that leads the partition. Raises ``LeaderNotAvailableError``, when it has asked for news of it."""
    await client._wait_on_metadata(tp.topic)
    node: int | None = client.cluster.leader_for_partition(tp)
    if node is None or node == -1:
        await client.force_metadata_update()
        raise LeaderNotAvailableError(tp)
    return node
