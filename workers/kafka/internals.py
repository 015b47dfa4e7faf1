"""The insides of aiokafka 0.14 that are used, and not changed: its private names stand here, and in few other places.

The others are what changes the client: `workers.kafka.repairs`, which also ends it, `workers.kafka.fetch_hook` and
`workers.kafka.lz4`. ``tests/contract`` fails where another version of the client is built differently.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.errors import (
    ConcurrentTransactions,
    CoordinatorNotAvailableError,
    IncompatibleBrokerVersion,
    InvalidProducerEpoch,
    KafkaConnectionError,
    KafkaError,
    LeaderNotAvailableError,
    NodeNotReadyError,
    NoError,
    ProducerFenced,
    RebalanceInProgressError,
    RequestTimedOutError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.protocol.api import Request
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.group import HeartbeatRequest

from workers.core.packed import PackedBatch
from workers.kafka.errors import NO_COORDINATOR_YET, StaleMemberError, UnstableOffsetError
from workers.kafka.protocol import Membership, StableOffsetsRequest, TxnOffsetsRequest, lacking

__all__ = [
    "ClosedBatch",
    "add_to_transaction",
    "adopt",
    "api_versions",
    "ask_coordinator",
    "brokers",
    "client_of",
    "close_batch",
    "codec_of",
    "committed_offset",
    "failed_tasks",
    "heartbeat_error",
    "lacking_of",
    "leader_of",
    "learn_topic",
    "membership_of",
    "new_batch",
    "producer_id_of",
    "raise_coordinator_errors",
    "send_offsets",
    "start_sending",
]

_NO_OFFSET: Final = -1
_UNSTABLE: Final = 88  # UNSTABLE_OFFSET_COMMIT, which the client has no name for
_STALE_MEMBER: Final = {22: "ILLEGAL_GENERATION", 25: "UNKNOWN_MEMBER_ID", 82: "FENCED_INSTANCE_ID"}


# -- consumers --------------------------------------------------------------------------------------------------------


async def learn_topic(consumer: AIOKafkaConsumer, topic: str) -> None:
    """Wait for the topic's metadata."""
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


async def ask_coordinator(consumer: AIOKafkaConsumer, request: Request[Any]) -> Any:
    """What the group's coordinator answers to a request.

    Not the client's own ``_send_req``: that gives the coordinator up where one answer fails, for all who use it. Who
    only asks leaves that to the client's heartbeats. Raises ``KafkaError``.
    """
    coordinator = consumer._coordinator
    if coordinator.coordinator_id is None:
        raise CoordinatorNotAvailableError(coordinator.group_id)
    return await consumer._client.send(coordinator.coordinator_id, request, group=ConnectionGroup.COORDINATION)


async def heartbeat_error(consumer: AIOKafkaConsumer) -> type[KafkaError] | None:
    """Send a heartbeat now; what the group answers, None where this consumer is a member as it believes.

    Not the client's own ``_do_heartbeat``: that acts upon the answer. One that came while the group was joined anew
    would reset the membership that the client has just been given, which leaves a ghost in the group for as long as a
    session, and everybody waiting for it. Where the membership has changed meanwhile, the answer is
    ``RebalanceInProgressError``. Raises ``KafkaError``.
    """
    coordinator = consumer._coordinator
    asked = (coordinator.generation, coordinator.member_id)
    response = await ask_coordinator(consumer, HeartbeatRequest(coordinator.group_id, *asked))
    if asked != (coordinator.generation, coordinator.member_id):
        return RebalanceInProgressError  # type: ignore[no-any-return]
    error = for_code(response.error_code)
    return None if error is NoError else error


def membership_of(consumer: AIOKafkaConsumer) -> Membership | None:
    """What the group's coordinator knows this consumer as; None while it is no member."""
    coordinator = consumer._coordinator
    if coordinator.generation < 0 or not coordinator.member_id:
        return None  # and by no means to be sent: the broker would take it for a producer outside the group
    return Membership(coordinator.generation, coordinator.member_id, coordinator._group_instance_id)


def client_of(consumer: AIOKafkaConsumer) -> AIOKafkaClient:
    """The connections of a consumer."""
    return consumer._client


