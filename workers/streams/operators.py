"""Operators on streams inside one process: drop repeats, slow down, route, and make bars of ticks.

They work on any async iterable, a `workers.Channel` included, under the rules of `workers.streams.windows` (where
`map_async`, `filter_async` and `buffer_async` are): a failure comes out where the stream is consumed, after everything
that was complete before it; a stream owns and closes its source; nothing is read before the first ``anext``.
``key_fn``, ``route_key`` and ``on_late`` may be plain or async.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Final, TypeVar

from workers.core.watermark import WatermarkPolicy
from workers.core.windows.engine import Emission, Lateness, WindowEngine
from workers.streams.channel import Channel, OwnedSource, Stream, raisable
from workers.streams.specs import TumblingWindowSpec
from workers.streams.windows import _event_time_ns, _value, _warn_late, _window_rules
from workers.times import NS_PER_SECOND, check_timedelta, datetime_from_ns, timedelta_to_ns

__all__ = ["Bar", "deduplicate", "resample_ohlc", "router", "throttle"]

T = TypeVar("T")

DEFAULT_ROUTE: Final = "default"
BURSTS_PER_SECOND: Final = 100
"""A default burst is a hundredth of a second's worth: the event loop's timers are hardly finer."""


# -- deduplicate ------------------------------------------------------------------------------------------------------


def deduplicate(
    source: AsyncIterable[T],
    *,
    key_fn: Callable[[T], Hashable | Awaitable[Hashable]],
    ttl: timedelta,
    clock: Callable[[], int] = time.monotonic_ns,
) -> Stream[T]:
    """The items whose key was not seen in the last ``ttl``; the others are dropped.

    The time counts from a key's first item, by arrival: repeats don't prolong it, and an item ``ttl`` or more after
    that first one goes through and starts anew. So memory holds no more keys than arrive within one ``ttl``. ``clock``
    gives nanoseconds; should it go back, it counts as standing still.

    Raises ``TypeError`` where ``ttl`` is no timedelta, ``ValueError`` where it is not positive. What ``source``,
    ``key_fn`` or ``clock`` raise is raised to the reader, and so is a ``TypeError`` for a key that can't be hashed.
    """
    check_timedelta("ttl", ttl)
    if ttl <= timedelta(0):
        raise ValueError(f"ttl is {ttl}; expected more than zero")
    return Stream(_deduplicated(source, key_fn, timedelta_to_ns(ttl), clock))


async def _deduplicated(
    source: AsyncIterable[T],
    key_fn: Callable[[T], Hashable | Awaitable[Hashable]],
    ttl_ns: int,
    clock: Callable[[], int],
) -> AsyncGenerator[T, None]:
    forget_at_ns: dict[Hashable, int] = {}  # in the order of arrival, so also of these times
    now_ns = -(2**63)
    async with OwnedSource(source) as items:
        async for item in items:
            key = await _value(key_fn(item))
            now_ns = max(now_ns, clock())
            while forget_at_ns:
                oldest = next(iter(forget_at_ns))
                if forget_at_ns[oldest] > now_ns:
                    break
                del forget_at_ns[oldest]
            if key not in forget_at_ns:
                forget_at_ns[key] = now_ns + ttl_ns
                yield item


# -- throttle ---------------------------------------------------------------------------------------------------------


def throttle(
    source: AsyncIterable[T],
    *,
    rate_limit: float,
    burst: int | None = None,
    clock: Callable[[], int] = time.monotonic_ns,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> Stream[T]:
    """The same items, at most ``rate_limit`` a second; those that come faster wait, none is dropped.

    A token bucket of ``burst`` tokens: in any time ``t`` at most ``burst + rate_limit * t`` items come out, of which
    ``burst`` may come at once. By default that is a hundredth of a second's worth and at least 1: up to 100 items a
    second are evenly spaced. While an item waits nothing is read, so the source feels the limit. ``clock`` gives
    nanoseconds, ``sleep`` takes seconds.

    Raises ``ValueError`` where ``rate_limit`` is not positive and finite or ``burst`` is less than 1. What ``source``
    raises is raised to the reader.
    """
    if not 0 < rate_limit < math.inf:
        raise ValueError(f"rate_limit is {rate_limit}; expected items per second, more than 0 and finite")
    if burst is None:
        burst = max(1, int(rate_limit) // BURSTS_PER_SECOND)
    if burst < 1:
        raise ValueError(f"burst is {burst}; expected 1 or more")
    spacing_ns = math.ceil(NS_PER_SECOND / Fraction(str(rate_limit)))  # rounded up: never above the limit
    return Stream(_throttled(source, spacing_ns, burst, clock, sleep))


async def _throttled(
    source: AsyncIterable[T],
    spacing_ns: int,
    burst: int,
    clock: Callable[[], int],
    sleep: Callable[[float], Awaitable[object]],
) -> AsyncGenerator[T, None]:
    # The bucket as the time at which it will be full: a token is a spacing before that.
    full_at_ns = -(2**63)
    depth_ns = (burst - 1) * spacing_ns
    async with OwnedSource(source) as items:
        async for item in items:
            while (wait_ns := full_at_ns - depth_ns - clock()) > 0:  # a timer may end a little early
                await sleep(wait_ns / NS_PER_SECOND)
            full_at_ns = max(full_at_ns, clock()) + spacing_ns
            yield item


# -- router -----------------------------------------------------------------------------------------------------------


async def router(
    source: AsyncIterable[T],
    routes: Mapping[str, Channel[T]],
    *,
    route_key: Callable[[T], str | Awaitable[str]],
) -> None:
    """Put each item into the channel that ``route_key`` names, until the source ends; then close all channels.

    A name that is not in ``routes`` means ``routes["default"]``, where there is one. A full channel makes the router
    wait, and with it the source and the other routes: **read all channels, concurrently**.

    Whatever goes wrong, ``source`` or ``route_key`` raising, an unknown name (``KeyError``), a channel that was closed
    by its reader (`ChannelClosed`) or a cancelled router, is raised here *and* in the readers of all channels, after
    what they hold: no reader mistakes it for the end. A ``CancelledError`` of the source's own is raised as the cause
    of a `WorkersError`: it is not the router that was cancelled.
    """
    try:
        async with OwnedSource(source) as items:
            async for item in items:
                name = await _value(route_key(item))
                channel = routes.get(name) or routes.get(DEFAULT_ROUTE)
                if channel is None:
                    known = ", ".join(map(repr, routes)) or "none at all"
                    raise KeyError(f"route_key returned {name!r}; the routes are {known}, and there is no 'default'")
                await channel.put(item)
    except BaseException as error:
        for channel in routes.values():
            channel.fail(error)
        if isinstance(error, asyncio.CancelledError) and not _is_cancelled():
            raise raisable(error) from error
        raise
    for channel in routes.values():
        channel.close()


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


# -- resample_ohlc ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bar:
    """Prices of one symbol within ``[start, end)``, aware UTC; ``count`` is how many there were.

    ``open`` and ``close`` go by event time: at equal times the first to arrive opens and the last closes.
    """

    symbol: str
    open: float
    high: float
    low: float
    close: float
    start: datetime
    end: datetime
    count: int


@dataclass(slots=True)
class _Prices:
    open: float
    high: float
    low: float
    close: float
    open_ns: int
    close_ns: int


class _PriceFolding:
    """The engine's aggregation over ``(event time, price)``."""

    def create(self) -> _Prices | None:
        return None

    def add(self, state: _Prices | None, tick: tuple[int, float]) -> _Prices:
        ts_ns, price = tick
        if state is None:
            return _Prices(price, price, price, price, ts_ns, ts_ns)
        if ts_ns < state.open_ns:
            state.open, state.open_ns = price, ts_ns
        if ts_ns >= state.close_ns:
            state.close, state.close_ns = price, ts_ns
        if price > state.high:
            state.high = price
        if price < state.low:
            state.low = price
        return state

    def result(self, state: _Prices) -> Mapping[str, float]:
        return {"open": state.open, "high": state.high, "low": state.low, "close": state.close}


