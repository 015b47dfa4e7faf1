"""The worker: fetch → lanes → effects → commit, for the partitions that the group gives this process.

    source.poll ──▶ backlog ──▶ lane.process ──▶ pending ──▶ sink.commit
                    (bounded)     (pure)        (effects)    (one transaction
                                                              per partition)

Everything about one partition is in an `OwnedPartition`; the `Worker` moves records and time. Three rules carry the
guarantees:

1. A lane's state is only ever that of a log position: whatever fails, the lane and its producer are thrown away and
   made again from what was committed. Nothing is rolled back in memory.
2. Nothing leaves the process but through `PartitionSink.commit`, whose producer the next owner fences.
3. A partition that stays over a rebalance keeps its lane. That is sound even where another worker owned it in between:
   it would have fenced our producer, and the next commit would fail before anything is visible.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from enum import Enum

import structlog
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    KafkaError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)

from workers.backpressure.lag_reporter import GroupReporter
from workers.backpressure.reading_pace import ReadingPace
from workers.compiled.choose import make_lane, takes_batches
from workers.core.lane import Effects, Input, Lane
from workers.core.pipeline.stage import SequenceGap
from workers.core.snapshot import LaneMeta
from workers.errors import BrokerError, DataLossError, FencedError, StateMismatchError, TopicError, WorkersError
from workers.kafka.changelog import read_changelog
from workers.kafka.commit import Commit, OutTopic, OversizedError, PartitionSink, SinkSpec, fit
from workers.kafka.connection import admin_client, connecting
from workers.kafka.consumer import Fetched, Source
from workers.kafka.lz4 import use_fast_lz4
from workers.kafka.repairs import repair_client
from workers.kafka.topics import ensure_topics
from workers.settings.all import Settings, advice, consumer_options, producer_options
from workers.settings.lane import lane_spec
from workers.telemetry.metrics import Metrics
from workers.worker.all_rejected import FailureWatch, RejectionWatch
from workers.worker.vitals import serving

__all__ = ["Worker", "run_worker"]

log = structlog.get_logger(__name__)

POLL_TIMEOUT_MS = 50
STALL_S = 0.001
MAX_BACKOFF_S = 5.0
RESTORES_AT_ONCE = 4
DISAGREEING_LOOKS = 6  # at state and group's offset, over some 3 s, before their disagreement is believed
DRAIN_SHARE = 0.5  # of the rebalance timeout, for the commits before partitions are given back
STOP_TIMEOUT_S = 10.0  # for the last commits; with leaving and closing, all is over in under half a minute
CLOSE_TIMEOUT_S = 5.0
DEFAULT_MAX_MESSAGE_BYTES = 1_048_588  # Kafka's own, where the cluster doesn't tell
MARKERS_EVERY_S = 1.0
CHANGES_BEFORE_COMMIT = 8_000  # windows; writing them to the changelog holds the event loop for some 20 ms
CHANGES_LIMIT = 2 * CHANGES_BEFORE_COMMIT  # while the commit before is on its way; then the lane waits
BATCHES_AT_ONCE = 32  # of record batches fetched whole
PENDING_LIMIT_RECORDS = 60_000  # results of all partitions that wait for a commit or are in one; then lanes wait
PENDING_LIMIT_BYTES = 64 * 1024 * 1024  # the same in keys, values and headers: a dead letter may have a mebibyte
STEP_TARGET_S = 0.025  # of a lane; it is given as many records as took about that, and `lane.batch_size` at most
FIRST_RECORDS = 500  # until it is known what they cost; what is fetched as a batch is not divided
LEAST_RECORDS = 50  # at once, whatever they cost
GAPS_LOGGED_AT_ONCE = 5  # of one batch; all are counted

_FATAL = (GroupAuthorizationFailedError, TopicAuthorizationFailedError, TransactionalIdAuthorizationFailed)


def _size_of(effects: Effects) -> int:
    """Bytes of the results: of keys, values and headers."""
    lists = (effects.frames, effects.late, effects.dead_letters, *effects.routed.values())
    return sum(record.size for records in lists for record in records)


class _OffsetsDisagreeError(StateMismatchError):
    """State and group name different offsets. Not at once believed: a broker that has just recovered from a crash was
    seen to tell the group's offset of a transaction before it showed the transaction's changelog record."""


class Phase(Enum):
    """Where an owned partition is in its life."""

    OPENING = "opening"  # producer and state are being made
    RUNNING = "running"
    SUSPENDED = "suspended"  # a rebalance is under way: it may come back
    CLOSED = "closed"


class OwnedPartition:
    """One partition while this process owns it: lane, backlog, pending results, and the tasks that serve them."""

    def __init__(self, number: int, worker: Worker) -> None:
        self.number = number
        self.phase = Phase.OPENING
        self.lane: Lane | None = None
        self.sink: PartitionSink | None = None
        self.backlog: deque[Fetched] = deque()
        self.backlog_records = 0
        self.paused = False
        self.pending = Effects()
        self.committed_offset = 0
        self.heard_s = 0.0  # when a record last came, monotonic
        self._look_s = 0.0  # when silence may next bring something out, monotonic
        self._worker = worker
        self._dirty = asyncio.Event()
        self._urgent = asyncio.Event()  # so much has changed that the next commit would take long
        self._rejections = RejectionWatch()
        self._failures = FailureWatch()
        self._committing = asyncio.Lock()
        self._last_commit_s = 0.0
        self._in_commit = 0  # results and state records of the commit under way
        self._in_commit_bytes = 0
        self._pending_bytes = 0
        self._at_once = min(FIRST_RECORDS, worker.settings.lane.batch_size)  # records that the lane takes in a step
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def serving(self) -> bool:
        """Whether its records are being processed."""
        return self.phase is Phase.RUNNING

    # -- life ---------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Make producer and lane in a task, then start reading; repeated until it works or the partition is lost."""
        self.phase = Phase.OPENING
        self._start(self._open_until_done())

    def suspend(self) -> None:
        """A rebalance took the partition away, perhaps only for a moment."""
        if self.phase is Phase.RUNNING:
            self.phase = Phase.SUSPENDED

    def continue_reading(self) -> None:
        """The partition stayed: read on behind what is already here. Pauses don't survive a rebalance by themselves."""
        assert self.lane is not None
        self.phase = Phase.RUNNING
        next_offset = self.backlog[-1].next_offset if self.backlog else self.lane.position
        self._worker.source.start_reading(self.number, next_offset)
        if self.paused:
            self._worker.source.pause(self.number)
        self.heard_s = time.monotonic()
        self._look_s = 0.0

    async def close(self) -> None:
        """Stop all tasks and let go of the producer. Nothing is committed here."""
        self.phase = Phase.CLOSED
        current = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not current]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_TIMEOUT_S)
        await self._discard()

    def _start(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(self._guard(coroutine))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, coroutine: Coroutine[None, None, None]) -> None:
        try:
            await coroutine
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and not task.cancelling():
                # Nobody cancelled this task: a client's own cancelled task leaked out of a stop().
                self._worker.fail(BrokerError(f"a Kafka client ended partition {self.number}'s task unexpectedly"))
            raise
        except BaseException as error:
            self._worker.fail(error)

    async def _discard(self) -> None:
        sink, self.sink, self.lane = self.sink, None, None
        self.backlog.clear()
        self.backlog_records = 0
        self.paused = False
        self.pending = Effects()
        self._pending_bytes = 0
        self._dirty.clear()
        if sink is not None:
            await sink.close()

    async def _open_until_done(self) -> None:
        backoff_s, looks = 0.1, 0
        while self.phase is Phase.OPENING:
            if not self._worker.source.owns(self.number):
                await asyncio.sleep(POLL_TIMEOUT_MS / 1000)  # a rebalance is under way, whose end decides
                continue
            try:
                async with self._worker.restoring():
                    await self._open_once()
                return
            except (*_FATAL, TopicError):
                raise
            except _OffsetsDisagreeError as error:
                looks += 1
                if looks == DISAGREEING_LOOKS:
                    raise
                failure: Exception = error
            except (KafkaError, TimeoutError, OSError, AssertionError, FencedError, BrokerError) as error:
                failure = error
            await self._discard()
            log.warning(
                "can't open the partition; retrying",
                partition=self.number,
                error=repr(failure),
                retry_in_s=round(backoff_s, 1),
            )
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)

    async def _open_once(self) -> None:
        worker = self._worker
        started_s = time.monotonic()
        await worker.source.confirm_membership(self.number)
        await worker.refresh_limits()
        sink = worker.make_sink(self.number)
        self.sink = sink
        await sink.open()  # fences the previous owner, so what is read next is the last that was committed
        place = Input(worker.topic, self.number, worker.input_partitions)
        lane = make_lane(worker.lane_spec, place, worker.compiled)
        changelog = worker.settings.topics.changelog
        counter = worker.metrics.restored_records.labels(worker.topic, str(self.number))
        entries = await read_changelog(changelog, self.number, worker.consumer_options, on_progress=counter.inc)
        restored = await self._restore(lane, entries, f"{changelog}[{self.number}]")
        offset = await self._agreed_offset(restored.offset if restored is not None else None)
        lane.position = offset
        self.lane, self.committed_offset = lane, offset
        self._start(self._commit_when_due())
        if worker.source.owns(self.number):
            self.continue_reading()
        else:
            self.phase = Phase.SUSPENDED  # a rebalance is under way, whose end decides
        seconds = time.monotonic() - started_s
        worker.metrics.restore_duration.observe(seconds)
        log.info(
            "partition ready", partition=self.number, offset=offset, keys=lane.key_count, seconds=round(seconds, 3)
        )

    async def _restore(self, lane: Lane, entries: Mapping[bytes, bytes], where: str) -> LaneMeta | None:
        """In steps: heartbeats and the other partitions get their turn in between."""
        steps = lane.restore_in_steps(entries, where=where)
        while True:
            began_s = time.perf_counter()
            try:
                next(steps)
            except StopIteration as done:
                meta: LaneMeta | None = done.value
                return meta
            finally:
                self._worker.note_step("restore", began_s)
            await asyncio.sleep(0)

    async def _agreed_offset(self, stored: int | None) -> int:
        """Where to read on: the stored state's offset, with which the group's must agree."""
        worker = self._worker
        where = f"{worker.topic}[{self.number}]"
        committed = await worker.source.committed(self.number)
        begin, end = await worker.source.log_bounds(self.number)
        if stored is None:
            if committed is not None and committed > begin:
                raise StateMismatchError(
                    f"the group {worker.settings.application_id!r} has committed offset {committed} of {where}, but "
                    f"{worker.settings.topics.changelog} holds no state for it. Restore the changelog topic, or "
                    "start over with `workers state reset`"
                )
            return end if worker.settings.kafka.auto_offset_reset == "latest" else begin
        if committed is not None and committed != stored:
            raise _OffsetsDisagreeError(
                f"the stored state reflects offset {stored} of {where}, but the group "
                f"{worker.settings.application_id!r} has committed {committed}: the group's offsets were changed "
                f"separately from the state. Set them back, or drop both with `workers state reset`"
            )
        if stored < begin:
            raise DataLossError(
                f"{where} begins at offset {begin}, but was processed only up to {stored}: {begin - stored} records "
                "were deleted unread (the topic's retention is shorter than the outage). Start over with "
                "`workers state reset`, which reads what is left"
            )
        if stored > end:
            raise StateMismatchError(
                f"the stored state reflects offset {stored} of {where}, which ends at {end}: the topic was deleted "
                f"and recreated. Start over with `workers state reset`"
            )
        return stored

    # -- records ------------------------------------------------------------------------------------------------------

    def accept(self, fetched: Fetched) -> None:
        """Take fetched records into the backlog; pause the partition at the high watermark."""
        self.backlog.append(fetched)
        self.backlog_records += fetched.records
        self.heard_s = time.monotonic()
        if not self.paused and self.backlog_records >= self._worker.high_records:
            self.paused = True
            self._worker.source.pause(self.number)
            self._worker.metrics.lane_pauses.labels(self._worker.topic, str(self.number)).inc()

    def step(self) -> bool:
        """Process the next records of the backlog; resume the partition at the low watermark. False: nothing to do."""
        if self.phase is not Phase.RUNNING or not self.backlog:
            return False
        assert self.lane is not None
        if self._worker.is_full() or self.lane.changes_waiting >= CHANGES_LIMIT:
            self._urgent.set()
            return False
        fetched, rest = self.backlog.popleft().split(self._at_once)
        if rest is not None:
            self.backlog.appendleft(rest)
        self.backlog_records -= fetched.records
        began_s = time.perf_counter()
        # Batches are fetched only where the lanes take them.
        self._take(self.lane.process(fetched.items))  # type: ignore[arg-type]
        self._dirty.set()
        took_s = self._worker.note_step("process", began_s)
        affordable = int(fetched.records * STEP_TARGET_S / max(took_s, 1e-6))
        self._at_once = min(max(affordable, LEAST_RECORDS), 2 * self._at_once, self._worker.settings.lane.batch_size)
        if self.lane.changes_waiting >= CHANGES_BEFORE_COMMIT:
            self._urgent.set()
        if self.paused and self.backlog_records <= self._worker.low_records:
            self.paused = False
            self._worker.source.resume(self.number)
        return True

    async def show_overdue(self, now_s: float) -> None:
        """Where the partition was read to its end, let the silence since bring windows out."""
        if now_s < self._look_s or self.phase is not Phase.RUNNING or self.backlog or self.lane is None:
            return
        due_ns = self.lane.next_timeout_ns()
        silence_ns = int((now_s - self.heard_s) * 1e9)
        if due_ns is None or silence_ns < due_ns:
            # Nothing to see until then, or until something is processed: a thousand idle partitions cost nothing.
            self._look_s = math.inf if due_ns is None else self.heard_s + due_ns / 1e9
            return
        if not await self._worker.source.at_end(self.number):
            return
        if self.phase is Phase.RUNNING and self.lane is not None and not self.backlog:
            began_s = time.perf_counter()
            self._take(self.lane.idle(silence_ns))
            self._worker.note_step("idle", began_s)

    async def pass_markers(self) -> None:
        """Where the log goes on with what is no record (a transaction's end, or what was aborted), count it as done.

        Otherwise a topic that is written in transactions, as frames topics are, would have a lag for ever.
        """
        lane = self.lane
        if self.phase is not Phase.RUNNING or self.backlog or lane is None:
            return
        position = await self._worker.source.position(self.number)
        if position is None or self.phase is not Phase.RUNNING or self.backlog or self.lane is not lane:
            return
        if position > lane.position:
            lane.position = position
            self._dirty.set()

    def flush_partial(self) -> None:
        """Show open windows that changed."""
        if self.phase is Phase.RUNNING and self.lane is not None:
            began_s = time.perf_counter()
            self._take(self.lane.flush_partial())
            self._worker.note_step("flush", began_s)

    def _take(self, effects: Effects) -> None:
        self._look_s = 0.0
        self.pending.extend(effects)
        self._pending_bytes += _size_of(effects)
        for key in effects.misrouted_keys:
            log.warning("key is not on the partition murmur2 gives", key=key[:80], partition=self.number)
        self._report_gaps(effects.gaps)
        for failure, others in self._failures.note(effects, time.monotonic()):
            log.error(
                "failed to process a record, which is a bug; the record is in the dead letters",
                partition=self.number,
                offset=failure.offset,
                error=failure.error,
                others=others,
                traceback=failure.traceback,
            )
        useless = self._rejections.note(effects, time.monotonic())
        if useless is not None:
            log.warning(
                useless.text,
                partition=self.number,
                look="workers tail dead-letters",
                dead_letters=self._worker.settings.topics.dead_letters,
            )
        if effects.frames:
            self._dirty.set()

    def _report_gaps(self, gaps: Sequence[SequenceGap]) -> None:
        for gap in gaps[:GAPS_LOGGED_AT_ONCE]:
            log.warning(
                "ids are missing",
                symbol=gap.symbol[:80],
                first=gap.first,
                last=gap.last,
                missing=gap.missing,
                before_offset=gap.offset,
                partition=self.number,
                stage=gap.stage,
            )
        if len(gaps) > GAPS_LOGGED_AT_ONCE:
            log.warning("more ids are missing", gaps=len(gaps) - GAPS_LOGGED_AT_ONCE, partition=self.number)

    def results_waiting(self) -> int:
        """Results that are not yet acknowledged by the cluster: what they take in memory must not grow."""
        pending = self.pending
        routed = sum(map(len, pending.routed.values()))
        return self._in_commit + len(pending.frames) + len(pending.late) + len(pending.dead_letters) + routed

    def bytes_waiting(self) -> int:
        """Keys, values and headers of these results."""
        return self._in_commit_bytes + self._pending_bytes

    # -- commits ------------------------------------------------------------------------------------------------------

    async def _commit_when_due(self) -> None:
        while True:
            await self._dirty.wait()
            wait_s = self._last_commit_s + self._worker.commit_interval_s - time.monotonic()
            if wait_s > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._urgent.wait(), wait_s)
            if not await self.commit():
                return

    async def commit(self) -> bool:
        """Commit what was processed so far; False when it failed and the partition is being opened again."""
        async with self._committing:
            lane, sink = self.lane, self.sink
            if lane is None or sink is None or not self._dirty.is_set():
                return lane is not None
            self._dirty.clear()
            self._urgent.clear()
            self._last_commit_s = time.monotonic()
            effects, self.pending = self.pending, Effects()
            self._in_commit_bytes, self._pending_bytes = self._pending_bytes, 0
            began_s = time.perf_counter()
            work = Commit(
                lane.position,
                effects.frames,
                effects.late,
                effects.dead_letters,
                dict(effects.routed),
                lane.take_changes(),
                lane.settings_digest,
            )
            oversized = fit(work, self._worker.sink_spec)
            self._worker.note_step("changes", began_s)
            self._in_commit = len(work.frames) + len(work.late) + len(work.dead_letters) + len(work.changes)
            try:
                await sink.commit(work)
            except _FATAL:
                raise
            except (KafkaError, TimeoutError, OSError, AssertionError, WorkersError) as error:
                await self._recover(error)
                return False
            finally:
                self._in_commit = self._in_commit_bytes = 0
            self.committed_offset = work.offset
            self._count(effects, oversized, time.monotonic() - self._last_commit_s)
            return True

    async def _recover(self, error: BaseException) -> None:
        """After any failed commit: nothing of it may be trusted, so start again from what was committed."""
        log.warning("commit failed; restoring the partition", partition=self.number, error=repr(error))
        labels = (self._worker.topic, str(self.number), type(error).__name__)
        self._worker.metrics.commit_failures.labels(*labels).inc()
        running = self.phase is Phase.RUNNING
        self.phase = Phase.OPENING if running else Phase.CLOSED
        if running:  # else the number may be another object's by now
            self._worker.source.stop_reading(self.number)
        if isinstance(error, OversizedError):
            self._worker.limits_changed = True
        await self._discard()
        if running and self.phase is Phase.OPENING:
            self.open()

    def _count(self, effects: Effects, oversized: int, seconds: float) -> None:
        metrics, labels = self._worker.metrics, (self._worker.topic, str(self.number))
        metrics.commits.labels(*labels).inc()
        metrics.commit_duration.observe(seconds)
        metrics.ticks_in.labels(*labels).inc(effects.records)
        metrics.ticks_aggregated.labels(*labels).inc(effects.aggregated)
        metrics.ticks_control.labels(*labels).inc(effects.control)
        metrics.frames_oversized.labels(*labels).inc(oversized)
        metrics.misrouted_keys.labels(*labels).inc(len(effects.misrouted_keys))
        for reason, number in effects.late_by_reason.items():
            metrics.ticks_late.labels(*labels, reason).inc(number)
        for kind, number in effects.corrected.items():
            metrics.ticks_corrected.labels(*labels, kind).inc(number)
        for reason, number in effects.rejected.items():
            metrics.ticks_rejected.labels(*labels, reason).inc(number)
        for (status, trigger), number in effects.emitted.items():
            metrics.frames.labels(*labels, status, trigger).inc(number)
        self._count_operators(effects)
        self._worker.warn_of_short_retention(effects)
        if self.lane is not None:
            metrics.keys.labels(*labels).set(self.lane.key_count)
            metrics.ticks_held.labels(*labels).set(self.lane.counts.held)
            if self.lane.partition_max_ns is not None:
                metrics.partition_time.labels(*labels).set(self.lane.partition_max_ns / 1e9)

    def _count_operators(self, effects: Effects) -> None:
        metrics, labels = self._worker.metrics, (self._worker.topic, str(self.number))
        for (reason, stage), number in effects.taken_out.items():
            assert reason.account is not None, "what operators drop are ticks"
            metrics.dropped[reason.account].labels(*labels, stage).inc(number)
        for name, records in effects.routed.items():
            metrics.ticks_routed_away.labels(*labels, name).inc(len(records))
        for gap in effects.gaps:
            metrics.sequence_missing.labels(*labels, gap.stage).inc(gap.missing)
        for (what, stage), number in effects.noticed.items():
            metrics.stage_notices.labels(*labels, stage, what).inc(number)


