"""Bars of ticks, inside one process."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from workers.core.prices import Prices
from workers.core.watermark import WatermarkPolicy
from workers.core.windows.engine import WindowEngine
from workers.core.windows.window import Emission, Lateness
from workers.streams.event_time import LateItems, event_time_ns, window_rules
from workers.streams.specs import TumblingWindowSpec
from workers.streams.stream import OwnedSource, Stream
from workers.times import check_timedelta, datetime_from_ns

__all__ = ["Bar", "resample_ohlc"]

T = TypeVar("T")


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


class _PriceFolding:
    """The engine's aggregation over ``(event time, price)``."""

    def create(self) -> Prices:
        return Prices()

    def add(self, state: Prices, tick: tuple[int, float]) -> Prices:
        ts_ns, price = tick
        state.add(price, ts_ns)
        return state

    def result(self, state: Prices) -> Mapping[str, float]:
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
    rules = window_rules(TumblingWindowSpec(window), WatermarkPolicy(watermark_lag), key_ttl=key_ttl)
    engine: WindowEngine[str, tuple[int, float]] = WindowEngine(rules, folding=_PriceFolding())
    too_late = LateItems(on_late)

    async def add(item: T) -> None:
        symbol, ts_ns, price = get_symbol(item), event_time_ns(get_time, item, "get_time"), get_price(item)
        if not math.isfinite(price):
            raise ValueError(f"get_price returned {price!r} for {symbol!r}; expected a finite number")
        lateness = engine.add(symbol, ts_ns, (ts_ns, price))
        if lateness is not None:
            await too_late.take(item, symbol, ts_ns, lateness)

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
