"""Transactions that were decided and not finished: finding them, and doing what was decided.

A transaction is decided when its coordinator has written so, and finished when every partition it wrote to has a
marker. Kafka 4.x (4.3.1 was looked at) can skip the markers: a coordinator that comes up while a partition has no
leader yet, as after the crash of a single node, takes that partition for deleted and reports the transaction complete.
Its records then hang: invisible, until the next marker of the same producer id decides over them, whatever that is.
Taken for aborted, they would be made a second time, and then all become visible.

So before the transactional id is initialised, which makes the coordinator forget, it is asked what it decided last;
and after that, an empty transaction with the same outcome puts the markers where records hang.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable
from enum import Enum

import structlog
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.errors import IncompatibleBrokerVersion, KafkaTimeoutError, NoError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.protocol.types import (
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

from workers.errors import DataLossError
from workers.kafka.errors import NO_COORDINATOR_YET
from workers.kafka.internals import add_to_transaction, leader_of

__all__ = ["Decision", "finish", "last_decision"]

log = structlog.get_logger(__name__)

DECIDING_TIMEOUT_S = 10.0
POLL_S = 0.02
_NOT_FOUND = 105  # TRANSACTIONAL_ID_NOT_FOUND, which the client has no name for
_LATEST = -1
_READ_UNCOMMITTED, _READ_COMMITTED = 0, 1


class Decision(Enum):
    """What a coordinator decided about the last transaction of a transactional id."""

    COMMIT = "commit"
    ABORT = "abort"
    UNKNOWN = "unknown"  # there was none, or the id was initialised since


_STATES = {
    "Ongoing": Decision.ABORT,  # by the initialisation that follows
    "CompleteCommit": Decision.COMMIT,
    "CompleteAbort": Decision.ABORT,
}
_DECIDING = ("PrepareCommit", "PrepareAbort", "PrepareEpochFence")


class _DescribeTransactionsResponse(Response):  # type: ignore[misc]  # aiokafka is untyped
    API_KEY = 65
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "states",
            CompactArray(
                ("error_code", Int16),
                ("transactional_id", CompactString("utf-8")),
                ("state", CompactString("utf-8")),
                ("timeout_ms", Int32),
                ("start_time_ms", Int64),
                ("producer_id", Int64),
                ("producer_epoch", Int16),
                (
                    "topics",
                    CompactArray(
                        ("topic", CompactString("utf-8")), ("partitions", CompactArray(Int32)), ("tags", TaggedFields)
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _DescribeTransactionsStruct(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 65
    API_VERSION = 0
    RESPONSE_TYPE = _DescribeTransactionsResponse
    SCHEMA = Schema(("transactional_ids", CompactArray(CompactString("utf-8"))), ("tags", TaggedFields))


class _DescribeTransactionsRequest(Request[_DescribeTransactionsStruct]):  # type: ignore[misc]
    API_KEY = 65

    def __init__(self, transactional_id: str) -> None:
        self._transactional_id = transactional_id

    def build(self, request_struct_class: type[_DescribeTransactionsStruct]) -> _DescribeTransactionsStruct:
        return request_struct_class([self._transactional_id], {})


async def last_decision(client: AIOKafkaClient, transactional_id: str) -> Decision:
    """What became, or is about to become, of the id's last transaction. To be asked before the id is initialised.

    Raises ``KafkaError``, also where the coordinator is still at it after ten seconds.
    """
    deadline_s = time.monotonic() + DECIDING_TIMEOUT_S
    while True:
        try:
            state = await _describe(client, transactional_id)
        except NO_COORDINATOR_YET:
            if time.monotonic() > deadline_s:
                raise
        else:
            if state not in _DECIDING:
                return _STATES.get(state, Decision.UNKNOWN)
            if time.monotonic() > deadline_s:
                raise KafkaTimeoutError(f"transaction {transactional_id} is still in {state}")
        await asyncio.sleep(POLL_S)


async def _describe(client: AIOKafkaClient, transactional_id: str) -> str:
    """The coordinator's word for the state of the id's last transaction; empty where it knows none."""
    node = await client.coordinator_lookup(CoordinationType.TRANSACTION, transactional_id)
    try:
        request = _DescribeTransactionsRequest(transactional_id)
        response = await client.send(node, request, group=ConnectionGroup.COORDINATION)
    except (IncompatibleBrokerVersion, NotImplementedError):
        return ""  # before Kafka 3.0
    ((code, _, state, *_),) = response.states
    error = for_code(code)
    if code == _NOT_FOUND:
        return ""
    if error is not NoError:
        raise error(f"state of transaction {transactional_id}")
    return str(state)


async def finish(
    producer: AIOKafkaProducer,
    decision: Decision,
    changelog: TopicPartition,
    others: Iterable[TopicPartition],
    group_id: str,
) -> None:
    """Put the decision's markers on the partitions where transactions hang, and on the group's offsets.

    ``producer`` has just been initialised. To ``changelog`` nobody else writes, so what is open there hangs. In the
    ``others`` it may be another producer at work, whom these markers don't concern.

    Raises `DataLossError` where records hang and nothing is known about them, ``KafkaError`` otherwise.
    """
    known = decision is not Decision.UNKNOWN
    hanging = await _open_transactions(producer.client, [changelog, *others] if known else [changelog])
    if not hanging:
        return
    if not known:
        raise DataLossError(
            f"{changelog.topic}[{changelog.partition}] has a transaction that its coordinator knows nothing of, so it "
            "can't be told whether its results count. Find it with Kafka's own kafka-transactions.sh find-hanging, and "
            "abort it there; then the records that it reflects are processed again"
        )
    await producer.begin_transaction()
    await add_to_transaction(producer, hanging, group_id)
    if decision is Decision.COMMIT:
        await producer.commit_transaction()
    else:
        await producer.abort_transaction()
    await _until_closed(producer.client, changelog)
    if changelog in hanging:
        log.warning(
            "finished a transaction that the broker had left open",
            outcome=decision.value,
            changelog=changelog.topic,
            partition=changelog.partition,
        )


async def _until_closed(client: AIOKafkaClient, changelog: TopicPartition) -> None:
    deadline_s = time.monotonic() + DECIDING_TIMEOUT_S
    while await _open_transactions(client, [changelog]):
        if time.monotonic() > deadline_s:
            raise KafkaTimeoutError(f"{changelog.topic}[{changelog.partition}] still has an open transaction")
        await asyncio.sleep(POLL_S)


async def _open_transactions(client: AIOKafkaClient, partitions: list[TopicPartition]) -> list[TopicPartition]:
    """Partitions whose committed log ends before their log does."""
    ends = await _ends(client, partitions, _READ_UNCOMMITTED)
    stable = await _ends(client, partitions, _READ_COMMITTED)  # second: what ended in between doesn't count
    return [tp for tp in partitions if stable[tp] < ends[tp]]


async def _ends(client: AIOKafkaClient, partitions: list[TopicPartition], isolation: int) -> dict[TopicPartition, int]:
    by_node: dict[int, dict[str, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    for tp in partitions:
        by_node[await leader_of(client, tp)][tp.topic].append((tp.partition, _LATEST))
    found: dict[TopicPartition, int] = {}
    for node, topics in by_node.items():
        response = await client.send(node, OffsetRequest(-1, isolation, list(topics.items())))
        for topic, answers in response.topics:
            for partition, code, _, offset in answers:
                error = for_code(code)
                if error is not NoError:
                    client.force_metadata_update()
                    raise error(f"end of {topic}[{partition}]")
                found[TopicPartition(topic, partition)] = offset
    return found
