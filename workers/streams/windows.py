"""Streams to streams, inside one process: windows by event time and by arrival, and the plain operators.

Every function takes an async iterable and returns an async iterator. The rules that hold for all of them:

* What a source or a given function raises comes out of the iterator, after everything that was complete before it.
* A stream owns its source: it is closed (its ``aclose`` awaited, where it has one) when the stream ends or is closed.
* Reading is lazy: nothing is read before the first ``anext``. Streams that also watch the time (said where it is so)
  read at most `READ_AHEAD` items ahead of their reader.
* A cancelled ``anext``, as by a timeout around it, takes nothing and ends nothing: the next one goes on from there
  (`workers.streams.channel.Stream`).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Final, Literal, TypeVar, overload

from workers.core.frames import WindowFrame, frame_from_emission
from workers.core.reasons import Reason, Trigger
from workers.core.watermark import WatermarkPolicy
from workers.core.windows.assign import Tumbling, TumblingWindowSpec, WindowSpec
from workers.core.windows.choose import make_engine
from workers.core.windows.engine import Lateness, WindowEngine, WindowRules
from workers.streams.channel import DRAINED, Drained, OwnedSource, Pipe, Stream
from workers.times import (
    MAX_EVENT_TIME_NS,
    NS_PER_SECOND,
    check_timedelta,
    datetime_from_ns,
    datetime_to_ns,
    format_duration,
    format_instant,
    timedelta_to_ns,
)

__all__ = [
    "WindowStream",
    "buffer_async",
    "filter_async",
    "map_async",
    "tumbling_window",
    "tumbling_window_event_time",
    "window_event_time",
]

T = TypeVar("T")
R = TypeVar("R")
V = TypeVar("V")

READ_AHEAD: Final = 64
"""Items that a stream which watches the time may have read before its reader asks for them."""

CLOCK_CHECK_S: Final = 0.25
"""How often an open arrival-time window looks at the wall clock, so that a clock that was set is noticed."""

_log = logging.getLogger(__name__)


class _Signal(Enum):
    FLUSH = "flush"
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class _Silence:
    """The source was read to where it is, and has had nothing for so long."""

    lasted_ns: int


@dataclass(slots=True)
class _Tally:
    accepted: int = 0
    late: int = 0


class WindowStream(Stream[WindowFrame[T]]):
    """The frames of `window_event_time`, and the account of its items: ``accepted + late`` is all it read."""

    def __init__(self, frames: AsyncGenerator[WindowFrame[T], None], tally: _Tally) -> None:
        super().__init__(frames)
        self._tally = tally

    @property
    def accepted(self) -> int:
        """Items that joined a window."""
        return self._tally.accepted

    @property
    def late(self) -> int:
        """Items that were too late for any window."""
        return self._tally.late


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
    policy = watermark_policy if watermark_policy is not None else WatermarkPolicy()
    if not flush_interval > 0:
        raise ValueError(f"flush_interval is {flush_interval}; expected more than 0 seconds")
    rules = _window_rules(spec, policy, idle_after=idle_after, key_ttl=key_ttl)
    engine: WindowEngine[Hashable, T] = make_engine(rules, keep=lambda item: item, emit_partial=spec.emit_partial)
    tally = _Tally()

    async def add(item: T) -> None:
        key = get_key(item) if get_key is not None else None
        ts_ns = _event_time_ns(get_event_time, item)
        lateness = engine.add(key, ts_ns, item)
        if lateness is None:
            tally.accepted += 1
            return
        tally.late += 1
        if on_late is not None:
            await _value(on_late(item, lateness))
        elif tally.late == 1:
            _warn_late(key, ts_ns, lateness)

    events: AsyncIterable[T | Literal[_Signal.FLUSH] | _Silence] = source
    if spec.emit_partial or idle_after is not None:
        events = _with_time(source, flush_interval if spec.emit_partial else None, engine.next_timeout_ns)
    return WindowStream(_event_time_frames(events, engine, add), tally)


def _window_rules(
    spec: WindowSpec,
    policy: WatermarkPolicy,
    *,
    idle_after: timedelta | None = None,
    key_ttl: timedelta | None = None,
) -> WindowRules:
    """The engine's rules. Raises ``TypeError`` and ``ValueError`` for durations that are none or don't fit together."""
    assigner = spec.assigner()
    for name, value in (("idle_after", idle_after), ("key_ttl", key_ttl)):
        if value is not None:
            check_timedelta(name, value)
    if idle_after is not None and idle_after < timedelta(0):
        raise ValueError(f"idle_after is {idle_after}; expected 0 or more")
    least_ns = assigner.longest_ns + policy.lag_ns + policy.lateness_ns
    if key_ttl is not None and timedelta_to_ns(key_ttl) < least_ns:
        raise ValueError(
            f"key_ttl is {key_ttl}; expected at least window + lag + allowed lateness = {format_duration(least_ns)}: "
            "a key that is no further behind may still have open windows"
        )
    return WindowRules(
        assigner,
        policy.lag_ns,
        policy.lateness_ns,
        idle_after_ns=None if idle_after is None else timedelta_to_ns(idle_after),
        key_ttl_ns=None if key_ttl is None else timedelta_to_ns(key_ttl),
    )


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


def _event_time_ns(get_event_time: Callable[[T], datetime], item: T, name: str = "get_event_time") -> int:
    """The event time of an item; ``name`` is what the user calls the function, for errors."""
    found = get_event_time(item)
    if not isinstance(found, datetime):
        raise TypeError(f"{name} returned {found!r} ({type(found).__name__}); expected a datetime")
    ts_ns = datetime_to_ns(found)
    if not -MAX_EVENT_TIME_NS <= ts_ns <= MAX_EVENT_TIME_NS:
        raise ValueError(f"{name} returned {found}, which does not fit 64-bit nanoseconds since 1970")
    return ts_ns


def _warn_late(key: Hashable, ts_ns: int, lateness: Lateness) -> None:
    if lateness.reason is Reason.OUTSIDE_SESSION:
        _log.warning(
            "an item with key %r and event time %s is outside of all sessions; pass on_late to have such items, they "
            "are only counted from here on",
            key,
            format_instant(ts_ns),
        )
        return
    _log.warning(
        "an item with key %r and event time %s is too late for its window (watermark %s, %s below the threshold); "
        "pass on_late to have such items, they are only counted from here on",
        key,
        format_instant(ts_ns),
        format_instant(lateness.watermark_ns),
        format_duration(lateness.late_by_ns),
    )


async def _with_time(
    source: AsyncIterable[T], flush_interval_s: float | None, next_timeout_ns: Callable[[], int | None]
) -> AsyncGenerator[T | Literal[_Signal.FLUSH] | _Silence, None]:
    """The source's items; every ``flush_interval_s`` a flush, also while the source is silent; and its silence, when it
    has lasted as long as ``next_timeout_ns`` asks for (None: it asks for nothing)."""
    clock = time.monotonic_ns
    interval_ns = None if flush_interval_s is None else max(int(flush_interval_s * NS_PER_SECOND), 1)
    async with _pumped(source, READ_AHEAD, _same) as channel:
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
            item = await _take_within(channel, left_s)
            if item is DRAINED:
                return
            if item is not _Signal.TIMEOUT:
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

    async with _pumped(source, READ_AHEAD, lambda item: (clock(), item)) as channel:
        while True:
            left_s = min((end_ns - clock()) / NS_PER_SECOND, CLOCK_CHECK_S) if items else None
            arrival = await _take_within(channel, left_s)
            if arrival is DRAINED:
                break
            if arrival is _Signal.TIMEOUT:
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


def buffer_async(source: AsyncIterable[T], capacity: int) -> Stream[T]:
    """The same items, read up to ``capacity`` ahead of the reader, so that a slow source and a slow reader overlap.

    Reading begins with the first ``anext``. Raises ``ValueError`` where the capacity is less than 1.
    """
    if capacity < 1:
        raise ValueError(f"capacity is {capacity}; expected 1 or more")
    return Stream(_items(source), ahead=capacity)


async def _items(source: AsyncIterable[T]) -> AsyncGenerator[T, None]:
    async with OwnedSource(source) as items:
        async for item in items:
            yield item


def filter_async(source: AsyncIterable[T], predicate: Callable[[T], object]) -> Stream[T]:
    """The items for which ``predicate`` (plain or async) is true, in their order."""
    return Stream(_filtered(source, predicate))


async def _filtered(source: AsyncIterable[T], predicate: Callable[[T], object]) -> AsyncGenerator[T, None]:
    async with OwnedSource(source) as items:
        async for item in items:
            if await _value(predicate(item)):
                yield item


@overload
def map_async(source: AsyncIterable[T], fn: Callable[[T], Awaitable[R]], *, concurrency: int = 1) -> Stream[R]: ...
@overload
def map_async(source: AsyncIterable[T], fn: Callable[[T], R], *, concurrency: int = 1) -> Stream[R]: ...
def map_async(source: AsyncIterable[T], fn: Callable[[T], Awaitable[R] | R], *, concurrency: int = 1) -> Stream[R]:
    """``fn`` (plain or async) of each item, in the items' order, with up to ``concurrency`` calls at a time.

    With more than one, results that are not read yet count as calls, so memory is bounded too. A call that fails raises
    in its turn, after the results before it; calls that still run are cancelled when the stream ends or is closed.
    Raises ``ValueError`` where ``concurrency`` is less than 1.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}; expected 1 or more")
    return Stream(_mapped(source, fn) if concurrency == 1 else _mapped_concurrently(source, fn, concurrency))


