"""Questions about transactions, and the answers: who has one open where, and how to end what nobody will end."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.errors import (
    ConcurrentTransactions,
    IncompatibleBrokerVersion,
    InvalidProducerEpoch,
    LeaderNotAvailableError,
    NoError,
    NotLeaderForPartitionError,
    for_code,
)
from aiokafka.protocol.offset import OffsetRequest

from workers.kafka.errors import NO_COORDINATOR_YET
from workers.kafka.internals import brokers, leader_of
from workers.kafka.protocol import (
    DescribeProducersRequest,
    DescribeTransactionsRequest,
    InitProducerIdRequest,
    ListTransactionsRequest,
)

__all__ = [
    "POLL_S",
    "Transaction",
    "describe",
    "end_offsets",
    "initialise",
    "initialise_once",
    "open_producers",
    "transactional_ids",
]

POLL_S: Final = 0.02
WITHIN_S: Final = 10.0
_NOT_FOUND = 105  # TRANSACTIONAL_ID_NOT_FOUND, which the client has no name for
_PRODUCER_FENCED = 90  # nor for this
_LATEST, _EARLIEST = -1, -2
_READ_UNCOMMITTED, _READ_COMMITTED = 0, 1


@dataclass(frozen=True, slots=True)
class Transaction:
    """The last transaction of a transactional id, as its coordinator has it; partitions are known while it is open."""

    transactional_id: str
    state: str  # in Kafka's words
    producer: tuple[int, int]  # id and epoch
    timeout_ms: int
    partitions: frozenset[TopicPartition]


async def describe(client: AIOKafkaClient, transactional_id: str) -> Transaction | None:
    """The coordinator's word for the id's last transaction; None where it knows none, or can't tell (before Kafka 3.0).

    Raises ``KafkaError``.
    """
    node = await client.coordinator_lookup(CoordinationType.TRANSACTION, transactional_id)
    try:
        request = DescribeTransactionsRequest(transactional_id)
        response = await client.send(node, request, group=ConnectionGroup.COORDINATION)
    except (IncompatibleBrokerVersion, NotImplementedError):
        return None
    ((code, _, state, timeout_ms, _, producer_id, epoch, topics, _),) = response.states
    if code == _NOT_FOUND:
        return None
    error = for_code(code)
    if error is not NoError:
        raise error(f"state of transaction {transactional_id}")
    written = frozenset(TopicPartition(topic, number) for topic, numbers, _ in topics for number in numbers)
    return Transaction(transactional_id, str(state), (producer_id, epoch), timeout_ms, written)


async def transactional_ids(client: AIOKafkaClient, prefix: str) -> dict[str, tuple[int, str]]:
    """All transactional ids with this prefix that the cluster knows: producer id and state of each.

    Raises ``KafkaError``, also while a broker loads what it coordinates.
    """
    found: dict[str, tuple[int, str]] = {}
    for node in brokers(client):
        response = await client.send(node, ListTransactionsRequest(), group=ConnectionGroup.COORDINATION)
        error = for_code(response.error_code)
        if error is not NoError:
            raise error(f"the transactions that broker {node} coordinates")
        for name, producer_id, state, _ in response.transactions:
            if name.startswith(prefix):
                found[name] = producer_id, state
    return found


async def open_producers(client: AIOKafkaClient, tp: TopicPartition) -> dict[int, int]:
    """The producers that have a transaction open in the partition: the epoch of each by its id. Raises
    ``KafkaError``."""
    request = DescribeProducersRequest(tp)
    response = await client.send(await leader_of(client, tp), request, group=ConnectionGroup.COORDINATION)
    ((_, ((_, code, _, producers, _),), _),) = response.topics
    error = for_code(code)
    if error is not NoError:
        client.force_metadata_update()
        raise error(f"the producers of {tp.topic}[{tp.partition}]")
    return {producer_id: epoch for producer_id, epoch, _, _, _, since, _ in producers if since >= 0}


async def initialise(client: AIOKafkaClient, found: Transaction) -> tuple[int, int] | None:
    """Initialise a transactional id for another producer, whose transaction is aborted by that and which is fenced.

    Gives the new producer id and epoch; None where it is not as it was found: somebody else has initialised it.
    Raises ``KafkaError``.
    """
    deadline_s = time.monotonic() + WITHIN_S
    while True:
        try:
            return await initialise_once(client, found)
        except (ConcurrentTransactions, *NO_COORDINATOR_YET):
            if time.monotonic() > deadline_s:
                raise
        await asyncio.sleep(POLL_S)


async def initialise_once(client: AIOKafkaClient, found: Transaction) -> tuple[int, int] | None:
    """As `initialise`, but it doesn't wait. Raises ``ConcurrentTransactions`` where a transaction is not over, one that
    was open being aborted from now on; other ``KafkaError``."""
    node = await client.coordinator_lookup(CoordinationType.TRANSACTION, found.transactional_id)
    request = InitProducerIdRequest(found.transactional_id, found.timeout_ms, found.producer)
    response = await client.send(node, request, group=ConnectionGroup.COORDINATION)
    if response.error_code == _PRODUCER_FENCED:
        return None
    error = for_code(response.error_code)
    if error is InvalidProducerEpoch:
        return None
    if error is not NoError:
        raise error(f"initialising {found.transactional_id}")
    return response.producer_id, response.producer_epoch


async def begin_offsets(client: AIOKafkaClient, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
    """The first offset that each log still has. Raises ``KafkaError``."""
    return await _offsets(client, partitions, _EARLIEST, _READ_UNCOMMITTED)


async def end_offsets(
    client: AIOKafkaClient, partitions: Iterable[TopicPartition], *, committed: bool
) -> dict[TopicPartition, int]:
    """Where the logs end, or where the earliest open transaction in each begins, if that is before. Raises
    ``KafkaError``."""
    return await _offsets(client, partitions, _LATEST, _READ_COMMITTED if committed else _READ_UNCOMMITTED)


async def _offsets(
    client: AIOKafkaClient, partitions: Iterable[TopicPartition], at: int, isolation: int
) -> dict[TopicPartition, int]:
    """Asked for beside fetches, not behind them: those wait for records. Again where leaders are not known yet, or have
    changed."""
    deadline_s = time.monotonic() + WITHIN_S
    wanted = list(partitions)
    while True:
        try:
            return await _offsets_now(client, wanted, at, isolation)
        except (LeaderNotAvailableError, NotLeaderForPartitionError):
            if time.monotonic() > deadline_s:
                raise
        await asyncio.sleep(POLL_S)


async def _offsets_now(
    client: AIOKafkaClient, partitions: Iterable[TopicPartition], at: int, isolation: int
) -> dict[TopicPartition, int]:
    by_node: dict[int, dict[str, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    for tp in partitions:
        by_node[await leader_of(client, tp)][tp.topic].append((tp.partition, at))
    found: dict[TopicPartition, int] = {}
    for node, topics in by_node.items():
        request = OffsetRequest(-1, isolation, list(topics.items()))
        response = await client.send(node, request, group=ConnectionGroup.COORDINATION)
        for topic, answers in response.topics:
            for partition, code, _, offset in answers:
                error = for_code(code)
                if error is not NoError:
                    client.force_metadata_update()
                    raise error(f"an offset of {topic}[{partition}]")
                found[TopicPartition(topic, partition)] = offset
    return found
