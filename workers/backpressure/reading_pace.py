"""The pace at which a worker reads, for the sake of those behind it: the store's feedback, obeyed.

At HARD nothing is read: what was fetched is still processed and committed, and the worker stays in its group, with its
partitions and their state. At SOFT it rests between fetches for as long as it worked. The group's own events are not
for workers: reading less because there is much to read would never end.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import TYPE_CHECKING, Final

import structlog

from workers.backpressure.feedback import FeedbackListener, level_policy
from workers.backpressure.levels import GROUP_SOURCE, FeedbackEvent, Level, rate_scale
from workers.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from workers.kafka.ports import GroupConsumer
    from workers.settings import Settings

__all__ = ["ReadingPace"]

log = structlog.get_logger(__name__)

PROVIDER: Final = "worker"
HELD_STEP_S: Final = 0.05
_MAX_REST_S: Final = 1.0
_LOOK_S: Final = 0.1
_STAY_S: Final = 1.0


class ReadingPace:
    """Follows the feedback topic while it is open. With ``backpressure.enabled = false`` it never holds anybody."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._metrics = metrics
        self._policy = level_policy(settings.backpressure)
        self._listener = (
            FeedbackListener(settings, ignore_sources={GROUP_SOURCE}) if settings.backpressure.enabled else None
        )
        self._level = Level.OK
        self._looked_s = 0.0
        self._rested_until_s = 0.0
        self._stayed_s = 0.0
        self._bad = 0

    @property
    def throttle_scale(self) -> float:
        """The share of its speed that the worker may use, 0 to 1."""
        return rate_scale(self._level, self._policy)

    async def __aenter__(self) -> ReadingPace:
        if self._listener is not None:
            await self._listener.__aenter__()
            self._metrics.show_pressure(PROVIDER, Level.OK, 1.0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._listener is not None:
            await self._listener.__aexit__(kind, error, traceback)

    async def held(self, source: GroupConsumer) -> bool:
        """Call before each fetch: rests as long as the level asks for. True where nothing may be fetched now."""
        if self._listener is None:
            return False
        self._look(self._listener)
        scale = self.throttle_scale
        if scale >= 1:
            self._rested_until_s = time.monotonic()
            return False
        if scale <= 0:
            await self._hold(source)
            return True
        worked_s = time.monotonic() - self._rested_until_s
        await asyncio.sleep(min(worked_s * (1 / scale - 1), _MAX_REST_S))
        self._rested_until_s = time.monotonic()
        return False

    async def _hold(self, source: GroupConsumer) -> None:
        now_s = time.monotonic()
        if now_s - self._stayed_s > _STAY_S:
            self._stayed_s = now_s
            await source.stay()
        await asyncio.sleep(HELD_STEP_S)
        self._rested_until_s = time.monotonic()
        self._metrics.held_seconds.inc(self._rested_until_s - now_s)

    def _look(self, listener: FeedbackListener) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s < _LOOK_S:
            return
        self._looked_s = now_s
        event = listener.strictest()
        self._metrics.feedback_bad.inc(listener.book.bad - self._bad)
        self._bad = listener.book.bad
        if event is not None:
            self._metrics.feedback_queue_depth.labels(event.source).set(event.queue_size)
        level = event.level if event is not None else Level.OK
        if level is not self._level:
            self._change(level, event)

    def _change(self, level: Level, event: FeedbackEvent | None) -> None:
        before, self._level = self._level, level
        self._metrics.show_pressure(PROVIDER, level, self.throttle_scale)
        say = log.warning if level > before else log.info
        say(
            "reading pace changed",
            level=level.label,
            before=before.label,
            scale=self.throttle_scale,
            told_by=event.coordinator_id if event is not None else "nobody any more",
            queue=f"{event.queue_size} of {event.capacity}" if event is not None else None,
        )
