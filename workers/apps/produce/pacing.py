"""When ticks are due: so many a second, or as fast as they happened, less what the group can't take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import orjson

from workers.apps.produce.sources import Ticks, TickSource
from workers.core.ticks import TickFormat
from workers.core.token_bucket import PS_PER_NS, TokenBucket
from workers.times import NS_PER_SECOND, parse_rfc3339

__all__ = ["RateLimited", "Replayed", "Slowed", "event_time_ns", "paced"]

_STEP_NS: Final = 5_000_000

_BURST_NS: Final = NS_PER_SECOND // 10

_LOOK_NS: Final = NS_PER_SECOND // 4  # a wait is no longer, to notice a changed scale

_CATCH_UP_NS: Final = NS_PER_SECOND


class RateLimited:
    """Gives out ``rate`` ticks a second, times the scale that the group asks of its producers.

    A pause (the cluster was away, the group was full) is made good for a tenth of a second's worth, not more: whoever
    was in trouble must not meet a flood when it recovers.
    """

    def __init__(self, source: TickSource, rate: float, stop: asyncio.Event, scale: Callable[[], float]) -> None:
        self._source, self._stop, self._scale = source, stop, scale
        self._bucket = TokenBucket.per_second(rate)
        self._clock = 0  # picoseconds of the full rate: it goes slower by the scale
        self._full_at = self._bucket.depth - self._bucket.spacing  # it begins with one
        self._seen_ns: int | None = None

    async def take(self, limit: int) -> Ticks:
        """See `TickSource`."""
        while not self._stop.is_set():
            self._refill()
            allowed = self._bucket.held(self._full_at, self._clock)
            if allowed >= 1:
                ticks = await self._source.take(min(limit, allowed))
                self._full_at = self._bucket.taken(self._full_at, self._clock, len(ticks))
                return ticks
            await _sleep(self._wait_ns(), self._stop)
        return []

    @property
    def idle(self) -> bool:
        """True once what is due has been taken."""
        return self._bucket.held(self._full_at, self._clock) < 1 or self._source.idle

    def _refill(self) -> None:
        now_ns = time.monotonic_ns()
        passed_ns = now_ns - (self._seen_ns if self._seen_ns is not None else now_ns)
        self._seen_ns = now_ns
        self._clock += int(passed_ns * PS_PER_NS * self._scale())

    def _wait_ns(self) -> int:
        """Until the next tick is due, but long enough for a few, and short enough to notice a changed scale."""
        scale = self._scale()
        wait = self._bucket.wait(self._full_at, self._clock)
        due_ns = int(wait / scale) // PS_PER_NS if scale > 0 else _BURST_NS
        return min(max(due_ns, _STEP_NS), _LOOK_NS)


class Replayed:
    """Gives out ticks at the pace of their event times, ``speed`` times as fast as they happened.

    Ticks keep their order; one that is earlier than those before it is due with them. A tick whose time can't be read
    goes with the one before. The replay has a clock of its own, which goes slower by the ``scale`` (0 to 1) that the
    group asks of its producers and stands still at 0; what was not sent meanwhile is due later, not all at once. For
    the same reason the clock passes over what a pause of the cluster took beyond a second.
    """

    def __init__(
        self,
        source: TickSource,
        form: TickFormat,
        speed: float,
        stop: asyncio.Event,
        scale: Callable[[], float] = lambda: 1.0,
    ) -> None:
        if not speed > 0:
            raise ValueError(f"speed is {speed}; expected more than 0")
        self._source, self._form, self._speed, self._stop, self._scale = source, form, speed, stop, scale
        self._held: Ticks = []
        self._due_ns: list[int] = []
        self._taken = 0
        self._first_ns: int | None = None
        self._newest_ns = 0
        self._clock_ns = 0
        self._seen_ns: int | None = None

    async def take(self, limit: int) -> Ticks:
        """See `TickSource`."""
        if self._taken >= len(self._held):
            await self._next(limit)
        if not self._held:
            return []
        while (left_ns := self._due_ns[self._taken] - self._now_ns()) > 0 or self._scale() <= 0:
            scale = self._scale()
            await _sleep(min(int(left_ns / scale), _LOOK_NS) if scale > 0 else _LOOK_NS, self._stop)
            if self._stop.is_set():
                return []
        end = self._taken
        while end < len(self._held) and end - self._taken < limit and self._due_ns[end] <= self._clock_ns:
            end += 1
        ticks = self._held[self._taken : end]
        self._taken = end
        return ticks

    @property
    def idle(self) -> bool:
        """True while the next tick is not yet due."""
        if self._taken >= len(self._held):
            return self._source.idle
        return self._due_ns[self._taken] > self._now_ns()

    async def _next(self, limit: int) -> None:
        """More ticks of the source. Time spent waiting for it passes in full: it is the ticks that were slow."""
        before_ns = self._now_ns()
        asked_ns = time.monotonic_ns()
        self._held, self._taken = await self._source.take(limit), 0
        self._seen_ns = time.monotonic_ns()
        self._clock_ns = before_ns + self._seen_ns - asked_ns
        self._due_ns = [self._due(value) for _key, value in self._held]

    def _now_ns(self) -> int:
        """The replay's own time."""
        now_ns = time.monotonic_ns()
        if self._seen_ns is not None:
            self._clock_ns += int(min(now_ns - self._seen_ns, _CATCH_UP_NS) * self._scale())
        self._seen_ns = now_ns
        return self._clock_ns

    def _due(self, value: bytes) -> int:
        ts_ns = event_time_ns(value, self._form)
        if ts_ns is not None:
            if self._first_ns is None:
                self._first_ns, self._newest_ns = ts_ns, ts_ns
                self._clock_ns = 0
            self._newest_ns = max(self._newest_ns, ts_ns)
        if self._first_ns is None:
            return 0
        return int((self._newest_ns - self._first_ns) / self._speed)


