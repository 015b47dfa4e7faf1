"""The cluster of an application, as `workers.kafka.ports.Kafka` has it: topics, consumer, sinks, changelog."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import structlog

from workers.kafka.changelog import read_changelog
from workers.kafka.clients import admin_client
from workers.kafka.commit import PartitionSink, SinkSpec
from workers.kafka.connection import connecting
from workers.kafka.consumer import KafkaGroupConsumer
from workers.kafka.lz4 import use_fast_lz4
from workers.kafka.options import consumer_options, producer_options
from workers.kafka.ports import DEFAULT_MAX_MESSAGE_BYTES, KnownTopics, OutTopic, PartitionsCallback
from workers.kafka.record_times import too_near
from workers.kafka.repairs import repair_client
from workers.kafka.topics import ensure_topics

if TYPE_CHECKING:
    from workers.settings import Settings

__all__ = ["Cluster"]

log = structlog.get_logger(__name__)


class Cluster:
    """The real thing. ``note_step`` is told what held the event loop, and since when."""

    def __init__(self, settings: Settings, note_step: Callable[[str, float], object]) -> None:
        self._settings = settings
        self._note_step = note_step
        self._consumer_options = consumer_options(settings)
        self._producer_options = producer_options(settings)
        self._spec: SinkSpec | None = None
        self._topics: KnownTopics | None = None
        self._doubted = False
        repair_client()

    @property
    def topics(self) -> KnownTopics:
        """What `prepare` found."""
        assert self._topics is not None
        return self._topics

    async def prepare(self) -> None:
        """See that the topics are there and fit together; learn their partitions and the largest record each takes.

        Raises `TopicError` where they don't, `BrokerError` where the cluster can't be reached.
        """
        topics = self._settings.topics
        async with admin_client(self._settings) as admin:
            layout = await ensure_topics(admin, self._settings, create=topics.create)

        def out(name: str, partitions: int) -> OutTopic:
            size = layout.max_message_bytes.get(name, DEFAULT_MAX_MESSAGE_BYTES)
            return OutTopic(name, partitions, size, layout.ahead_limits_ms.get(name))

        self._spec = SinkSpec(
            topics.ticks,
            self._settings.application_id,
            out(topics.frames, layout.frames),
            out(topics.late, layout.late),
            out(topics.dead_letters, layout.dead_letters),
            out(topics.changelog, layout.changelog),
            self._settings.processing_guarantee == "exactly_once",
            self._producer_options,
            {name: out(name, partitions) for name, partitions in layout.routed.items()},
            note_step=self._note_step,
        )
        self._topics = KnownTopics(layout.ticks, self._spec, layout.frames_retention_ms)
        problem = too_near(self._spec.frames, self._settings)
        if problem is not None:
            log.warning(problem)

    def doubt(self) -> None:
        """A record was refused as too large: `refresh` has to ask again."""
        self._doubted = True

    async def refresh(self) -> None:
        """Ask the topics again how large a record may be, if one was found too large. Raises as `prepare`."""
        if self._doubted:
            await self.prepare()
            self._doubted = False

    def connecting(self) -> AbstractAsyncContextManager[None]:
        """Around what reaches the cluster for the first time: its errors say what to look at."""
        return connecting(self._settings)

    def consumer(
        self, *, on_revoked: PartitionsCallback, on_assigned: PartitionsCallback, batches: bool
    ) -> KafkaGroupConsumer:
        """A new member of the group, not yet started."""
        use_fast_lz4()
        return KafkaGroupConsumer(
            self._settings.topics.ticks,
            self._settings.application_id,
            self._consumer_options,
            on_revoked=on_revoked,
            on_assigned=on_assigned,
            batches=batches,
        )

    def sink(self, partition: int) -> PartitionSink:
        """A new producer for a partition, not yet open."""
        assert self._spec is not None
        return PartitionSink(self._spec, partition)

    async def read_changelog(self, partition: int, on_progress: Callable[[int], None]) -> Mapping[bytes, bytes]:
        """The last value of every key in a partition's changelog. Raises ``KafkaError``, ``TimeoutError``."""
        changelog = self._settings.topics.changelog
        return await read_changelog(changelog, partition, self._consumer_options, on_progress=on_progress)