class Worker:
    """One member of the group. ``run`` until ``stop`` is set; everything else is for its partitions."""

    def __init__(self, settings: Settings, metrics: Metrics | None = None) -> None:
        self.settings = settings
        self.metrics = metrics if metrics is not None else Metrics()
        self.topic = settings.topics.ticks
        self.lane_spec = lane_spec(settings)
        self.lane_spec.rules()  # what can't be is said now, and a calendar is made once
        self.consumer_options = consumer_options(settings)
        self.producer_options = producer_options(settings)
        self.commit_interval_s = settings.commit_interval / 1e9
        self.high_records = max(1, int(settings.lane.high_watermark * settings.lane.capacity))
        self.low_records = int(settings.lane.low_watermark * settings.lane.capacity)
        self.input_partitions = 0
        self.compiled = False
        self._fetch_at_once = settings.lane.batch_size
        self.sink_spec: SinkSpec
        self.source: Source
        self.partitions: dict[int, OwnedPartition] = {}
        self.limits_changed = False
        self._restores = asyncio.Semaphore(RESTORES_AT_ONCE)
        self._failure: asyncio.Future[None] | None = None
        self._background: set[asyncio.Future[None]] = set()
        self._longest_s: dict[str, float] = {}
        self._frames_retention_ms: int | None = None
        self._warned_of_retention = False
        self.joined = False  # in the group, with no rebalance under way
        self.turned_s: float | None = None  # when the loop last turned, monotonic
        self._pace = ReadingPace(settings, self.metrics)
        self._reporter = GroupReporter(settings, self.metrics)
        repair_client()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set, then commit, leave the group and close.

        Raises `WorkersError` for what the user must act on, ``KafkaError`` for what the cluster refused.
        """
        for sentence in advice(self.settings):
            log.info(sentence)
        self._failure = asyncio.get_running_loop().create_future()
        await self._prepare_topics()  # first, as it says within seconds what is wrong with the cluster or the settings
        self.compiled = await self._load_compiled()
        # The client hands out all it has of one partition before the next one's: with no more than a lane takes at once
        # a partition with much to read would never fill its lane and be paused, and the others would wait for it.
        room = self.settings.lane.capacity - self.high_records
        self._fetch_at_once = BATCHES_AT_ONCE if self.compiled else max(self.settings.lane.batch_size, room)
        use_fast_lz4()
        self.source = Source(
            self.topic,
            self.settings.application_id,
            self.consumer_options,
            on_revoked=self._or_fail(self._revoked),
            on_assigned=self._or_fail(self._assigned),
            batches=self.compiled,
        )
        try:
            async with connecting(self.settings):
                await self.source.start()
            log.info(
                "worker started",
                application_id=self.settings.application_id,
                topic=self.topic,
                guarantee=self.settings.processing_guarantee,
            )
            async with self._pace:
                await self._loop(stop)
        finally:
            await self._shut_down()

    async def _load_compiled(self) -> bool:
        """Load the compiled lanes, or compile them: once for each version, but then it takes a while, and is said."""
        loading = asyncio.ensure_future(asyncio.to_thread(takes_batches, self.lane_spec))
        done, _ = await asyncio.wait([loading], timeout=3.0)
        if not done:
            log.info(
                "loading the compiled lanes; the first start of a version compiles them, which takes up to a minute"
            )
        return await loading

    async def _loop(self, stop: asyncio.Event) -> None:
        assert self._failure is not None
        flush_s = self.settings.window.flush_interval / 1e9
        next_flush_s = next_markers_s = 0.0
        while not stop.is_set() and not self._failure.done():
            self.turned_s = time.monotonic()
            await self._fetch()
            stepped = False
            for partition in list(self.partitions.values()):
                if partition.step():
                    stepped = True
                    await asyncio.sleep(0)  # commits and heartbeats get their turn between lanes
            if not stepped and any(partition.backlog for partition in self.partitions.values()):
                # All lanes wait for results to be acknowledged, and a fetch that need not wait never yields: without
                # this the commits that they wait for would never run.
                await asyncio.sleep(STALL_S)
            now_s = time.monotonic()
            for partition in list(self.partitions.values()):
                await partition.show_overdue(now_s)
            if now_s >= next_markers_s:
                next_markers_s = now_s + MARKERS_EVERY_S
                for partition in list(self.partitions.values()):
                    await partition.pass_markers()
            if self.settings.window.emit_partial and now_s >= next_flush_s:
                next_flush_s = now_s + flush_s
                for partition in list(self.partitions.values()):
                    partition.flush_partial()
        if self._failure.done():
            self._failure.result()

    async def _fetch(self) -> None:
        if await self._pace.held(self.source):
            now_s = time.monotonic()
            for owned in self.partitions.values():
                owned.heard_s = now_s  # nothing came because nothing was asked for: that is no silence
            return
        backlog = any(partition.backlog for partition in self.partitions.values())
        ready = [
            number
            for number, partition in self.partitions.items()
            if partition.phase is Phase.RUNNING and not partition.paused
        ]
        try:
            self.source.check()
            if not ready:
                await self.source.stay()
                await asyncio.sleep(0.001 if backlog else POLL_TIMEOUT_MS / 1000)
                return
            fetched = await self.source.poll(
                ready, timeout_ms=0 if backlog else POLL_TIMEOUT_MS, max_records=self._fetch_at_once
            )
        except OffsetOutOfRangeError as error:
            raise DataLossError(
                f"{self.topic} no longer has the records to be read next ({error}); its retention is "
                "shorter than the lag. Start over with `workers state reset`, which reads what is left"
            ) from error
        except _FATAL:
            raise
        except KafkaError as error:
            log.warning("fetch failed; retrying", error=repr(error))
            await asyncio.sleep(1.0)
            return
        for number, found in fetched.items():
            partition = self.partitions.get(number)
            if partition is not None and partition.phase is Phase.RUNNING:
                partition.accept(found)

    # -- rebalances ---------------------------------------------------------------------------------------------------

    async def _revoked(self, revoked: set[int]) -> None:
        """Commit what was processed, within the time the group allows; what can't be committed is dropped here."""
        for number in revoked & self.partitions.keys():
            self.partitions[number].suspend()
        self.joined = False
        limit_s = self.settings.kafka.rebalance_timeout_ms / 1000 * DRAIN_SHARE
        await self._commit_all([self.partitions[number] for number in revoked & self.partitions.keys()], limit_s)

    async def _assigned(self, assigned: set[int]) -> None:
        self.metrics.rebalances.inc()
        self._check_partitions(assigned)
        for number in self.partitions.keys() - assigned:
            partition = self.partitions.pop(number)
            partition.phase = Phase.CLOSED
            self._in_background(self._give_up(partition))
        for number in sorted(assigned):
            known = self.partitions.get(number)
            if known is not None and known.phase in (Phase.SUSPENDED, Phase.RUNNING) and known.lane is not None:
                known.continue_reading()
            elif known is None or known.phase is not Phase.OPENING:
                if known is not None:
                    known.phase = Phase.CLOSED
                    self._in_background(known.close())
                self.partitions[number] = OwnedPartition(number, self)
                self.partitions[number].open()
        self.metrics.partitions_owned.set(len(assigned))
        self._reporter.owns(assigned)
        self.joined = True
        log.info("partitions assigned", partitions=sorted(assigned))

    async def _give_up(self, partition: OwnedPartition) -> None:
        """Close a partition that another worker owns now, and show nothing of it any more."""
        await partition.close()
        if partition.number not in self.partitions:
            self.metrics.forget_partition(self.topic, partition.number)

    def _or_fail(self, callback: Callable[[set[int]], Awaitable[None]]) -> Callable[[set[int]], Awaitable[None]]:
        """The callback, an error of which ends the worker: the client would log it and go on without partitions."""

        async def call(partitions: set[int]) -> None:
            try:
                await callback(partitions)
            except Exception as error:
                self.fail(error)

        return call

    def _check_partitions(self, assigned: set[int]) -> None:
        if assigned and max(assigned) >= self.input_partitions:
            self.fail(
                TopicError(
                    f"{self.topic} now has partition {max(assigned)}, but had {self.input_partitions} when its "
                    "state began: its keys have moved between partitions. Use another application_id, or "
                    "`workers state reset`, and restart"
                )
            )

    async def _commit_all(self, partitions: Sequence[OwnedPartition], limit_s: float) -> None:
        """Commit side by side; partitions that don't make it in time are closed, and restored by their next owner."""
        commits = {asyncio.ensure_future(partition.commit()): partition for partition in partitions}
        if not commits:
            return
        done, late = await asyncio.wait(commits, timeout=limit_s)
        for task in late:
            log.warning("commit did not finish in time; giving up the partition", partition=commits[task].number)
            task.cancel()
        await asyncio.gather(*(commits[task].close() for task in late))
        for task in done:
            if not task.cancelled() and (error := task.exception()) is not None:
                self.fail(error)

    # -- for partitions -----------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def restoring(self) -> AsyncIterator[None]:
        """A place among the restores that run side by side."""
        async with self._restores:
            self.metrics.partitions_restoring.inc()
            try:
                yield
            finally:
                self.metrics.partitions_restoring.dec()

    def is_full(self) -> bool:
        """Whether results of all partitions that are not yet acknowledged are so many, or so large, that lanes wait."""
        partitions = self.partitions.values()
        return (
            sum(partition.results_waiting() for partition in partitions) >= PENDING_LIMIT_RECORDS
            or sum(partition.bytes_waiting() for partition in partitions) >= PENDING_LIMIT_BYTES
        )

    def note_step(self, step: str, began_s: float) -> float:
        """Seconds since ``began_s`` of the performance counter, in which nothing else could run; exported if it is the
        longest of its kind."""
        took_s = time.perf_counter() - began_s
        if took_s > self._longest_s.get(step, 0.0):
            self._longest_s[step] = took_s
            self.metrics.longest_step.labels(step).set(took_s)
        return took_s

    def make_sink(self, partition: int) -> PartitionSink:
        """A new producer for a partition, not yet open."""
        return PartitionSink(self.sink_spec, partition)

    async def refresh_limits(self) -> None:
        """Ask the topics again how large a record may be, if one was found too large."""
        if self.limits_changed:
            await self._prepare_topics()
            self.limits_changed = False

    @property
    def failure(self) -> BaseException | None:
        """What ended ``run``, or is about to."""
        done = self._failure is not None and self._failure.done() and not self._failure.cancelled()
        return self._failure.exception() if self._failure is not None and done else None

    def fail(self, error: BaseException) -> None:
        """End ``run`` with this error, unless another came first."""
        if self._failure is not None and not self._failure.done():
            self._failure.set_exception(error)

    def warn_of_short_retention(self, effects: Effects) -> None:
        """Say once that the frames topic deletes frames this old: it goes by their timestamps, the windows' ends."""
        keeps_ms = self._frames_retention_ms
        if self._warned_of_retention or keeps_ms is None or keeps_ms < 0 or not effects.frames:
            return
        oldest_ms = min(frame.timestamp_ms or 0 for frame in effects.frames)
        if oldest_ms < time.time() * 1000 - keeps_ms:
            self._warned_of_retention = True
            log.warning(
                "the frames topic's retention deletes frames as old as these; set its retention.ms to -1",
                topic=self.settings.topics.frames,
                retention_ms=keeps_ms,
                window_end_ms=oldest_ms,
            )

    # -- start and end ------------------------------------------------------------------------------------------------

    async def _prepare_topics(self) -> None:
        """See that the topics are there and fit together; learn their partitions and the largest record each takes."""
        topics = self.settings.topics
        async with admin_client(self.settings) as admin:
            layout = await ensure_topics(admin, self.settings, create=topics.create)

        def out(name: str, partitions: int) -> OutTopic:
            return OutTopic(name, partitions, layout.max_message_bytes.get(name, DEFAULT_MAX_MESSAGE_BYTES))

        self.input_partitions = layout.ticks
        self._frames_retention_ms = layout.frames_retention_ms
        self.sink_spec = SinkSpec(
            self.topic,
            self.settings.application_id,
            out(topics.frames, layout.frames),
            out(topics.late, layout.late),
            out(topics.dead_letters, layout.dead_letters),
            out(topics.changelog, layout.changelog),
            self.settings.processing_guarantee == "exactly_once",
            self.producer_options,
            {name: out(name, partitions) for name, partitions in layout.routed.items()},
            note_step=self.note_step,
        )

    def _in_background(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _shut_down(self) -> None:
        """Commit what can be committed, leave the group, close the producers; each within a limit."""
        partitions = list(self.partitions.values())
        for partition in partitions:
            partition.suspend()
        self.joined = False
        await self._commit_all(partitions, STOP_TIMEOUT_S)
        await self._reporter.close()
        await self.source.stop()
        for partition in self.partitions.values():
            self._in_background(partition.close())
        if self._background:
            await asyncio.wait(self._background, timeout=2 * CLOSE_TIMEOUT_S)
        if self._failure is not None and self._failure.done():
            self._failure.exception()  # it was raised by the loop, or came after it
        log.info("worker stopped")


async def run_worker(settings: Settings, *, stop: asyncio.Event) -> None:
    """Run one worker until ``stop`` is set. Raises what `Worker.run` raises."""
    worker = Worker(settings)
    async with serving(worker):
        await worker.run(stop)
