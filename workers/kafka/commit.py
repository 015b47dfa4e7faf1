"""Writing: a transactional producer, and the commit, which is one function. Here one producer per input partition;
`workers.kafka.process` has one for all partitions of a process.

Why a transactional id per input partition: the next owner's initialisation fences the previous one, whatever that one
still believes, on every broker that has transactions.

Why producers are disposable: after a failed batch or an abortable error aiokafka's producer can publish what was to be
aborted, or can't go on at all. So every error discards the producer; the lane is restored from what was committed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import (
    BrokerResponseError,
    IllegalOperation,
    InvalidTimestampError,
    MessageSizeTooLargeError,
    OutOfOrderSequenceNumber,
    ProducerFenced,
    TopicAuthorizationFailedError,
)
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.structs import OffsetAndMetadata

from workers.core.frames import OutRecord
from workers.core.packed import OutRecords
from workers.core.partitioning import partition_for
from workers.errors import BrokerError, FencedError
from workers.kafka.errors import NO_COORDINATOR_YET
from workers.kafka.hanging import Decision, end_and_decide, finish, last_decision
from workers.kafka.internals import (
    ClosedBatch,
    close_batch,
    codec_of,
    new_batch,
    send_offsets,
    start_sending,
    transaction_failure,
)
from workers.kafka.ports import Commit, OutTopic, OversizedError
from workers.kafka.protocol import Membership
from workers.kafka.record_times import refused_time_error
from workers.kafka.repairs import abandon
from workers.kafka.takeover import take_over
from workers.native.probe import packed_records

__all__ = ["Attempt", "PartitionSink", "SinkSpec", "TransactionWriter", "explained", "reached"]

log = structlog.get_logger(__name__)

_NO_HEADERS: list[tuple[str, bytes]] = []
PACKED_RECORDS = 4_000  # at once, where each is an object
PACKED_BYTES = 2 * 1024 * 1024
QUEUED_BYTES = 16 * 1024 * 1024  # of batches that are not acknowledged; all that wait go out in one request to a broker


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

    def partition_id(self, partition: int) -> str:
        """The transactional id of a partition that has its own."""
        return f"{self.group_id}-{self.input_topic}-{partition}"

    @property
    def result_partitions(self) -> list[TopicPartition]:
        """Where transactions may have written, but for the changelog."""
        if not self.exactly_once:
            return []
        topics = (self.frames, self.late, self.dead_letters, *self.routed.values())
        return [TopicPartition(topic.name, number) for topic in topics for number in range(topic.partitions)]


class PartitionSink:
    """The producers of one input partition. ``open`` fences whoever owned the partition before."""

    def __init__(self, spec: SinkSpec, partition: int) -> None:
        self._spec = spec
        self._partition = partition
        self._writer = TransactionWriter(spec, spec.partition_id(partition))

    async def open(self) -> None:
        """Start the producer and initialise its transactional id; the previous owner can commit nothing after this.

        What the previous owner committed is readable after this, too, even where the broker had left it unfinished.
        """
        await self._writer.open([self._partition])

    async def commit(self, work: Commit) -> None:
        """Make ``work`` visible, in numbered steps. After any exception the sink must be discarded.

        Raises `FencedError` when another worker owns the partition, `OversizedError` when the broker refused a record
        as too large, ``KafkaError`` or ``TimeoutError`` otherwise.
        """
        try:
            await self._writer.write(Attempt({self._partition: work}))
        except ProducerFenced as error:
            raise explained(error, self._spec, self._partition) from error

    async def close(self) -> None:
        """Let go of the producers; whatever was not committed is not."""
        await self._writer.close()


@dataclass(slots=True)
class Attempt:
    """One try to commit works, by partition; and how far it came, for whoever deals with its failure.

    ``membership``: as whom the group's offsets are committed; None: the transactional id alone fences.
    """

    works: Mapping[int, Commit]
    membership: Membership | None = None
    out: set[int] = field(default_factory=set)  # at least once: those whose results are acknowledged
    is_ending: bool = False  # all was in the transaction, and its commit may have been asked for
    sent: dict[int, list[asyncio.Future[object]]] = field(default_factory=dict)

    def unacknowledged(self) -> set[int]:
        """The partitions whose batches were refused, or are not acknowledged."""
        return {partition for partition, batches in self.sent.items() if not all(map(_is_acknowledged, batches))}

    def suspects(self) -> set[int]:
        """The partitions to blame: those whose batches were refused, or else not acknowledged. Behind one that was
        refused, others to the same partition of a topic are out of order, whosever they are."""
        refused = {partition for partition, batches in self.sent.items() if any(map(_is_refused, batches))}
        return refused or self.unacknowledged()


class TransactionWriter:
    """The producers under one transactional id: what is written together becomes visible together.

    At least once, results go out through a plain producer beside the transactional one. It belongs to this id alone: a
    refused batch spoils the producer that sent it.
    """

    def __init__(self, spec: SinkSpec, transactional_id: str) -> None:
        self.transactional_id = transactional_id
        self.spec = spec
        batch_bytes = spec.producer_options["max_batch_size"]
        assert isinstance(batch_bytes, int)
        self._batch_bytes = batch_bytes
        self._queued_bytes = 0  # since it was last waited for all
        self._results_producer: AIOKafkaProducer | None = None
        self._producer: AIOKafkaProducer | None = None

    @property
    def is_open(self) -> bool:
        """Whether it can write; after an error it can't, and is to be closed."""
        return self._producer is not None

    async def open(self, partitions: Sequence[int], *, again: bool = False) -> Decision:
        """Start the producer and initialise its transactional id, which fences whoever used it before; what the id's
        last transaction was decided to be. It may have been about these input ``partitions``: should the broker have
        left it unfinished, it is finished.

        ``again``: the last transaction was this process's own, and what it is told became of it is final.
        """
        options = self.spec.producer_options
        producer = AIOKafkaProducer(**options, transactional_id=self.transactional_id)
        try:
            async with asyncio.timeout(self.spec.commit_timeout_s):
                await producer.client.bootstrap()
                decide = end_and_decide if again else last_decision
                decision = await decide(producer.client, self.transactional_id)
                await start_sending(producer)
                changelogs = [TopicPartition(self.spec.changelog.name, number) for number in partitions]
                held = await finish(producer, decision, changelogs, self.spec.result_partitions, self.spec.group_id)
                if held:
                    await take_over(producer.client, self.spec, [tp.partition for tp in held])
        except NO_COORDINATOR_YET as error:
            await abandon(producer)
            raise BrokerError(
                f"no broker coordinates the transactions of {self.transactional_id}: the log that they are in, "
                "__transaction_state, has no leader or can't be made. Are as many brokers up as "
                "transaction.state.log.replication.factor wants?"
            ) from error
        except BaseException:
            await abandon(producer)
            raise
        self._producer = producer
        if not self.spec.exactly_once:
            try:
                self._results_producer = await self._started(AIOKafkaProducer(**options))
            except BaseException:
                await self.close()
                raise
        return decision

    async def _started(self, producer: AIOKafkaProducer) -> AIOKafkaProducer:
        try:
            await asyncio.wait_for(producer.start(), self.spec.commit_timeout_s)
        except BaseException:
            await abandon(producer)
            raise
        return producer

    async def write(self, attempt: Attempt) -> None:
        """Make all of it visible, in numbered steps. After any exception the writer must be closed.

        Exactly once, everything is in one transaction. At least once, results are written and acknowledged first and
        only state and offsets are in the transaction: a crash in between repeats results, byte for byte the same.

        Raises `FencedError`, ``KafkaError``, or ``TimeoutError`` after ``commit_timeout_s``.
        """
        try:
            await asyncio.wait_for(self._write(attempt), self.spec.commit_timeout_s)
        except IllegalOperation as error:  # said of a transaction that failed between two steps, for whatever reason
            cause = transaction_failure(self._producer) if self._producer is not None else None
            raise cause or BrokerError(f"the transaction of {self.transactional_id} has failed") from error

    async def _write(self, attempt: Attempt) -> None:
        producer, works = self._producer, attempt.works
        if producer is None:
            raise FencedError(f"the producer of {self.transactional_id} is closed")
        if self._results_producer is not None:
            # 0. results, acknowledged before the state says that they are out
            await self._send_results_first(self._results_producer, attempt)
            reached(0)
        # 1. begin
        await producer.begin_transaction()
        reached(1)
        # 2. results and state
        for partition, work in works.items():
            sent = attempt.sent.setdefault(partition, [])
            if self._results_producer is None:
                sent += await self._send_results(producer, partition, work)
            sent += await self._send(producer, self.spec.changelog, work.changes, partition, to=partition)
            await self._until_taken(attempt)
        reached(2)
        # 3. every batch acknowledged: aiokafka would commit over one that failed
        await _acknowledged(attempt.sent)
        reached(3)
        # 4. the input offsets, in the same transaction
        await self._send_offsets(producer, attempt)
        reached(4)
        # 5. commit
        attempt.is_ending = True
        await producer.commit_transaction()
        reached(5)

    async def _send_results_first(self, producer: AIOKafkaProducer, attempt: Attempt) -> None:
        for partition, work in attempt.works.items():
            if partition not in attempt.out:
                attempt.sent[partition] = await self._send_results(producer, partition, work)
                await self._until_taken(attempt)
        try:
            await _acknowledged(attempt.sent)
        finally:
            attempt.out |= attempt.sent.keys() - attempt.unacknowledged()

    async def _until_taken(self, attempt: Attempt) -> None:
        """Where many bytes are queued, wait for them: a broker hangs up at a request of 100 MiB."""
        if self._queued_bytes > QUEUED_BYTES:
            self._queued_bytes = 0
            await asyncio.wait([each for batches in attempt.sent.values() for each in batches])

    async def _send_offsets(self, producer: AIOKafkaProducer, attempt: Attempt) -> None:
        spec = self.spec
        if attempt.membership is not None:
            offsets = {partition: (work.offset, work.settings) for partition, work in attempt.works.items()}
            await send_offsets(producer, spec.group_id, attempt.membership, spec.input_topic, offsets)
            return
        noted = {
            TopicPartition(spec.input_topic, partition): OffsetAndMetadata(work.offset, work.settings)
            for partition, work in attempt.works.items()
        }
        await producer.send_offsets_to_transaction(noted, spec.group_id)

    async def _send_results(
        self, producer: AIOKafkaProducer, partition: int, work: Commit
    ) -> list[asyncio.Future[object]]:
        sent: list[asyncio.Future[object]] = []
        for topic, records in (
            (self.spec.frames, work.frames),
            (self.spec.late, work.late),
            (self.spec.dead_letters, work.dead_letters),
            *((self.spec.routed[name], records) for name, records in work.routed.items()),
        ):
            sent += await self._send(producer, topic, records, partition)
        return sent

    async def _send(
        self,
        producer: AIOKafkaProducer,
        topic: OutTopic,
        records: OutRecords,
        partition: int,
        *,
        to: int | None = None,
    ) -> list[asyncio.Future[object]]:
        """Queue records of an input partition in as few batches as they fit, in order per partition; by key where it
        is not said which they go ``to``.

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
                partition=to,
                keyless=partition % topic.partitions,
            )
            self.spec.note_step("pack", began_s)
            sent += [
                self._watched(await producer.send_batch(batch, topic.name, partition=at), topic) for at, batch in packed
            ]
            self._queued_bytes += sum(batch.size() for _, batch in packed)
            await asyncio.sleep(0)
        return sent

    def _watched(self, sent: asyncio.Future[object], topic: OutTopic) -> asyncio.Future[object]:
        """What the future gives; its error says which topic refused, and is not complained of should the commit end
        before it is awaited."""
        watched = asyncio.get_running_loop().create_future()

        def pass_on(done: asyncio.Future[object]) -> None:
            if watched.done():
                done.cancelled() or done.exception()
            elif done.cancelled():
                watched.cancel()
            elif (error := done.exception()) is None:
                watched.set_result(done.result())
            else:
                watched.set_exception(self._refusal(error, topic))
                watched.exception()

        sent.add_done_callback(pass_on)
        return watched

    def _refusal(self, error: BaseException, topic: OutTopic) -> BaseException:
        if isinstance(error, MessageSizeTooLargeError):
            return OversizedError(topic.name, topic.max_record_bytes)
        if isinstance(error, TopicAuthorizationFailedError):
            return TopicAuthorizationFailedError(topic.name)  # type: ignore[no-any-return]
        if isinstance(error, InvalidTimestampError):
            return refused_time_error(topic, self.spec.producer_options["bootstrap_servers"])
        return error

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


def explained(error: Exception, spec: SinkSpec, partition: int) -> Exception:
    """What a sink raises for what its client has raised."""
    if isinstance(error, ProducerFenced):
        return FencedError(
            f"another worker has taken over {spec.input_topic}[{partition}]; "
            "nothing after the last commit was published"
        )
    return error


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


def _is_acknowledged(sent: asyncio.Future[object]) -> bool:
    return sent.done() and not sent.cancelled() and sent.exception() is None


def _is_refused(sent: asyncio.Future[object]) -> bool:
    error = sent.exception() if sent.done() and not sent.cancelled() else None
    return isinstance(error, BrokerResponseError | BrokerError) and not isinstance(error, OutOfOrderSequenceNumber)


async def _acknowledged(sent: Mapping[int, list[asyncio.Future[object]]]) -> None:
    """Wait for what was sent, all of it even where some is refused: then it is known which."""
    batches = [each for found in sent.values() for each in found]
    if not batches:
        return
    for outcome in await asyncio.gather(*batches, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