async def committed_offset(consumer: AIOKafkaConsumer, topic: str, partition: int) -> int | None:
    """The group's committed offset; None where it has none.

    Asked for here and not by the client's ``committed``, which overlooks the error of an answer as a whole: it says
    None while the coordinator loads, too. Raises ``KafkaError``, then as well, and `UnstableOffsetError` while a
    transaction that may change it is not over (not before Kafka 2.5, which doesn't tell).
    """
    coordinator = consumer._coordinator
    try:
        response = await coordinator._send_req(StableOffsetsRequest(coordinator.group_id, topic, [partition]))
    except (IncompatibleBrokerVersion, NotImplementedError):
        response = await coordinator._send_req(OffsetFetchRequest(coordinator.group_id, [(topic, [partition])]))
    answers = [each for topic in response.to_object()["topics"] for each in topic["partitions"]]
    offset, code = (answers[0]["offset"], answers[0]["error_code"]) if answers else (_NO_OFFSET, 0)
    for found in (getattr(response, "error_code", 0), code):
        if found == _UNSTABLE:
            raise UnstableOffsetError(f"the committed offset of {topic}[{partition}]")
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


def producer_id_of(producer: AIOKafkaProducer) -> int:
    """The id that its transactional id was given."""
    return int(producer._txn_manager.producer_id)


def adopt(producer: AIOKafkaProducer, initialised: tuple[int, int]) -> None:
    """Give a producer that has not started the id and epoch that its transactional id was initialised with."""
    producer._txn_manager.set_pid_and_epoch(*initialised)


async def send_offsets(
    producer: AIOKafkaProducer,
    group_id: str,
    membership: Membership,
    topic: str,
    offsets: Mapping[int, tuple[int, str]],
) -> None:
    """Make offsets of the group, each with its note, parts of the transaction, as this member of the group.

    Everything that was sent before must be acknowledged. Raises `StaleMemberError` where the group has gone on without
    this member, ``KafkaError`` otherwise.
    """
    manager, sender, left = producer._txn_manager, producer._sender, dict(offsets)
    while manager._txn_consumer_group is None and not await sender._do_add_offsets_to_txn(group_id):
        pass  # it has waited before it said so
    while left:
        node = await sender._find_coordinator(CoordinationType.GROUP, group_id)
        ids = (manager.producer_id, manager.producer_epoch)
        request = TxnOffsetsRequest(manager.transactional_id, group_id, ids, membership, topic, left)
        try:
            response = await producer.client.send(node, request, group=ConnectionGroup.COORDINATION)
        except (NodeNotReadyError, RequestTimedOutError, KafkaConnectionError):
            sender._coordinator_dead(CoordinationType.GROUP)
        else:
            for _, answers, _ in response.topics:
                for partition, code, _ in answers:
                    if _taken(code, f"the offset of {topic}[{partition}] in generation {membership.generation}"):
                        left.pop(partition, None)
                    elif for_code(code) in _NO_COORDINATOR:
                        sender._coordinator_dead(CoordinationType.GROUP)
        if left:
            await asyncio.sleep(sender._retry_backoff)


_NO_COORDINATOR: Final = (*NO_COORDINATOR_YET, RequestTimedOutError)


def _taken(code: int, what: str) -> bool:
    """Whether an offset was taken; false where it is to be sent again. Raises what else came of it."""
    if code in _STALE_MEMBER:
        raise StaleMemberError(f"the group has gone on without this worker ({_STALE_MEMBER[code]}) and refuses {what}")
    error = for_code(code)
    if error is NoError:
        return True
    if error is InvalidProducerEpoch:
        raise ProducerFenced
    if error in _NO_COORDINATOR or error in (ConcurrentTransactions, UnknownTopicOrPartitionError):
        return False
    raise error(what)


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


def brokers(client: AIOKafkaClient) -> list[int]:
    """All brokers of the cluster."""
    return [broker.nodeId for broker in client.cluster.brokers()]


async def lacking_of(admin: AIOKafkaAdminClient) -> list[str]:
    """What any broker lacks of the requests in `workers.kafka.protocol`. Raises ``KafkaError``."""
    client = admin._client
    return sorted({each for node in brokers(client) for each in lacking(await api_versions(client, node))})


async def api_versions(client: AIOKafkaClient, node: int) -> Mapping[int, tuple[int, int]]:
    """The least and the latest version of each of Kafka's APIs that a broker has. Raises ``NodeNotReadyError``."""
    if not await client.ready(node):
        raise NodeNotReadyError(f"broker {node}")
    versions: Mapping[int, tuple[int, int]] = client._conns[node, ConnectionGroup.DEFAULT]._versions
    return versions


async def leader_of(client: AIOKafkaClient, tp: TopicPartition) -> int:
    """The broker that leads the partition. Raises ``LeaderNotAvailableError``, when it has asked for news of it."""
    await client._wait_on_metadata(tp.topic)
    node: int | None = client.cluster.leader_for_partition(tp)
    if node is None or node == -1:
        await client.force_metadata_update()
        raise LeaderNotAvailableError(tp)
    return node
