"""Writing: one transactional producer per input partition, and the commit, which is one function.

Why a transactional id per input partition: aiokafka sends only a group id with the offsets of a transaction, so the
broker can't tell a member from a zombie by its generation. With an id per partition the next owner's initialisation
fences the previous one, whatever that one still believes.

Why producers are disposable: after a failed batch or an abortable error aiokafka's producer can publish what was to be
aborted, or can't go on at all. So every error discards the producer; the lane is restored from what was committed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import IllegalOperation, MessageSizeTooLargeError, ProducerFenced, TopicAuthorizationFailedError
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.structs import OffsetAndMetadata

from workers.core.frames import OutRecord
from workers.core.packed import OutRecords
from workers.core.partitioning import partition_for
from workers.errors import BrokerError, FencedError
from workers.kafka.errors import NO_COORDINATOR_YET
from workers.kafka.hanging import finish, last_decision
from workers.kafka.internals import ClosedBatch, close_batch, codec_of, new_batch, start_sending, transaction_failure
from workers.kafka.ports import Commit, OutTopic, OversizedError
from workers.kafka.repairs import abandon
from workers.native.probe import packed_records

__all__ = ["PartitionSink", "SinkSpec", "reached"]

log = structlog.get_logger(__name__)

_NO_HEADERS: list[tuple[str, bytes]] = []
PACKED_RECORDS = 4_000  # at once, where each is an object
PACKED_BYTES = 2 * 1024 * 1024


def reached(step: int) -> None:
    """Called after each numbered step of a commit. Does nothing; tests crash the process here."""


@dataclass(frozen=True, slots=True)
class SinkSpec:
    """Where the results of the input topic go, and how they are committed."""

    input_topic: str
    group_id: str
    frames: OutTopic
    late: OutTopic
    dead_letters: OutTopic
    changelog: OutTopic
    exactly_once: bool
    producer_options: Mapping[str, object]
    routed: Mapping[str, OutTopic] = field(default_factory=dict)  # where operators send ticks, by name
    commit_timeout_s: float = 30.0
    note_step: Callable[[str, float], object] = lambda step, began_s: None  # what held the event loop, and since when


class PartitionSink:
    """The producers of one input partition. ``open`` fences whoever owned the partition before.

    At least once, results go out through a plain producer beside the transactional one. It belongs to this partition
    alone: a refused batch spoils the producer that sent it, and must not hold up other partitions.
    """

    def __init__(self, spec: SinkSpec, partition: int) -> None:
        self._spec = spec
        batch_bytes = spec.producer_options["max_batch_size"]
        assert isinstance(batch_bytes, int)
        self._batch_bytes = batch_bytes
        self._partition = partition
        self._results_producer: AIOKafkaProducer | None = None
        self._producer: AIOKafkaProducer | None = None

    async def open(self) -> None:
        """Start the producer and initialise its transactional id; the previous owner can commit nothing after this.

        What the previous owner committed is readable after this, too, even where the broker had left it unfinished.
        """
        options = self._spec.producer_options
        transactional_id = f"{self._spec.group_id}-{self._spec.input_topic}-{self._partition}"
        producer = AIOKafkaProducer(**options, transactional_id=transactional_id)
        try:
            async with asyncio.timeout(self._spec.commit_timeout_s):
                await producer.client.bootstrap()
                decision = await last_decision(producer.client, transactional_id)
                await start_sending(producer)
                changelog = TopicPartition(self._spec.changelog.name, self._partition)
                await finish(producer, decision, changelog, self._result_partitions(), self._spec.group_id)
        except NO_COORDINATOR_YET as error:
            await abandon(producer)
            raise BrokerError(
                f"no broker coordinates the transactions of {transactional_id}: the log that they are in, "
                "__transaction_state, has no leader or can't be made. Are as many brokers up as "
                "transaction.state.log.replication.factor wants?"
            ) from error
        except BaseException:
            await abandon(producer)
            raise
        self._producer = producer
        if not self._spec.exactly_once:
            try:
                self._results_producer = await self._started(AIOKafkaProducer(**options))
            except BaseException:
                await self.close()
                raise

    def _result_partitions(self) -> list[TopicPartition]:
        """Where transactions of this partition may have written, but for the changelog."""
        if not self._spec.exactly_once:
            return []
        topics = (self._spec.frames, self._spec.late, self._spec.dead_letters, *self._spec.routed.values())
        return [TopicPartition(topic.name, number) for topic in topics for number in range(topic.partitions)]

    async def _started(self, producer: AIOKafkaProducer) -> AIOKafkaProducer:
        try:
            await asyncio.wait_for(producer.start(), self._spec.commit_timeout_s)
        except BaseException:
            await abandon(producer)
            raise
        return producer

    async def commit(self, work: Commit) -> None:
        """Make ``work`` visible, in numbered steps. After any exception the sink must be discarded.

        Exactly once, everything is in one transaction. At least once, results are written and acknowledged first and
        only state and offset are in the transaction: a crash in between repeats results, byte for byte the same.

        Raises `FencedError` when another worker owns the partition, `OversizedError` when the broker refused a record
        as too large, ``KafkaError`` or ``TimeoutError`` otherwise.
        """
        try:
            await asyncio.wait_for(self._commit(work), self._spec.commit_timeout_s)
        except ProducerFenced as error:
            raise FencedError(
                f"another worker has taken over {self._spec.input_topic}[{self._partition}]; "
                "nothing after the last commit was published"
            ) from error
        except (
            IllegalOperation
        ) as error:  # said of a transaction that has failed between two steps, for whatever reason
            cause = transaction_failure(self._producer) if self._producer is not None else None
            raise cause or BrokerError(
                f"the transaction of {self._spec.input_topic}[{self._partition}] has failed"
            ) from error

    async def _commit(self, work: Commit) -> None:
        producer, spec = self._producer, self._spec
        if producer is None:
            raise FencedError(f"the producer of {spec.input_topic}[{self._partition}] is closed")
        sent: list[asyncio.Future[object]] = []
        if self._results_producer is not None:
            # 0. results, acknowledged before the state says that they are out
            await _acknowledged(await self._send_results(self._results_producer, work))
            reached(0)
        # 1. begin
        await producer.begin_transaction()
        reached(1)
        # 2. results and state
        if self._results_producer is None:
            sent += await self._send_results(producer, work)
        sent += await self._send(producer, spec.changelog, work.changes, partition=self._partition)
        reached(2)
        # 3. every batch acknowledged: aiokafka would commit over one that failed
        await _acknowledged(sent)
        reached(3)
        # 4. the input offset, in the same transaction
        note = OffsetAndMetadata(work.offset, work.settings)
        offsets = {TopicPartition(spec.input_topic, self._partition): note}
        await producer.send_offsets_to_transaction(offsets, spec.group_id)
        reached(4)
        # 5. commit
        await producer.commit_transaction()
        reached(5)

    async def _send_results(self, producer: AIOKafkaProducer, work: Commit) -> list[asyncio.Future[object]]:
        sent: list[asyncio.Future[object]] = []
        for topic, records in (
            (self._spec.frames, work.frames),
            (self._spec.late, work.late),
            (self._spec.dead_letters, work.dead_letters),
            *((self._spec.routed[name], records) for name, records in work.routed.items()),
        ):
            sent += await self._send(producer, topic, records)
        return sent

    async def _send(
        self,
        producer: AIOKafkaProducer,
        topic: OutTopic,
        records: OutRecords,
        *,
        partition: int | None = None,
    ) -> list[asyncio.Future[object]]:
        """Queue records in as few batches as they fit, in order per partition; by key where no partition is given.

        Packed in portions, between which the event loop can do other things.
        """
        sent: list[asyncio.Future[object]] = []
        for portion in _portions(records):
            began_s = time.perf_counter()
            packed = pack(
                portion,
                producer,
                # The broker measures batches, not records: several that fit alone can be too large together.
                limit_bytes=min(topic.max_record_bytes, self._batch_bytes),
                partitions=topic.partitions,
                partition=partition,
                keyless=self._partition % topic.partitions,
            )
            self._spec.note_step("pack", began_s)
            sent += [
                _watched(await producer.send_batch(batch, topic.name, partition=to), topic) for to, batch in packed
            ]
            await asyncio.sleep(0)
        return sent

    async def close(self) -> None:
        """Let go of the producers; whatever was not committed is not. Done before a cancellation of it is passed on:
        nobody else knows of these producers any more."""
        producers = (self._producer, self._results_producer)
        self._producer = self._results_producer = None
        closing = asyncio.gather(*(abandon(producer) for producer in producers if producer is not None))
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await closing  # takes a bounded time
            raise


def _portions(records: OutRecords) -> Iterator[OutRecords]:
    """The records in order, as many at a time as are packed in some 20 ms."""
    if not isinstance(records, list):
        yield from records.portions(PACKED_BYTES)  # compressed as well, in some 2 ms; by gzip in 35
        return
    portion: list[OutRecord] = []
    size = 0
    for record in records:
        portion.append(record)
        size += record.size
        if len(portion) >= PACKED_RECORDS or size >= PACKED_BYTES:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def pack(
    records: OutRecords,
    producer: AIOKafkaProducer,
    *,
    limit_bytes: int,
    partitions: int,
    partition: int | None,
    keyless: int,
) -> list[tuple[int, BatchBuilder | ClosedBatch]]:
    """Batches of at most ``limit_bytes`` before compression, closed, with the partition each is for, in order.

    A record goes to ``partition``, or where murmur2 puts its key among ``partitions``, without a key to ``keyless``.
    Batches are made by native code where it is there: cramjam packs LZ4 at a level that takes seconds for a megabyte of
    one letter, with the event loop waiting. Without it the C builder inside aiokafka's is filled directly: this runs
    once for every frame and every changed window.
    """
    now_ms = time.time_ns() // 1_000_000
    if isinstance(records, list) and packed_records is not None:
        records = packed_records(records)
    if not isinstance(records, list):
        batches = records.batches(
            partitions=partitions,
            partition=partition,
            keyless=keyless,
            limit_bytes=limit_bytes,
            now_ms=now_ms,
            codec=codec_of(producer),
        )
        return [(to, ClosedBatch(batch, producer)) for to, batch in batches]
    packed: list[tuple[int, BatchBuilder | ClosedBatch]] = []
    fill: dict[int, list[Any]] = {}  # partition -> builder, its C builder's append, records in it
    for record in records:
        key, timestamp_ms = record.key, record.timestamp_ms
        if timestamp_ms is None:
            timestamp_ms = now_ms
        to = partition
        if to is None:
            to = keyless if key is None else partition_for(key, partitions)
        headers = list(record.headers) if record.headers else _NO_HEADERS
        open_batch = fill.get(to)
        if open_batch is not None:
            if open_batch[1](open_batch[2], timestamp_ms, key, record.value, headers) is not None:
                open_batch[2] += 1
                continue
            packed.append((to, close_batch(open_batch[0], open_batch[2])))
        open_batch = fill[to] = [*new_batch(producer, limit_bytes), 1]
        # An empty batch takes any record; whether the topic does was checked when it was made.
        open_batch[1](0, timestamp_ms, key, record.value, headers)
    packed += [(to, close_batch(builder, count)) for to, (builder, _, count) in fill.items()]
    return packed


def _watched(sent: asyncio.Future[object], topic: OutTopic) -> asyncio.Future[object]:
    """What the future gives; its error says which topic refused, and is not complained of should the commit end before
    it is awaited."""
    watched = asyncio.get_running_loop().create_future()

    def pass_on(done: asyncio.Future[object]) -> None:
        if watched.done():
            done.cancelled() or done.exception()
        elif done.cancelled():
            watched.cancel()
        elif (error := done.exception()) is None:
            watched.set_result(done.result())
        else:
            if isinstance(error, MessageSizeTooLargeError):
                error = OversizedError(topic.name, topic.max_record_bytes)
            elif isinstance(error, TopicAuthorizationFailedError):
                error = TopicAuthorizationFailedError(topic.name)
            watched.set_exception(error)
            watched.exception()

    sent.add_done_callback(pass_on)
    return watched


async def _acknowledged(sent: list[asyncio.Future[object]]) -> None:
    if not sent:
        return
    outcomes = await asyncio.gather(*sent, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
