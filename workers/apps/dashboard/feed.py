"""Reading Kafka for the model: three output topics, the changelog's sums, the group, its lag, and the feedback topic.

Every reader is a task of its own with clients of its own, goes on by itself after an outage, and says in the model how
it is doing. None joins a group, commits or writes. What is bounded here: the history read at the start, the records
taken at once, and the time that any request may take.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from aiokafka import AIOKafkaConsumer
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import KafkaError, for_code
from aiokafka.structs import TopicPartition

from workers.apps.dashboard.model import DashboardModel, LagReading, Member, PartitionReading
from workers.backpressure.feedback import FeedbackListener, level_policy
from workers.backpressure.lag import LagMonitor, LagSnapshot
from workers.backpressure.levels import rate_scale
from workers.core.snapshot import META_KEY
from workers.core.ticks import is_end_of_input
from workers.errors import WorkersError
from workers.kafka.connection import connecting
from workers.kafka.fetch_hook import install
from workers.kafka.repairs import repair_client, stop_consumer
from workers.kafka.topics import admin_client, describe_topics
from workers.settings.all import client_options
from workers.times import UNIT_NS

if TYPE_CHECKING:
    from aiokafka import AIOKafkaAdminClient, ConsumerRecord

    from workers.settings.all import Settings

__all__ = ["HISTORY_RECORDS", "Feed", "model_for"]

HISTORY_RECORDS: Final = 30_000  # of each topic, read at the start
_POLL_MS: Final = 200
_BATCH: Final = 1_000  # bounds how long browsers wait while records are taken
_TOPIC_CHECK_S: Final = 1.0
_GROUP_EVERY_S: Final = 1.0
_SUMS_EVERY_S: Final = 1.0
_SAMPLE_EVERY_S: Final = 1.0
_REQUEST_TIMEOUT_S: Final = 10.0
_CLOSE_TIMEOUT_S: Final = 5.0
_MAX_BACKOFF_S: Final = 5.0
_LOOK_BACK: Final = 64
_OUTAGE = (WorkersError, KafkaError, OSError, TimeoutError)

Take = Callable[["ConsumerRecord", bool], None]
"""Takes a record, and whether it came after reading began."""


def model_for(settings: Settings) -> DashboardModel:
    """An empty model with the application's own unit, lag and thresholds."""
    policy = level_policy(settings) if settings.backpressure.enabled else None
    return DashboardModel(unit_ns=UNIT_NS[settings.tick.timestamp_unit], lag_ns=settings.window.lag, policy=policy)


