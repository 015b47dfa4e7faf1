"""Taking a partition over from whoever wrote to it: their open transactions are ended, or waited for.

A worker that has one transaction for all its partitions is fenced by the group's generation: what it has not committed
when the group gives a partition away, it can't commit any more. But as long as its transaction is open, readers stop in
front of it, the one that restores the state among them; and a worker that died leaves it open for as long as
``transaction.timeout.ms``. So whoever takes a partition over asks the coordinators which transactions of this
application have its changelog partition, and initialises their ids, which aborts them. One that does live on opens its
producer again, and tries the rest of its transaction again.

What the broker decided and left unfinished is finished, see `workers.kafka.hanging`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

import structlog
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaTimeoutError

from workers.kafka.hanging import DECIDING, Decision, decision_of, finish, open_transactions, unknown_decision
from workers.kafka.internals import adopt, start_sending
from workers.kafka.repairs import abandon
from workers.kafka.transactions import POLL_S, Transaction, describe, initialise, open_producers, transactional_ids

if TYPE_CHECKING:
    from workers.kafka.commit import SinkSpec

__all__ = ["take_over"]

log = structlog.get_logger(__name__)

GRACE_S: Final = 0.1  # for the transaction of a worker that lives: it takes some milliseconds
LIMIT_S: Final = 10.0
_OPEN: Final = ("Ongoing", *DECIDING)


async def take_over(
    client: AIOKafkaClient, spec: SinkSpec, partitions: Collection[int], *, own: str = "", fence: bool = False
) -> None:
    """After this nobody else's transaction is open in the partitions' changelogs.

    ``own``: how the transactional ids of this process begin. With ``fence``, workers that have a transactional id for
    each partition are fenced, too: the group's generation does not do that.

    Raises `DataLossError` where records hang and nothing is known about them, ``KafkaError`` otherwise.
    """
    changelogs = {TopicPartition(spec.changelog.name, number) for number in partitions}
    listed = await transactional_ids(client, f"{spec.group_id}-")
    for name, (_, state) in listed.items():
        if state in _OPEN and not (own and name.startswith(own)):
            await _end(client, name, changelogs)
    for changelog in await open_transactions(client, sorted(changelogs)):
        await _finish(client, spec, changelog)
    for name in sorted({spec.partition_id(number) for number in partitions} & listed.keys()) if fence else ():
        while (found := await describe(client, name)) is not None and await initialise(client, found) is None:
            pass  # somebody initialised it in between, and is to be fenced, too


async def _end(client: AIOKafkaClient, transactional_id: str, changelogs: Collection[TopicPartition]) -> None:
    """See that a transaction is over, if any of these is in it."""
    begun_s = time.monotonic()
    while True:
        found = await describe(client, transactional_id)
        if found is None or found.state not in _OPEN or found.partitions.isdisjoint(changelogs):
            return
        waited_s = time.monotonic() - begun_s
        if found.state == "Ongoing" and waited_s > GRACE_S and await initialise(client, found) is not None:
            log.warning(
                "ended a transaction that another worker had left open",
                transactional_id=transactional_id,
                partitions=sorted(tp.partition for tp in found.partitions.intersection(changelogs)),
            )
            return
        if waited_s > LIMIT_S:
            raise KafkaTimeoutError(f"transaction {transactional_id} is still in {found.state}")
        await asyncio.sleep(POLL_S)


async def _finish(client: AIOKafkaClient, spec: SinkSpec, changelog: TopicPartition) -> None:
    """See that no records hang in a changelog partition that are in no open transaction."""
    deadline_s = time.monotonic() + LIMIT_S
    while await open_transactions(client, [changelog]):
        listed = await transactional_ids(client, "")
        names = {producer_id: name for name, (producer_id, _) in listed.items()}
        for producer_id, epoch in (await open_producers(client, changelog)).items():
            found = await describe(client, names[producer_id]) if producer_id in names else None
            if found is None:
                continue
            if found.state in _OPEN:
                await _end(client, found.transactional_id, [changelog])
            # With another epoch somebody else has initialised the id, and is about to finish what hangs.
            elif found.producer == (producer_id, epoch) and await _hangs(client, changelog, found):
                await _finish_as(client, spec, found)
        if time.monotonic() > deadline_s:
            raise unknown_decision(changelog)
        await asyncio.sleep(POLL_S)


async def _hangs(client: AIOKafkaClient, changelog: TopicPartition, found: Transaction) -> bool:
    """Whether a transaction that its coordinator says is over is open in the partition: looked at after it said so."""
    producer_id, epoch = found.producer
    return (await open_producers(client, changelog)).get(producer_id) == epoch


async def _finish_as(client: AIOKafkaClient, spec: SinkSpec, found: Transaction) -> None:
    """Finish what another producer's last transaction left open, as was decided."""
    decision = decision_of(found.state)
    if decision is Decision.UNKNOWN:
        return
    initialised = await initialise(client, found)
    if initialised is None:
        return
    producer = AIOKafkaProducer(**spec.producer_options, transactional_id=found.transactional_id)
    try:
        async with asyncio.timeout(spec.commit_timeout_s):
            await producer.client.bootstrap()
            adopt(producer, initialised)
            await start_sending(producer)
            changelogs = [TopicPartition(spec.changelog.name, number) for number in range(spec.changelog.partitions)]
            await finish(producer, decision, changelogs, spec.result_partitions, spec.group_id)
    finally:
        await abandon(producer)
