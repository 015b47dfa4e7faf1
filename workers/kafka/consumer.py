"""Reading: one group consumer, which partitions it owns, and when it is told so.

The group protocol is eager: every rebalance takes all partitions and gives some back. What aiokafka 0.14 does then, and
what is done about it here:

- ``on_partitions_revoked`` is awaited with heartbeats running, so there is time to commit;
- during ``on_partitions_assigned`` none run: partitions are paused at once and everything else is left to tasks;
- ``getmany`` hands out records of partitions that are not ready yet: they are dropped here, and read again, since a
  partition is positioned (`start_reading`) only when its lane is restored;
- a pause is lost in a rebalance: the owner of a partition that stayed pauses it again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import (
    IllegalGenerationError,
    IllegalStateError,
    OffsetOutOfRangeError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)

from workers.errors import BrokerError, DataLossError, FencedError, TopicReplacedError
from workers.kafka.errors import UnstableOffsetError
from workers.kafka.fetch_hook import install
from workers.kafka.internals import (
    client_of,
    committed_offset,
    failed_tasks,
    heartbeat_error,
    membership_of,
    raise_coordinator_errors,
)
from workers.kafka.metadata import topic_id_of
from workers.kafka.ports import Fetched, PartitionsCallback, Sighting
from workers.kafka.protocol import Membership
from workers.kafka.repairs import stop_consumer
from workers.kafka.sighting import look
from workers.kafka.transactions import begin_offsets, end_offsets

__all__ = ["KafkaGroupConsumer"]

log = structlog.get_logger(__name__)

NO_PARTITION = 2**31 - 1
UNSTABLE_LIMIT_S = 10.0
UNSTABLE_REST_S = 0.02
NOT_IN_GROUP_WAIT_S = 0.5
_NO_MEMBER = (UnknownMemberIdError, IllegalGenerationError)


class KafkaGroupConsumer(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is untyped
    """A topic as this member of the group sees it; partitions are plain numbers."""

    def __init__(
        self,
        topic: str,
        group_id: str,
        consumer_options: Mapping[str, object],
        *,
        on_revoked: PartitionsCallback,
        on_assigned: PartitionsCallback,
        batches: bool = False,
        on_stop: Callable[[], Awaitable[None]] | None = None,
        topic_id: str | None = None,
        changelog: str | None = None,
        if_lost: str = "its retention is shorter than the lag. Start over with `workers state reset`, which reads what "
        "is left",
    ) -> None:
        """With ``batches``, `poll` hands out whole record batches as they were fetched, else records, whatever the
        names of their headers. ``on_stop`` is called by `stop`. ``topic_id`` is the one that the topic must have; None:
        any. ``changelog`` is the other topic that `look` looks at. ``if_lost`` ends the error that says that the log no
        longer has records."""
        self._topic = topic
        self._topic_id = topic_id
        self._changelog = changelog
        self._is_committed = consumer_options.get("isolation_level") == "read_committed"
        self._on_stop = on_stop
        self._batches = batches
        self._if_lost = if_lost
        self._on_revoked = on_revoked
        self._on_assigned = on_assigned
        self._assigned: set[int] = set()  # none while a rebalance is under way, where the client still names the old
        self._reading: set[int] = set()
        self._membership: Membership | None = None  # as which it was assigned what it has, or had
        self._claims: dict[int, object] = {}
        # The assignor keeps what it was assigned on the class: a class for each consumer, or two would share it.
        assignor = type("OwnStickyAssignor", (StickyPartitionAssignor,), {})
        self._consumer = AIOKafkaConsumer(
            **{
                **consumer_options,
                "group_id": group_id,
                "enable_auto_commit": False,
                "auto_offset_reset": "none",  # positions are set by `start_reading` alone
                "partition_assignment_strategy": [assignor],
            }
        )

    async def start(self) -> None:
        """Connect and subscribe; the group is joined in the background. Raises ``KafkaError``."""
        await self._consumer.start()
        install(self._consumer, records=not self._batches)
        self._consumer.subscribe([self._topic], listener=self)

    async def stop(self) -> None:
        """Leave the group, within a few seconds; the revoked callback is not called."""
        try:
            await stop_consumer(self._consumer)
        finally:
            if self._on_stop is not None:
                await self._on_stop()

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """aiokafka's callback before a rebalance."""
        self._reading.clear()
        self._assigned.clear()
        await self._on_revoked({tp.partition for tp in revoked})

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """aiokafka's callback after a rebalance; no heartbeats run until it returns."""
        self._consumer.pause(*assigned)
        self._reading.clear()
        self._assigned = {tp.partition for tp in assigned}
        self._claim(membership_of(self._consumer))
        await self._on_assigned(set(self._assigned))

    def owns(self, partition: int) -> bool:
        """Whether the partition is assigned to this consumer now."""
        return partition in self._assigned

    @property
    def client(self) -> AIOKafkaClient:
        """Its connections, for questions to the cluster."""
        return client_of(self._consumer)

    @property
    def membership(self) -> Membership | None:
        """As whom the group gave this consumer what it has, also while a rebalance is under way; None: it has nothing.

        Not what the client believes it is by now: it knows of a new generation before it knows what it owns in it.
        """
        return self._membership

    def claim(self, partition: int) -> object | None:
        """What stands for owning the partition without a gap: another object once somebody else may have had it in
        between. It stays through a rebalance until its end, since what was processed may be committed; None where the
        partition is not owned."""
        return self._claims.get(partition)

    def _claim(self, membership: Membership | None) -> None:
        """Go on with the claims to partitions that this member had in the generation just before."""
        before, self._membership = self._membership, membership
        stays = (
            membership is not None
            and before is not None
            and (before.member_id, before.generation + 1) == (membership.member_id, membership.generation)
        )
        kept = self._claims if stays else {}
        self._claims = {number: kept.get(number, object()) for number in self._assigned if membership is not None}

    def check(self) -> None:
        """Raise what the client found in the background: ``KafkaError`` where it goes on trying, `BrokerError` where
        one of its tasks has ended, without which it would stand still for ever and say nothing, `TopicReplacedError`
        where the topic has another id."""
        self._check_topic()
        for what, error in failed_tasks(self._consumer):
            raise BrokerError(f"the Kafka client's task for {what} of {self._topic} ended: {error!r}") from error
        raise_coordinator_errors(self._consumer)

    def _check_topic(self) -> None:
        found = topic_id_of(client_of(self._consumer), self._topic)
        if self._topic_id is not None and found is not None and found != self._topic_id:
            raise TopicReplacedError(
                f"the topic {self._topic} was deleted and made again while this worker read it (its id was "
                f"{self._topic_id}, is {found}); what was not committed by then is dropped. Drop the state with "
                "`workers state reset`: then all that the topic holds is processed from its beginning"
            )

    async def look(self, partitions: Collection[int]) -> Sighting:
        """The topics as they are now, and where these partitions of the changelog begin. Raises ``KafkaError``."""
        assert self._changelog is not None
        return await look(client_of(self._consumer), self._topic, self._changelog, partitions)

    async def confirm_membership(self, partition: int) -> bool:
        """Ask the group whether this process still owns the partition; False while a rebalance is under way, whose end
        decides. Raises `FencedError` where the group has gone on without this process, ``KafkaError`` where it does not
        answer.

        One that was frozen or cut off still believes that it is a member. It must ask before it takes a partition up
        again, for that fences whoever has it now.
        """
        error = await heartbeat_error(self._consumer)
        if error in _NO_MEMBER:
            raise FencedError(f"the group has not confirmed that {self._topic}[{partition}] is owned here")
        if error is not None and error is not RebalanceInProgressError:
            raise error(f"membership of the group that reads {self._topic}")
        return error is None and self.owns(partition)

    def start_reading(self, partition: int, offset: int) -> None:
        """Hand out the partition's records from ``offset`` on. The partition must be owned."""
        tp = self._tp(partition)
        self._consumer.seek(tp, offset)
        self._consumer.resume(tp)
        self._reading.add(partition)

    def stop_reading(self, partition: int) -> None:
        """Hand out nothing of the partition until `start_reading`."""
        self._reading.discard(partition)
        if self.owns(partition):
            self._consumer.pause(self._tp(partition))

    def pause(self, partition: int) -> None:
        """Fetch no more for now; what was fetched is kept."""
        self._consumer.pause(self._tp(partition))

    def resume(self, partition: int) -> None:
        """Fetch again."""
        self._consumer.resume(self._tp(partition))

    async def stay(self) -> None:
        """Show that this member is alive while it fetches nothing: one that doesn't ask for ``max.poll.interval.ms``
        leaves the group. Asks for a partition that can't exist, which touches nothing that was fetched."""
        await self._fetch([self._tp(NO_PARTITION)], timeout_ms=0)

    async def poll(self, partitions: Collection[int], *, timeout_ms: int, max_records: int) -> dict[int, Fetched]:
        """The next records of the given partitions, in log order; waits ``timeout_ms`` for the first.

        ``max_records`` counts batches where those are handed out.

        Raises `DataLossError` where the log no longer has the position, ``KafkaError`` otherwise.
        """
        tps = [self._tp(partition) for partition in partitions if partition in self._reading]
        if not tps:
            return {}
        try:
            found = await self._fetch(tps, timeout_ms=timeout_ms, max_records=max_records)
        except OffsetOutOfRangeError as error:
            raise DataLossError(
                f"{self._topic} no longer has the records to be read next ({error}); {self._if_lost}"
            ) from error
        if found:
            self._check_topic()  # a fetch that failed for a deleted topic is followed by news of it, then by another
        return {
            tp.partition: Fetched(records) for tp, records in found.items() if records and tp.partition in self._reading
        }

    async def _fetch(
        self, tps: list[TopicPartition], *, timeout_ms: int, max_records: int | None = None
    ) -> Mapping[TopicPartition, Sequence[Any]]:
        """What the client's ``getmany`` gives, but within the time given: out of the group that waits for however long
        it takes to get in, and who asks could do nothing else meanwhile, not even end."""
        try:
            async with asyncio.timeout(timeout_ms / 1000 + NOT_IN_GROUP_WAIT_S):
                found: Mapping[TopicPartition, Sequence[Any]] = await self._consumer.getmany(
                    *tps, timeout_ms=timeout_ms, max_records=max_records
                )
                return found
        except TimeoutError:
            return {}

    async def committed(self, partition: int) -> int | None:
        """The group's committed offset; None where it has none. Raises ``KafkaError``, also while the coordinator
        loads, and `UnstableOffsetError` where a transaction that may change it doesn't end within ten seconds."""
        deadline_s = time.monotonic() + UNSTABLE_LIMIT_S
        while True:
            try:
                return await committed_offset(self._consumer, self._topic, partition)
            except UnstableOffsetError:
                if time.monotonic() > deadline_s:
                    raise
            await asyncio.sleep(UNSTABLE_REST_S)

    async def commit(self, offsets: Mapping[int, int]) -> None:
        """Commit offsets to the group, by partition, outside a transaction. Raises ``KafkaError``."""
        await self._consumer.commit({self._tp(partition): offset for partition, offset in offsets.items()})

    async def log_bounds(self, partition: int) -> tuple[int, int]:
        """The first offset that the log still has, and its end."""
        tp = self._tp(partition)
        begins, ends = await asyncio.gather(
            begin_offsets(self.client, [tp]), end_offsets(self.client, [tp], committed=self._is_committed)
        )
        return begins[tp], ends[tp]

    async def at_end(self, partition: int) -> bool:
        """Whether everything the last fetch saw has been handed out."""
        tp = self._tp(partition)
        if not self.owns(partition) or partition not in self._reading:
            return False
        end = self._consumer.last_stable_offset(tp)
        if end is None or end < 0:
            end = self._consumer.highwater(tp)
        return end is not None and await self._consumer.position(tp) >= end

    async def position(self, partition: int) -> int | None:
        """The offset behind all that was handed out, and behind what is no record after it; None where nothing is read.

        Only to be asked where what was handed out was taken.
        """
        if not self.owns(partition) or partition not in self._reading:
            return None
        try:
            found: int = await self._consumer.position(self._tp(partition))
        except IllegalStateError:  # a rebalance took it away meanwhile
            return None
        return found if partition in self._reading else None

    def _tp(self, partition: int) -> TopicPartition:
        return TopicPartition(self._topic, partition)
