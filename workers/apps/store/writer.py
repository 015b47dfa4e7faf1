"""The loop: fetch → queue → transaction, for the partitions of the frames topic that the group gives this process.

    source.poll ──▶ queue ──▶ parse ──▶ store.apply          one transaction: rows + offsets, compare and set
         ▲            │
         └── pause ◀──┴──▶ level ──▶ feedback topic

Four tasks: one fetches, one writes, one publishes the level, one tells Kafka how far the group is (for those who watch
lag; it is never read back). Rules:

1. A partition is read from the offset that the database holds, every time it is assigned.
2. Offsets move by compare and set. Where that fails, whatever is here of the partition is dropped and rule 1 applies:
   somebody else may own it now, or an answer was lost after the database had committed.
3. A database that can't be used is waited for, for ever; the queue fills, reading pauses, nothing is dropped.
4. A rebalance drops what is queued instead of writing it in haste: it is still in Kafka.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import Any, Final, cast

import structlog

from workers.apps.store.base import (
    Batch,
    FrameRow,
    OffsetMove,
    RefusedError,
    RejectedFrame,
    StaleOffsetError,
    Store,
    StoreUnavailableError,
)
from workers.apps.store.batches import Item, StoredPartition, smaller
from workers.apps.store.database import DatabaseTurn
from workers.apps.store.feedback import Coordinator, queue_policy
from workers.apps.store.metrics import StoreMetrics
from workers.apps.store.parse import parse_frame
from workers.apps.store.queue import Chunk, FrameQueue
from workers.backpressure.levels import Level, LevelGauge
from workers.core.records import Record
from workers.core.ticks import is_end_of_input
from workers.errors import DataLossError, StateMismatchError
from workers.kafka.backoff import Backoff
from workers.kafka.clients import admin_client
from workers.kafka.connection import connecting
from workers.kafka.consumer import KafkaGroupConsumer
from workers.kafka.errors import (
    GroupAuthorizationFailedError,
    KafkaError,
    TopicAuthorizationFailedError,
)
from workers.kafka.options import consumer_options
from workers.kafka.repairs import repair_client
from workers.kafka.topics import ensure_topics
from workers.settings import Settings
from workers.telemetry.health import HealthServer
from workers.telemetry.spared import Spared

__all__ = ["StoreWriter", "run_store"]

log = structlog.get_logger(__name__)

POLL_TIMEOUT_MS: Final = 50
FETCH_RECORDS: Final = 5_000
MAX_BACKOFF_S: Final = 2.0  # everybody upstream waits for the database to be noticed again
FIRST_BACKOFF_S: Final = 0.1
STOP_TIMEOUT_S: Final = 20.0
IN_FLIGHT_SHARE: Final = 0.25  # of the rebalance timeout, for the transaction under way
TELL_KAFKA_S: Final = 2.0

_FATAL = (GroupAuthorizationFailedError, TopicAuthorizationFailedError)


class StoreWriter:
    """One member of the store's group. ``run`` until ``stop`` is set."""

    def __init__(self, settings: Settings, store: Store, metrics: StoreMetrics | None = None) -> None:
        self.settings = settings
        self.metrics = metrics if metrics is not None else StoreMetrics()
        self.store = store
        self.database = DatabaseTurn(store, self.metrics)
        self.topic = settings.topics.frames
        self.group_id = f"{settings.application_id}-store"
        self.queue: FrameQueue[StoredPartition] = FrameQueue(settings.store.queue_capacity, settings.store.queue_bytes)
        self.gauge = LevelGauge(queue_policy(settings.store, settings.backpressure, min_dwell_ns=0))
        self.source = KafkaGroupConsumer(
            self.topic,
            self.group_id,
            # Frames of a transaction that is aborted were never there, whatever is read of ticks.
            {**consumer_options(settings), "isolation_level": "read_committed"},
            on_revoked=self._revoked,
            on_assigned=self._assigned,
            if_lost="its retention is shorter than the time that they waited for the database",
        )
        self.coordinator = Coordinator(settings, self.group_id) if settings.store.feedback else None
        self._partitions: dict[int, StoredPartition] = {}
        self._joined = False
        self._arrived = asyncio.Event()
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: asyncio.Future[None] | None = None
        repair_client()

    async def run(self, stop: asyncio.Event) -> None:
        """Store frames until ``stop`` is set, then store what is queued, leave the group and close.

        Raises ``WorkersError`` for what the user must act on, ``KafkaError`` for what the cluster refused. A database
        that can't be reached is waited for, at the start too.
        """
        self._failure = asyncio.get_running_loop().create_future()
        stopped: asyncio.Future[bool] = asyncio.ensure_future(stop.wait())
        self.metrics.capacity.set(self.queue.capacity)
        try:
            if not await self._open_store(stopped):
                return
            await self._prepare_topics()
            async with connecting(self.settings):
                await self.source.start()
            fetching = self._start(self._fetch())
            writing = self._start(self._write())
            for background in (
                self._tell_kafka_now_and_then(),
                *([self.coordinator.run()] if self.coordinator else []),
            ):
                self._start(background)
            log.info("store started", store=self.store.name, topic=self.topic, group=self.group_id)
            either: set[asyncio.Future[Any]] = {stopped, self._failure}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            await self._finish(fetching, writing)
            if self._failure.done():
                self._failure.result()
        finally:
            stopped.cancel()
            await self._shut_down()

    def not_alive(self) -> Sequence[str]:
        """Why this process should be started again; nothing while it is well, a database that is away included."""
        failure = self._failure
        if failure is None or not failure.done() or failure.cancelled() or failure.exception() is None:
            return []
        return [f"failed: {failure.exception()}"]

    def not_ready(self) -> Sequence[str]:
        """What it waits for before it stores frames; a member without partitions is ready."""
        if not self.database.available:
            return [f"{self.store.name} can't be used"]
        if not self._joined:
            return [f"not in the group {self.group_id}, or a rebalance is under way"]
        waiting = [number for number, partition in self._partitions.items() if not partition.reading]
        return [f"not reading {self.topic} {waiting[:5]} yet"] if waiting else []

    # -- start and end ------------------------------------------------------------------------------------------------

    async def _open_store(self, stopped: asyncio.Future[bool]) -> bool:
        """Open the database, however long that takes; False where ``stopped`` came first."""
        backoff = Backoff(FIRST_BACKOFF_S, MAX_BACKOFF_S)
        while not stopped.done():
            try:
                async with self.database.turn():
                    await self.store.open()
                return True
            except StoreUnavailableError:
                await asyncio.wait({stopped}, timeout=backoff.grow())
        return False

    async def _prepare_topics(self) -> None:
        needed = ("frames", "feedback") if self.coordinator is not None else ("frames",)
        async with admin_client(self.settings) as admin:
            await ensure_topics(admin, self.settings, create=self.settings.topics.create, only=needed)

    async def _finish(self, fetching: asyncio.Task[None], writing: asyncio.Task[None]) -> None:
        """Store what is queued, unless the database is away; the rest is read again by whoever comes next."""
        assert self._failure is not None
        fetching.cancel()
        self._stopping = True
        self._arrived.set()
        if self.database.available and not self._failure.done():
            await asyncio.wait({writing, self._failure}, timeout=STOP_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            with contextlib.suppress(KafkaError, TimeoutError):
                await self._tell_kafka()

    async def _shut_down(self) -> None:
        """Let go of everything; each within a limit. A transaction that is cut off is rolled back by the database."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_TIMEOUT_S)
        if self.coordinator is not None:
            await self.coordinator.close()
        with contextlib.suppress(KafkaError, TimeoutError):
            await asyncio.wait_for(self.source.stop(), STOP_TIMEOUT_S / 2)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.store.close(), STOP_TIMEOUT_S / 2)
        if self._failure is not None and self._failure.done():
            self._failure.exception()  # it was raised by run, or came after it
        log.info("store stopped", queued_and_left=self.queue.depth)

    def _start(self, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(self._guard(coroutine))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _guard(self, coroutine: Coroutine[None, None, None]) -> None:
        try:
            await coroutine
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self._failure is not None and not self._failure.done():
            self._failure.set_exception(error)

    # -- rebalances ---------------------------------------------------------------------------------------------------

    async def _revoked(self, revoked: set[int]) -> None:
        """Drop what is queued; let the transaction under way end, so that the next owner reads its offset."""
        self._joined = False
        for number in revoked:
            self._partitions.pop(number, None)
        self._drop_lost()
        limit_s = self.settings.kafka.rebalance_timeout_ms / 1000 * IN_FLIGHT_SHARE
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self.database.idle()

    async def _assigned(self, assigned: set[int]) -> None:
        self._partitions = {number: StoredPartition(number) for number in assigned}
        self._drop_lost()
        self.metrics.partitions_owned.set(len(assigned))
        self._joined = True
        log.info("partitions assigned", partitions=sorted(assigned))
        if assigned:
            self._start(self._open_partitions(list(self._partitions.values())))

    def _drop_lost(self) -> None:
        self.queue.drop(lambda owner: not self._owned(owner))
        self._observe()

    def _owned(self, partition: StoredPartition) -> bool:
        return self._partitions.get(partition.number) is partition

    async def _open_partitions(self, partitions: Sequence[StoredPartition]) -> None:
        """Read on where the database says; repeated until that works or the partitions are lost."""
        backoff = Backoff(FIRST_BACKOFF_S, MAX_BACKOFF_S)
        while partitions := [each for each in partitions if self._owned(each) and not each.reading]:
            try:
                async with self.database.turn():
                    offsets = await self.store.read_offsets(self.topic)
                await asyncio.gather(*(self._open_partition(each, offsets.get(each.number)) for each in partitions))
                return
            except _FATAL:
                raise
            except StoreUnavailableError:
                pass  # it was logged when that began
            except (KafkaError, TimeoutError, OSError) as error:
                log.warning("can't position partitions; retrying", error=repr(error), retry_in_s=backoff.rest_s)
            await asyncio.sleep(backoff.grow())

    async def _open_partition(self, partition: StoredPartition, stored: int | None) -> None:
        begin, end = await self.source.log_bounds(partition.number)
        where = f"{self.topic}[{partition.number}]"
        if stored is not None and stored < begin:
            raise DataLossError(
                f"{where} begins at offset {begin}, but {self.store.name} holds it only up to {stored}: "
                f"{begin - stored} records were deleted before they were stored. To go on with what is left, delete "
                f"the row from store_offsets where topic = '{self.topic}' and partition = {partition.number}"
            )
        if stored is not None and stored > end:
            raise StateMismatchError(
                f"{self.store.name} holds {where} up to offset {stored}, but it ends at {end}: the topic was deleted "
                f"and recreated, or this is another cluster. Store its frames in another database"
            )
        if not self._owned(partition) or not self.source.owns(partition.number):
            return  # a rebalance came in between, and starts over
        partition.stored = stored
        partition.reading = True
        self.source.start_reading(partition.number, begin if stored is None else stored)
        if self.gauge.level is Level.HARD:
            self.source.pause(partition.number)

    def _reopen(self, numbers: frozenset[int]) -> None:
        """Forget what is here of partitions whose stored offset was moved by somebody else, and look again."""
        fresh = []
        for number in numbers & self._partitions.keys():
            self.source.stop_reading(number)
            self._partitions[number] = StoredPartition(number)
            fresh.append(self._partitions[number])
        self._drop_lost()
        self._start(self._open_partitions(fresh))

    # -- fetching -----------------------------------------------------------------------------------------------------

    async def _fetch(self) -> None:
        backoff, failures = Backoff(FIRST_BACKOFF_S, MAX_BACKOFF_S), Spared()
        while True:
            ready = [number for number, partition in self._partitions.items() if partition.reading]
            room = self.queue.room
            try:
                self.source.check()
                if not ready or not room or self.gauge.level is Level.HARD:
                    await self.source.stay()
                    await asyncio.sleep(POLL_TIMEOUT_MS / 1000 if not ready else 0.01)
                    continue
                fetched = await self.source.poll(
                    ready, timeout_ms=POLL_TIMEOUT_MS, max_records=min(room, FETCH_RECORDS)
                )
            except _FATAL:
                raise
            except KafkaError as error:
                if (left_out := failures.note(repr(error))) is not None:
                    log.warning("fetch failed; retrying", error=repr(error), and_more_like_it=left_out)
                await asyncio.sleep(backoff.grow())
                continue
            backoff.reset()
            for number, found in fetched.items():
                partition = self._partitions.get(number)
                if partition is not None and partition.reading:
                    await self._accept(partition, cast("Sequence[Record]", found.items))

    async def _accept(self, partition: StoredPartition, records: Sequence[Record]) -> None:
        chunk = Chunk(partition, records, records[-1].offset + 1)
        self.queue.add(chunk)
        self.metrics.read.labels(self.topic, str(partition.number)).inc(len(records))
        self._arrived.set()
        self._observe()
        # Behind transaction markers, which are no records but take up offsets.
        position = await self.source.position(partition.number)
        if position is not None:
            chunk.next_offset = max(chunk.next_offset, position)

    def _observe(self) -> None:
        """Take the queue's load into account: pause or resume reading, and tell the producers."""
        before = self.gauge.level
        level = self.gauge.observe(self.queue.load, time.monotonic_ns())
        self.metrics.depth.set(self.queue.depth)
        self.metrics.depth_bytes.set(self.queue.depth_bytes)
        if self.coordinator is not None:
            self.coordinator.report(self.queue.load)
        if level is before:
            return
        self.metrics.level.set(level)
        log.debug("queue level changed", level=level.label, before=before.label, depth=self.queue.depth)
        reading = [number for number, each in self._partitions.items() if each.reading and self.source.owns(number)]
        for number in reading:
            if level is Level.HARD:
                self.source.pause(number)
            elif before is Level.HARD:
                self.source.resume(number)
        if level is Level.HARD:
            self.metrics.pauses.inc()

    # -- writing ------------------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        """Write batches until cancelled, or until the queue is empty when stopping."""
        while True:
            await self._batch_is_due()
            chunks = self.queue.take(self.settings.store.batch_size)
            if chunks:
                await self._store_chunks(chunks)
                self.queue.release(chunks)
                self._observe()
            elif self._stopping:
                return

    async def _batch_is_due(self) -> None:
        """Wait for a first record, then for a full batch or the flush interval."""
        limit_s = self.settings.store.flush_interval / 1e9
        size = min(self.settings.store.batch_size, self.queue.capacity)
        while not self.queue.waiting and not self._stopping:
            self._arrived.clear()
            await self._arrived.wait()
        due_s = time.monotonic() + limit_s
        while self.queue.waiting < size and self.gauge.level is not Level.HARD and not self._stopping:
            self._arrived.clear()
            left_s = due_s - time.monotonic()
            if left_s <= 0:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._arrived.wait()

    async def _store_chunks(self, chunks: Sequence[Chunk[StoredPartition]]) -> None:
        """Store what was taken from the queue, in a transaction; partitions that are lost meanwhile are left out."""
        backoff = Backoff(FIRST_BACKOFF_S, MAX_BACKOFF_S)
        items: dict[StoredPartition, list[Item]] = {}
        ends: dict[StoredPartition, int] = {}
        for chunk in chunks:
            owner, number = chunk.owner, chunk.owner.number
            frames = [each for each in chunk.records if not is_end_of_input(each)]
            items.setdefault(owner, []).extend((each, parse_frame(each, self.topic, number)) for each in frames)
            self.metrics.control.labels(self.topic, str(number)).inc(len(chunk.records) - len(frames))
            ends[owner] = chunk.next_offset
        while items := {owner: found for owner, found in items.items() if self._owned(owner)}:
            try:
                await self._store(items, ends)
                return
            except StaleOffsetError as error:
                self.metrics.stale.inc()
                log.warning("another store has advanced the offsets; reading them again", reason=str(error))
                self._reopen(error.partitions)
            except StoreUnavailableError:
                await asyncio.sleep(backoff.grow())

    async def _store(self, items: dict[StoredPartition, list[Item]], ends: dict[StoredPartition, int]) -> None:
        """One transaction; where the database refuses a value, ever smaller ones, until the record is found."""
        rows = [row for found in items.values() for _, row in found]
        batch = Batch(
            self.topic,
            {owner.number: OffsetMove(owner.stored, ends[owner]) for owner in items},
            [row for row in rows if isinstance(row, FrameRow)],
            [row for row in rows if isinstance(row, RejectedFrame)],
        )
        try:
            async with self.database.turn():
                started_s = time.monotonic()
                await self.store.apply(batch)
        except RefusedError as error:
            for part, part_ends in smaller(items, ends, str(error)):
                await self._store(part, part_ends)
            return
        self.metrics.flush_duration.observe(time.monotonic() - started_s)
        for owner in items:
            owner.stored = ends[owner]
        self._count(batch)

    def _count(self, batch: Batch) -> None:
        for number, stored in Counter(row.origin_partition for row in batch.frames).items():
            self.metrics.stored.labels(self.topic, str(number)).inc(stored)
        if batch.rejected:
            for row in batch.rejected:
                self.metrics.rejected.labels(self.topic, str(row.origin_partition), row.reason).inc()
            first = batch.rejected[0]
            log.warning(
                "stored invalid records in rejected_frames",
                records=len(batch.rejected),
                first=f"{first.origin_topic}[{first.origin_partition}] offset {first.origin_offset}",
                reason=first.reason,
                message=first.message[:200],
            )

    # -- for those who watch ------------------------------------------------------------------------------------------

    async def _tell_kafka_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(TELL_KAFKA_S)
            try:
                await self._tell_kafka()
            except (KafkaError, TimeoutError) as error:
                log.debug("could not commit offsets to Kafka", error=repr(error))

    async def _tell_kafka(self) -> None:
        moved = {
            each: each.stored
            for each in self._partitions.values()
            if each.stored is not None and each.stored != each.told
        }
        if moved:
            async with asyncio.timeout(TELL_KAFKA_S):
                await self.source.commit({each.number: offset for each, offset in moved.items()})
            for each, offset in moved.items():
                each.told = offset


async def run_store(settings: Settings, store: Store, *, stop: asyncio.Event) -> None:
    """Run one store writer until ``stop`` is set, with its metrics and health. Raises what `StoreWriter.run` raises,
    and ``ConfigError`` where the metrics endpoint can't be opened."""
    writer = StoreWriter(settings, store)
    async with HealthServer(settings.metrics, writer.metrics.registry, alive=writer.not_alive, ready=writer.not_ready):
        await writer.run(stop)
