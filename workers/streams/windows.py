"""Streams to streams, inside one process: windows by event time and by arrival.

Every function takes an async iterable and returns an async iterator. The rules that hold for all of them:

* What a source or a given function raises comes out of the iterator, after everything that was complete before it.
* A stream owns its source: it is closed (its ``aclose`` awaited, where it has one) when the stream ends or is closed.
* Reading is lazy: nothing is read before the first ``anext``. Streams that also watch the time (said where it is so)
  read at most `READ_AHEAD` items ahead of their reader.
* A cancelled ``anext``, as by a timeout around it, takes nothing and ends nothing: the next one goes on from there
  (`workers.streams.stream.Stream`).
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Hashable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Final, Generic, Literal, TypeVar

from workers.core.frames import WindowFrame, frame_from_emission
from workers.core.reasons import Trigger
from workers.core.watermark import WatermarkPolicy
from workers.core.windows.assign import Tumbling
from workers.core.windows.engine import WindowEngine
from workers.core.windows.window import Lateness
from workers.streams.channel import DRAINED
from workers.streams.event_time import LateItems, event_time_ns, window_rules
from workers.streams.pump import TIMED_OUT, pumped, take_within
from workers.streams.specs import TumblingWindowSpec, WindowSpec
from workers.streams.stream import OwnedSource, Stream
from workers.times import (
    NS_PER_SECOND,
    datetime_from_ns,
    timedelta_to_ns,
)

__all__ = ["WindowStream", "tumbling_window", "tumbling_window_event_time", "window_event_time"]

T = TypeVar("T")

READ_AHEAD: Final = 64
"""Items that a stream which watches the time may have read before its reader asks for them."""

CLOCK_CHECK_S: Final = 0.25
"""How often an open arrival-time window looks at the wall clock, so that a clock that was set is noticed."""


class _Signal(Enum):
    FLUSH = "flush"


@dataclass(frozen=True, slots=True)
class _Silence:
    """The source was read to where it is, and has had nothing for so long."""

    lasted_ns: int


class _Intake(Generic[T]):
    """Puts the items of a stream into the engine, and keeps account of them."""

    def __init__(
        self,
        engine: WindowEngine[Hashable, T],
        get_event_time: Callable[[T], datetime],
        get_key: Callable[[T], Hashable] | None,
        on_late: Callable[[T, Lateness], object] | None,
    ) -> None:
        self._engine, self._get_event_time, self._get_key = engine, get_event_time, get_key
        self._too_late = LateItems(on_late)
        self.accepted = 0

    @property
    def late(self) -> int:
        return self._too_late.count

    async def add(self, item: T) -> None:
        key = self._get_key(item) if self._get_key is not None else None
        ts_ns = event_time_ns(self._get_event_time, item)
        lateness = self._engine.add(key, ts_ns, item)
        if lateness is None:
            self.accepted += 1
        else:
            await self._too_late.take(item, key, ts_ns, lateness)


class WindowStream(Stream[WindowFrame[T]]):
    """The frames of `window_event_time`, and the account of its items: ``accepted + late`` is all it read."""

    def __init__(self, frames: AsyncGenerator[WindowFrame[T], None], intake: _Intake[T]) -> None:
        super().__init__(frames)
        self._intake = intake

    @property
    def accepted(self) -> int:
        """Items that joined a window."""
        return self._intake.accepted

    @property
    def late(self) -> int:
        """Items that were too late for any window."""
        return self._intake.late


def window_event_time(
    source: AsyncIterable[T],
    spec: WindowSpec,
    *,
    get_event_time: Callable[[T], datetime],
    get_key: Callable[[T], Hashable] | None = None,
    watermark_policy: WatermarkPolicy | None = None,
    flush_interval: float = 0.25,
    on_late: Callable[[T, Lateness], object] | None = None,
    idle_after: timedelta | None = None,
    key_ttl: timedelta | None = None,
) -> WindowStream[T]:
    """Group a stream into event-time windows per key, by the rules of `workers.core.windows.engine`.

    ``spec`` says which windows: `TumblingWindowSpec`, `HoppingWindowSpec`, `SessionWindowSpec` or `CalendarWindowSpec`.
    Each key has its own clock; without ``get_key`` there is one for all, and the frames' key is None. Naive datetimes
    are UTC. ``watermark_policy`` is `WatermarkPolicy`'s default (2 s of lag) where None. A window that a tick within
    the allowed lateness joins after it closed comes out again, whole, with the next ``rev``. When the source ends every
    window that has not come out does, key by key in the order of their first items, with trigger ``end``.

    With ``spec.emit_partial`` the open windows that changed come out every ``flush_interval`` seconds, as provisional
    frames, also while the source is silent.

    A key's own items alone move its clock, so the last window of a key that falls quiet waits for the end of the source
    unless one of these, both off where None, says otherwise:

    * ``idle_after``: an open window that changed comes out as a provisional frame once the time of *all* keys has
      reached ``end + lag + idle_after``. That time is the greatest event time of any (trigger ``idle``) plus how long
      the source, read to where it is, has been silent (trigger ``timeout``). Nothing is closed or made late by it.
    * ``key_ttl``: a key whose greatest event time is more than that behind the greatest of all is done with: its
      windows come out as final, with trigger ``expiry``, and it is forgotten, which bounds what a stream of ever new
      keys takes. The price: an item whose window began that far behind is late, whosever it is (reason ``expired``),
      so leave it off where keys follow one after the other, as in a file sorted by key.

    Without ``emit_partial`` and ``idle_after`` there are no provisional frames.

    An item too late for any window, or outside of an exchange's sessions, is given to ``on_late`` (plain or async) with
    the reason; without it the first one is logged as a warning. All are counted in the returned stream's ``late``.

    Raises ``ValueError`` where the policy's lag and allowed lateness are both 0 (by the lateness rule every tick would
    then be late), ``flush_interval`` is not positive, ``idle_after`` is negative, or ``key_ttl`` is less than a window,
    lag and allowed lateness together; ``TypeError`` where a duration is no timedelta. What ``source``,
    ``get_event_time``, ``get_key`` or ``on_late`` raise is raised to the reader after the frames that closed before,
    and so is a ``TypeError`` or ``ValueError`` for an event time that is no datetime or beyond what 64-bit nanoseconds
    hold (years 1680 to 2259). Windows still open then don't come out: they would be incomplete.
    """
    if not flush_interval > 0:
        raise ValueError(f"flush_interval is {flush_interval}; expected more than 0 seconds")
    rules = window_rules(spec, watermark_policy or WatermarkPolicy(), idle_after=idle_after, key_ttl=key_ttl)
    engine: WindowEngine[Hashable, T] = spec.windows().engine(
        rules, keep=lambda item: item, emit_partial=spec.emit_partial
    )
    intake = _Intake(engine, get_event_time, get_key, on_late)
    events: AsyncIterable[T | Literal[_Signal.FLUSH] | _Silence] = source
    if spec.emit_partial or idle_after is not None:
        events = _with_time(source, flush_interval if spec.emit_partial else None, engine.next_timeout_ns)
    return WindowStream(_event_time_frames(events, engine, intake.add), intake)


async def _event_time_frames(
    source: AsyncIterable[T | Literal[_Signal.FLUSH] | _Silence],
    engine: WindowEngine[Hashable, T],
    add: Callable[[T], Awaitable[None]],
) -> AsyncGenerator[WindowFrame[T], None]:
    async with OwnedSource(source) as events:
        async for event in events:
            if event is _Signal.FLUSH:
                engine.flush_partial()
            elif isinstance(event, _Silence):
                engine.settle(event.lasted_ns)
            else:
                await add(event)
                engine.settle()
            for emission in engine.take_emissions():
                yield frame_from_emission(emission)
    engine.finish()
    for emission in engine.take_emissions():
        yield frame_from_emission(emission)


async def _with_time(
    source: AsyncIterable[T], flush_interval_s: float | None, next_timeout_ns: Callable[[], int | None]
) -> AsyncGenerator[T | Literal[_Signal.FLUSH] | _Silence, None]:
    """The source's items; every ``flush_interval_s`` a flush, also while the source is silent; and its silence, when it
    has lasted as long as ``next_timeout_ns`` asks for (None: it asks for nothing)."""
    clock = time.monotonic_ns
    interval_ns = None if flush_interval_s is None else max(int(flush_interval_s * NS_PER_SECOND), 1)
    async with pumped(source, READ_AHEAD, lambda item: item) as channel:
        flush_at_ns = None if interval_ns is None else clock() + interval_ns
        silent_since_ns: int | None = None
        while True:
            now_ns = clock()
            if flush_at_ns is not None and interval_ns is not None and flush_at_ns <= now_ns:
                flush_at_ns = now_ns + interval_ns
                yield _Signal.FLUSH
                continue
            if len(channel):
                silent_since_ns = None
            elif silent_since_ns is None:
                silent_since_ns = now_ns  # not before: while the channel was full the source was not read
            timeout_ns = next_timeout_ns()
            silence_at_ns = None if timeout_ns is None or silent_since_ns is None else silent_since_ns + timeout_ns
            if silence_at_ns is not None and silent_since_ns is not None and silence_at_ns <= now_ns:
                yield _Silence(now_ns - silent_since_ns)
                continue
            wake_at_ns = min((at_ns for at_ns in (flush_at_ns, silence_at_ns) if at_ns is not None), default=None)
            left_s = None if wake_at_ns is None else (wake_at_ns - now_ns) / NS_PER_SECOND
            item = await take_within(channel, left_s)
            if item is DRAINED:
                return
            if item is not TIMED_OUT:
                silent_since_ns = None
                yield item


tumbling_window_event_time = window_event_time
"""The name of `window_event_time` for those who think of tumbling windows; it takes the same."""


def tumbling_window(
    source: AsyncIterable[T], size: timedelta, *, clock: Callable[[], int] = time.time_ns
) -> Stream[WindowFrame[T]]:
    """Group a stream into windows by the time at which its items arrive; frames have the key None.

    Windows are aligned to the epoch by ``clock`` (nanoseconds since the epoch, UTC). A window comes out when its time
    is over, also while the source is silent; windows without items don't come out. When the source ends, the open
    window does, with trigger ``end``. Time never goes back here: should the clock do so, items count for the latest
    time seen. The source is read at most `READ_AHEAD` items ahead.

    Raises ``TypeError`` where the size is no timedelta, ``ValueError`` where it is not positive. What ``source`` or
    ``clock`` raise is raised to the reader after the frames that closed before; the open window then doesn't come out.
    """
    return Stream(_arrival_frames(source, Tumbling(timedelta_to_ns(TumblingWindowSpec(size).size)), clock))


async def _arrival_frames(
    source: AsyncIterable[T], windows: Tumbling, clock: Callable[[], int]
) -> AsyncGenerator[WindowFrame[T], None]:
    start_ns = end_ns = now_ns = -(2**63)
    items: list[T] = []

    def closed(trigger: Trigger) -> WindowFrame[T]:
        taken = tuple(items)
        items.clear()
        return WindowFrame(None, datetime_from_ns(start_ns), datetime_from_ns(end_ns), taken, trigger=trigger)

    async with pumped(source, READ_AHEAD, lambda item: (clock(), item)) as channel:
        while True:
            left_s = min((end_ns - clock()) / NS_PER_SECOND, CLOCK_CHECK_S) if items else None
            arrival = await take_within(channel, left_s)
            if arrival is DRAINED:
                break
            if arrival is TIMED_OUT:
                # What arrived in time is in the channel by then, so nothing of this window can follow.
                if clock() >= end_ns and not len(channel):
                    now_ns = max(now_ns, end_ns)
                    yield closed("watermark")
                continue
            now_ns = max(now_ns, arrival[0])
            if items and now_ns >= end_ns:
                yield closed("watermark")
            if not items:
                start_ns, end_ns = windows.assign(now_ns)[0]
            items.append(arrival[1])
    if items:
        yield closed("end")
