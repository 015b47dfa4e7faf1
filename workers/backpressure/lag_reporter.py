"""The group's lag, measured by one of its workers for everybody: exported as metrics, published as feedback.

Who: the owner of partition 0. There is exactly one while the group is stable and none has to be elected; while it
changes, two may measure for a moment, which harms nobody: both tell the same truth. With no worker at all nobody
exports or publishes, which is why producers measure themselves and scalers ask the broker.

With ``backpressure.enabled = false`` the lag is exported all the same, where metrics are: whoever does without
throttling needs to see it most. Then no level is decided and nothing is published.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import structlog

from workers.backpressure.feedback import FeedbackPublisher, level_policy
from workers.backpressure.lag import LagMonitor, LagSnapshot
from workers.backpressure.levels import GROUP_SOURCE, Level, LevelGauge, rate_scale
from workers.kafka.group_offsets import lost_records_problem
from workers.settings import METRICS_OFF
from workers.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from workers.settings import Settings

__all__ = ["GroupReporter", "show_lag"]

log = structlog.get_logger(__name__)

REPORTING_PARTITION: Final = 0
_CLOSE_TIMEOUT_S: Final = 10.0


def show_lag(metrics: Metrics, snapshot: LagSnapshot) -> None:
    """Export a measurement of the group's lag."""
    group, topic = snapshot.group.group, snapshot.group.topic
    for item in snapshot.group.partitions:
        labels = (group, topic, str(item.partition))
        metrics.group_lag.labels(*labels).set(item.lag)
        if item.committed is not None:
            metrics.group_offset.labels(*labels).set(item.committed)
        delay = snapshot.delays.get(item.partition)
        if not item.lag:
            metrics.group_lag_seconds.labels(*labels).set(0)
        elif delay is not None:
            metrics.group_lag_seconds.labels(*labels).set(delay.waiting_ns / 1e9)
    metrics.group_lag_sum.labels(group, topic).set(snapshot.total)
    metrics.group_members.labels(group).set(snapshot.group.members)
    metrics.lag.labels(group, topic).set(snapshot.total)
    metrics.drain_seconds.labels(group, topic).set(snapshot.drain_s)
    metrics.group_rate.labels(group, topic).set(snapshot.committed_per_s)
    metrics.arrival_rate.labels(group, topic).set(snapshot.arriving_per_s)
    metrics.lost_records.labels(group, topic).set(snapshot.group.lost)
    if snapshot.waiting_ns is not None:
        metrics.lag_seconds.labels(group, topic).set(snapshot.waiting_ns / 1e9)
    if snapshot.event_lag_ns is not None:
        metrics.event_lag_seconds.labels(group, topic).set(snapshot.event_lag_ns / 1e9)


class GroupReporter:
    """Reports while this process owns the reporting partition. ``owns`` tells it; nothing it does can fail a worker."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._policy = level_policy(settings.backpressure)
        self._task: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._disagreeing: Mapping[str, Sequence[int]] = {}
        self._lost = 0

    def owns(self, partitions: set[int]) -> None:
        """Note which partitions this process owns now: begin or end reporting."""
        useful = self._settings.backpressure.enabled or self._settings.metrics.port != METRICS_OFF
        wanted = REPORTING_PARTITION in partitions and useful
        if wanted and self._task is None:
            self._task = asyncio.create_task(self._report(), name="group-reporter")
        elif not wanted and self._task is not None:
            self._end(self._task)

    async def close(self) -> None:
        """Stop reporting, within a bounded time."""
        if self._task is not None:
            self._end(self._task)
        if self._ending:
            await asyncio.wait(self._ending, timeout=_CLOSE_TIMEOUT_S)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._task = None
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        task.cancel()

    async def _report(self) -> None:
        try:
            if self._settings.backpressure.enabled:
                await self._measure_and_tell()
            else:
                await self._measure()
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("this worker no longer reports the group's lag")
        finally:
            self._metrics.forget_lag()
            self._forget_pressure()

    async def _measure(self) -> None:
        async with LagMonitor(self._settings, on_snapshot=self._show, on_failure=self._failed):
            await asyncio.Event().wait()

    def _show(self, snapshot: LagSnapshot) -> None:
        show_lag(self._metrics, snapshot)
        found = snapshot.group.by_settings
        if len(found) > 1 and found != self._disagreeing:
            log.error(
                "workers of this application have different settings: their frames differ in meaning, and no worker "
                "can take over all partitions. Stop them, drop the state with `workers state reset`, and start "
                "all with the same configuration",
                application_id=self._settings.application_id,
                partitions_by_settings={digest: list(numbers) for digest, numbers in found.items()},
            )
        self._disagreeing = found
        if snapshot.group.lost > self._lost:
            log.error("records were lost", reason=lost_records_problem(snapshot.group))
        self._lost = snapshot.group.lost

    def _failed(self, _error: Exception) -> None:
        self._metrics.lag_failures.inc()
        self._metrics.forget_lag()  # an old number is worse than none

    async def _measure_and_tell(self) -> None:
        gauge, news = LevelGauge(self._policy), asyncio.Event()
        publisher = FeedbackPublisher(
            self._settings, coordinator_id=f"group-{self._settings.application_id}", source=GROUP_SOURCE
        )

        def measured(snapshot: LagSnapshot) -> None:
            self._show(snapshot)
            before = gauge.level
            level = gauge.observe(snapshot.total, time.monotonic_ns())
            self._metrics.show_pressure(GROUP_SOURCE, level, rate_scale(level, self._policy))
            if level is not before:
                log.info("backpressure", level=level.label, before=before.label, lag=snapshot.total)
            news.set()

        async with LagMonitor(self._settings, on_snapshot=measured, on_failure=self._failed) as monitor:
            try:
                while True:
                    await news.wait()
                    news.clear()
                    if monitor.latest is not None and (gauge.level is not Level.OK or publisher.spoken):
                        # While all is well, and always was, there is nothing to say.
                        await publisher.say(gauge.level, queue_size=monitor.latest.total, capacity=self._policy.hard)
            finally:
                # The next owner of the partition says the same; withdrawing would tear a hole in between.
                await publisher.close(withdraw=False)

    def _forget_pressure(self) -> None:
        for metric in (self._metrics.backpressure_state, self._metrics.rate_scale):
            with contextlib.suppress(KeyError):
                metric.remove(GROUP_SOURCE)