async def _mapped(source: AsyncIterable[T], fn: Callable[[T], Awaitable[R] | R]) -> AsyncGenerator[R, None]:
    async with OwnedSource(source) as items:
        async for item in items:
            yield await _value(fn(item))


async def _mapped_concurrently(
    source: AsyncIterable[T], fn: Callable[[T], Awaitable[R] | R], concurrency: int
) -> AsyncGenerator[R, None]:
    running: set[asyncio.Task[R]] = set()

    async def call(item: T) -> R:
        return await _value(fn(item))

    def begin(item: T) -> asyncio.Task[R]:
        task = asyncio.get_running_loop().create_task(call(item))
        running.add(task)
        return task

    try:
        # One less in the channel: the call whose result is awaited here is out of it already.
        async with _pumped(source, concurrency - 1, begin) as tasks:
            async for task in tasks:
                result = await task
                running.discard(task)
                yield result
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _value(result: Awaitable[R] | R) -> R:
    """What a plain or async function returned."""
    if inspect.isawaitable(result):
        awaited: R = await result
        return awaited
    return result


def _same(item: T) -> T:
    return item


@asynccontextmanager
async def _pumped(source: AsyncIterable[T], capacity: int, make: Callable[[T], V]) -> AsyncIterator[Pipe[V]]:
    """A channel with ``make(item)`` for each item of the source, fed by a task that ends with the block.

    So waiting for an item can end early, as it must to watch the time, without cancelling the source half-way.
    """
    channel: Pipe[V] = Pipe(capacity)
    pump = asyncio.get_running_loop().create_task(_pump(source, channel, make), name="workers.streams.windows")

    def on_done(_: asyncio.Task[None]) -> None:
        if not channel.closed:  # cancelled by somebody else before its first step: nobody else would tell the reader
            channel.fail(asyncio.CancelledError())

    pump.add_done_callback(on_done)
    try:
        yield channel
    finally:
        channel.close()
        pump.cancel()
        await asyncio.wait({pump})
        if not pump.cancelled():
            pump.result()  # raises what the closing of the source raised


async def _pump(source: AsyncIterable[T], channel: Pipe[V], make: Callable[[T], V]) -> None:
    try:
        async with OwnedSource(source) as items:
            while True:
                await channel.room()  # first, so that nothing lies between an item's arrival and its being in
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    break
                await channel.put(make(item))
    except BaseException as error:
        if channel.closed:  # nobody reads it any more
            raise
        channel.fail(error)
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
    else:
        channel.close()


async def _take_within(
    channel: Pipe[V], timeout_s: float | None
) -> V | Literal[Drained.DRAINED] | Literal[_Signal.TIMEOUT]:
    """The channel's next item, its end, or that neither came in time. What the channel failed with is raised."""
    if timeout_s is None or len(channel):
        return await channel.take()
    timer = asyncio.timeout(timeout_s)
    try:
        async with timer:
            return await channel.take()
    except TimeoutError:
        if timer.expired():
            return _Signal.TIMEOUT
        raise  # the source's own
