"""Producers that keep to the pace the group can follow.

    async with AdaptiveThrottle(group_id="tick-workers", ticks_topic="ticks", rate=20_000) as throttle:
        while ticks:
            await throttle.acquire(len(batch))
            await producer.send(...)

The throttle measures the group's lag itself and listens to the feedback topic, and the stricter of the two decides
the level; the level's share of the full rate is approached along a ramp, downwards faster than upwards, so that a group
that has just recovered is not hit by a step.

**When it can't see**: with the broker, the ticks topic or the group's coordinator away, the lag is not known. Then the
throttle slows to the soft share and says why, and it stays there: it does not stop, because a live feed that is not
sent is lost, while a lag is not; and it does not go on at full rate, because nobody would notice the group falling
behind. A group whose workers are all gone is not such a case: its lag is known, grows, and stops the producers at the
hard level.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final

import structlog

from workers.backpressure.feedback import FeedbackListener, level_policy
from workers.backpressure.lag import LagMonitor, LagSnapshot
from workers.backpressure.levels import GROUP_SOURCE, FeedbackEvent, Level, LevelGauge, LevelPolicy, rate_scale
from workers.core.token_bucket import ALWAYS_FULL, PS_PER_NS, TokenBucket
from workers.errors import BrokerError, TopicError, WorkersError
from workers.times import NS_PER_SECOND

if TYPE_CHECKING:
    from workers.settings import Settings
    from workers.telemetry.metrics import Metrics

__all__ = ["AdaptiveThrottle", "Ramp", "RampedBucket", "ThrottleState"]

log = structlog.get_logger(__name__)

RAMP_UP_NS: Final = 3 * NS_PER_SECOND  # from nothing to the full rate
RAMP_DOWN_NS: Final = NS_PER_SECOND
BLIND_AFTER_NS: Final = 5 * NS_PER_SECOND  # or three measurements, whichever is longer
_MIN_WAIT_NS: Final = 2_000_000
_LOOK_S: Final = 0.5  # events go stale and measurements old without anything happening
_FIRST_LOOK_S: Final = 20.0


class Ramp:
    """A share of the full rate, 0 to 1, that moves towards its target at a limited speed. Pure: time is an argument."""

    def __init__(self, *, up_ns: int = RAMP_UP_NS, down_ns: int = RAMP_DOWN_NS) -> None:
        """``up_ns`` and ``down_ns`` are the times from 0 to 1 and back. Raises ``ValueError`` where one is below 1."""
        if up_ns < 1 or down_ns < 1:
            raise ValueError(f"up_ns is {up_ns} and down_ns is {down_ns}; expected 1 or more")
        self._up_ns, self._down_ns = up_ns, down_ns
        self._from, self._target, self._since_ns = 1.0, 1.0, 0

    @property
    def target(self) -> float:
        """Where it is going."""
        return self._target

    def aim(self, target: float, now_ns: int) -> None:
        """Go to another share, from where it is now."""
        self._from, self._since_ns = self.at(now_ns), now_ns
        self._target = target

    def jump(self, share: float, now_ns: int) -> None:
        """Be at a share at once."""
        self._from = self._target = share
        self._since_ns = now_ns

    def at(self, now_ns: int) -> float:
        """The share at a time, not before the last `aim`."""
        passed_ns = max(now_ns - self._since_ns, 0)
        if self._target >= self._from:
            return min(self._from + passed_ns / self._up_ns, self._target)
        return max(self._from - passed_ns / self._down_ns, self._target)

    def full_ns(self, begin_ns: int, end_ns: int) -> float:
        """The time between two moments weighted with the share: how long the full rate would have given as much."""
        span_ns = self._up_ns if self._target >= self._from else self._down_ns
        arrival_ns = self._since_ns + int(abs(self._target - self._from) * span_ns)
        knee_ns = min(max(arrival_ns, begin_ns), end_ns)
        sloped = (self.at(begin_ns) + self.at(knee_ns)) / 2 * (knee_ns - begin_ns)
        return sloped + self.at(end_ns) * (end_ns - knee_ns)


class RampedBucket:
    """What may be sent, at ``rate`` a second times a ramped share. Pure: time is an argument.

    Holds at most ``burst``; one request above that is let through when the bucket is full, and paid for afterwards.
    """

    def __init__(self, rate: float, ramp: Ramp, *, burst: float | None = None) -> None:
        """Raises ``ValueError`` where rate or burst is not above 0. ``burst`` is a tenth of a second's by default."""
        self._bucket, self._ramp = TokenBucket.per_second(rate, burst=burst), ramp
        self._full_at = ALWAYS_FULL
        self._clock = 0  # picoseconds of the full rate: it goes as much slower as the share is smaller
        self._seen_ns: int | None = None

    def take(self, count: int, now_ns: int) -> int | None:
        """Take ``count`` and return 0; or take nothing and return the nanoseconds after which to ask again.

        None says that nothing comes in until the ramp is given another target.
        """
        if self._seen_ns is not None:
            self._clock += int(self._ramp.full_ns(self._seen_ns, now_ns) * PS_PER_NS)
        self._seen_ns = now_ns
        wait = self._bucket.wait(self._full_at, self._clock, count)
        if wait <= 0:
            self._full_at = self._bucket.taken(self._full_at, self._clock, count)
            return 0
        best_share = max(self._ramp.at(now_ns), self._ramp.target)
        if best_share <= 0:
            return None
        return max(int(wait / best_share) // PS_PER_NS, _MIN_WAIT_NS)


@dataclass(frozen=True, slots=True)
class ThrottleState:
    """What the throttle has decided: the level, the share of the full rate it goes to, and why, in words."""

    level: Level
    scale: float
    reason: str


class AdaptiveThrottle:
    """Lets a producer send at up to ``rate`` records a second, less as the group falls behind. See the module."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        bootstrap_servers: str | None = None,
        group_id: str | None = None,
        ticks_topic: str | None = None,
        feedback_topic: str | None = None,
        rate: float | None = None,
        policy: LevelPolicy | None = None,
        kafka: Mapping[str, object] | None = None,
        on_change: Callable[[ThrottleState], None] | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """Without ``settings`` they are read as the command reads them (file, environment); what is given here wins.

        ``rate`` is in records a second and needed for `acquire`; without it only `scale` is of use. ``kafka`` takes
        Kafka's own names (``security.protocol``). ``on_change`` is called in the event loop at every change, which is
        logged where it is not given; what it raises is logged too. Raises ``ConfigError`` for impossible settings,
        ``ValueError`` where rate is not above 0.
        """
        self._settings = _settings(settings, bootstrap_servers, group_id, ticks_topic, feedback_topic, kafka or {})
        self._policy = policy if policy is not None else level_policy(self._settings.backpressure)
        self._gauge = LevelGauge(self._policy)
        self._ramp = Ramp()
        self._bucket = RampedBucket(rate, self._ramp) if rate is not None else None
        self._on_change = on_change
        self._metrics = metrics
        self._measured_ns: int | None = None
        self._changed = asyncio.Event()
        self._look = asyncio.Event()
        self._turn = asyncio.Lock()
        self._monitor = LagMonitor(
            self._settings, on_snapshot=self._measured, on_failure=lambda _error: self._look.set(), delays=False
        )
        # The group's own lag is measured here, fresher than any event can tell it.
        self._listener = FeedbackListener(
            self._settings, ignore_sources={GROUP_SOURCE}, on_event=lambda _event: self._look.set()
        )
        self._stack = contextlib.AsyncExitStack()
        self.state = ThrottleState(Level.OK, 1.0, "not measured yet")

    async def __aenter__(self) -> AdaptiveThrottle:
        """Connect and measure once. Raises ``BrokerError`` where the cluster can't be reached.

        A ticks topic that does not exist yet is no error: the throttle begins slowed, and recovers once it does.
        """
        try:
            await self._stack.enter_async_context(self._monitor)
            await self._stack.enter_async_context(self._listener)
            await self._first_look()
            self._decide()
            self._ramp.jump(self.state.scale, time.monotonic_ns())
            steering = asyncio.create_task(self._steer(), name="adaptive-throttle")
            self._stack.push_async_callback(_cancel, steering)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def acquire(self, count: int = 1) -> None:
        """Wait until ``count`` more records may be sent; in the order of the calls.

        Raises ``ValueError`` where ``count`` is not above 0, or no rate was given.
        """
        if count < 1:
            raise ValueError(f"count is {count}; expected 1 or more")
        if self._bucket is None:
            raise ValueError("acquire needs a rate: AdaptiveThrottle(..., rate=records a second)")
        async with self._turn:
            while True:
                self._changed.clear()
                wait_ns = self._bucket.take(count, time.monotonic_ns())
                if wait_ns == 0:
                    return
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if wait_ns is None else wait_ns / NS_PER_SECOND):
                        await self._changed.wait()

    def scale(self) -> float:
        """The share of the full rate, 0 to 1, that is left to the producer at this moment."""
        return self._ramp.at(time.monotonic_ns())

    @property
    def latest(self) -> LagSnapshot | None:
        """The last measurement that worked."""
        return self._monitor.latest

    # -- deciding -----------------------------------------------------------------------------------------------------

    async def _first_look(self) -> None:
        deadline_s = time.monotonic() + _FIRST_LOOK_S
        while self._monitor.latest is None and not isinstance(self._monitor.failure, TopicError):
            if self._monitor.failure is not None or time.monotonic() > deadline_s:
                raise self._monitor.failure or BrokerError(
                    f"the cluster at {self._settings.bootstrap_servers} did not report the lag of group "
                    f"{self._settings.application_id} within {_FIRST_LOOK_S:.0f} s"
                )
            self._look.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._look.wait()

    async def _steer(self) -> None:
        while True:
            self._look.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._look.wait()
            self._decide()

    def _measured(self, snapshot: LagSnapshot) -> None:
        now_ns = time.monotonic_ns()
        self._measured_ns = now_ns
        self._gauge.observe(snapshot.total, now_ns)
        self._look.set()

    def _decide(self) -> None:
        level, reason = max(self._by_lag(), self._by_sight(), self._by_feedback(), key=lambda found: found[0])
        state = ThrottleState(level, rate_scale(level, self._policy), reason)
        changed = (state.level, state.scale) != (self.state.level, self.state.scale)
        self.state = state
        if changed:
            self._ramp.aim(state.scale, time.monotonic_ns())
            self._changed.set()
            self._tell(state)
        if self._metrics is not None:
            self._metrics.show_pressure("producer", level, self.scale())

    def _tell(self, state: ThrottleState) -> None:
        if self._on_change is None:
            log.info("producer's pace changed", level=state.level.label, scale=state.scale, reason=state.reason)
            return
        try:
            self._on_change(state)
        except Exception:  # a producer must not run on unthrottled because its display failed
            log.exception("a callback of the throttle failed")

    def _by_lag(self) -> tuple[Level, str]:
        latest, group = self._monitor.latest, self._settings.application_id
        if latest is None:
            return Level.OK, "not measured yet"
        members = latest.group.members
        workers = "no worker is running" if not members else f"{members} worker{'s' if members > 1 else ''}"
        return self._gauge.level, f"the lag of group {group} is {latest.total:,} records, {workers}"

    def _by_sight(self) -> tuple[Level, str]:
        blind_after_ns = max(BLIND_AFTER_NS, 3 * self._settings.backpressure.poll_interval)
        if self._measured_ns is None:
            return Level.SOFT, f"the lag of group {self._settings.application_id} is unknown: {self._monitor.failure}"
        blind_ns = time.monotonic_ns() - self._measured_ns
        if blind_ns <= blind_after_ns:
            return Level.OK, ""
        why = self._monitor.failure or "no answer"
        return (
            Level.SOFT,
            f"the lag of group {self._settings.application_id} has been unknown for {blind_ns / 1e9:.0f} s: {why}",
        )

    def _by_feedback(self) -> tuple[Level, str]:
        event: FeedbackEvent | None = self._listener.strictest()
        if event is None:
            return Level.OK, ""
        if self._metrics is not None:
            self._metrics.feedback_queue_depth.labels(event.source).set(event.queue_size)
        return (
            event.level,
            f"{event.source} {event.coordinator_id} holds {event.queue_size:,} of {event.capacity:,} records",
        )


def _settings(
    settings: Settings | None,
    bootstrap_servers: str | None,
    group_id: str | None,
    ticks_topic: str | None,
    feedback_topic: str | None,
    kafka: Mapping[str, object],
) -> Settings:
    from workers.settings import load_settings

    given: dict[str, object] = {
        "bootstrap_servers": bootstrap_servers,
        "application_id": group_id,
        "topics.ticks": ticks_topic,
        "topics.feedback": feedback_topic,
        **{f"kafka.{name}": value for name, value in kafka.items()},
    }
    overrides = {key: value for key, value in given.items() if value is not None}
    if settings is None:
        return load_settings(None, overrides=overrides)
    if overrides:
        raise ValueError(f"settings are given, and {', '.join(overrides)} too; expected one or the other")
    return settings


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, WorkersError):
        log.error("the throttle's control loop failed", error=repr(error))
