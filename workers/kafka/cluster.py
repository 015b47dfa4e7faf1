"""The cluster of an application, as `workers.kafka.ports.Kafka` has it: topics, consumer, sinks, changelog."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import structlog
from aiokafka.admin import AIOKafkaAdminClient

from workers.core.snapshot import TopicIdentity
from workers.kafka.changelog import ChangelogReaders, read_changelog
from workers.kafka.clients import admin_client
from workers.kafka.commit import PartitionSink, SinkSpec
from workers.kafka.connection import connecting
from workers.kafka.consumer import KafkaGroupConsumer
from workers.kafka.internals import lacking_of
from workers.kafka.lz4 import use_fast_lz4
from workers.kafka.options import consumer_options, producer_options
from workers.kafka.ports import DEFAULT_MAX_MESSAGE_BYTES, KnownTopics, OutTopic, PartitionsCallback
from workers.kafka.process import ProcessCommitter, ProcessSink
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
        self._is_shared: bool | None = None  # whether the partitions share a transaction; None: not looked at
        self._committer: ProcessCommitter | None = None
        self._readers: ChangelogReaders | None = None
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
            if self._is_shared is None:
                self._is_shared = self._settings.commit_scope == "process" and await self._can_share(admin)

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
        if self._committer is not None:
            self._committer.spec = self._spec
        identities = {
            role: TopicIdentity(name, layout.ids.get(name))
            for role, name in (("ticks", topics.ticks), ("changelog", topics.changelog))
        }
        if self._topics is not None:
            identities = dict(self._topics.identities)  # whoever asks again works on what was found first
        self._topics = KnownTopics(layout.ticks, self._spec, layout.frames_retention_ms, identities)
        problem = too_near(self._spec.frames, self._settings)
        if problem is not None:
            log.warning(problem)

    async def _can_share(self, admin: AIOKafkaAdminClient) -> bool:
        """Whether all brokers have what one transaction for several partitions needs; what they lack is said."""
        missing = await lacking_of(admin)
        if missing:
            log.warning(
                "commit_scope = process needs Kafka 3.0 or newer on all brokers; each partition commits by itself",
                lacking=missing,
            )
        return not missing

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
        self._readers = readers = ChangelogReaders(self._settings.topics.changelog, self._consumer_options)
        consumer = KafkaGroupConsumer(
            self._settings.topics.ticks,
            self._settings.application_id,
            self._consumer_options,
            on_revoked=on_revoked,
            on_assigned=on_assigned,
            batches=batches,
            on_stop=readers.close,
            topic_id=self.topics.identities["ticks"].id,
            changelog=self._settings.topics.changelog,
        )
        if self._is_shared:
            assert self._spec is not None
            self._committer = ProcessCommitter(self._spec, consumer)
        return consumer

    def sink(self, partition: int) -> PartitionSink | ProcessSink:
        """A new sink for a partition, not yet open. Where partitions share a transaction it is of the last consumer."""
        assert self._spec is not None
        return PartitionSink(self._spec, partition) if self._committer is None else self._committer.sink(partition)

    async def read_changelog(self, partition: int, on_progress: Callable[[int], None]) -> Mapping[bytes, bytes]:
        """The last value of every key in a partition's changelog. Raises ``KafkaError``, ``TimeoutError``."""
        if self._readers is not None:
            return await self._readers.read(partition, on_progress)
        return await read_changelog(
            self._settings.topics.changelog, partition, self._consumer_options, to_the_end=True, on_progress=on_progress
        )
