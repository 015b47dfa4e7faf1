"""The feedback topic: who is under pressure says so, and who can relieve it listens.

The topic is compacted and keyed by coordinator, so that its few records are the whole present state: a listener reads
it from the beginning, without a group, and then follows. A publisher repeats its event, because silence means that it
is gone (`workers.backpressure.levels`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final

import structlog

from workers.backpressure.levels import STALE_AFTER_NS, FeedbackBook, FeedbackEvent, Level, LevelPolicy
from workers.errors import TopicError
from workers.kafka.clients import Producer, admin_client, start_producer
from workers.kafka.errors import OUTAGE
from workers.kafka.options import client_options
from workers.kafka.reading import reading
from workers.kafka.reconnecting import ReconnectingTask
from workers.kafka.repairs import stop_producer
from workers.kafka.topics import describe_topics

if TYPE_CHECKING:
    from workers.settings import BackpressureSettings, Settings

__all__ = ["FeedbackListener", "FeedbackPublisher", "level_policy"]

log = structlog.get_logger(__name__)

REPEAT_EVERY_NS: Final = STALE_AFTER_NS // 6
_POLL_MS: Final = 500
_TOPIC_CHECK_S: Final = 5.0
_SEND_TIMEOUT_S: Final = 10.0


def level_policy(pressure: BackpressureSettings) -> LevelPolicy:
    """The thresholds of the group's lag that the settings ask for."""
    return LevelPolicy(
        soft=pressure.soft_lag,
        hard=pressure.hard_lag,
        release=pressure.release,
        min_dwell_ns=pressure.min_dwell,
        scale_soft=pressure.rate_scale_soft,
        scale_hard=pressure.rate_scale_hard,
    )


class FeedbackListener:
    """Follows the feedback topic while it is open, through outages and before the topic exists.

        async with FeedbackListener(settings, ignore_sources={"group"}) as listener:
            event = listener.strictest()

    ``on_event`` is called with each event read, old ones included; what it raises is logged.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        ignore_sources: frozenset[str] | set[str] = frozenset(),
        stale_after_ns: int = STALE_AFTER_NS,
        on_event: Callable[[FeedbackEvent], None] | None = None,
    ) -> None:
        self._settings = settings
        self._topic = settings.topics.feedback
        self._on_event = on_event
        self._task = ReconnectingTask(self._follow, self._failed, name="feedback-listener")
        self.book = FeedbackBook(stale_after_ns=stale_after_ns, ignore_sources=ignore_sources)
        self.failure: Exception | None = None
        """Why the topic can't be read at the moment; None while it is."""

    def strictest(self) -> FeedbackEvent | None:
        """The strictest event that counts now; None where nobody says anything."""
        return self.book.strictest(time.time_ns())

    def level(self) -> Level:
        """The strictest level that counts now."""
        event = self.strictest()
        return event.level if event is not None else Level.OK

    async def __aenter__(self) -> FeedbackListener:
        await self._task.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._task.__aexit__(kind, error, traceback)

    async def _follow(self) -> None:
        """Read from the beginning, then whatever comes. Returns never; raises where the cluster is gone."""
        partitions = await self._until_there()
        async with reading(self._settings, self._topic, fetch_max_wait_ms=_POLL_MS) as reader:
            reader.assign(range(partitions))
            async with asyncio.timeout(_SEND_TIMEOUT_S):
                await reader.seek_to_begin()
            self.failure = None
            while True:
                for records in (await reader.poll(timeout_ms=_POLL_MS)).values():
                    for record in records:
                        self._take(record.key, record.value)

    async def _until_there(self) -> int:
        """The topic's partitions, once it is there: before, nobody has had anything to say."""
        while True:
            async with admin_client(self._settings) as admin:
                found = (await describe_topics(admin)).get(self._topic)
            if found is not None and found.ready and found.partitions:
                return found.partitions
            self.failure = None
            await asyncio.sleep(_TOPIC_CHECK_S)

    def _take(self, key: bytes | None, value: bytes | None) -> None:
        bad = self.book.bad
        event = self.book.take(key, value, time.time_ns())
        if self.book.bad > bad and bad == 0:
            log.warning("ignoring an invalid record in the feedback topic, and any that follow", topic=self._topic)
        if event is None or self._on_event is None:
            return
        try:
            self._on_event(event)
        except Exception:
            log.exception("a callback of the feedback listener failed")

    def _failed(self, error: Exception) -> None:
        if self.failure is None:
            log.warning("can't read the feedback topic; retrying", topic=self._topic, error=str(error) or repr(error))
        self.failure = error


class FeedbackPublisher:
    """Says how one coordinator is doing. ``say`` it as often as you measure: only changes and repeats are sent.

    Raises nothing while it is open: who can't say that there is pressure must still do its work. The last failure is in
    ``failure``.
    """

    def __init__(self, settings: Settings, *, coordinator_id: str, source: str) -> None:
        self._settings = settings
        self._coordinator_id = coordinator_id
        self._source = source
        self._producer: Producer | None = None
        self._said: tuple[Level, int] | None = None
        self.failure: Exception | None = None

    async def __aenter__(self) -> FeedbackPublisher:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def spoken(self) -> bool:
        """Whether anything was said yet."""
        return self._said is not None

    async def say(self, level: Level, *, queue_size: int, capacity: int) -> bool:
        """Publish the level with what it comes from, in records, if it changed or was not said for five seconds.

        Returns whether it was sent.
        """
        now_ns = time.monotonic_ns()
        if self._said is not None and self._said[0] is level and now_ns - self._said[1] < REPEAT_EVERY_NS:
            return False
        event = FeedbackEvent(self._coordinator_id, queue_size, max(capacity, 1), level, self._source, time.time_ns())
        if not await self._send(event.encode()):
            return False
        self._said = level, now_ns
        return True

    async def close(self, *, withdraw: bool = True) -> None:
        """Stop; with ``withdraw``, tell listeners that this coordinator is gone instead of leaving them to notice."""
        if withdraw and self._said is not None:
            await self._send(None)
        await self._drop()

    async def _send(self, value: bytes | None) -> bool:
        try:
            async with asyncio.timeout(_SEND_TIMEOUT_S):
                producer = await self._opened()
                await producer.send_and_wait(self._settings.topics.feedback, value, self._coordinator_id.encode())
        except OUTAGE as error:
            if self.failure is None:
                log.warning("can't publish feedback", topic=self._settings.topics.feedback, error=repr(error))
            self.failure = error
            await self._drop()
            return False
        self.failure = None
        return True

    async def _opened(self) -> Producer:
        if self._producer is None:
            async with admin_client(self._settings) as admin:
                # Looked for first: sending to a topic that is missing can make it, with the broker's defaults.
                if self._settings.topics.feedback not in await describe_topics(admin):
                    raise TopicError(f"there is no topic {self._settings.topics.feedback}")
            options = client_options(self._settings) | {"acks": "all", "linger_ms": 0}
            self._producer = await start_producer(self._settings, options)
        return self._producer

    async def _drop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await stop_producer(producer)
