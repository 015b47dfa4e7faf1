"""Reading Kafka for the model: three output topics, the changelog's sums, the group, its lag, and the feedback topic.

Every reader is a task of its own with clients of its own, goes on by itself after an outage, and says in the model how
it is doing. None joins a group, commits or writes. What is bounded here: the history read at the start, the records
taken at once, and the time that any request may take.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Final

from workers.apps.dashboard.model import DashboardModel
from workers.apps.dashboard.readings import LagReading, Member, PartitionReading
from workers.backpressure.feedback import FeedbackListener, level_policy
from workers.backpressure.lag import LagMonitor, LagSnapshot
from workers.backpressure.levels import rate_scale
from workers.core.snapshot import META_KEY
from workers.core.ticks import is_end_of_input
from workers.kafka.clients import admin_client
from workers.kafka.group_members import describe_group
from workers.kafka.reading import KafkaRecord, TopicReader, reading
from workers.kafka.reconnecting import ReconnectingTask
from workers.kafka.repairs import repair_client
from workers.kafka.topics import describe_topics
from workers.times import UNIT_NS

if TYPE_CHECKING:
    from workers.settings import Settings

__all__ = ["HISTORY_RECORDS", "Feed", "model_for"]

HISTORY_RECORDS: Final = 30_000  # of each topic, read at the start
_POLL_MS: Final = 200
_BATCH: Final = 1_000  # bounds how long browsers wait while records are taken
_TOPIC_CHECK_S: Final = 1.0
_GROUP_EVERY_S: Final = 1.0
_SUMS_EVERY_S: Final = 1.0
_SAMPLE_EVERY_S: Final = 1.0
_REQUEST_TIMEOUT_S: Final = 10.0
_LONGEST_REST_S: Final = 5.0
_LOOK_BACK: Final = 64

Take = Callable[[KafkaRecord, bool], None]
"""Takes a record, and whether it came after reading began."""


def model_for(settings: Settings) -> DashboardModel:
    """An empty model with the application's own unit, lag and thresholds."""
    policy = level_policy(settings.backpressure) if settings.backpressure.enabled else None
    return DashboardModel(unit_ns=UNIT_NS[settings.tick.timestamp_unit], lag_ns=settings.window.lag, policy=policy)