def resample_ohlc(
    source: AsyncIterable[T],
    *,
    get_symbol: Callable[[T], str],
    get_price: Callable[[T], float],
    get_time: Callable[[T], datetime],
    window: timedelta,
    watermark_lag: timedelta = timedelta(seconds=2),
    on_late: Callable[[T, Lateness], object] | None = None,
    key_ttl: timedelta | None = None,
) -> Stream[Bar]:
    """Bars of ``window`` per symbol, by event time (naive datetimes are UTC) and the rules of
    `workers.core.windows.engine`.

    A bar comes out once its symbol's watermark, the greatest event time less ``watermark_lag``, reaches the bar's end;
    each symbol has its own. When the source ends the rest come out, symbol by symbol in the order of their first items.
    Every bar comes once and is complete but for items that were too late: those are given to ``on_late`` (plain or
    async) with the reason; without it the first one is logged as a warning.

    A symbol that falls quiet keeps its last bar until the source ends. With ``key_ttl`` it comes out, and the symbol is
    forgotten, once any symbol is more than that ahead; items whose bar began that far behind are then late, whosever
    they are (reason ``expired``).

    Raises ``TypeError`` where a duration is no timedelta, ``ValueError`` where ``window`` or ``watermark_lag`` is not
    positive (without lag every item would be late) or ``key_ttl`` is less than ``window + watermark_lag``. What
    ``source`` or a given function raises is raised to the reader, and so are a ``TypeError`` for a time that is no
    datetime and a ``ValueError`` for a price that is not finite. Bars still open then don't come out.
    """
    check_timedelta("window", window)
    check_timedelta("watermark_lag", watermark_lag)
    if watermark_lag <= timedelta(0):
        raise ValueError(f"watermark_lag is {watermark_lag}; expected more than zero, or every item would be late")
    rules = _window_rules(TumblingWindowSpec(window), WatermarkPolicy(watermark_lag), key_ttl=key_ttl)
    engine: WindowEngine[str, tuple[int, float]] = WindowEngine(rules, folding=_PriceFolding())
    warned = False

    async def add(item: T) -> None:
        nonlocal warned
        symbol, ts_ns, price = get_symbol(item), _event_time_ns(get_time, item, "get_time"), get_price(item)
        if not math.isfinite(price):
            raise ValueError(f"get_price returned {price!r} for {symbol!r}; expected a finite number")
        lateness = engine.add(symbol, ts_ns, (ts_ns, price))
        if lateness is None:
            return
        if on_late is not None:
            await _value(on_late(item, lateness))
        elif not warned:
            warned = True
            _warn_late(symbol, ts_ns, lateness)

    return Stream(_bars(source, engine, add))


async def _bars(
    source: AsyncIterable[T], engine: WindowEngine[str, tuple[int, float]], add: Callable[[T], Awaitable[None]]
) -> AsyncGenerator[Bar, None]:
    async with OwnedSource(source) as items:
        async for item in items:
            await add(item)
            for emission in engine.take_emissions():
                yield _bar(emission)
    engine.finish()
    for emission in engine.take_emissions():
        yield _bar(emission)


def _bar(emission: Emission[str]) -> Bar:
    return Bar(
        emission.key,
        **emission.result,  # type: ignore[arg-type]  # the folding's four prices
        start=datetime_from_ns(emission.start_ns),
        end=datetime_from_ns(emission.end_ns),
        count=emission.count,
    )
