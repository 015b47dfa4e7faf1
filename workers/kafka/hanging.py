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
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Final

import structlog
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import ConcurrentTransactions, IncompatibleBrokerVersion, KafkaTimeoutError

from workers.errors import DataLossError
from workers.kafka.errors import NO_COORDINATOR_YET
from workers.kafka.internals import add_to_transaction, producer_id_of
from workers.kafka.transactions import POLL_S, describe, end_offsets, initialise_once, open_producers

__all__ = [
    "DECIDING",
    "Decision",
    "decision_of",
    "end_and_decide",
    "finish",
    "last_decision",
    "open_transactions",
    "unknown_decision",
]

log = structlog.get_logger(__name__)

DECIDING_TIMEOUT_S = 10.0


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
DECIDING: Final = ("PrepareCommit", "PrepareAbort", "PrepareEpochFence")


def decision_of(state: str) -> Decision:
    """What a coordinator decided that gives its transaction's state as this."""
    return _STATES.get(state, Decision.UNKNOWN)


async def last_decision(client: AIOKafkaClient, transactional_id: str) -> Decision:
    """What became, or is about to become, of the id's last transaction. To be asked before the id is initialised.

    Raises ``KafkaError``, also where the coordinator is still at it after ten seconds.
    """
    deadline_s = time.monotonic() + DECIDING_TIMEOUT_S
    while True:
        try:
            found = await describe(client, transactional_id)
        except NO_COORDINATOR_YET:
            if time.monotonic() > deadline_s:
                raise
        else:
            if found is None or found.state not in DECIDING:
                return decision_of(found.state) if found is not None else Decision.UNKNOWN
            if time.monotonic() > deadline_s:
                raise KafkaTimeoutError(f"transaction {transactional_id} is still in {found.state}")
        await asyncio.sleep(POLL_S)


async def end_and_decide(client: AIOKafkaClient, transactional_id: str) -> Decision:
    """What became of the id's last transaction, for good: one that is open is aborted by this, and whoever has it open
    is fenced. Not so of `last_decision`: a commit that is still on its way may come between it and what follows.

    `Decision.UNKNOWN` also where it ended in just this moment. Raises ``KafkaError``.
    """
    deadline_s = time.monotonic() + DECIDING_TIMEOUT_S
    while True:
        try:
            found = await describe(client, transactional_id)
            if found is None or found.state not in ("Ongoing", *DECIDING):
                return decision_of(found.state) if found is not None else Decision.UNKNOWN
            if found.state == "Ongoing":
                await initialise_once(client, found)
                return Decision.UNKNOWN  # an open transaction would have been in the way of it
        except (ConcurrentTransactions, *NO_COORDINATOR_YET):
            if time.monotonic() > deadline_s:
                raise
        else:
            if time.monotonic() > deadline_s:
                raise KafkaTimeoutError(f"transaction {transactional_id} is still in {found.state}")
        await asyncio.sleep(POLL_S)


async def finish(
    producer: AIOKafkaProducer,
    decision: Decision,
    changelogs: Sequence[TopicPartition],
    others: Iterable[TopicPartition],
    group_id: str,
) -> list[TopicPartition]:
    """Put the decision's markers on the partitions where transactions hang, and on the group's offsets; gives the
    changelogs where another producer has a transaction open.

    ``producer`` has just been initialised, so what it has open in ``changelogs`` hangs. In the ``others`` it may be
    another producer at work, whom these markers don't concern.

    Raises `DataLossError` where records hang and nothing is known about them, ``KafkaError`` otherwise.
    """
    known = decision is not Decision.UNKNOWN
    found = await open_transactions(producer.client, [*changelogs, *others] if known else changelogs)
    mine = [tp for tp in found if tp not in changelogs or await _is_open(producer, tp)]
    theirs = [tp for tp in found if tp not in mine]
    if not mine:
        return theirs
    if not known:
        raise unknown_decision(mine[0])
    await producer.begin_transaction()
    await add_to_transaction(producer, mine, group_id)
    if decision is Decision.COMMIT:
        await producer.commit_transaction()
    else:
        await producer.abort_transaction()
    for changelog in changelogs:
        if changelog in mine:
            await _until_closed(producer, changelog)
            log.warning(
                "finished a transaction that the broker had left open",
                outcome=decision.value,
                changelog=changelog.topic,
                partition=changelog.partition,
            )
    return theirs


def unknown_decision(changelog: TopicPartition) -> DataLossError:
    """What to raise where records hang that nobody can decide about."""
    return DataLossError(
        f"{changelog.topic}[{changelog.partition}] has a transaction that its coordinator knows nothing of, so it "
        "can't be told whether its results count. Find it with Kafka's own kafka-transactions.sh find-hanging, and "
        "abort it there; then the records that it reflects are processed again"
    )


async def _is_open(producer: AIOKafkaProducer, changelog: TopicPartition) -> bool:
    """Whether the producer is who has a transaction open in the partition."""
    try:
        return producer_id_of(producer) in await open_producers(producer.client, changelog)
    except (IncompatibleBrokerVersion, NotImplementedError):
        return changelog in await open_transactions(producer.client, [changelog])  # nobody else, before Kafka 2.8


async def _until_closed(producer: AIOKafkaProducer, changelog: TopicPartition) -> None:
    deadline_s = time.monotonic() + DECIDING_TIMEOUT_S
    while await _is_open(producer, changelog):
        if time.monotonic() > deadline_s:
            raise KafkaTimeoutError(f"{changelog.topic}[{changelog.partition}] still has an open transaction")
        await asyncio.sleep(POLL_S)


async def open_transactions(client: AIOKafkaClient, partitions: Sequence[TopicPartition]) -> list[TopicPartition]:
    """Partitions whose committed log ends before their log does."""
    ends = await end_offsets(client, partitions, committed=False)
    stable = await end_offsets(client, partitions, committed=True)  # second: what ended in between doesn't count
    return [tp for tp in partitions if stable[tp] < ends[tp]]