class Slowed:
    """A source that goes as fast as it can, but only for the share of the time that ``scale`` (0 to 1) allows."""

    def __init__(self, source: TickSource, stop: asyncio.Event, scale: Callable[[], float]) -> None:
        self._source, self._stop, self._scale = source, stop, scale
        self._taken_ns: int | None = None

    async def take(self, limit: int) -> Ticks:
        """See `TickSource`."""
        worked_ns = 0 if self._taken_ns is None else time.monotonic_ns() - self._taken_ns
        while (share := self._scale()) <= 0 and not self._stop.is_set():
            await _sleep(NS_PER_SECOND // 10, self._stop)
        if share < 1:
            await _sleep(int(worked_ns * (1 / max(share, 0.001) - 1)), self._stop)
        self._taken_ns = time.monotonic_ns()
        return await self._source.take(limit)

    @property
    def idle(self) -> bool:
        """Whether the source is, or has to be."""
        return self._source.idle or self._scale() < 1


def paced(
    source: TickSource,
    form: TickFormat,
    stop: asyncio.Event,
    *,
    rate: float | None = None,
    speed: float | None = None,
    scale: Callable[[], float] | None = None,
) -> TickSource:
    """A source at a pace: ``rate`` ticks a second, ``speed`` times the speed at which they happened, or neither.

    ``scale`` (0 to 1) is asked again and again for the share of its pace that the group leaves to this producer.
    Raises ``ValueError`` where rate or speed is not above 0, or both are given.
    """
    if rate is not None and speed is not None:
        raise ValueError("rate and speed are both given; use one of them")
    if rate is not None:
        return RateLimited(source, rate, stop, scale or (lambda: 1.0))
    if speed is not None:
        return Replayed(source, form, speed, stop, scale or (lambda: 1.0))
    return source if scale is None else Slowed(source, stop, scale)


def event_time_ns(value: bytes, form: TickFormat) -> int | None:
    """The event time of a tick's JSON; None where it can't be read."""
    try:
        found = orjson.loads(value)[form.ts]
        return int(found) * form.unit_ns if isinstance(found, int) else parse_rfc3339(found)
    except (ValueError, KeyError, TypeError, IndexError):
        return None


async def _sleep(wait_ns: int, stop: asyncio.Event) -> None:
    """Sleep, but not beyond a request to stop."""
    try:
        async with asyncio.timeout(wait_ns / NS_PER_SECOND):
            await stop.wait()
    except TimeoutError:
        pass
