"""The worker: fetch → lanes → effects → commit, for the partitions that the group gives this process.

    consumer.poll ──▶ backlog ──▶ lane.process ──▶ committer ──▶ sink.commit
                      (bounded)     (pure)         (effects)    (one transaction
                                                                 per partition)

Each partition's life is a table (`workers.worker.life`), its state decides without I/O (`workers.worker.partition`),
and a runner carries out what it asks for (`workers.worker.runner`). The `Worker` moves records and time, and tells the
runners what the group says. Three rules carry the guarantees:

1. A lane's state is only ever that of a log position: whatever fails, the lane and its producer are thrown away and
   made again from what was committed. Nothing is rolled back in memory.
2. Nothing leaves the process but through `CommitSink.commit`, whose producer the next owner fences.
3. A partition that stays over a rebalance keeps its lane. That is sound even where another worker owned it in between:
   it would have fenced our producer, and the next commit would fail before anything is visible.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Final

import structlog

from workers.backpressure.lag_reporter import GroupReporter
from workers.backpressure.reading_pace import ReadingPace
from workers.core.lane import Input, Lane
from workers.errors import TopicReplacedError, WorkersError
from workers.kafka.backoff import Backoff
from workers.kafka.cluster import Cluster
from workers.kafka.errors import PASSING, REFUSED, KafkaError
from workers.kafka.ports import GroupConsumer, Kafka
from workers.kafka.refusals import refusal
from workers.native.choose import is_available, make_lane, supports, takes_batches
from workers.settings import LaneSettings, Settings, advice
from workers.settings.lane import lane_spec
from workers.telemetry.metrics import Metrics
from workers.telemetry.spared import Spared
from workers.worker.committer import CommitRules, WaitingLimits, wait_too_many
from workers.worker.lane_threads import LaneThreads
from workers.worker.life import Action, Actions, LifeEvent
from workers.worker.opening import Origin
from workers.worker.partition import Fullness, PartitionRules
from workers.worker.report import WorkerReport
from workers.worker.runner import CLOSE_TIMEOUT_S, Context, PartitionRunner
from workers.worker.watch import TopicWatch, partitions_added

__all__ = ["Worker"]

log = structlog.get_logger(__name__)

POLL_TIMEOUT_MS: Final = 50
STALL_S: Final = 0.001
LOOK_EVERY_S: Final = 5.0  # at the topics: whether they are still those that the state is of
LOOK_TIMEOUT_S: Final = 30.0
RESTORES_AT_ONCE: Final = 4
DRAIN_SHARE: Final = 0.5  # of the rebalance timeout, for the commits before partitions are given back
STOP_TIMEOUT_S: Final = 10.0  # for the last commits; with leaving and closing, all is over in under half a minute
MARKERS_EVERY_S: Final = 1.0
LONGEST_FETCH_REST_S: Final = 4.0
OUTSIDE_SAID_EVERY_S: Final = 30.0
BATCHES_AT_ONCE: Final = 32  # of record batches, which are fetched whole
WAITING_LIMITS = WaitingLimits()


class Worker:
    """One member of the group. ``run`` until ``stop`` is set."""

    def __init__(self, settings: Settings, metrics: Metrics | None = None, kafka: Kafka | None = None) -> None:
        """``kafka`` None: the cluster that the settings name."""
        topics = settings.topics
        self.settings = settings
        self.metrics = metrics if metrics is not None else Metrics()
        self.topic = topics.ticks
        self.lane_spec = lane_spec(settings)
        self.lane_spec.rules()  # what can't be is said now, and a calendar is made once
        self.partitions: dict[int, PartitionRunner] = {}
        self.joined = False  # in the group, with no rebalance under way
        self.turned_s: float | None = None  # when the loop last turned, monotonic
        self._outside_s = time.monotonic()  # when it was last in the group, or that it is not was last said
        self._report = WorkerReport(
            self.metrics, ticks=topics.ticks, frames=topics.frames, dead_letters=topics.dead_letters
        )
        self._kafka = kafka if kafka is not None else Cluster(settings, self._report.note_step)
        self._rules = _partition_rules(settings)
        self._is_native = False
        self._threads = LaneThreads(1)
        self._context: Context | None = None
        self._opened = asyncio.Event()
        self._fetch_rests, self._fetch_failures = Backoff(0.5, LONGEST_FETCH_REST_S), Spared()
        self._restores = asyncio.Semaphore(RESTORES_AT_ONCE)
        self._failure: asyncio.Future[None] | None = None
        self._background: set[asyncio.Future[None]] = set()
        self._pace = ReadingPace(settings, self.metrics)
        self._reporter = GroupReporter(settings, self.metrics)

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set, then commit, leave the group and close.

        Raises `WorkersError` for what the user must act on.
        """
        for sentence in advice(self.settings):
            log.info(sentence)
        self._failure = asyncio.get_running_loop().create_future()
        # First, as it says within seconds what is wrong with the cluster or the settings.
        if not await _done_before(stop, self._kafka.prepare()):
            log.info("worker stopped before it reached the cluster")
            return
        self._is_native = self._choose_lane()
        self._threads = LaneThreads(self.settings.lane.threads if self._is_native else 1)
        consumer = self._kafka.consumer(
            on_revoked=self._or_fail(self._revoked), on_assigned=self._or_fail(self._assigned), batches=True
        )
        self._context = self._context_with(consumer)
        try:
            async with self._kafka.connecting():
                started = await _done_before(stop, consumer.start())
            if started:
                log.info(
                    "worker started",
                    application_id=self.settings.application_id,
                    topic=self.topic,
                    guarantee=self.settings.processing_guarantee,
                )
                await self._work(consumer, stop)
        except REFUSED as error:
            raise refusal(error, self.settings) from error
        finally:
            await self._shut_down(consumer)
            self._threads.close()

    async def _work(self, consumer: GroupConsumer, stop: asyncio.Event) -> None:
        """The loop, until it ends, with an eye on the topics."""
        watch = asyncio.ensure_future(self._watch_topics(consumer))
        try:
            async with self._pace:
                await self._loop(consumer, stop)
        except TopicReplacedError:
            await self._forsake()
            raise
        finally:
            watch.cancel()

    def _choose_lane(self) -> bool:
        """Whether lanes are native; what is missing for them to be is said."""
        if supports(self.lane_spec) and not is_available():
            log.info(
                "native lanes are not there; plain Python computes the same, some 40 times slower. Install where there "
                "is a Rust compiler (cargo), or from a wheel"
            )
        return takes_batches(self.lane_spec)

    def _context_with(self, consumer: GroupConsumer) -> Context:
        """What partitions may ask of this worker."""
        settings = self.settings
        return Context(
            kafka=self._kafka,
            consumer=consumer,
            report=self._report,
            rules=self._rules,
            origin=Origin(
                settings.application_id,
                self.topic,
                settings.topics.changelog,
                from_latest=settings.kafka.auto_offset_reset == "latest",
            ),
            make_lane=self._make_lane,
            restoring=self._restoring,
            opened=self._opened,
            is_full=self.is_full,
            fail=self.fail,
        )

    # -- the loop -----------------------------------------------------------------------------------------------------

    async def _loop(self, consumer: GroupConsumer, stop: asyncio.Event) -> None:
        assert self._failure is not None
        markers = _Every(MARKERS_EVERY_S)
        flush = _Every(self.settings.window.flush_interval / 1e9)
        while not stop.is_set() and not self._failure.done():
            self.turned_s = time.monotonic()
            await self._fetch(consumer)
            await self._process()
            await self._show_overdue()
            if markers.is_due():
                await self._pass_markers()
                self._say_if_outside()
            if self.settings.window.emit_partial and flush.is_due():
                self._flush_partial()
        if self._failure.done():
            self._failure.result()

    async def _fetch(self, consumer: GroupConsumer) -> None:
        """Records for partitions that have room for them; waits a moment where no lane has anything to do."""
        if await self._pace.held(consumer):
            now_ns = time.monotonic_ns()
            for runner in self.partitions.values():
                runner.state.hear(now_ns)  # nothing came because nothing was asked for: that is no silence
            return
        self._opened.clear()  # before it is looked which are
        ready = [
            number for number, runner in self.partitions.items() if runner.state.is_running and not runner.state.paused
        ]
        timeout_ms = 0 if self._has_backlog() else POLL_TIMEOUT_MS
        try:
            consumer.check()
            if not ready:
                await consumer.stay()
                await self._until_opened(max(timeout_ms / 1000, STALL_S))
                return
            fetched = await consumer.poll(ready, timeout_ms=timeout_ms, max_records=self._fetch_at_once())
        except REFUSED:
            raise
        except KafkaError as error:
            await self._rest_from(error)
            return
        self._fetch_rests.reset()
        for number, found in fetched.items():
            reading = self.partitions.get(number)
            if reading is not None and reading.state.is_running:
                reading.accept(found)

    async def _rest_from(self, error: KafkaError) -> None:
        """Say that a fetch failed, sparingly, and wait; longer each time, until one works."""
        if (left_out := self._fetch_failures.note(repr(error))) is not None:
            log.warning("fetch failed; retrying", error=repr(error), and_more_like_it=left_out)
        await asyncio.sleep(self._fetch_rests.grow())

    async def _until_opened(self, limit_s: float) -> None:
        """Wait until a partition can be read, or for as long as that."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._opened.wait(), limit_s)

    def _fetch_at_once(self) -> int:
        """Batches, or records where there are none. The client hands out all it has of one partition before the next
        one's: with no more than a lane takes at once a partition with much to read would never fill its lane and be
        paused, and the others would wait for it."""
        lane = self.settings.lane
        return BATCHES_AT_ONCE if self._is_native else max(lane.batch_size, lane.capacity - self._rules.high.records)

    async def _process(self) -> None:
        """One step of each lane, as many side by side as there are threads."""
        stepped = False
        runners = list(self.partitions.values())
        for begin in range(0, len(runners), self._threads.count):
            if self._step(runners[begin : begin + self._threads.count]):
                stepped = True
                await asyncio.sleep(0)  # commits and heartbeats get their turn between lanes
        if not stepped and self._has_backlog():
            # All lanes wait for results to be acknowledged, and a fetch that need not wait never yields: without
            # this the commits that they wait for would never run.
            await asyncio.sleep(STALL_S)

    def _step(self, runners: Sequence[PartitionRunner]) -> bool:
        """A step of these lanes; false where none has anything to do. Raises what a lane raises, when what the others
        have made is taken: a lane that raised has moved on, and what came of that is lost, so nothing of it may be
        committed."""
        began_s = time.perf_counter()
        portions = [(runner, portion) for runner in runners if (portion := runner.next_portion()) is not None]
        made = self._threads.run([partial(runner.state.compute, portion) for runner, portion in portions])
        if portions:
            self._report.note_step("process", began_s)
        failures: list[Exception] = []
        for (runner, _), outcome in zip(portions, made, strict=True):
            if isinstance(outcome, Exception):
                runner.state.discard()
                failures.append(outcome)
            else:
                runner.processed(*outcome)
        if failures:
            raise failures[0]
        return bool(portions)

    async def _show_overdue(self) -> None:
        now_ns = time.monotonic_ns()
        for runner in list(self.partitions.values()):
            await runner.show_overdue(now_ns)

    async def _pass_markers(self) -> None:
        for runner in list(self.partitions.values()):
            await runner.pass_markers()

    def _flush_partial(self) -> None:
        for runner in list(self.partitions.values()):
            runner.flush_partial()

    def _say_if_outside(self) -> None:
        """Say what to look at where the group lets this worker wait for long; the client only says that it tries."""
        now_s = time.monotonic()
        if self.joined:
            self._outside_s = now_s
        elif now_s - self._outside_s >= OUTSIDE_SAID_EVERY_S:
            self._outside_s = now_s
            log.warning(
                "not in the group yet; trying on. Is a broker its coordinator: are as many up as "
                "offsets.topic.replication.factor wants, and has __consumer_offsets leaders? Does a member take long "
                "to rejoin (kafka.rebalance.timeout.ms)?",
                group=self.settings.application_id,
            )

    def _has_backlog(self) -> bool:
        return any(runner.state.backlog for runner in self.partitions.values())

    # -- rebalances ---------------------------------------------------------------------------------------------------

    async def _revoked(self, revoked: set[int]) -> None:
        """Commit what was processed, within the time the group allows; what can't be committed is dropped here."""
        runners = [self.partitions[number] for number in revoked & self.partitions.keys()]
        for runner in runners:
            runner.tell(LifeEvent.REVOKED)
        self.joined = False
        await self._commit_all(runners, self.settings.kafka.rebalance_timeout_ms / 1000 * DRAIN_SHARE)

    async def _assigned(self, assigned: set[int]) -> None:
        self.metrics.rebalances.inc()
        self._check_partitions(assigned)
        for number in self.partitions.keys() - assigned:
            runner = self.partitions.pop(number)
            self._in_background(self._give_up(runner, runner.tell(LifeEvent.LOST)))
        for number in sorted(assigned):
            self._assign(number)
        self.metrics.partitions_owned.set(len(assigned))
        self._reporter.owns(assigned)
        self.joined = True
        log.info("partitions assigned", partitions=sorted(assigned))

    def _assign(self, number: int) -> None:
        """Go on with a partition that is known, or begin its life."""
        known = self.partitions.get(number)
        if known is not None:
            left = known.tell(LifeEvent.ASSIGNED)
            if left:
                self._in_background(known.finish(left))
            if Action.REPLACE not in left:
                return
        assert self._context is not None
        self.partitions[number] = PartitionRunner(number, self._context)
        self.partitions[number].open()

    async def _give_up(self, runner: PartitionRunner, left: Actions) -> None:
        """Close a partition that another worker owns now, and show nothing of it any more."""
        await runner.finish(left)
        if runner.number not in self.partitions:
            self.metrics.forget_partition(self.topic, runner.number)

    def _or_fail(self, callback: Callable[[set[int]], Awaitable[None]]) -> Callable[[set[int]], Awaitable[None]]:
        """The callback, an error of which ends the worker: the client would log it and go on without partitions."""

        async def call(partitions: set[int]) -> None:
            try:
                await callback(partitions)
            except Exception as error:
                self.fail(error)

        return call

    def _check_partitions(self, assigned: set[int]) -> None:
        known = self._kafka.topics.input_partitions
        if assigned and max(assigned) >= known:
            self.fail(partitions_added(self.topic, known, max(assigned) + 1))

    async def _commit_all(self, runners: Sequence[PartitionRunner], limit_s: float) -> None:
        """Commit side by side; partitions that don't make it in time are closed, and restored by their next owner."""
        commits = {asyncio.ensure_future(runner.commit()): runner for runner in runners}
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

    async def _watch_topics(self, consumer: GroupConsumer) -> None:
        """Look at the topics now and then, for as long as the worker runs."""
        topics = self._kafka.topics
        watch = TopicWatch(topics.identities, topics.input_partitions)
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                seen = await asyncio.wait_for(consumer.look(set(self.partitions)), LOOK_TIMEOUT_S)
                doubts = watch.note(seen, time.monotonic())
            except WorkersError as error:
                if isinstance(error, TopicReplacedError):
                    await self._forsake()
                self.fail(error)
                return
            except PASSING as error:
                log.debug("can't look at the topics; trying again", error=repr(error))
                continue
            log.debug("looked at the topics", partitions=len(seen.changelog_begins))
            for number, reason in doubts:
                if number in self.partitions:
                    self.partitions[number].doubt(reason)

    async def _forsake(self) -> None:
        """Close all partitions and commit nothing more: what was processed may be of another topic."""
        await asyncio.gather(*(runner.close() for runner in self.partitions.values()))

    # -- for partitions -----------------------------------------------------------------------------------------------

    def _make_lane(self, number: int) -> Lane:
        topics = self._kafka.topics
        place = Input(self.topic, number, topics.input_partitions, topics.identities)
        return make_lane(self.lane_spec, place, self._is_native)

    @contextlib.asynccontextmanager
    async def _restoring(self) -> AsyncIterator[None]:
        """A place among the restores that run side by side."""
        async with self._restores:
            with self._report.restoring():
                yield

    def is_full(self) -> bool:
        """Whether results of all partitions that are not yet acknowledged are so many, or so large, that lanes wait."""
        return wait_too_many((runner.state.committer for runner in self.partitions.values()), WAITING_LIMITS)

    @property
    def failure(self) -> BaseException | None:
        """What ended ``run``, or is about to."""
        done = self._failure is not None and self._failure.done() and not self._failure.cancelled()
        return self._failure.exception() if self._failure is not None and done else None

    def fail(self, error: BaseException) -> None:
        """End ``run`` with this error, unless another came first."""
        if self._failure is not None and not self._failure.done():
            self._failure.set_exception(error)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _in_background(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _shut_down(self, consumer: GroupConsumer) -> None:
        """Commit what can be committed, leave the group, close the producers; each within a limit."""
        runners = list(self.partitions.values())
        for runner in runners:
            runner.tell(LifeEvent.REVOKED)
        self.joined = False
        await self._commit_all(runners, STOP_TIMEOUT_S)
        await self._reporter.close()
        await consumer.stop()
        for runner in self.partitions.values():
            self._in_background(runner.close())
        if self._background:
            await asyncio.wait(self._background, timeout=2 * CLOSE_TIMEOUT_S)
        if self._failure is not None and self._failure.done():
            self._failure.exception()  # it was raised by the loop, or came after it
        log.info("worker stopped")


class _Every:
    """Comes due at once, and then so many seconds after it was last looked at and was due."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._next_s = 0.0

    def is_due(self) -> bool:
        now_s = time.monotonic()
        if now_s < self._next_s:
            return False
        self._next_s = now_s + self._interval_s
        return True


async def _done_before(stop: asyncio.Event, work: Coroutine[None, None, None]) -> bool:
    """Do the work; False where it was cancelled because ``stop`` came first. Raises what the work raises."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        return working.done()
    finally:
        working.cancel()
        stopping.cancel()
        await asyncio.wait({working, stopping})


def _partition_rules(settings: Settings) -> PartitionRules:
    lane = settings.lane
    return PartitionRules(
        high=_filled(lane, lane.high_watermark),
        low=_filled(lane, lane.low_watermark),
        batch_size=lane.batch_size,
        commit=CommitRules(settings.commit_interval, is_aligned=settings.commit_scope == "process"),
    )


def _filled(lane: LaneSettings, share: float) -> Fullness:
    return Fullness(max(1, int(share * lane.capacity)), int(share * lane.capacity_bytes))