class Feed:
    """Keeps a model up to date while it is open.

    async with Feed(settings, model):
        ...
    """

    def __init__(self, settings: Settings, model: DashboardModel, *, history: int = HISTORY_RECORDS) -> None:
        self._settings, self._model, self._history = settings, model, history
        self._policy = level_policy(settings)
        self._tasks: list[asyncio.Task[None]] = []
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Feed:
        repair_client()
        topics, model = self._settings.topics, self._model
        for name in ("frames", "late", "dead letters", "sum", "group", "lag"):
            model.set_source(name, "waiting", "connecting")
        listener = await self._stack.enter_async_context(FeedbackListener(self._settings))
        await self._stack.enter_async_context(
            LagMonitor(self._settings, on_snapshot=self._measured, on_failure=self._not_measured)
        )
        for work in (
            self._follow("frames", topics.frames, self._frame),
            self._follow("late", topics.late, self._late),
            self._follow("dead letters", topics.dead_letters, self._dead_letter),
            self._keep("sum", self._sums),
            self._keep("group", self._group),
            self._sample(listener),
        ):
            self._tasks.append(asyncio.create_task(work))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks, timeout=2 * _CLOSE_TIMEOUT_S)
        await self._stack.aclose()

    # -- taking -------------------------------------------------------------------------------------------------------

    def _frame(self, record: ConsumerRecord, live: bool) -> None:
        if is_end_of_input(record):  # for an application that makes bars of these frames
            return
        self._model.take_frame(record.value, record.partition, time.monotonic_ns(), live=live)

    def _late(self, record: ConsumerRecord, live: bool) -> None:
        self._model.take_late(record.value, record.timestamp * 1_000_000)

    def _dead_letter(self, record: ConsumerRecord, live: bool) -> None:
        self._model.take_dead_letter(record.key, record.value, record.headers, record.timestamp * 1_000_000)

    def _measured(self, snapshot: LagSnapshot) -> None:
        delays = snapshot.delays
        partitions = tuple(
            PartitionReading(
                item.partition,
                item.committed,
                item.end,
                item.lag,
                delays[item.partition].waiting_ns if item.partition in delays else None,
            )
            for item in snapshot.group.partitions
        )
        self._model.take_lag(
            LagReading(
                partitions,
                snapshot.waiting_ns,
                snapshot.event_lag_ns,
                snapshot.drain_s,
                snapshot.committed_per_s,
                snapshot.measured_ns,
            )
        )
        self._model.set_source("lag", "ok")

    def _not_measured(self, error: Exception) -> None:
        self._model.set_source("lag", "failed", str(error) or repr(error))

    async def _sample(self, listener: FeedbackListener) -> None:
        while True:
            event = listener.strictest()
            scale = rate_scale(event.level, self._policy) if event is not None else 1.0
            self._model.take_pressure((event.level.name, event.source, scale) if event is not None else None)
            self._model.sample(time.time_ns(), time.monotonic_ns())
            await asyncio.sleep(_SAMPLE_EVERY_S)

    # -- topics -------------------------------------------------------------------------------------------------------

    async def _keep(self, name: str, work: Callable[[], Coroutine[object, object, None]]) -> None:
        """Do ``work``, which ends only by failing, again and again."""
        backoff_s = 0.2
        while True:
            began_s = time.monotonic()
            try:
                await work()
            except _OUTAGE as error:
                self._model.set_source(name, "failed", str(error) or repr(error))
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                self._model.set_source(name, "failed", "the Kafka client ended a request")
            backoff_s = 0.2 if time.monotonic() - began_s > 30 else min(2 * backoff_s, _MAX_BACKOFF_S)
            await asyncio.sleep(backoff_s)

    async def _follow(self, name: str, topic: str, take: Take) -> None:
        """Hand every record of a topic to ``take``: some history first, then whatever comes."""
        positions: dict[int, int] = {}

        async def follow() -> None:
            partitions = await self._wait_for(name, topic)
            async with self._consumer(topic) as consumer:
                tps = [TopicPartition(topic, number) for number in range(partitions)]
                ends = await self._begin(consumer, tps, positions)
                self._model.set_source(name, "ok")
                while True:
                    found = await consumer.getmany(*tps, timeout_ms=_POLL_MS, max_records=_BATCH)
                    for tp, records in found.items():
                        for record in records:
                            take(record, record.offset >= ends[tp])
                        positions[tp.partition] = records[-1].offset + 1
                    await asyncio.sleep(0)  # a long history must not keep browsers waiting

        await self._keep(name, follow)

    async def _wait_for(self, name: str, topic: str) -> int:
        async with admin_client(self._settings) as admin:
            while True:
                state = (await describe_topics(admin)).get(topic)
                if state is not None and state.ready:
                    return state.partitions
                self._model.set_source(name, "waiting", f"topic {topic} does not exist yet")
                await asyncio.sleep(_TOPIC_CHECK_S)

    async def _begin(
        self, consumer: AIOKafkaConsumer, tps: list[TopicPartition], positions: dict[int, int]
    ) -> Mapping[TopicPartition, int]:
        """Assign, and seek to where reading stopped before or a history's length before the ends; returns those."""
        consumer.assign(tps)
        async with asyncio.timeout(_REQUEST_TIMEOUT_S):
            begins: dict[TopicPartition, int] = await consumer.beginning_offsets(tps)
            ends: dict[TopicPartition, int] = await consumer.end_offsets(tps)
        share = max(self._history // len(tps), 1)
        for tp in tps:
            fresh = max(begins[tp], ends[tp] - share)
            known = positions.get(tp.partition, fresh)
            # Beyond the end: the topic was deleted and recreated.
            consumer.seek(tp, max(known, begins[tp]) if known <= ends[tp] else fresh)
        return ends

    @contextlib.asynccontextmanager
    async def _consumer(self, topic: str) -> AsyncIterator[AIOKafkaConsumer]:
        """A reader of committed records, without a group; closed within a time limit."""
        consumer = AIOKafkaConsumer(
            **client_options(self._settings),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            fetch_max_wait_ms=_POLL_MS,
        )
        try:
            async with connecting(self._settings):
                await consumer.start()
                install(consumer, records=True)
                await consumer._client.add_topic(topic)  # an assignment before any metadata were seen can stay idle
            yield consumer
        finally:
            await stop_consumer(consumer)

    # -- the changelog's sums -----------------------------------------------------------------------------------------

    async def _sums(self) -> None:
        """Look at the end of each changelog partition now and then, where the last commit's record is.

        The windows' records between are many and of no use here, so the topic is not followed.
        """
        topic = self._settings.topics.changelog
        partitions = await self._wait_for("sum", topic)
        tps = [TopicPartition(topic, number) for number in range(partitions)]
        seen: dict[TopicPartition, int] = {}
        async with self._consumer(topic) as consumer:
            consumer.assign(tps)
            consumer.pause(*tps)
            while True:
                async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                    begins, ends = await consumer.beginning_offsets(tps), await consumer.end_offsets(tps)
                moved = [tp for tp in tps if ends[tp] != seen.get(tp)]
                for tp in moved:
                    # A topic made again begins a new sum.
                    if ends[tp] < seen.get(tp, 0):
                        self._model.take_meta(tp.partition, None, time.monotonic_ns())
                    await self._last_sum(consumer, tp, begins[tp], ends[tp])
                    seen[tp] = ends[tp]
                self._model.set_source("sum", "ok")
                await asyncio.sleep(_SUMS_EVERY_S)

    async def _last_sum(self, consumer: AIOKafkaConsumer, tp: TopicPartition, begin: int, end: int) -> None:
        """Read back from the end until the sum shows; a commit writes it last, so the first look mostly finds it."""
        back = _LOOK_BACK
        while end > begin:
            start = max(begin, end - back)
            records = await self._between(consumer, tp, start, end)
            sums = [record for record in records if record.key == META_KEY]
            if sums:
                self._model.take_meta(tp.partition, sums[-1].value, time.monotonic_ns())
            if sums or start == begin:
                return
            back *= 16

    async def _between(
        self, consumer: AIOKafkaConsumer, tp: TopicPartition, start: int, end: int
    ) -> list[ConsumerRecord]:
        """Records whose key is the sum's, from ``start`` to before ``end``."""
        consumer.seek(tp, start)
        consumer.resume(tp)
        found: list[ConsumerRecord] = []
        try:
            async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                while await consumer.position(tp) < end:
                    records = (await consumer.getmany(tp, timeout_ms=_POLL_MS, max_records=_BATCH)).get(tp, [])
                    found.extend(record for record in records if record.key == META_KEY)
        finally:
            consumer.pause(tp)
        return found

    # -- the group ----------------------------------------------------------------------------------------------------

    async def _group(self) -> None:
        async with admin_client(self._settings) as admin:
            while True:
                async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                    state, members = await _described(admin, self._settings.application_id, self._settings.topics.ticks)
                self._model.take_group(state, members, time.time_ns())
                self._model.set_source("group", "ok")
                await asyncio.sleep(_GROUP_EVERY_S)


async def _described(admin: AIOKafkaAdminClient, group: str, topic: str) -> tuple[str, list[Member]]:
    for response in await admin.describe_consumer_groups([group]):
        for code, _group, state, _protocol_type, _protocol, members, *_ in response.groups:
            if code:
                raise for_code(code)(f"group {group}")
            return state or "Dead", [
                Member(member_id, client_id, host.lstrip("/"), tuple(sorted(_owned(assignment, topic))))
                for member_id, _instance, client_id, host, _metadata, assignment in map(_six, members)
            ]
    return "Dead", []


def _six(member: tuple[object, ...]) -> tuple[str, object, str, str, bytes, bytes]:
    """A member with its group instance id, which older brokers don't tell."""
    return member if len(member) == 6 else (member[0], None, *member[1:])  # type: ignore[return-value]


def _owned(assignment: bytes, topic: str) -> Iterable[int]:
    """Partitions of the topic in an assignment; none while the group is still agreeing on it."""
    if not assignment:
        return ()
    try:
        decoded = ConsumerProtocolMemberAssignment.decode(assignment)
    except (ValueError, KafkaError):
        return ()
    return [tp.partition for tp in decoded.partitions() if tp.topic == topic]
