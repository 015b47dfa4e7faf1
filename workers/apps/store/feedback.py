"""The queue's level, told to workers and producers.

Two gauges look at the same queue. The one that pauses reading (`workers.apps.store.writer`) relaxes at once: the queue
must not run empty. The one here relaxes only after ``backpressure.min_dwell``, because what it says slows down others.

Feedback is advice: whatever goes wrong with it holds up nothing here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING, Final

from workers.backpressure.feedback import FeedbackPublisher
from workers.backpressure.levels import STORE_SOURCE, Level, LevelGauge, LevelPolicy

if TYPE_CHECKING:
    from workers.settings import BackpressureSettings, Settings, StoreSettings

__all__ = ["Coordinator", "queue_policy"]

LOOK_S: Final = 1.0
_MAX_HOST_CHARS: Final = 48  # a listener ignores names of more than 256 characters in all


def queue_policy(store: StoreSettings, pressure: BackpressureSettings, *, min_dwell_ns: int) -> LevelPolicy:
    """The thresholds of the store's queue, in records: HARD at the high watermark, released at the low one, and SOFT
    half way between the two. The shares that producers keep are the group's."""
    soft = max(1, int(store.queue_capacity * (store.high_watermark + store.low_watermark) / 2))
    return LevelPolicy(
        soft=soft,
        hard=max(soft + 1, int(store.queue_capacity * store.high_watermark)),
        release=store.low_watermark / store.high_watermark,
        min_dwell_ns=min_dwell_ns,
        scale_soft=pressure.rate_scale_soft,
        scale_hard=pressure.rate_scale_hard,
    )


class Coordinator:
    """Publishes the level of one queue. `report` is cheap, for every change of the queue."""

    def __init__(self, settings: Settings, group_id: str) -> None:
        member = settings.kafka.group_instance_id or f"{socket.gethostname()[:_MAX_HOST_CHARS]}-{os.getpid()}"
        self.coordinator_id = f"{group_id}-{member}"[-256:]
        self._capacity = settings.store.queue_capacity
        policy = queue_policy(settings.store, settings.backpressure, min_dwell_ns=settings.backpressure.min_dwell)
        self._gauge = LevelGauge(policy)
        self._publisher = FeedbackPublisher(settings, coordinator_id=self.coordinator_id, source=STORE_SOURCE)
        self._load = 0
        self._changed = asyncio.Event()

    def report(self, load: int) -> None:
        """Say how full the queue is now, in records."""
        self._load = load
        before = self._gauge.level
        if self._gauge.observe(load, time.monotonic_ns()) != before:
            self._changed.set()

    async def run(self) -> None:
        """Publish until cancelled: every change of level at once, and again while it is not OK.

        A level that was left before it could be sent is not sent any more.
        """
        while True:
            # Looked at again without a change, too: a level is left only after a time, and a reader trusts only what
            # is fresh.
            repeat_s = LOOK_S if self._gauge.level > Level.OK or self._publisher.failure is not None else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(repeat_s):
                    await self._changed.wait()
            self._changed.clear()
            level = self._gauge.observe(self._load, time.monotonic_ns())
            await self._publisher.say(level, queue_size=self._load, capacity=self._capacity)

    async def close(self) -> None:
        """Withdraw what was said, so that nobody obeys a store that is gone. Bounded, whatever the broker does."""
        await self._publisher.close()