class Feed:
    """Keeps a model up to date while it is open.

    async with Feed(settings, model):
        ...
    """

    def __init__(self, settings: Settings, model: DashboardModel, *, history: int = HISTORY_RECORDS) -> None:
        self._settings, self._model, self._history = settings, model, history
        self._policy = level_policy(settings.backpressure)
        self._following: list[ReconnectingTask] = []
        self._sampling: asyncio.Task[None] | None = None
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
        self._following = [
            self._kept("frames", self._follower("frames", topics.frames, self._frame)),
            self._kept("late", self._follower("late", topics.late, self._late)),
            self._kept("dead letters", self._follower("dead letters", topics.dead_letters, self._dead_letter)),
            self._kept("sum", self._sums),
            self._kept("group", self._group),
        ]
        for task in self._following:
            await task.__aenter__()
        self._sampling = asyncio.create_task(self._sample(listener))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._sampling is not None:
            self._sampling.cancel()
            await asyncio.wait({self._sampling})
        await asyncio.gather(*(task.__aexit__(kind, error, traceback) for task in self._following))
        await self._stack.aclose()

    # -- taking -------------------------------------------------------------------------------------------------------

    def _frame(self, record: KafkaRecord, live: bool) -> None:
        if is_end_of_input(record):  # for an application that makes bars of these frames
            return
        self._model.take_frame(record.value, record.partition, time.monotonic_ns(), live=live)

    def _late(self, record: KafkaRecord, live: bool) -> None:
        self._model.take_late(record.value, record.timestamp * 1_000_000)

    def _dead_letter(self, record: KafkaRecord, live: bool) -> None:
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

    def _kept(self, name: str, work: Callable[[], Awaitable[None]]) -> ReconnectingTask:
        """A task that does ``work``, which ends only by failing, again and again, and shows why it failed."""

        def failed(error: Exception) -> None:
            self._model.set_source(name, "failed", str(error) or repr(error))

        return ReconnectingTask(work, failed, name=f"dashboard {name}", longest_rest_s=_LONGEST_REST_S)

    def _follower(self, name: str, topic: str, take: Take) -> Callable[[], Awaitable[None]]:
        """Work that hands every record of a topic to ``take``: some history first, then whatever comes."""
        positions: dict[int, int] = {}

        async def follow() -> None:
            partitions = range(await self._wait_for(name, topic))
            async with self._reading(topic) as reader:
                ends = await self._begin(reader, partitions, positions)
                self._model.set_source(name, "ok")
                while True:
                    for number, records in (await reader.poll(timeout_ms=_POLL_MS, max_records=_BATCH)).items():
                        for record in records:
                            take(record, record.offset >= ends[number])
                        positions[number] = records[-1].offset + 1
                    await asyncio.sleep(0)  # a long history must not keep browsers waiting

        return follow

    async def _wait_for(self, name: str, topic: str) -> int:
        async with admin_client(self._settings) as admin:
            while True:
                state = (await describe_topics(admin)).get(topic)
                if state is not None and state.ready:
                    return state.partitions
                self._model.set_source(name, "waiting", f"topic {topic} does not exist yet")
                await asyncio.sleep(_TOPIC_CHECK_S)

    async def _begin(
        self, reader: TopicReader, partitions: Sequence[int], positions: Mapping[int, int]
    ) -> Mapping[int, int]:
        """Assign, and seek to where reading stopped before or a history's length before the ends; returns those."""
        reader.assign(partitions)
        async with asyncio.timeout(_REQUEST_TIMEOUT_S):
            begins, ends = await reader.begins(partitions), await reader.ends(partitions)
        share = max(self._history // len(partitions), 1)
        for number in partitions:
            fresh = max(begins[number], ends[number] - share)
            known = positions.get(number, fresh)
            # Beyond the end: the topic was deleted and recreated.
            reader.seek(number, max(known, begins[number]) if known <= ends[number] else fresh)
        return ends

    def _reading(self, topic: str) -> AbstractAsyncContextManager[TopicReader]:
        return reading(self._settings, topic, isolation_level="read_committed", fetch_max_wait_ms=_POLL_MS)

    # -- the changelog's sums -----------------------------------------------------------------------------------------

    async def _sums(self) -> None:
        """Look at the end of each changelog partition now and then, where the last commit's record is.

        The windows' records between are many and of no use here, so the topic is not followed.
        """
        topic = self._settings.topics.changelog
        partitions = range(await self._wait_for("sum", topic))
        seen: dict[int, int] = {}
        async with self._reading(topic) as reader:
            reader.assign(partitions)
            reader.pause(partitions)
            while True:
                async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                    begins, ends = await reader.begins(partitions), await reader.ends(partitions)
                for number in [number for number in partitions if ends[number] != seen.get(number)]:
                    # A topic made again begins a new sum.
                    if ends[number] < seen.get(number, 0):
                        self._model.take_meta(number, None, time.monotonic_ns())
                    await self._last_sum(reader, number, begins[number], ends[number])
                    seen[number] = ends[number]
                self._model.set_source("sum", "ok")
                await asyncio.sleep(_SUMS_EVERY_S)

    async def _last_sum(self, reader: TopicReader, partition: int, begin: int, end: int) -> None:
        """Read back from the end until the sum shows; a commit writes it last, so the first look mostly finds it."""
        back = _LOOK_BACK
        while end > begin:
            start = max(begin, end - back)
            sums = await _sums_between(reader, partition, start, end)
            if sums:
                self._model.take_meta(partition, sums[-1].value, time.monotonic_ns())
            if sums or start == begin:
                return
            back *= 16

    # -- the group ----------------------------------------------------------------------------------------------------

    async def _group(self) -> None:
        async with admin_client(self._settings) as admin:
            while True:
                async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                    state, members = await describe_group(
                        admin, self._settings.application_id, self._settings.topics.ticks
                    )
                self._model.take_group(state, [Member(*each) for each in members], time.time_ns())
                self._model.set_source("group", "ok")
                await asyncio.sleep(_GROUP_EVERY_S)


async def _sums_between(reader: TopicReader, partition: int, start: int, end: int) -> list[KafkaRecord]:
    """Records whose key is the sum's, from ``start`` to before ``end``, of a partition that is paused else."""
    reader.seek(partition, start)
    reader.resume([partition])
    found: list[KafkaRecord] = []
    try:
        async with asyncio.timeout(_REQUEST_TIMEOUT_S):
            while await reader.position(partition) < end:
                for records in (await reader.poll([partition], timeout_ms=_POLL_MS, max_records=_BATCH)).values():
                    found.extend(record for record in records if record.key == META_KEY)
    finally:
        reader.pause([partition])
    return found
